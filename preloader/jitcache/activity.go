// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"io/fs"
	"os"
	"time"
)

// Activity is what changes in trees while an engine compiles. Two that are the same say
// that nothing was written in between.
type Activity struct {
	// Files counts what would be packed, and Bytes is the sum of the sizes.
	Files int
	Bytes int64
	// Newest is the time of the youngest file.
	Newest time.Time
}

// Look takes note of trees as they are now. What cannot be read is left out.
func Look(trees []Tree) Activity {
	var a Activity
	for _, tree := range trees {
		_ = fs.WalkDir(os.DirFS(tree.Path), ".", func(rel string, d fs.DirEntry, err error) error {
			switch {
			case err != nil || rel != "." && isPassing(d.Name()):
				if d != nil && d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case !d.Type().IsRegular():
				return nil
			}
			if info, err := d.Info(); err == nil {
				a.Files++
				a.Bytes += info.Size()
				if info.ModTime().After(a.Newest) {
					a.Newest = info.ModTime()
				}
			}
			return nil
		})
	}
	return a
}
