// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// writeback keeps the pages of written bytes few: each stretch is handed to the
// disk as soon as it is written, and once more than the window is on its way,
// the oldest is waited for and dropped from the page cache. Whoever writes
// waits, so that dirty pages never pile up against the memory limit, where the
// kernel would make everybody wait for longer.
type writeback struct {
	window int64
	// stretch is how many bytes a connection writes before it hands them over.
	stretch int64

	mu     sync.Mutex
	queue  []stretch
	queued int64
}

// stretch is a range of a file that is on its way to disk.
type stretch struct {
	file *os.File
	span
}

const (
	// largestStretch is enough for a disk to write in one go.
	largestStretch = 8 * mebibyte
	// smallestStretch keeps the calls few.
	smallestStretch = mebibyte / 2
)

// newWriteback returns a writeback for this many connections. What they have
// written and not yet handed over adds up to a quarter of the window at most,
// unless that would take stretches that are too small.
func newWriteback(window int64, conns int) *writeback {
	return &writeback{
		window:  window,
		stretch: min(max(window/int64(4*max(conns, 1)), smallestStretch), largestStretch),
	}
}

// wrote hands a range over and makes room for the next.
func (w *writeback) wrote(f *os.File, s span) error {
	if s.n <= 0 {
		return nil
	}
	if err := syncRange(f, s, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return err
	}
	w.mu.Lock()
	w.queue = append(w.queue, stretch{f, s})
	w.queued += s.n
	var oldest []stretch
	for w.queued > w.window {
		oldest = append(oldest, w.queue[0])
		w.queued -= w.queue[0].n
		w.queue = w.queue[1:]
	}
	w.mu.Unlock()
	return drop(oldest)
}

// finish waits for what is left of one file, before it is closed.
func (w *writeback) finish(f *os.File) error {
	w.mu.Lock()
	var mine, others []stretch
	for _, s := range w.queue {
		if s.file == f {
			mine = append(mine, s)
			w.queued -= s.n
		} else {
			others = append(others, s)
		}
	}
	w.queue = others
	w.mu.Unlock()
	return drop(mine)
}

// drop waits until the stretches are on disk and gives their pages back.
func drop(stretches []stretch) error {
	for _, s := range stretches {
		const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := syncRange(s.file, s.span, wait); err != nil {
			return err
		}
		// Advice only: pages that stay do no harm but to the limit.
		_ = withDescriptor(s.file, func(fd int) error { return unix.Fadvise(fd, s.off, s.n, unix.FADV_DONTNEED) })
	}
	return nil
}

// syncRange is sync_file_range, or, where a file system or a sandbox does not
// know it, fdatasync. A file that was closed meanwhile has no more to wait for.
func syncRange(f *os.File, s span, flags int) error {
	err := withDescriptor(f, func(fd int) error {
		err := retryInterrupted(func() error { return unix.SyncFileRange(fd, s.off, s.n, flags) })
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESPIPE) ||
			errors.Is(err, unix.EPERM) {
			err = unix.Fdatasync(fd)
		}
		return err
	})
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// withDescriptor calls with a descriptor that stays open for so long.
func withDescriptor(f *os.File, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = conn.Control(func(fd uintptr) { callErr = call(int(fd)) })
	return errors.Join(err, callErr)
}

// cachedBytes returns how many bytes of a file are in the page cache, and
// whether the kernel would tell.
func cachedBytes(f *os.File, size int64) (int64, bool) {
	if size == 0 {
		return 0, true
	}
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: uint64(size)}, &stat, 0) //nolint:gosec // not negative
	if err == nil {
		return min(size, int64(stat.Cache)*int64(os.Getpagesize())), true //nolint:gosec // pages of one file
	}
	return mincoreBytes(f, size)
}

// mincoreBytes is the way of kernels before 6.5.
func mincoreBytes(f *os.File, size int64) (int64, bool) {
	const chunk = 1 << 30
	page := int64(os.Getpagesize())
	var pages int64
	for off := int64(0); off < size; off += chunk {
		n := min(chunk, size-off)
		mapped, err := unix.Mmap(int(f.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, false
		}
		present := make([]byte, (n+page-1)/page)
		err = mincore(mapped, present)
		_ = unix.Munmap(mapped)
		if err != nil {
			return 0, false
		}
		for _, b := range present {
			pages += int64(b & 1)
		}
	}
	return min(size, pages*page), true
}
