// SPDX-License-Identifier: Apache-2.0

package preloader

import (
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
func linkLocal(path, dest string, filter Filter, log *slog.Logger, report *Report) error {
	info, err := os.Stat(path)
	if err != nil {
		return &ExitError{
			Code: ExitNotFound, Reason: "NotFound", Cause: "local path " + path + " cannot be found",
			Advice: "Check the path within the volume, and that the claim is mounted.", Err: err,
		}
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
	for _, src := range sources {
		name := filepath.Base(src)
		if !filter.Wants(name) {
			continue
		}
		if err := linkOne(src, filepath.Join(dest, name)); err != nil {
			return err
		}
		log.Info("Linked", "source", src, "directory", dest)
		report.Files++
	}
	if report.Files == 0 {
		return &ExitError{
			Code: ExitNotFound, Reason: "NoModel", Cause: "no model found in " + path,
			Advice: "Check the path within the volume and the allow and ignore patterns.",
		}
	}
	return nil
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
