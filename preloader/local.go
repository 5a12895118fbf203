// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// linkLocal puts symbolic links to the entries of a local directory, or to one
// local file, into dest, as KServe does for mounted claims. What is there
// already stays.
func linkLocal(ctx context.Context, path, dest string, opts Options, log *slog.Logger, report *Report) error {
	info, err := os.Stat(path)
	if err != nil {
		return noLocalPath(path, err)
	}
	sources := []string{path}
	if info.IsDir() {
		if sources, err = visible(path); err != nil {
			return diskFailure(path, err)
		}
	}
	if err := os.MkdirAll(dest, dirMode); err != nil {
		return diskFailure(dest, err)
	}
	var last string
	for _, src := range sources {
		name := filepath.Base(src)
		if !opts.Filter.Wants(name) {
			continue
		}
		if err := linkOne(src, filepath.Join(dest, name)); err != nil {
			return err
		}
		log.Info("Linked", "source", src, "directory", dest)
		report.Files++
		last = src
	}
	if report.Files == 0 {
		return &ExitError{
			Code: ExitNotFound, Reason: "NoModel", Cause: "no model found in " + path,
			Advice: "Check the path within the volume and the allow and ignore patterns.",
		}
	}
	if report.Files == 1 && archiveOf(last) != notArchive {
		return unpackLocal(ctx, last, dest, opts, log, report)
	}
	return nil
}

func noLocalPath(path string, err error) *ExitError {
	return &ExitError{
		Code: ExitNotFound, Reason: "NotFound", Cause: "local path " + path + " cannot be found",
		Advice: "Check the path within the volume, and that the claim is mounted.", Err: err,
	}
}

// unpackLocal unpacks the only file of a local source and removes its link.
func unpackLocal(
	ctx context.Context, src, dest string, opts Options, log *slog.Logger, report *Report,
) error {
	s, err := openStore(ctx, dest, queue{longest: opts.Wait, log: log})
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.prepare(newSaved()); err != nil {
		return err
	}
	f, err := os.Open(src)
	if err != nil {
		return diskFailure(src, err)
	}
	defer f.Close() //nolint:errcheck // only read
	log.Info("Unpacking", "archive", src)
	files, err := s.unpack(ctx, f, src, opts.archive(), make([]byte, bufferSize))
	if err != nil {
		return err
	}
	report.Files = len(files)
	for _, u := range files {
		report.Bytes += u.size
	}
	// An archive may hold a member of its own name.
	name := filepath.Base(src)
	if _, ok := files[name]; !ok {
		if err := s.root.Remove(name); err != nil {
			return diskFailure(dest, err)
		}
	}
	return s.finish()
}

// visible lists a directory without names that start with a dot, as a shell
// pattern would.
func visible(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// linkOne makes one link. A link left by an earlier start that points to
// nothing is replaced.
func linkOne(src, dest string) error {
	if _, err := os.Stat(dest); err == nil {
		return nil
	}
	if info, err := os.Lstat(dest); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if err := os.Remove(dest); err != nil {
			return diskFailure(filepath.Dir(dest), err)
		}
	}
	if err := os.Symlink(src, dest); err != nil && !errors.Is(err, fs.ErrExist) {
		return diskFailure(filepath.Dir(dest), err)
	}
	return nil
}
