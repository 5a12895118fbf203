// SPDX-License-Identifier: Apache-2.0

// Package nodecache keeps files that one pod of a node has fetched for the pods
// that come after it, in a directory that they share.
//
// The contract:
//
//   - An entry is named by what it is: store, bucket, key, version and size. Its
//     record says what check its bytes have. Whoever takes an entry compares the
//     bytes; nothing that the cache says is believed on its own.
//   - Nothing is ever changed in place. Files are written beside, and renamed
//     when they are whole; what a process that died leaves is swept up later.
//   - The cache is bounded by size. What was used least recently goes first, and
//     what is in use stays: an entry that is being read, or whose file is part of
//     a model elsewhere on the disk.
//   - Any number of processes may use it at once. Locks are of the kernel (flock)
//     and end with their process. Nobody waits without a bound for a process that
//     holds one and does nothing.
package nodecache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Identity says which bytes an entry holds.
type Identity struct {
	// Store is the endpoint, or the region where there is none.
	Store string `json:"store"`
	// Bucket and Key name the object, and Version its content.
	Bucket  string `json:"bucket"`
	Key     string `json:"key"`
	Version string `json:"version"`
	// Size is in bytes.
	Size int64 `json:"size"`
}

// Record is what the cache knows of an entry.
type Record struct {
	Identity

	// CRC names the check whose value Sum is, as S3 writes it.
	CRC string `json:"crc"`
	Sum string `json:"sum"`
}

// name is where the entry of an identity lies.
func (id Identity) name() string {
	// Marshalling plain fields cannot fail.
	raw, _ := json.Marshal(id) //nolint:errchkjson // see above
	sum := sha256.Sum256(raw)
	text := hex.EncodeToString(sum[:16])
	return objectsDir + "/" + text[:2] + "/" + text
}

const (
	objectsDir = "objects"
	tempDir    = "temp"
	locksDir   = "locks"
	sweepLock  = locksDir + "/sweep"
	recordExt  = ".json"
	// largestRecord bounds what is read of a record.
	largestRecord = 64 << 10

	// Pods run as different users, so what one makes the others may replace.
	sharedDir  = 0o777
	sharedFile = 0o666
	dataFile   = 0o644
)

// Cache is an open cache.
type Cache struct {
	root *os.Root
	// limit bounds the sum of the entries' sizes, in bytes.
	limit int64
	// now is the clock, and space returns the size of the file system and what of it is free, in bytes.
	now   func() time.Time
	space func(*os.Root) (size, free int64, err error)
}

// Open opens the cache in a directory, which must exist. A limit of 0 stands for
// half of the file system.
func Open(dir string, limit int64) (*Cache, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the node's cache: %w", err)
	}
	c := &Cache{root: root, limit: limit, now: time.Now, space: spaceOf}
	for _, sub := range []string{objectsDir, tempDir, locksDir} {
		if err := c.mkdir(sub); err != nil {
			c.Close()
			return nil, err
		}
	}
	if limit == 0 {
		if c.limit, _, err = c.space(root); err != nil {
			c.Close()
			return nil, err
		}
		c.limit /= 2
	}
	return c, nil
}

// Close closes the cache. Locks and hits end by their own calls.
func (c *Cache) Close() { _ = c.root.Close() }

func (c *Cache) mkdir(dir string) error {
	err := c.root.Mkdir(dir, sharedDir)
	if err == nil {
		err = c.root.Chmod(dir, sharedDir) // whatever the umask says
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making a folder of the node's cache: %w", err)
	}
	return nil
}

// spaceOf asks the file system.
func spaceOf(root *os.Root) (size, free int64, err error) {
	dir, err := root.Open(".")
	if err != nil {
		return 0, 0, fmt.Errorf("looking at the node's cache: %w", err)
	}
	defer dir.Close() //nolint:errcheck // only read
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("looking at the file system of the node's cache: %w", err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil //nolint:gosec // far below the bound
}

// ErrBusy says that another process has kept a lock for longer than one waits.
var ErrBusy = errors.New("another process keeps the node's cache locked")

// Wait bounds how long one waits for another process.
type Wait struct {
	// Longest is how long it may keep the lock, whatever it does with it, and Still
	// how long it may go without a [Lock.Beat]; 0 is no bound of that kind. If Longest
	// is below 0, nobody is waited for.
	Longest, Still time.Duration
	// Begun, if not nil, is called once if there is a wait.
	Begun func()
}

// Lock is held until it is released, or until its process ends.
type Lock struct {
	cache *Cache
	name  string
	file  *os.File
}

// Release lets the next one in.
func (l *Lock) Release() { _ = l.file.Close() }

// Beat tells those who wait that the holder comes on.
func (l *Lock) Beat() {
	dir, base, err := l.cache.folder(l.name)
	if err != nil {
		return // those who wait then lose patience, which harms nothing
	}
	defer dir.Close() //nolint:errcheck // only read
	l.cache.touch(dir, base)
}

// touch sets the times of a file to now. Whoever may write to a file may do so.
func (c *Cache) touch(dir *os.File, base string) {
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	_ = unix.UtimesNanoAt(int(dir.Fd()), base, now, 0)
}

// Lock waits until no other process holds the lock of this name. The error wraps
// ErrBusy if that takes longer than one waits, or is the cause of the context's end.
func (c *Cache) Lock(ctx context.Context, name string, wait Wait) (*Lock, error) {
	sum := sha256.Sum256([]byte(name))
	l, err := c.lock(ctx, locksDir+"/"+hex.EncodeToString(sum[:16]), wait)
	if err == nil {
		l.Beat()
	}
	return l, err
}

// lockLook is how often one looks whether a lock is free.
const lockLook = 50 * time.Millisecond

func (c *Cache) lock(ctx context.Context, name string, wait Wait) (*Lock, error) {
	f, err := c.root.OpenFile(name, os.O_RDONLY|os.O_CREATE, sharedFile)
	if err != nil {
		return nil, fmt.Errorf("locking the node's cache: %w", err)
	}
	_ = f.Chmod(sharedFile) // fails for whoever did not make it, who need not
	w := waiter{Wait: wait, since: c.now()}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			// File systems without locks go without.
			return &Lock{cache: c, name: name, file: f}, nil
		}
		if err = w.look(f, c.now()); err == nil {
			select {
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-time.After(lockLook):
			}
		}
		if err != nil {
			_ = f.Close()
			return nil, err
		}
	}
}

// waiter watches the holder of a lock.
type waiter struct {
	Wait

	since time.Time
	// beat is the last sign of the holder, by its clock, and seen when it was first
	// seen, by ours.
	beat, seen time.Time
}

// look returns an error if the wait has been long enough.
func (w *waiter) look(f *os.File, now time.Time) error {
	if w.Longest < 0 {
		return ErrBusy
	}
	if w.seen.IsZero() {
		w.seen = now
		if w.Begun != nil {
			w.Begun()
		}
	}
	if info, err := f.Stat(); err == nil && !info.ModTime().Equal(w.beat) {
		w.beat, w.seen = info.ModTime(), now
	}
	switch {
	case w.Longest > 0 && now.Sub(w.since) >= w.Longest:
		return fmt.Errorf("%w for %v", ErrBusy, w.Longest)
	case w.Still > 0 && now.Sub(w.seen) >= w.Still:
		return fmt.Errorf("%w and has not come on for %v", ErrBusy, w.Still)
	}
	return nil
}

// Hit is an entry that is being read. It stays in the cache until it is closed.
type Hit struct {
	Record

	// File holds the bytes.
	File *os.File
	lock *os.File
	// dir and base name the file for links.
	dir  *os.File
	base string
}

// Close lets go of the entry.
func (h *Hit) Close() {
	for _, f := range []*os.File{h.File, h.lock, h.dir} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Clone makes into, which must be empty, share the entry's blocks until either is
// written to. Few file systems can.
func (h *Hit) Clone(into *os.File) error {
	return unix.IoctlFileClone(int(into.Fd()), int(h.File.Fd()))
}

// Link gives the entry's file one more name in a folder. Cache and folder must be
// of one mount.
func (h *Hit) Link(folder *os.File, name string) error {
	return unix.Linkat(int(h.dir.Fd()), h.base, int(folder.Fd()), name, 0)
}

// Get returns the entry of an identity, or nil if there is none.
func (c *Cache) Get(id Identity) (*Hit, error) {
	name := id.name()
	lock, err := c.root.Open(name + recordExt)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // the absence is the answer
	}
	if err != nil {
		return nil, fmt.Errorf("reading the node's cache: %w", err)
	}
	h := &Hit{lock: lock}
	found, err := c.hold(h, name, id)
	if !found || err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// hold locks and opens an entry, and reports whether it is whole and what was asked for.
func (c *Cache) hold(h *Hit, name string, id Identity) (bool, error) {
	if err := unix.Flock(int(h.lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil // it is on its way out
	}
	held, err := h.lock.Stat()
	if err != nil {
		return false, fmt.Errorf("reading the node's cache: %w", err)
	}
	if now, err := c.root.Stat(name + recordExt); err != nil || !os.SameFile(held, now) {
		return false, nil //nolint:nilerr // it went, or was replaced, before it was locked
	}
	raw, err := io.ReadAll(io.LimitReader(h.lock, largestRecord))
	if err != nil || json.Unmarshal(raw, &h.Record) != nil || h.Identity != id {
		return false, nil //nolint:nilerr // a record that cannot be read is none
	}
	if h.File, err = c.root.Open(name); err != nil {
		return false, nil //nolint:nilerr // half an entry is none
	}
	info, err := h.File.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != id.Size {
		return false, nil //nolint:nilerr // half an entry is none
	}
	if h.dir, h.base, err = c.folder(name); err != nil {
		return false, err
	}
	// The time of the record is that of its last use. Whoever may not set it can still read.
	c.touch(h.dir, h.base+recordExt)
	return true, nil
}

// folder opens the folder of a name and returns the name within it.
func (c *Cache) folder(name string) (*os.File, string, error) {
	at := len(name) - 1
	for at >= 0 && name[at] != '/' {
		at--
	}
	dir, err := c.root.Open(name[:at])
	if err != nil {
		return nil, "", fmt.Errorf("reading the node's cache: %w", err)
	}
	return dir, name[at+1:], nil
}

// Drop removes the entry of an identity whose bytes turned out to be wrong.
func (c *Cache) Drop(id Identity) error {
	return c.remove(id.name())
}

// remove removes an entry: first what makes it one.
func (c *Cache) remove(name string) error {
	for _, n := range []string{name + recordExt, name} {
		if err := c.root.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an entry of the node's cache: %w", err)
		}
	}
	return nil
}
