// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

// entry is an object and the file that it becomes. There may be very many, so its
// texts share one piece of memory.
type entry struct {
	object object
	// rel is the path below the destination, cleaned, with slashes.
	rel string
	// uri names the object for people and for what is noted on disk.
	uri string
}

// layout maps listed objects to files by KServe's rules: an object whose key is
// the source itself becomes its base name and is alone; all others keep what their
// keys have beyond the source; keys that end in a slash stand for folders and are
// skipped.
type layout struct {
	bucket, prefix string
	filter         Filter

	entries []entry
	// listed counts objects, filtered out or not, and dropped are the paths of those
	// that were.
	listed  int
	dropped []string
	// indexed means that an index of safetensors files is among them.
	indexed bool
	err     error
}

// take lays one more object out, and reports whether more may follow.
func (l *layout) take(o object) bool {
	l.listed++
	if strings.HasSuffix(o.key, "/") {
		return true
	}
	scheme := len("s3://") + len(l.bucket) + len("/")
	text := "s3://" + l.bucket + "/" + o.key + o.etag
	o.key, o.etag = text[scheme:scheme+len(o.key)], text[scheme+len(o.key):]
	rel := strings.TrimLeft(strings.TrimPrefix(o.key, l.prefix), "/")
	exact := o.key == l.prefix
	if exact {
		rel = o.key[strings.LastIndexByte(o.key, '/')+1:]
		l.entries, l.dropped = nil, nil
	}
	l.indexed = l.indexed || strings.HasSuffix(rel, indexSuffix)
	if !exact && !l.filter.Wants(rel) {
		l.dropped = append(l.dropped, rel)
		return true
	}
	clean, err := cleanRel(o.key, rel)
	if err != nil {
		l.err = err
		return false
	}
	l.entries = append(l.entries, entry{object: o, rel: clean, uri: text[:scheme+len(o.key)]})
	return !exact
}

// done returns the files by path. Keys that would leave the destination, or that
// need one path for two files, are refused, because no tree on disk can hold them.
func (l *layout) done() ([]entry, error) {
	if l.err != nil {
		return nil, l.err
	}
	byPath := func(a, b entry) int { return strings.Compare(a.rel, b.rel) }
	if !slices.IsSortedFunc(l.entries, byPath) {
		slices.SortStableFunc(l.entries, byPath)
	}
	folder := "."
	for i, e := range l.entries {
		if i > 0 && l.entries[i-1].rel == e.rel {
			return nil, unsafeKey(e.object.key, "it needs the same path as key %q", l.entries[i-1].object.key)
		}
		if dir := path.Dir(e.rel); dir != folder {
			folder = dir
			if err := refuseFilesAsFolders(l.entries, e); err != nil {
				return nil, err
			}
		}
	}
	return l.entries, nil
}

// find returns the entry of a path, or nil. Entries must be in the order of paths.
func find(entries []entry, rel string) *entry {
	at, ok := slices.BinarySearchFunc(entries, rel, func(e entry, rel string) int { return strings.Compare(e.rel, rel) })
	if !ok {
		return nil
	}
	return &entries[at]
}

// all returns the paths of everything that was listed, filtered out or not.
func (l *layout) all() map[string]bool {
	paths := map[string]bool{}
	for _, e := range l.entries {
		paths[e.rel] = true
	}
	for _, rel := range l.dropped {
		paths[path.Clean(rel)] = true
	}
	return paths
}

// cleanRel returns rel as the file system would read it, or an ExitError if that
// lies outside the destination or within the preloader's own files.
func cleanRel(key, rel string) (string, error) {
	if strings.ContainsRune(rel, 0) {
		return "", unsafeKey(key, "it holds a zero byte")
	}
	for element := range strings.SplitSeq(rel, "/") {
		if element == ".." {
			return "", unsafeKey(key, "it would be written outside the destination")
		}
		if len(element) > 255 {
			return "", unsafeKey(key, "a path element is longer than 255 bytes")
		}
	}
	clean := path.Clean(rel)
	if clean == "." || clean == "/" {
		return "", unsafeKey(key, "it names no file")
	}
	if first, _, _ := strings.Cut(clean, "/"); isOwn(first) {
		return "", unsafeKey(key, "it collides with the preloader's own files")
	}
	return clean, nil
}

// isOwn reports whether a name at the top of a destination is the preloader's.
func isOwn(name string) bool { return name == workDir || name == markerName || name == lockName }

// refuseFilesAsFolders finds keys such as `a` beside `a/b`.
func refuseFilesAsFolders(entries []entry, e entry) error {
	for dir := path.Dir(e.rel); dir != "."; dir = path.Dir(dir) {
		if other := find(entries, dir); other != nil {
			return unsafeKey(e.object.key, "key %q needs the same path as a file", other.object.key)
		}
	}
	return nil
}

func unsafeKey(key, why string, args ...any) error {
	f := configFailure("Rename or remove the object, or exclude it with STORAGE_IGNORE_PATTERNS.", why, args...)
	f.Reason = "UnsafeKey"
	f.Cause = "object key " + strconv.Quote(key) + " cannot become a file: " + f.Cause
	return f
}
