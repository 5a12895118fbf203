// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// coldTree makes files on a disk and has the kernel forget them.
func coldTree(t *testing.T, files map[string]int) string {
	t.Helper()
	dir := diskDir(t)
	for name, size := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, noise(uint64(size), size), 0o600); err != nil {
			t.Fatal(err)
		}
		chill(t, path)
	}
	return dir
}

// chill drops a file from the page cache.
func chill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// shareCached returns how many bytes of a file are in the page cache.
func shareCached(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := mincoreBytes(f, info.Size())
	if !ok {
		t.Skip("this kernel does not tell what it caches")
	}
	return n
}

func TestWarmBringsATreeIntoThePageCache(t *testing.T) {
	files := map[string]int{"a/model": 21*mebibyte + 5, "b": 300_000, "empty": 0}
	dir := coldTree(t, files)
	claim := coldTree(t, map[string]int{"shard": 9 * mebibyte})
	for link, target := range map[string]string{"shard": claim + "/shard", "again": claim, "gone": claim + "/none", "loop": "."} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if n := shareCached(t, filepath.Join(dir, "a/model")); n > 10*mebibyte {
		t.Skipf("this file system keeps %d bytes that it was told to forget", n)
	}
	for _, again := range []bool{false, true} {
		out := run(t, settings{"PRELOADER_LOG": "json"}, "warm", dir)
		if out.code != ExitOK {
			t.Fatalf("exit code %d; log:\n%s", out.code, out.log)
		}
		for path, size := range map[string]int{dir + "/a/model": 21*mebibyte + 5, dir + "/b": 300_000, claim + "/shard": 9 * mebibyte} {
			if n := shareCached(t, path); n != int64(size) {
				t.Errorf("%d of %d bytes of %s are cached", n, size, path)
			}
		}
		var line struct {
			Message       string `json:"msg"`
			Cached, Bytes int64
		}
		if err := json.Unmarshal([]byte(out.log), &line); err != nil {
			t.Fatalf("%v in %s", err, out.log)
		}
		if want := int64(30*mebibyte + 5 + 300_000); line.Bytes != want || line.Cached != want {
			t.Errorf("reported %d of %d bytes, want all of %d", line.Cached, line.Bytes, want)
		}
		if want := "100 % in the page cache, "; !strings.Contains(line.Message, want) ||
			strings.Contains(line.Message, "100 % before") != again {
			t.Errorf("message %q, want %q, and warm before: %t", line.Message, want, again)
		}
	}
}

func TestWarmStaysWithinItsBound(t *testing.T) {
	dir := coldTree(t, map[string]int{"1": 9 * mebibyte, "2": 9 * mebibyte, "3": 9 * mebibyte})
	if n := shareCached(t, dir+"/3"); n > 4*mebibyte {
		t.Skipf("this file system keeps %d bytes that it was told to forget", n)
	}
	out := run(t, nil, "warm", "--limit=12Mi", dir)
	if out.code != ExitOK || !strings.Contains(out.log, "no room for all of it") {
		t.Errorf("exit code %d; log:\n%s", out.code, out.log)
	}
	if a, b, c := shareCached(
		t,
		dir+"/1",
	), shareCached(
		t,
		dir+"/2",
	), shareCached(
		t,
		dir+"/3",
	); a != 9*mebibyte || b < 3*mebibyte ||
		c > 0 {
		t.Errorf("%d, %d and %d bytes are cached, want all, a third and none", a, b, c)
	}
}

func TestWarmUnderASmallLimitLeavesRoomToBreathe(t *testing.T) {
	g := newMemoryGroup(t, 96*mebibyte)
	dir := coldTree(t, map[string]int{"model": 200 * mebibyte})
	out := g.within(t, nil, "warm", dir)
	if out.code != ExitOK || !strings.Contains(out.log, "memory limit of 100.7 MB") {
		t.Errorf("exit code %d, want 0 and the limit named; log:\n%s", out.code, out.log)
	}
	if n := shareCached(t, dir+"/model"); n == 0 || n > 96*mebibyte {
		t.Errorf("%d bytes are cached under a limit of 96 MiB", n)
	}
}

func TestWarmOfWhatIsNotThere(t *testing.T) {
	if out := run(t, nil, "warm", "/nonexistent"); out.code != ExitNotFound {
		t.Errorf("exit code %d, want %d; log:\n%s", out.code, ExitNotFound, out.log)
	}
	if out := run(t, nil, "warm"); out.code != ExitUsage {
		t.Errorf("exit code %d, want %d", out.code, ExitUsage)
	}
	if out := run(t, nil, "warm", "--limit=lots", "/tmp"); out.code != ExitUsage {
		t.Errorf("exit code %d, want %d", out.code, ExitUsage)
	}
}
