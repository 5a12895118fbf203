// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"io/fs"
	"path/filepath"
	"syscall"
)

// filling returns the options of a pull into the directories of pairs.
func (o Options) filling(pairs []Pair) Options {
	o.filled = nil
	for _, pair := range pairs {
		o.filled = append(o.filled, pair.Dest)
	}
	return o
}

// left returns how many bytes more the volume takes: by its file system, and by a bound that this does not know. The
// kubelet ends a pod whose emptyDir on disk holds more than its sizeLimit, and no file system tells of that.
func (s *store) left(o Options) (int64, bool) {
	free, known := s.free()
	if o.VolumeSize == 0 {
		return free, known
	}
	room := max(0, o.VolumeSize-allocatedIn(o.filled))
	if !known {
		return room, true
	}
	return min(free, room), true
}

// allocatedIn returns how many bytes of disk the files below directories take. What cannot be read counts as nothing.
func allocatedIn(dirs []string) int64 {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var sum int64
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return nil //nolint:nilerr // what is not there takes no room.
			}
			info, err := entry.Info()
			if err != nil {
				return nil //nolint:nilerr // the same.
			}
			st, ok := info.Sys().(*syscall.Stat_t)
			if id := (inode{st.Dev, st.Ino}); ok && !seen[id] {
				seen[id] = true
				sum += st.Blocks * 512
			}
			return nil
		})
	}
	return sum
}
