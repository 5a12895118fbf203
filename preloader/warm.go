// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/quantity"
)

// Warmth says what warming came to, in bytes.
type Warmth struct {
	Files int
	Bytes int64
	// Wanted is what of Bytes memory has room for.
	Wanted int64
	// Before and After are what of Bytes was in the page cache; negative if the
	// kernel does not tell.
	Before, After int64
	// Room is how much the page cache could take, by the limit that counts.
	Room int64
	// Limits says which limit that is.
	Limits string
	Took   time.Duration
}

// heated is a file to warm.
type heated struct {
	path string
	size int64
}

const (
	// heatAtOnce is how many reads a disk is given at once, of heatStretch bytes.
	heatAtOnce  = 4
	heatStretch = 8 * mebibyte
)

// Warm reads the files below the directories into the page cache, in the order
// of their names, as far as memory has room beside what this process needs; most
// is a further bound, 0 for none. Pages that are there already are not touched,
// so that the kernel keeps taking them for read once.
func Warm(ctx context.Context, dirs []string, most int64, m *Meter) (*Warmth, error) {
	start := time.Now()
	files, err := filesBelow(dirs)
	if err != nil {
		return nil, err
	}
	l := readLimits(os.DirFS("/"))
	w := &Warmth{Files: len(files), Room: max(0, l.room()-breath), Limits: describeLimit(l)}
	if most > 0 && most < w.Room {
		w.Room, w.Limits = most, "the limit that was asked for"
	}
	var stretches []stretchOf
	for _, f := range files {
		w.Bytes += f.size
		n := min(f.size, w.Room-w.Wanted)
		w.Wanted += n
		for off := int64(0); off < n; off += heatStretch {
			stretches = append(stretches, stretchOf{f.path, span{off, min(heatStretch, n-off)}})
		}
	}
	w.Before = cachedOf(files)
	p := &progress{}
	p.wanted.Store(int64(len(files)))
	p.total.Store(w.Wanted)
	m.watch(p)
	p.moving.Store(true)
	err = eachOf(ctx, heatAtOnce, slices.Values(stretches), func(_ context.Context, s stretchOf) error {
		err := s.heat()
		p.done.Add(s.n)
		p.fetched.Add(s.n)
		return err
	})
	p.moving.Store(false)
	w.After = cachedOf(files)
	w.Took = time.Since(start)
	return w, err
}

// filesBelow lists regular files, each once, in order. Links are followed, as the
// preloader's own links into claims must be.
func filesBelow(dirs []string) ([]heated, error) {
	var found []heated
	seen := map[[2]uint64]bool{}
	var visit func(path string) error
	visit = func(path string) error {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return &fs.PathError{Op: "looking at", Path: path, Err: err}
		}
		id := [2]uint64{st.Dev, st.Ino}
		if seen[id] {
			return nil
		}
		seen[id] = true
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			found = append(found, heated{path, st.Size})
		case unix.S_IFDIR:
			entries, err := os.ReadDir(path)
			if err != nil {
				return err
			}
			for _, e := range entries {
				err := visit(filepath.Join(path, e.Name()))
				if errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink != 0 {
					continue // a link that leads nowhere
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, dir := range dirs {
		if err := visit(filepath.Clean(dir)); err != nil {
			return nil, warmFailure(err)
		}
	}
	return slices.Clip(found), nil
}

func warmFailure(err error) error {
	f := &ExitError{Code: ExitTransient, Reason: "CannotRead", Cause: "the tree cannot be read", Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Code, f.Reason, f.Advice = ExitNotFound, "NotFound", "Check the path, and that the volume is mounted."
	case errors.Is(err, fs.ErrPermission):
		f.Code, f.Advice = ExitDenied, "Run as a user that may read the files."
	}
	return f
}

// cachedOf returns how many bytes of the files are in the page cache, or -1.
func cachedOf(files []heated) int64 {
	var total int64
	for _, h := range files {
		f, err := os.Open(h.path)
		if err != nil {
			return -1
		}
		n, known := cachedBytes(f, h.size)
		_ = f.Close()
		if !known {
			return -1
		}
		total += n
	}
	return total
}

// stretchOf is a part of a file to warm.
type stretchOf struct {
	path string
	span
}

// heat brings the stretch into the page cache and returns when it is there.
func (s stretchOf) heat() error {
	f, err := os.Open(s.path)
	if err != nil {
		return warmFailure(err)
	}
	defer f.Close() //nolint:errcheck // only read
	fd := int(f.Fd())
	mapped, err := unix.Mmap(fd, s.off, int(s.n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return readAway(f, s.span) // some network file systems map nothing
	}
	defer unix.Munmap(mapped) //nolint:errcheck // it was mapped
	if present(mapped) {
		return nil
	}
	// The kernel queues all of it at once; what follows only waits. Told that the
	// mapping is read in order, it does not count it as a second use.
	_ = unix.Fadvise(fd, s.off, s.n, unix.FADV_WILLNEED)
	_ = unix.Madvise(mapped, unix.MADV_SEQUENTIAL)
	err = retryInterrupted(func() error { return unix.Madvise(mapped, unix.MADV_POPULATE_READ) })
	if err != nil { // kernels before 5.14, and files that shrank
		return readAway(f, s.span)
	}
	return nil
}

// present reports whether all pages of a mapping are in memory.
func present(mapped []byte) bool {
	page := os.Getpagesize()
	pages := make([]byte, (len(mapped)+page-1)/page)
	if mincore(mapped, pages) != nil {
		return false
	}
	for _, b := range pages {
		if b&1 == 0 {
			return false
		}
	}
	return true
}

func readAway(f *os.File, s span) error {
	_, err := io.Copy(io.Discard, struct{ io.Reader }{io.NewSectionReader(f, s.off, s.n)})
	if err != nil {
		return warmFailure(err)
	}
	return nil
}

// String says it in a sentence.
func (w *Warmth) String() string {
	text := fmt.Sprintf("%s, %s", countOf(w.Files, "file"), quantity.FormatBytes(w.Bytes))
	if w.Before >= 0 && w.After >= 0 {
		text += fmt.Sprintf(", %d %% in the page cache, %d %% before", percent(w.After, w.Bytes), percent(w.Before, w.Bytes))
	}
	return text + fmt.Sprintf(", after %v", w.Took.Round(time.Millisecond))
}

// warm brings trees into the page cache.
func (c *Command) warm(ctx context.Context, flags map[string]string, args []string) ExitCode {
	inJSON, formatErr := c.logFormat()
	most, err := quantity.ParseBytes(firstOf(flags["limit"], "0"))
	switch {
	case formatErr != nil:
		return c.misused("warm", formatErr)
	case err != nil:
		return c.misused("warm", usageFailure("flag --limit: %v", err))
	case len(args) == 0:
		return c.misused("warm", usageFailure("a directory is missing"))
	}
	log, m, stop := c.followed(ctx, inJSON, "Warming")
	w, err := Warm(ctx, args, most, m)
	stop()
	if err != nil {
		return c.failed(log, err)
	}
	w.log(log)
	return ExitOK
}

func (w *Warmth) log(log *slog.Logger) {
	if w.Wanted < w.Bytes {
		log.Warn(
			"Memory has no room for all of it",
			"bytes",
			byteCount(w.Bytes),
			"room",
			byteCount(w.Room),
			"because",
			w.Limits,
		)
	}
	log.Info("Warm: "+w.String(), "cached", w.After, "bytes", w.Bytes)
}
