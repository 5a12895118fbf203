// SPDX-License-Identifier: Apache-2.0

package nodecache

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoRoom says that the cache cannot make room for a file.
var ErrNoRoom = errors.New("the node's cache has no room")

// Source is a file to keep.
type Source struct {
	// File is open for reading. Folder and Name are where it lies.
	File   *os.File
	Folder *os.File
	Name   string
	// Copy writes the content of File into another where neither a clone nor a
	// link is possible.
	Copy func(into *os.File) error
}

// sweepWait bounds the wait for a process that changes the cache, which takes
// milliseconds. Whoever cannot wait longer keeps nothing.
var sweepWait = Wait{Longest: 10 * time.Second}

// Put keeps a file that is whole and was checked. It does nothing if the entry is
// there. An error that wraps ErrNoRoom says that the cache is too small for it,
// or full of what is in use; one that wraps ErrBusy, that another process keeps it
// locked.
func (c *Cache) Put(ctx context.Context, r Record, src Source) error {
	if h, err := c.Get(r.Identity); h != nil || err != nil {
		if h != nil {
			h.Close()
		}
		return err
	}
	temp := tempDir + "/" + rand.Text()
	shares, err := c.share(src, temp)
	if err == nil && !shares {
		err = c.copy(ctx, r, src, temp)
	}
	if err == nil {
		err = c.install(ctx, r, temp)
	}
	if err != nil {
		_ = c.root.Remove(temp)
	}
	return err
}

// claim locks a temporary file, so that a sweep can tell it from what a dead
// process left, until the function that it returns is called.
func (c *Cache) claim(temp string) func() {
	f, err := c.root.Open(temp)
	if err != nil {
		return func() {}
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return func() { _ = f.Close() }
}

// share makes temp a clone of, or another name for, the file, if that is possible.
func (c *Cache) share(src Source, temp string) (bool, error) {
	f, err := c.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, dataFile)
	if err != nil {
		return false, fmt.Errorf("writing to the node's cache: %w", err)
	}
	err = unix.IoctlFileClone(int(f.Fd()), int(src.File.Fd()))
	_ = f.Close()
	if err == nil {
		return true, nil
	}
	if err := c.root.Remove(temp); err != nil {
		return false, fmt.Errorf("writing to the node's cache: %w", err)
	}
	dir, base, err := c.folder(temp)
	if err != nil {
		return false, err
	}
	defer dir.Close() //nolint:errcheck // only read
	return unix.Linkat(int(src.Folder.Fd()), src.Name, int(dir.Fd()), base, 0) == nil, nil
}

// copy writes a copy after making room for it.
func (c *Cache) copy(ctx context.Context, r Record, src Source, temp string) error {
	lock, err := c.lock(ctx, sweepLock, sweepWait)
	if err != nil {
		return err
	}
	err = c.makeRoom(r.Size, true)
	lock.Release()
	if err != nil {
		return err
	}
	f, err := c.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, dataFile)
	if err != nil {
		return fmt.Errorf("writing to the node's cache: %w", err)
	}
	defer f.Close() //nolint:errcheck // what was not written shows when it is read
	defer c.claim(temp)()
	if err := src.Copy(f); err != nil {
		return fmt.Errorf("writing to the node's cache: %w", err)
	}
	return nil
}

// install gives a whole file its name, and then its record, in a cache that has
// room for it and that nobody else changes meanwhile.
func (c *Cache) install(ctx context.Context, r Record, temp string) error {
	defer c.claim(temp)()
	lock, err := c.lock(ctx, sweepLock, sweepWait)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := c.makeRoom(r.Size, false); err != nil {
		return err
	}
	name := r.name()
	if err := c.mkdir(path.Dir(name)); err != nil {
		return err
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("writing to the node's cache: %w", err)
	}
	record := temp + recordExt
	err = errors.Join(c.root.WriteFile(record, raw, sharedFile), c.root.Chmod(record, sharedFile))
	// A rename between two names of one file does nothing, so what is there goes first.
	err = errors.Join(err, c.remove(name))
	if err == nil {
		err = c.root.Rename(temp, name)
	}
	if err == nil {
		err = c.root.Rename(record, name+recordExt)
	}
	if err != nil {
		_ = c.root.Remove(record)
		return fmt.Errorf("writing to the node's cache: %w", err)
	}
	return nil
}

// kept is an entry as a sweep sees it.
type kept struct {
	name string
	size int64
	used time.Time
	// shared means that the file is part of a model elsewhere: removing it here
	// would free nothing.
	shared bool
}

// reserve is the share of the file system that copies leave free; the kubelet
// evicts pods when a tenth is left.
const reserve = 10

// makeRoom removes leftovers, and entries, the least recently used first, until so
// many more bytes have room. onDisk means that they will take room of the disk too.
// The caller holds the lock of sweeps.
func (c *Cache) makeRoom(more int64, onDisk bool) error {
	if more > c.limit {
		return fmt.Errorf("%w: a file of %d bytes, a limit of %d", ErrNoRoom, more, c.limit)
	}
	c.sweepTemp()
	entries, err := c.entries()
	if err != nil {
		return err
	}
	excess := more - c.limit
	for _, e := range entries {
		excess += e.size
	}
	if onDisk {
		size, free, err := c.space(c.root)
		if err != nil {
			return err
		}
		excess = max(excess, more+size/reserve-free)
	}
	for _, e := range choose(entries, excess) {
		if freed, err := c.evict(e); err != nil {
			return err
		} else if freed {
			excess -= e.size
		}
		if excess <= 0 {
			break
		}
	}
	if excess > 0 {
		return fmt.Errorf("%w: %d bytes more are in use or not to be had", ErrNoRoom, excess)
	}
	return nil
}

// choose returns what may go, the least recently used first; nothing if all of it
// would not be enough.
func choose(entries []kept, excess int64) []kept {
	if excess <= 0 {
		return nil
	}
	var free []kept
	var sum int64
	for _, e := range entries {
		if !e.shared {
			free = append(free, e)
			sum += e.size
		}
	}
	if sum < excess {
		return nil
	}
	slices.SortFunc(free, func(a, b kept) int { return a.used.Compare(b.used) })
	return free
}

// evict removes an entry unless somebody reads it.
func (c *Cache) evict(e kept) (bool, error) {
	lock, err := c.root.Open(e.name + recordExt)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sweeping the node's cache: %w", err)
	}
	defer lock.Close() //nolint:errcheck // only a lock
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false, nil
	}
	return true, c.remove(e.name)
}

// entries lists what the cache holds, and removes halves of entries.
func (c *Cache) entries() ([]kept, error) {
	var found []kept
	all := c.root.FS()
	err := fs.WalkDir(all, objectsDir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreGone(err)
		}
		if data, isRecord := strings.CutSuffix(name, recordExt); isRecord {
			if _, err := fs.Stat(all, data); errors.Is(err, fs.ErrNotExist) {
				return ignoreGone(c.root.Remove(name))
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		record, err := fs.Stat(all, name+recordExt)
		if errors.Is(err, fs.ErrNotExist) {
			return ignoreGone(c.root.Remove(name))
		}
		if err != nil {
			return err
		}
		e := kept{name: name, size: info.Size(), used: record.ModTime()}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			e.shared = st.Nlink > 1
		}
		found = append(found, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sweeping the node's cache: %w", err)
	}
	return found, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sweepTemp removes what processes left that died while they wrote. A file that is
// young may have been made a moment ago, before its lock.
func (c *Cache) sweepTemp() {
	found, err := fs.ReadDir(c.root.FS(), tempDir)
	if err != nil {
		return
	}
	for _, d := range found {
		name := tempDir + "/" + d.Name()
		info, err := d.Info()
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && c.now().Sub(time.Unix(st.Ctim.Sec, st.Ctim.Nsec)) < youngest {
			continue
		}
		f, err := c.root.Open(name)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = c.root.Remove(name)
		}
		_ = f.Close()
	}
}

// youngest is how old an unlocked temporary file must be to count as left behind.
const youngest = time.Minute
