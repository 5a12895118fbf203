// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A volume may outlive a version of its model. Files that this source brought and no
// longer has would be loaded together with those of today, as model servers take what
// they find. Files of other sources, those that are merely not asked for today, and
// whatever else is in the volume stay.

// isStale reports whether a file that is in place came from this source, which no longer
// has it.
func (p *pull) isStale(r *FileRecord) bool {
	if !p.brought(r) {
		return false
	}
	return !p.listed(r.Path)
}

// brought reports whether a file is where this source would have put its object.
func (p *pull) brought(r *FileRecord) bool {
	if !p.from(r.Object) {
		return false
	}
	if slices.Contains(p.archives, r.Object) {
		return true // what an archive held may be anywhere
	}
	key := strings.TrimPrefix(r.Object, "s3://"+p.at.bucket+"/")
	if key == p.at.path {
		return path.Base(key) == r.Path
	}
	return path.Clean(strings.TrimLeft(strings.TrimPrefix(key, p.at.path), "/")) == r.Path
}

// removeStale removes what the source no longer has, unless something new took its place.
func (p *pull) removeStale() error {
	removed, first := 0, ""
	for i := range p.others.having(stale) {
		p.others.set(i, missing)
		rel := string(p.others.path(i))
		if _, replaced := p.files.find(rel); replaced {
			continue
		}
		if err := p.store.root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diskFailure(p.store.dir, err)
		}
		removed++
		first = firstOf(first, rel)
		// Folders that held nothing else go too; the others cannot.
		for dir := path.Dir(rel); dir != "." && p.store.root.Remove(dir) == nil; {
			dir = path.Dir(dir)
		}
	}
	if removed > 0 {
		p.log.Info("Removed files of an earlier version, which the source no longer has", "files", removed, "first", first)
	}
	return nil
}
