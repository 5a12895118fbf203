// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/quantity"
)

// store is the destination directory. All names are relative to it and cannot
// leave it.
type store struct {
	dir  string
	root *os.Root
	// lock is the directory itself, locked against other preloaders, and claim the
	// lock's file, or nil where there is none.
	lock, claim *os.File
	// memory means that the files live in memory: writing takes it at once.
	memory bool

	// work is the working directory, once it was prepared.
	work *os.File
	// naming lets one file at a time get a name: the kernel would let the others
	// wait too, but turning on a processor.
	naming sync.Mutex
	// folders are directories that files were published to, which saves walking
	// there for each of many small files.
	mu      sync.Mutex
	folders map[string]*os.File
}

// mostFolders bounds how many directories are held open.
const mostFolders = 256

const (
	dirMode  = 0o755
	fileMode = 0o644
)

// openStore makes the directory if need be and locks it, waiting while another
// preloader works in it.
func openStore(ctx context.Context, dir string, q queue) (*store, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, diskFailure(dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, diskFailure(dir, err)
	}
	s := &store{dir: dir, root: root}
	if s.lock, err = root.Open("."); err == nil {
		err = s.take(ctx, q)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.detectMemory()
	return s, nil
}

func (s *store) detectMemory() {
	var fsStat unix.Statfs_t
	if err := unix.Fstatfs(int(s.lock.Fd()), &fsStat); err == nil {
		s.memory = fsStat.Type == unix.TMPFS_MAGIC || fsStat.Type == unix.RAMFS_MAGIC
	}
}

func (s *store) close() {
	for _, f := range s.folders {
		_ = f.Close()
	}
	if s.work != nil {
		_ = s.work.Close()
	}
	s.unlock()
	if s.root != nil {
		_ = s.root.Close()
	}
}

// tempName returns where the bytes of rel gather.
func tempName(rel string) string {
	sum := sha256.Sum256([]byte(rel))
	return workDir + "/" + hex.EncodeToString(sum[:16]) + ".part"
}

// gathers reports whether there is a gathering file of rel at its full length, which it
// has from its beginning on. One that somebody removed holds nothing of what is noted.
func (s *store) gathers(rel string, size int64) bool {
	info, err := s.root.Lstat(tempName(rel))
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// openTemp opens the gathering file of rel at its full length. If fresh, what
// it held is dropped first.
func (s *store) openTemp(rel string, size int64, fresh bool) (*os.File, error) {
	name, flags := path.Base(tempName(rel)), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC
	if fresh {
		flags |= os.O_EXCL
	}
	fd, err := s.openWork(name, flags)
	if fresh && errors.Is(err, unix.EEXIST) {
		// Not emptied but removed: it may be one more name of a file elsewhere.
		if err = s.root.Remove(workDir + "/" + name); err == nil {
			fd, err = s.openWork(name, flags)
		}
	}
	if err != nil {
		return nil, diskFailure(s.dir, &fs.PathError{Op: "open", Path: path.Join(workDir, name), Err: err})
	}
	f := os.NewFile(uintptr(fd), name)
	if fresh && size <= bufferSize {
		return f, nil // one write makes its length and its blocks
	}
	if err := s.allocate(f, size); err != nil {
		_ = f.Close()
		return nil, diskFailure(s.dir, err)
	}
	return f, nil
}

// openWork opens a name of the working directory itself, which needs no walk.
func (s *store) openWork(name string, flags int) (fd int, err error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	err = retryInterrupted(func() (err error) {
		fd, err = unix.Openat(int(s.work.Fd()), name, flags, fileMode)
		return err
	})
	return fd, err
}

// alignment is what direct writes need of offsets, lengths and buffers.
const alignment = 4096

// openDirect opens the gathering file of rel to write around the page cache.
func (s *store) openDirect(rel string) (*os.File, error) {
	f, err := s.root.OpenFile(tempName(rel), os.O_WRONLY|unix.O_DIRECT, fileMode)
	if errors.Is(err, unix.EINVAL) {
		return nil, configFailure("Set PRELOADER_IO to auto.", "the file system of %s does not take direct writes", s.dir)
	}
	if err != nil {
		return nil, diskFailure(s.dir, err)
	}
	return f, nil
}

// cached returns how many bytes of the files that are ready are in the page cache, and of
// how many. Small files are left out: they do not matter. of is 0 where there are no
// others, or where the kernel does not tell.
func (s *store) cached(files *catalog) (total, of int64) {
	for i := range files.having(ready) {
		size := files.size(i)
		if size < mebibyte {
			continue
		}
		f, err := s.root.Open(string(files.path(i)))
		if err != nil {
			return 0, 0
		}
		n, ok := cachedBytes(f, size)
		_ = f.Close()
		if !ok {
			return 0, 0
		}
		total += n
		of += size
	}
	return total, of
}

// allocate gives f its length, and where files are on disk its blocks too: a
// full disk then shows before any byte is fetched, and parts that arrive out of
// order do not scatter. In memory, blocks would be taken from the container's
// limit at once, so they are left to the writes.
func (s *store) allocate(f *os.File, size int64) error {
	if !s.memory && size > 0 {
		err := retryInterrupted(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("reserving %s: %w", quantity.FormatBytes(size), err)
		}
	}
	// Also cuts off what a larger file left.
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("setting the length of a file to %s: %w", quantity.FormatBytes(size), err)
	}
	return nil
}

func retryInterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// publish gives the gathering file of rel its final name. It must be the file that was
// proven, unless that is not known any more: where locks do not reach, another preloader
// in the same directory may have put its own in the place.
func (s *store) publish(rel string, proven fs.FileInfo) error {
	temp := tempName(rel)
	folder, kept, err := s.folder(path.Dir(rel))
	if err != nil {
		return diskFailure(s.dir, err)
	}
	if !kept {
		defer folder.Close() //nolint:errcheck // only read
	}
	work := s.lock
	if s.work != nil {
		work, temp = s.work, path.Base(temp)
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	if proven != nil && !sameAs(work, temp, proven) {
		return &ExitError{
			Code: ExitTransient, Reason: "Disturbed",
			Cause:  "something else has replaced the file in which " + strconv.Quote(rel) + " gathers in " + s.dir,
			Advice: "Let one preloader at a time fill a directory: locks of its file system do not reach from node to node.",
		}
	}
	err = retryInterrupted(func() error {
		return unix.Renameat(int(work.Fd()), temp, int(folder.Fd()), path.Base(rel))
	})
	if err != nil {
		return diskFailure(s.dir, &os.LinkError{Op: "rename", Old: tempName(rel), New: rel, Err: err})
	}
	return nil
}

// sameAs reports whether a name in a directory is that of a file.
func sameAs(dir *os.File, name string, file fs.FileInfo) bool {
	want, ok := file.Sys().(*syscall.Stat_t)
	var st unix.Stat_t
	err := retryInterrupted(func() error { return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return err == nil && ok && st.Dev == want.Dev && st.Ino == want.Ino
}

// folder returns a directory below the destination, which it makes if need be,
// and whether it is kept open for the next.
func (s *store) folder(dir string) (*os.File, bool, error) {
	if dir == "." {
		return s.lock, true, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.folders[dir]; f != nil {
		return f, true, nil
	}
	if err := s.root.MkdirAll(dir, dirMode); err != nil {
		return nil, false, err
	}
	f, err := s.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil || len(s.folders) >= mostFolders {
		return f, false, err
	}
	if s.folders == nil {
		s.folders = map[string]*os.File{}
	}
	s.folders[dir] = f
	return f, true, nil
}

// prepare makes the working directory and removes gathering files in it that
// keep does not know.
func (s *store) prepare(keep *saved) error {
	if err := s.root.MkdirAll(workDir, dirMode); err != nil {
		return diskFailure(s.dir, err)
	}
	work, err := s.root.OpenFile(workDir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return diskFailure(s.dir, err)
	}
	if s.work != nil {
		_ = s.work.Close()
	}
	s.work = work
	known := map[string]bool{}
	for rel := range keep.begun {
		known[path.Base(tempName(rel))] = true
	}
	found, err := fs.ReadDir(s.root.FS(), workDir)
	if err != nil {
		return diskFailure(s.dir, err)
	}
	for _, entry := range found {
		if !strings.HasSuffix(entry.Name(), ".part") || known[entry.Name()] {
			continue
		}
		if err := s.root.Remove(workDir + "/" + entry.Name()); err != nil {
			return diskFailure(s.dir, err)
		}
	}
	return nil
}

// finish removes the working directory.
func (s *store) finish() error {
	if err := s.root.RemoveAll(workDir); err != nil {
		return diskFailure(s.dir, err)
	}
	return nil
}

// holds reports whether the final file of r is the one that was published.
func (s *store) holds(r *FileRecord) bool {
	info, err := s.root.Lstat(r.Path)
	return err == nil && info.Mode().IsRegular() && info.Size() == r.Size && info.ModTime().UnixNano() == r.Modified
}

// allocated returns how many bytes of disk the gathering file of rel holds.
func (s *store) allocated(rel string) int64 {
	info, err := s.root.Lstat(tempName(rel))
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return 0
}

// free returns how many bytes the file system would still take from us.
func (s *store) free() (int64, bool) {
	var st unix.Statfs_t
	err := unix.Fstatfs(int(s.lock.Fd()), &st)
	if err != nil || st.Blocks == 0 {
		// Some network file systems count no blocks.
		return 0, false
	}
	return int64(min(st.Bavail, math.MaxInt64/uint64(st.Bsize))) * st.Bsize, true //nolint:gosec // bounded
}

// reasonEscapes says that a link would have led a write out of the destination.
const reasonEscapes = "Escapes"

// diskFailure words an error of the destination's file system.
func diskFailure(dir string, err error) error {
	if _, ok := errors.AsType[*ExitError](err); ok {
		return err
	}
	out := &ExitError{Code: ExitNoSpace, Reason: "CannotWrite", Cause: "cannot write to " + dir, Err: err}
	switch {
	case strings.HasSuffix(err.Error(), "path escapes from parent"): // os.Root's error has no name
		out.Code, out.Reason = ExitConfig, reasonEscapes
		out.Advice = "A link in the volume leads out of it; empty the volume, or use another path."
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		out.Reason, out.Cause = "NoSpace", "no space left in "+dir
		out.Advice = "Give the volume more room: a larger claim, emptyDir sizeLimit, or node disk."
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		out.Advice = "Make the volume writable for the user that the container runs as (fsGroup, or its owner)."
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY):
		out.Reason = "InTheWay"
		out.Advice = "Something else of that name is in the volume; empty it, or use another path."
	case errors.Is(err, unix.EIO):
		out.Code = ExitTransient
		out.Advice = "The disk reports errors; look at the node."
	}
	return out
}
