// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"
)

// layout maps listed objects to files by KServe's rules: an object whose key is
// the source itself becomes its base name and is alone; all others keep what their
// keys have beyond the source; keys that end in a slash stand for folders and are
// skipped.
type layout struct {
	bucket, prefix string
	filter         Filter

	files *catalog
	// listed counts objects, filtered out or not, and dropped are the paths of those
	// that were.
	listed  int
	dropped *catalog
	err     error
}

func newLayout(bucket, prefix string, filter Filter) *layout {
	return &layout{bucket: bucket, prefix: prefix, filter: filter, files: &catalog{}, dropped: &catalog{}}
}

// take lays one more object out, and reports whether more may follow.
func (l *layout) take(o object) bool {
	l.listed++
	if strings.HasSuffix(o.key, "/") {
		return true
	}
	rel := strings.TrimLeft(strings.TrimPrefix(o.key, l.prefix), "/")
	exact := o.key == l.prefix
	if exact {
		rel = o.key[strings.LastIndexByte(o.key, '/')+1:]
		l.free()
	}
	if !exact && !l.filter.Wants(rel) {
		return l.add(l.dropped, entry{rel: path.Clean(rel)})
	}
	clean, err := cleanRel(o.key, rel)
	if err != nil {
		l.err = err
		return false
	}
	return l.add(l.files, entry{object: o, rel: clean, uri: "s3://" + l.bucket + "/" + o.key}) && !exact
}

func (l *layout) add(to *catalog, e entry) bool {
	if !to.add(e) {
		l.err = configFailure("Pack the files into archives.", "there are too many files, more than %d", l.listed)
	}
	return l.err == nil
}

func (l *layout) free() {
	l.files.free()
	l.dropped.free()
}

// done sorts the files by path. Keys that would leave the destination, or that
// need one path for two files, are refused, because no tree on disk can hold them.
func (l *layout) done() error {
	if l.err != nil {
		return l.err
	}
	l.files.sort()
	l.dropped.sort()
	var folder []byte
	for i := range l.files.len() {
		rel := l.files.path(i)
		if i > 0 && bytes.Equal(l.files.path(i-1), rel) {
			return unsafeKey(l.key(i), "it needs the same path as key %q", l.key(i-1))
		}
		dir := rel[:max(0, bytes.LastIndexByte(rel, '/'))]
		if bytes.Equal(dir, folder) {
			continue
		}
		folder = dir
		if err := l.refuseFilesAsFolders(i, string(dir)); err != nil {
			return err
		}
	}
	return nil
}

func (l *layout) key(i int) string { return l.files.entry(i).object.key }

// refuseFilesAsFolders finds keys such as `a` beside `a/b`.
func (l *layout) refuseFilesAsFolders(i int, dir string) error {
	for ; dir != "." && dir != ""; dir = path.Dir(dir) {
		if other, found := l.files.find(dir); found {
			return unsafeKey(l.key(i), "key %q needs the same path as a file", l.key(other))
		}
	}
	return nil
}

// cleanRel returns rel as the file system would read it, or an ExitError if that
// lies outside the destination or within the preloader's own files.
func cleanRel(key, rel string) (string, error) {
	if strings.ContainsRune(rel, 0) {
		return "", unsafeKey(key, "it holds a zero byte")
	}
	if !utf8.ValidString(rel) {
		return "", unsafeKey(key, "it is not UTF-8")
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

func unsafeKey(key, why string, args ...any) error {
	f := configFailure("Rename or remove the object, or exclude it with STORAGE_IGNORE_PATTERNS.", why, args...)
	f.Reason = "UnsafeKey"
	f.Cause = "object key " + strconv.Quote(key) + " cannot become a file: " + f.Cause
	return f
}
