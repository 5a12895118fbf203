// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"path"
	"strconv"
	"strings"
)

// entry is an object and the file that it becomes.
type entry struct {
	object object
	// rel is the path below the destination, cleaned, with slashes.
	rel string
}

// layout maps listed objects to files by KServe's rules: an object whose key is
// the source itself becomes its base name, all others keep what their keys have
// beyond the source; keys that end in a slash stand for folders and are
// skipped. Keys that would leave the destination, or that need one path for two
// files, are refused, because no tree on disk can hold them.
func layout(objects []object, prefix string, filter Filter) ([]entry, error) {
	entries := make([]entry, 0, len(objects))
	taken := make(map[string]string, len(objects))
	for _, o := range objects {
		if strings.HasSuffix(o.key, "/") {
			continue
		}
		exact := o.key == prefix
		rel := strings.TrimLeft(strings.TrimPrefix(o.key, prefix), "/")
		if exact {
			rel = path.Base(o.key)
		} else if !filter.Wants(rel) {
			continue
		}
		clean, err := cleanRel(o.key, rel)
		if err != nil {
			return nil, err
		}
		if other, ok := taken[clean]; ok {
			return nil, unsafeKey(o.key, "it needs the same path as key %q", other)
		}
		taken[clean] = o.key
		entries = append(entries, entry{object: o, rel: clean})
	}
	return entries, refuseFilesAsFolders(entries, taken)
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
	if first, _, _ := strings.Cut(clean, "/"); first == workDir || first == markerName {
		return "", unsafeKey(key, "it collides with the preloader's own files")
	}
	return clean, nil
}

// refuseFilesAsFolders finds keys such as `a` beside `a/b`.
func refuseFilesAsFolders(entries []entry, taken map[string]string) error {
	for _, e := range entries {
		for dir := path.Dir(e.rel); dir != "."; dir = path.Dir(dir) {
			if other, ok := taken[dir]; ok {
				return unsafeKey(e.object.key, "key %q needs the same path as a file", other)
			}
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
