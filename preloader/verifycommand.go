// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"serverless.xyz/outrigger/preloader/quantity"
)

// verifyAtOnce is how many files of a tree are read at once.
const verifyAtOnce = 4

// verify reads fetched trees and reports every file that is not as the marker says.
func (c *Command) verify(ctx context.Context, args []string) ExitCode {
	inJSON, err := c.logFormat()
	switch {
	case err != nil:
		return c.misused("verify", err)
	case len(args) == 0:
		return c.misused("verify", usageFailure("a directory is missing"))
	}
	log, m, stop := c.followed(ctx, inJSON, "Verifying")
	defer stop()
	for _, dir := range args {
		start := time.Now()
		files, bytes, err := VerifyTree(ctx, dir, m)
		if err == nil && !strings.EqualFold(c.Getenv("PRELOADER_LINT"), "off") {
			err = lintTree(ctx, dir, log)
		}
		if err != nil {
			stop()
			return c.failed(log, err)
		}
		took := time.Since(start).Round(time.Millisecond)
		log.Info(fmt.Sprintf("Every file in %s is as it was fetched: %d files, %s, after %v", dir, files,
			quantity.FormatBytes(bytes), took))
	}
	return ExitOK
}

// VerifyTree reads every file that the marker of a fetched tree lists and compares its
// bytes with the check that was noted when it was fetched. It returns how many files and
// bytes these are. The error is an *ExitError that names files that differ, or the cause of
// the context's end.
func VerifyTree(ctx context.Context, dir string, meter *Meter) (count int, bytes int64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0, cannotOpen(dir, err)
	}
	defer root.Close() //nolint:errcheck // only read
	p, files := &progress{}, &catalog{}
	defer files.free()
	v := &verifier{store: &store{dir: dir, root: root}, progress: p, files: files, wrong: map[string]string{}}
	marker, err := loadMarker(root, func(r *FileRecord) {
		count++
		if !files.put(r, noted) {
			v.wrong[r.Path] = "was noted with a check that this version does not know"
		}
	})
	if err != nil {
		return 0, 0, &ExitError{
			Code:   ExitTransient,
			Reason: "CannotRead",
			Cause:  "what is noted of " + dir + " cannot be read",
			Err:    err,
		}
	}
	if marker == nil {
		return 0, 0, &ExitError{
			Code: ExitNotFound, Reason: "Incomplete", Cause: dir + " holds no complete model (" + markerName + " is missing)",
			Advice: "Run preloader pull first; what it left unfinished, it goes on with.",
		}
	}
	p.wanted.Store(int64(count))
	p.total.Store(marker.Bytes)
	meter.watch(p)
	p.moving.Store(true)
	defer p.moving.Store(false)
	v.buffers.New = func() any { return make([]byte, bufferSize) }
	if err := eachOf(ctx, verifyAtOnce, files.having(noted), v.check); err != nil {
		return 0, 0, err
	}
	return count, marker.Bytes, v.verdict()
}

func cannotOpen(dir string, err error) error {
	f := &ExitError{
		Code: ExitNotFound, Reason: "NotFound", Cause: "cannot open " + dir, Err: err,
		Advice: "Check the path, and that the volume is mounted.",
	}
	if errors.Is(err, fs.ErrPermission) {
		f.Code, f.Reason, f.Advice = ExitDenied, "CannotRead", "Run as a user that may read the files."
	}
	return f
}

// verifier compares the files of a tree with their records.
type verifier struct {
	store    *store
	progress *progress
	// files are read by all at once, and changed by nobody.
	files   *catalog
	buffers sync.Pool

	mu sync.Mutex
	// wrong says of a file, by path, what is wrong with it.
	wrong map[string]string
}

func (v *verifier) check(_ context.Context, i int) error {
	r := v.files.record(i)
	buf := v.buffers.Get().([]byte) //nolint:forcetypeassert // nothing else is in the pool
	defer v.buffers.Put(buf)        //nolint:staticcheck // one word a file
	trouble := v.store.trouble(r, buf)
	v.progress.files.Add(1)
	v.progress.done.Add(r.Size)
	v.progress.fetched.Add(r.Size)
	if trouble != "" {
		v.mu.Lock()
		v.wrong[r.Path] = trouble
		v.mu.Unlock()
	}
	return nil
}

// trouble says in what a final file differs from its record; nothing if in nothing.
func (s *store) trouble(r *FileRecord, buf []byte) string {
	info, err := s.root.Lstat(r.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is missing"
	case err != nil:
		return "cannot be read: " + err.Error()
	case info.Mode()&fs.ModeSymlink != 0:
		return "is a link"
	case !info.Mode().IsRegular():
		return "is no file"
	case info.Size() != r.Size:
		return fmt.Sprintf("has %d bytes in place of %d", info.Size(), r.Size)
	case s.matches(r, buf):
		return ""
	}
	if f, err := s.root.Open(r.Path); err != nil {
		return "cannot be read: " + err.Error()
	} else if err := f.Close(); err != nil {
		return "cannot be read: " + err.Error()
	}
	return "holds other bytes"
}

// verdict is the failure that names the files that differ, nil if none does.
func (v *verifier) verdict() error {
	if len(v.wrong) == 0 {
		return nil
	}
	paths := slices.Sorted(maps.Keys(v.wrong))
	named := paths[:min(len(paths), mostNamed)]
	texts := make([]string, 0, len(named))
	for _, path := range named {
		texts = append(texts, strconv.Quote(path)+" "+v.wrong[path])
	}
	text := strings.Join(texts, "; ")
	if more := len(paths) - len(named); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return &ExitError{
		Code:   ExitIntegrity,
		Reason: "FileChanged",
		Cause: fmt.Sprintf(
			"%d of %d files in %s are not as they were fetched: %s",
			len(paths),
			v.progress.wanted.Load(),
			v.store.dir,
			text,
		),
		Advice: "Remove those that are there and pull again, or pull with --resume=off.",
	}
}
