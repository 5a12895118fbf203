// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asConfined makes the test binary confine itself as a pod would before it
// behaves as the preloader: its value is the folder of the volume and that of the
// termination message.
const asConfined = "PRELOADER_TEST_CONFINED"

// What a confined preloader sees the two folders as. Any system has these.
const (
	confinedVolume   = "/mnt"
	confinedMessages = "/media"
	confinedUser     = 1000
)

// confine gives up everything that a pod's security context can take: a
// file system that can be written to but for two folders, all capabilities, the
// way to get any back, and the user root. It then starts the program anew, and
// returns only if it fails.
func confine() error {
	runtime.LockOSThread()
	volume, messages, _ := strings.Cut(os.Getenv(asConfined), ":")
	if err := confineFiles(map[string]string{volume: confinedVolume, messages: confinedMessages}); err != nil {
		return err
	}
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break
		} else if err != nil {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	err = errors.Join(err, syscall.Setgroups(nil), syscall.Setgid(confinedUser), syscall.Setuid(confinedUser))
	if err != nil {
		return fmt.Errorf("becoming user %d: %w", confinedUser, err)
	}
	for _, path := range []string{"/tmp/x", "/x", "/dev/shm/x"} {
		if err := os.WriteFile(path, nil, 0o600); !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("writing %s: %w, want a file system that is read-only", path, err)
		}
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil || !bytes.Contains(status, []byte("CapBnd:\t0000000000000000\n")) ||
		!bytes.Contains(status, []byte("CapEff:\t0000000000000000\n")) {
		return fmt.Errorf("capabilities are left (%w): %s", err, status)
	}
	if err := os.Unsetenv(asConfined); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// confineFiles makes all files read-only but for folders, which it shows elsewhere.
func confineFiles(folders map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("leaving the mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts: %w", err)
	}
	for from, to := range folders {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("showing %s as %s: %w", from, to, err)
		}
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, readOnly); err != nil {
		return fmt.Errorf("making files read-only: %w", err)
	}
	for _, to := range folders {
		if err := unix.MountSetattr(unix.AT_FDCWD, to, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("making %s writable: %w", to, err)
		}
	}
	return nil
}

// TestPullInAConfinedPod runs as user 1000 with no capability on read-only files,
// is stopped midway, and goes on.
func TestPullInAConfinedPod(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give it up")
	}
	s := newFaultServer(t)
	want := map[string][]byte{"weights": noise(1, 30*mebibyte), "small": noise(2, 1000), "folder/below/empty": {}}
	for k, v := range want {
		s.put("m/"+k, v)
	}
	volume, messages := t.TempDir(), t.TempDir()
	for _, dir := range []string{volume, messages} {
		if err := os.Chown(dir, confinedUser, confinedUser); err != nil {
			t.Fatal(err)
		}
	}
	confined := func() *program {
		p := command(t, with(serverSettings(s), settings{
			asConfined: volume + ":" + messages, "PRELOADER_TERMINATION_LOG": confinedMessages + "/last", "PRELOADER_CONNS": "2",
			"HOME": "", "TMPDIR": "",
		}), "s3://models/m", confinedVolume)
		p.last = filepath.Join(messages, "last")
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.end)
		return p
	}
	s.faults(func(a asked) fault { return fault{stall: a.op == "Get", after: 5*mebibyte + 4321} })
	first := confined()
	eventually(t, "ranges are recorded", func() bool { return recorded(volume) >= 2 })
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantCode(t, first.outcome(t), ExitTerminated, "Stopped")
	s.faults(nil)
	second := confined().outcome(t)
	wantCode(t, second, ExitOK, "Completed")
	if second.report.Resumed < 8*mebibyte {
		t.Errorf("resumed %d bytes, want those of both connections", second.report.Resumed)
	}
	wantTree(t, volume, want)
	wantModes(t, volume)
}

// wantModes fails unless everybody may read all, and the user who runs it owns it.
func wantModes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(fileMode)
		if d.IsDir() {
			want = dirMode
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != confinedUser {
			t.Errorf("%s is owned by %v, want user %d", path, info.Sys(), confinedUser)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStoppedWhileAMountHangs: what waits for a file system, and cannot be told
// to stop waiting, holds nobody up.
func TestStoppedWhileAMountHangs(t *testing.T) {
	hangs := filepath.Join(t.TempDir(), "bundle.crt")
	if err := unix.Mkfifo(hangs, 0o600); err != nil { // opening it waits for a writer
		t.Fatal(err)
	}
	s := newFaultServer(t)
	p := start(t, with(serverSettings(s), settings{"AWS_CA_BUNDLE": hangs}), "s3://models/m", t.TempDir())
	eventually(t, "it waits for the file", func() bool {
		w, err := os.OpenFile(hangs, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err == nil { // somebody reads; the pipe stays open and empty
			t.Cleanup(func() { _ = w.Close() })
		}
		return err == nil
	})
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantCode(t, p.outcome(t), ExitTerminated, "Stopped")
}
