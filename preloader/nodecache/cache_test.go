// SPDX-License-Identifier: Apache-2.0

package nodecache

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string, limit int64) *Cache {
	t.Helper()
	c, err := Open(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	// Whatever the disk of this machine has room for.
	c.space = func(*os.Root) (size, free int64, err error) { return 1 << 40, 1 << 39, nil }
	return c
}

func identity(key string, size int) Identity {
	return Identity{Store: "http://s3", Bucket: "models", Key: key, Version: "v1", Size: int64(size)}
}

// put keeps some content. Unless it may be linked, the cache has to copy it.
func put(t *testing.T, c *Cache, key, content string, linked bool) error {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	folder, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	src := Source{File: f, Folder: folder, Name: "file", Copy: func(into *os.File) error {
		_, err := io.Copy(into, f)
		return err
	}}
	if !linked {
		src.Name = "no such name"
	}
	return c.Put(t.Context(), Record{Identity: identity(key, len(content)), CRC: "CRC32", Sum: content[:1]}, src)
}

func get(t *testing.T, c *Cache, key string, size int) (string, bool) {
	t.Helper()
	h, err := c.Get(identity(key, size))
	if err != nil {
		t.Fatal(err)
	}
	if h == nil {
		return "", false
	}
	defer h.Close()
	raw, err := io.ReadAll(h.File)
	if err != nil {
		t.Fatal(err)
	}
	if h.Sum != string(raw[:1]) || h.CRC != "CRC32" {
		t.Errorf("record %+v for %q", h.Record, raw)
	}
	return string(raw), true
}

// leftovers lists what is in the cache beside n entries and locks.
func leftovers(t *testing.T, dir string, n int) {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.Contains(path, "/"+locksDir+"/") {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2*n {
		t.Errorf("files %q, want those of %d entries", found, n)
	}
}

func TestWhatIsPutIsThere(t *testing.T) {
	for name, linked := range map[string]bool{"copied": false, "linked": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, 1<<20)
			if err := put(t, c, "a", "content", linked); err != nil {
				t.Fatal(err)
			}
			if err := put(t, c, "a", "content", linked); err != nil { // again
				t.Fatal(err)
			}
			if got, ok := get(t, open(t, dir, 1<<20), "a", 7); !ok || got != "content" {
				t.Errorf("got %q, %t", got, ok)
			}
			for what, id := range map[string]Identity{
				"another key":     identity("b", 7),
				"another size":    identity("a", 8),
				"another version": {Store: "http://s3", Bucket: "models", Key: "a", Version: "v2", Size: 7},
				"another bucket":  {Store: "http://s3", Bucket: "others", Key: "a", Version: "v1", Size: 7},
				"another store":   {Store: "http://s4", Bucket: "models", Key: "a", Version: "v1", Size: 7},
			} {
				if h, err := c.Get(id); h != nil || err != nil {
					t.Errorf("%s is there too: %+v, %v", what, h, err)
				}
			}
			leftovers(t, dir, 1)
			if err := c.Drop(identity("a", 7)); err != nil {
				t.Fatal(err)
			}
			if _, ok := get(t, c, "a", 7); ok {
				t.Error("it is there after it was dropped")
			}
			leftovers(t, dir, 0)
		})
	}
}

func TestHalfAnEntryIsNone(t *testing.T) {
	object := func(dir, ext string) string {
		found, _ := filepath.Glob(filepath.Join(dir, objectsDir, "*", "*"+ext))
		return slices.MinFunc(found, func(a, b string) int { return len(a) - len(b) })
	}
	cases := map[string]func(dir string) error{
		"without its file":     func(dir string) error { return os.Remove(object(dir, "")) },
		"without its record":   func(dir string) error { return os.Remove(object(dir, recordExt)) },
		"with a shorter file":  func(dir string) error { return os.Truncate(object(dir, ""), 3) },
		"with a longer file":   func(dir string) error { return os.Truncate(object(dir, ""), 9) },
		"with a torn record":   func(dir string) error { return os.Truncate(object(dir, recordExt), 20) },
		"with an empty record": func(dir string) error { return os.Truncate(object(dir, recordExt), 0) },
		"with another's record": func(dir string) error {
			return os.WriteFile(object(dir, recordExt), []byte(`{"bucket":"x","size":7}`), 0o600)
		},
		"with a folder for a file": func(dir string) error {
			return errors.Join(os.Remove(object(dir, "")), os.Mkdir(strings.TrimSuffix(object(dir, recordExt), recordExt), 0o755))
		},
		"with a link that leads out": func(dir string) error {
			return errors.Join(
				os.Remove(object(dir, "")),
				os.Symlink("/etc/passwd", strings.TrimSuffix(object(dir, recordExt), recordExt)),
			)
		},
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, 1<<20)
			if err := put(t, c, "a", "content", false); err != nil {
				t.Fatal(err)
			}
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			if got, ok := get(t, c, "a", 7); ok {
				t.Errorf("it gives %q", got)
			}
			if name == "with a folder for a file" {
				return // nothing that this program would ever make
			}
			if err := put(t, c, "a", "content", false); err != nil {
				t.Fatal(err)
			}
			if got, ok := get(t, c, "a", 7); !ok || got != "content" {
				t.Errorf("after it is put again: %q, %t", got, ok)
			}
		})
	}
}

// age sets the time of the last use of an entry.
func age(t *testing.T, dir, key string, size int, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	if err := os.Chtimes(filepath.Join(dir, identity(key, size).name()+recordExt), at, at); err != nil {
		t.Fatal(err)
	}
}

func TestTheLeastRecentlyUsedGoesFirst(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 300)
	content := strings.Repeat("x", 100)
	for i, key := range []string{"a", "b", "c"} {
		if err := put(t, c, key, content, false); err != nil {
			t.Fatal(err)
		}
		age(t, dir, key, 100, time.Duration(10-i)*time.Hour)
	}
	if _, ok := get(t, c, "a", 100); !ok { // and now it is the youngest
		t.Fatal("a is gone")
	}
	if err := put(t, c, "d", content, false); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]bool{"a": true, "b": false, "c": true, "d": true} {
		if _, ok := get(t, c, key, 100); ok != want {
			t.Errorf("%s is there: %t, want %t", key, ok, want)
		}
	}
	leftovers(t, dir, 3)
}

// TestCopiesLeaveATenthOfTheDisk: the kubelet would evict pods.
func TestCopiesLeaveATenthOfTheDisk(t *testing.T) {
	c := open(t, t.TempDir(), 1<<20)
	content := strings.Repeat("x", 50)
	for _, step := range []struct {
		key     string
		free    int64
		linked  bool
		wantErr error
		want    []string
	}{
		{key: "a", free: 150, want: []string{"a"}},
		{key: "b", free: 149, want: []string{"b"}},
		{key: "c", free: 90, wantErr: ErrNoRoom, want: []string{"b"}},
		{key: "d", free: 90, linked: true, want: []string{"b", "d"}},
	} {
		c.space = func(*os.Root) (size, free int64, err error) { return 1000, step.free, nil }
		if err := put(t, c, step.key, content, step.linked); !errors.Is(err, step.wantErr) {
			t.Errorf("%s: error %v, want %v", step.key, err, step.wantErr)
		}
		for _, key := range []string{"a", "b", "c", "d"} {
			if _, ok := get(t, c, key, 50); ok != slices.Contains(step.want, key) {
				t.Errorf("after %s with %d bytes free: %s is there: %t", step.key, step.free, key, ok)
			}
		}
	}
}

func TestWhatIsInUseStays(t *testing.T) {
	content := strings.Repeat("x", 100)
	dir := t.TempDir()
	c := open(t, dir, 200)
	for _, key := range []string{"read", "linked"} {
		if err := put(t, c, key, content, false); err != nil {
			t.Fatal(err)
		}
	}
	hit, err := c.Get(identity("read", 100))
	if err != nil || hit == nil {
		t.Fatal(hit, err)
	}
	model := t.TempDir()
	folder, err := os.Open(model)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	other, err := c.Get(identity("linked", 100))
	if err != nil || other == nil {
		t.Fatal(other, err)
	}
	if err := other.Link(folder, "model"); err != nil {
		t.Fatal(err)
	}
	other.Close()
	if err := put(t, c, "more", content, false); !errors.Is(err, ErrNoRoom) {
		t.Errorf("error %v, want %v", err, ErrNoRoom)
	}
	for _, key := range []string{"read", "linked"} {
		if _, ok := get(t, c, key, 100); !ok {
			t.Errorf("%s went while it was in use", key)
		}
	}
	hit.Close()
	if err := put(t, c, "more", content, false); err != nil {
		t.Errorf("error %v when it is no longer read", err)
	}
	if err := os.Remove(filepath.Join(model, "model")); err != nil {
		t.Fatal(err)
	}
	if err := put(t, c, "most", strings.Repeat("y", 200), false); err != nil {
		t.Errorf("error %v when nothing is in use", err)
	}
	leftovers(t, dir, 1)
	if err := put(t, c, "huge", strings.Repeat("y", 201), false); !errors.Is(err, ErrNoRoom) {
		t.Errorf("error %v for a file beyond the limit, want %v", err, ErrNoRoom)
	}
	leftovers(t, dir, 1)
}

func TestASweepRemovesWhatTheDeadLeft(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 1000)
	old := time.Now().Add(-time.Hour)
	alive, err := os.Create(filepath.Join(dir, tempDir, "alive"))
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := unix.Flock(int(alive.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tempDir + "/dead", tempDir + "/young", objectsDir + "/00/orphan"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(
			os.MkdirAll(filepath.Dir(path), 0o755),
			os.WriteFile(path, []byte("x"), 0o600),
			os.Chtimes(path, old, old),
		); err != nil {
			t.Fatal(err)
		}
	}
	c.now = func() time.Time { return time.Now().Add(2 * youngest) }
	if err := put(t, c, "a", "content", false); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		tempDir + "/alive": true, tempDir + "/dead": false, objectsDir + "/00/orphan": false,
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s is there: %t, want %t", name, err == nil, want)
		}
	}
	c.now = time.Now
	if err := os.WriteFile(filepath.Join(dir, tempDir, "young"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := put(t, c, "b", "content", false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, tempDir, "young")); err != nil {
		t.Errorf("what was begun a moment ago is gone: %v", err)
	}
}

func TestOneAtATime(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir, 1000), open(t, dir, 1000)
	held, err := a.Lock(t.Context(), "model", Wait{})
	if err != nil {
		t.Fatal(err)
	}
	if other, err := b.Lock(t.Context(), "another", Wait{Longest: -1}); err != nil {
		t.Error(err)
	} else {
		other.Release()
	}
	waiting, got := make(chan struct{}), make(chan error, 1)
	go func() {
		second, err := b.Lock(t.Context(), "model", Wait{Begun: func() { close(waiting) }})
		if err == nil {
			second.Release()
		}
		got <- err
	}()
	<-waiting
	select {
	case err := <-got:
		t.Fatalf("two hold the lock: %v", err)
	default:
	}
	held.Release()
	if err := <-got; err != nil {
		t.Error(err)
	}
	held, err = a.Lock(t.Context(), "model", Wait{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := b.Lock(ctx, "model", Wait{Begun: func() { cancel(gone) }}); !errors.Is(err, gone) {
		t.Errorf("error %v, want %v", err, gone)
	}
	for name, wait := range map[string]Wait{
		"nobody is waited for":      {Longest: -1},
		"it takes too long":         {Longest: time.Millisecond},
		"the holder does not go on": {Still: time.Millisecond},
	} {
		if _, err := b.Lock(t.Context(), "model", wait); !errors.Is(err, ErrBusy) {
			t.Errorf("%s: error %v, want %v", name, err, ErrBusy)
		}
	}
}

// TestPatienceWithAHolder looks at a lock at chosen times, at some of which its
// holder has given a sign before.
func TestPatienceWithAHolder(t *testing.T) {
	type look struct {
		at       time.Duration
		beat     bool
		wantBusy bool
	}
	const second = time.Second
	cases := map[string]struct {
		wait  Wait
		looks []look
	}{
		"a holder that comes on is waited for": {
			wait:  Wait{Still: 3 * second, Longest: 60 * second},
			looks: []look{{at: 0}, {at: 2 * second, beat: true}, {at: 4 * second, beat: true}, {at: 6 * second}},
		},
		"a holder that stands still is not": {
			wait:  Wait{Still: 3 * second, Longest: 60 * second},
			looks: []look{{at: 0}, {at: 2 * second, beat: true}, {at: 4 * second}, {at: 5 * second, wantBusy: true}},
		},
		"what it did before does not count": {
			wait:  Wait{Still: 3 * second},
			looks: []look{{at: 0, beat: true}, {at: 2 * second}, {at: 3 * second, wantBusy: true}},
		},
		"a holder that takes for ever is not waited for, though it comes on": {
			wait:  Wait{Still: 3 * second, Longest: 4 * second},
			looks: []look{{at: 0}, {at: 2 * second, beat: true}, {at: 4 * second, beat: true, wantBusy: true}},
		},
		"without bounds it may take as long as it likes": {looks: []look{{at: 0}, {at: time.Hour}}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := open(t, t.TempDir(), 1000)
			held, err := c.Lock(t.Context(), "model", Wait{})
			if err != nil {
				t.Fatal(err)
			}
			defer held.Release()
			start := time.Unix(1_800_000_000, 0)
			w := waiter{Wait: tc.wait, since: start}
			for i, l := range tc.looks {
				if l.beat { // which may well be within one tick of the file system's clock
					long := time.Unix(1_000_000_000+int64(i), 0)
					if err := c.root.Chtimes(held.name, long, long); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.look(held.file, start.Add(l.at)); errors.Is(err, ErrBusy) != l.wantBusy {
					t.Errorf("after %v: error %v, want busy: %t", l.at, err, l.wantBusy)
				}
			}
		})
	}
}

func TestABeatIsSeen(t *testing.T) {
	c := open(t, t.TempDir(), 1000)
	held, err := c.Lock(t.Context(), "model", Wait{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	long := time.Unix(1_000_000_000, 0)
	if err := c.root.Chtimes(held.name, long, long); err != nil {
		t.Fatal(err)
	}
	held.Beat()
	if info, err := held.file.Stat(); err != nil || info.ModTime().Equal(long) {
		t.Errorf("nothing shows that the holder comes on: %v", err)
	}
}

// TestManyAtOnce lets many users put, get and drop at once. Whatever they get is
// what was put.
func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	done := make(chan error, 8)
	for user := range 8 {
		c := open(t, dir, 500)
		go func() {
			var err error
			for i := range 60 {
				key := strconv.Itoa((i*7 + user*3) % 11)
				content := strings.Repeat(key, 100/len(key))
				if got, ok := get(t, c, key, len(content)); ok && got != content {
					err = errors.Join(err, errors.New("key "+key+" gave "+got))
				}
				if putErr := put(t, c, key, content, (i+user)%2 == 0); putErr != nil && !errors.Is(putErr, ErrNoRoom) {
					err = errors.Join(err, putErr)
				}
				if i%13 == 0 {
					err = errors.Join(err, c.Drop(identity(key, len(content))))
				}
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	c := open(t, dir, 500)
	entries, err := c.entries()
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, e := range entries {
		if !e.shared {
			sum += e.size
		}
	}
	if sum > 500 {
		t.Errorf("%d bytes are kept, want 500 at most", sum)
	}
	found, _ := os.ReadDir(filepath.Join(dir, tempDir))
	if len(found) > 0 {
		t.Errorf("%d temporary files are left", len(found))
	}
}
