// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lockFromAfar takes the lock of a directory as a preloader on another node does where
// the directory is on NFS: the lock of the directory itself does not show here.
func lockFromAfar(t *testing.T, dir, host string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(f).Encode(holder{Host: host, PID: 7, Since: time.Unix(1_700_000_000, 0)}); err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = os.Remove(filepath.Join(dir, lockName))
		_ = f.Close()
	}
}

func TestPullWaitsForAPreloaderOfAnotherNode(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, mebibyte)
	s.put("m/model", data)
	dir := t.TempDir()
	release := lockFromAfar(t, dir, "llama-\x1b[31m7d9f")

	out := run(t, with(serverSettings(s), settings{"PRELOADER_WAIT": "300ms"}), "s3://models/m", dir)
	wantCode(t, out, ExitTransient, "Busy")
	for _, want := range []string{`llama-\x1b[31m7d9f`, "process 7", "2023-11-14T22:13:20Z", dir, "PRELOADER_WAIT"} {
		if !strings.Contains(out.last, want) {
			t.Errorf("termination message %q does not tell %q", out.last, want)
		}
	}
	wantTree(t, dir, map[string][]byte{})

	second := start(t, serverSettings(s), "s3://models/m", dir)
	time.Sleep(50 * time.Millisecond) // gives one that does not wait the time to do harm
	wantTree(t, dir, map[string][]byte{})
	release()
	wantCode(t, second.outcome(t), ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
	if _, err := os.Stat(filepath.Join(dir, lockName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock's file is still there: %v", err)
	}
}

// TestOnlyOneHoldsADirectory has many contend for the lock's file alone, which comes and
// goes with each holder.
func TestOnlyOneHoldsADirectory(t *testing.T) {
	dir := t.TempDir()
	var inside atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		own := t.TempDir() // its lock stands for that of a directory on another node
		group.Go(func() {
			for range 50 {
				root, err := os.OpenRoot(dir)
				if err != nil {
					t.Error(err)
					return
				}
				s := &store{dir: dir, root: root}
				if s.lock, err = os.Open(own); err != nil {
					t.Error(err)
					return
				}
				for !s.tryLock() {
				}
				if n := inside.Add(1); n != 1 || s.claim == nil {
					t.Errorf("%d hold the directory at once, the lock's file is %v", n, s.claim)
				}
				inside.Add(-1)
				s.close()
			}
		})
	}
	group.Wait()
}

// TestPullNeverPublishesTheFileOfAnother has another preloader, which no lock keeps
// away, put a file of its own in the place of the one that is being filled.
func TestPullNeverPublishesTheFileOfAnother(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 20*mebibyte)
	s.putWith("m/model", data, nil)
	dir := t.TempDir()
	gathering := filepath.Join(dir, tempName("model"))
	var once sync.Once
	s.faults(func(a asked) fault {
		if a.op != "Get" || a.off == 0 {
			return fault{}
		}
		return fault{before: func() {
			once.Do(func() {
				err := errors.Join(os.Remove(gathering), os.WriteFile(gathering, make([]byte, len(data)), 0o600))
				if err != nil {
					t.Error(err)
				}
			})
		}}
	})
	out := run(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, out, ExitTransient, "Disturbed")
	wantTree(t, dir, map[string][]byte{})

	s.faults(nil)
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
}

func TestAVolumeThatCannotBeWrittenToNeedsNoLocksFile(t *testing.T) {
	dir := t.TempDir()
	// Something that cannot be opened as a file stands for a read-only volume, on which
	// the superuser of a test could write.
	if err := os.Mkdir(filepath.Join(dir, lockName), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(t.Context(), dir, queue{log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if s.claim != nil {
		t.Error("a directory was taken for the lock's file")
	}
}
