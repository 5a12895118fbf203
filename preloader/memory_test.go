// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/quantity"
)

// memoryGroup is a control group of its own with a memory limit. Making one
// needs root and a machine that lets it.
type memoryGroup struct {
	dir string
	v2  bool
}

func newMemoryGroup(t *testing.T, limit int64) memoryGroup {
	t.Helper()
	skipUnderRace(t)
	if os.Geteuid() != 0 {
		t.Skip("making control groups needs root")
	}
	g := memoryGroup{dir: "/sys/fs/cgroup/memory"}
	name, err := "memory.limit_in_bytes", error(nil)
	if _, err = os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		g, name = memoryGroup{dir: "/sys/fs/cgroup", v2: true}, "memory.max"
	}
	g.dir = filepath.Join(g.dir, fmt.Sprintf("preloader-test-%d", os.Getpid()))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Skipf("this machine does not let tests make control groups: %v", err)
	}
	t.Cleanup(func() {
		// The kernel takes a process out of its group a moment after it has told of its end.
		eventually(t, "the control group can be removed", func() bool { return os.Remove(g.dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(strconv.FormatInt(limit, 10)), 0o600); err != nil {
		t.Skipf("this machine does not limit memory by control group: %v", err)
	}
	return g
}

// within starts the preloader in the group.
func (g memoryGroup) within(t *testing.T, env settings, args ...string) outcome {
	t.Helper()
	p := command(t, env, append([]string{"-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, g.dir, os.Args[0]}, args...)...)
	p.Path = "/bin/sh"
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p.outcome(t)
}

var policyInLog = regexp.MustCompile(` io=(\w+)`)

func TestPullOfALargeModelUnderASmallLimit(t *testing.T) {
	g := newMemoryGroup(t, 96*mebibyte)
	s := newFaultServer(t)
	data := noise(1, 200*mebibyte)
	s.put("m/model", data)
	dir := diskDir(t)
	unwritten := g.watchUnwritten(t)
	out := g.within(t, serverSettings(s), "s3://models/m", dir)
	peak := unwritten()
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
	if out.report.IO != IOBounded || !strings.Contains(out.log, "io=bounded") {
		t.Errorf("policy %q, want bounded; log:\n%s", out.report.IO, out.log)
	}
	// What else is cached can be dropped at once; bytes that the disk has yet to take cannot. The window is a quarter of
	// the limit; beside it are what connections are writing and what is being waited for.
	t.Logf("at most %d MiB waited", peak/mebibyte)
	if peak > 96*mebibyte/2 {
		t.Errorf("up to %d MiB waited for the disk, against a limit of 96", peak/mebibyte)
	}
}

// watchUnwritten samples how many bytes of the group's page cache wait for the disk. The function that it returns ends
// the watch and tells the peak.
func (g memoryGroup) watchUnwritten(t *testing.T) func() int64 {
	t.Helper()
	fields := regexp.MustCompile(`(?m)^(?:dirty|writeback|file_dirty|file_writeback) (\d+)$`)
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		var highest int64
		for {
			select {
			case <-stop:
				peak <- highest
				return
			case <-time.After(2 * time.Millisecond):
			}
			raw, err := os.ReadFile(filepath.Join(g.dir, "memory.stat"))
			if err != nil {
				continue
			}
			var sum int64
			for _, field := range fields.FindAllSubmatch(raw, -1) {
				n, _ := strconv.ParseInt(string(field[1]), 10, 64)
				sum += n
			}
			highest = max(highest, sum)
		}
	}()
	return func() int64 {
		close(stop)
		return <-peak
	}
}

func TestPullOfASmallModelLeavesItWarm(t *testing.T) {
	g := newMemoryGroup(t, 256*mebibyte)
	s := newFaultServer(t)
	data := noise(1, 64*mebibyte)
	s.put("m/model", data)
	dir := diskDir(t)
	out := g.within(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	if out.report.IO != IOWarm || out.report.Cached == nil || *out.report.Cached != int64(len(data)) {
		t.Errorf("policy %q, %v bytes cached; want warm and all %d", out.report.IO, out.report.Cached, len(data))
	}
	f, err := os.Open(filepath.Join(dir, "model"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, ok := mincoreBytes(f, int64(len(data))); !ok || n != int64(len(data)) {
		t.Errorf("mincore tells of %d bytes (%t), want %d", n, ok, len(data))
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	for name, count := range map[string]func(*os.File, int64) (int64, bool){"cachestat": cachedBytes, "mincore": mincoreBytes} {
		if n, ok := count(f, int64(len(data))); !ok || n > int64(len(data))/2 {
			t.Errorf("%s tells of %d bytes (%t) after they were dropped", name, n, ok)
		}
	}
}

func TestPullIntoMemoryUnderASmallLimitIsRefused(t *testing.T) {
	g := newMemoryGroup(t, 96*mebibyte)
	s := newFaultServer(t)
	s.put("m/model", noise(1, 120*mebibyte))
	dir := mountMemory(t, "200m")
	out := g.within(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, out, ExitNoSpace, "NoMemory")
	wanted := regexp.MustCompile(`at least (\d+)Mi`).FindStringSubmatch(out.last)
	if wanted == nil {
		t.Fatalf("termination message %q names no number", out.last)
	}
	if n, err := strconv.ParseInt(wanted[1], 10, 64); err != nil || n < 120 || n > 300 {
		t.Errorf("it asks for %s MiB, want a little more than 120", wanted[1])
	}
}

func TestPullInEveryMode(t *testing.T) {
	for _, mode := range []IOMode{IOAuto, IOWarm, IOBounded, IODirect} {
		t.Run(string(mode), func(t *testing.T) {
			s := newFaultServer(t)
			want := map[string][]byte{
				"large": noise(1, 33*mebibyte+4097),
				"odd":   noise(2, 12345),
				"empty": nil,
				"block": noise(3, 4096),
			}
			for k, v := range want {
				s.put("m/"+k, v)
			}
			// Broken connections make writes start anywhere.
			s.faults(func(a asked) fault {
				return fault{cut: a.op == "Get" && a.seen%2 == 0, after: 1_234_567}
			})
			dir := diskDir(t)
			out := run(t, with(serverSettings(s), settings{"PRELOADER_IO": string(mode)}), "s3://models/m", dir)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dir, want)
			if got := policyInLog.FindStringSubmatch(out.log); mode != IOAuto && (len(got) < 2 || got[1] != string(mode)) {
				t.Errorf("the log tells of policy %q, want %s", got, mode)
			}
		})
	}
	t.Run("direct, resumed at an odd byte", func(t *testing.T) {
		s := newFaultServer(t)
		data := noise(1, 30*mebibyte)
		s.put("m/model", data)
		s.faults(func(a asked) fault { return fault{stall: a.op == "Get", after: 5_000_001} })
		dir := diskDir(t)
		env := with(serverSettings(s), settings{"PRELOADER_IO": "direct"})
		p := start(t, env, "s3://models/m", dir)
		eventually(t, "ranges are recorded", func() bool { return recorded(dir) >= 2 })
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		wantCode(t, p.outcome(t), ExitTerminated, "Stopped")
		s.faults(nil)
		wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
		wantTree(t, dir, map[string][]byte{"model": data})
	})
}

func TestPullOntoAFullVolume(t *testing.T) {
	t.Run("too small from the start", func(t *testing.T) {
		s := newFaultServer(t)
		s.put("m/model", noise(1, 30*mebibyte))
		dir := mountMemory(t, "20m")
		out := run(t, serverSettings(s), "s3://models/m", dir)
		wantCode(t, out, ExitNoSpace, "NoSpace")
		if !strings.Contains(out.last, "31.5 MB") || !strings.Contains(out.last, "room") {
			t.Errorf("termination message %q does not tell how much is needed", out.last)
		}
		if s.count("Get") != 0 {
			t.Errorf("%d requests for data, though it could not fit", s.count("Get"))
		}
	})
	t.Run("too small by a bound that its file system does not know", func(t *testing.T) {
		s := newFaultServer(t)
		s.put("a/model", noise(1, 3*mebibyte))
		s.put("b/model", noise(2, 3*mebibyte))
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		env := serverSettings(s)
		env["PRELOADER_VOLUME_SIZE"] = "5Mi"
		wantCode(t, run(t, env, "s3://models/a", a), ExitOK, "Completed")
		wantCode(t, run(t, env, "s3://models/a", a), ExitOK, "Completed")
		if plan, code, _ := planned(t, env, "s3://models/a", a, "s3://models/b", b); code != ExitNoSpace ||
			*plan.Pairs[1].Disk.Free >= 2*mebibyte+1 {
			t.Errorf("the plan ends with %d: %+v", code, plan.Pairs[1].Disk)
		}
		gets := s.count("Get")
		out := run(t, env, "s3://models/a", a, "s3://models/b", b)
		wantCode(t, out, ExitNoSpace, "NoSpace")
		if want := "needs 3.1 MB more in " + b; !strings.Contains(out.last, want) || !strings.Contains(out.last, "sizeLimit") {
			t.Errorf("termination message %q lacks %q, or whose limit it is", out.last, want)
		}
		if s.count("Get") != gets {
			t.Errorf("%d requests for data, though it could not fit", s.count("Get")-gets)
		}
	})
	t.Run("filled by somebody else meanwhile", func(t *testing.T) {
		s := newFaultServer(t)
		s.put("m/model", noise(1, 30*mebibyte))
		dir := mountMemory(t, "40m")
		var once sync.Once // a request that is made again must not bring the file back
		filled := make(chan struct{})
		s.faults(func(a asked) fault {
			return fault{before: func() {
				if a.op == "Get" && a.off == 0 {
					once.Do(func() {
						_ = os.WriteFile(filepath.Join(dir, "somebody-elses"), make([]byte, 35*mebibyte), 0o600)
						close(filled)
					})
				}
			}}
		})
		wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitNoSpace, "NoSpace")
		if _, err := os.Stat(filepath.Join(dir, "model")); !os.IsNotExist(err) {
			t.Errorf("a file is visible: %v", err)
		}
		<-filled
		if err := os.Remove(filepath.Join(dir, "somebody-elses")); err != nil {
			t.Fatal(err)
		}
		s.faults(nil)
		wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
		wantTree(t, dir, map[string][]byte{"model": noise(1, 30*mebibyte)})
	})
}

// diskDir returns a folder on a disk, for machines whose /tmp is in memory.
func diskDir(t *testing.T) string {
	t.Helper()
	for _, parent := range []string{os.TempDir(), "/var/tmp", "."} {
		var st unix.Statfs_t
		if unix.Statfs(parent, &st) != nil || st.Type == unix.TMPFS_MAGIC || st.Type == unix.OVERLAYFS_SUPER_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(parent, "preloader-test-")
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	t.Skip("no folder for tests is on a disk")
	return ""
}

// mountMemory mounts a file system in memory of this size.
func mountMemory(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mounting needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// skipUnderRace skips a test that measures or bounds memory.
func skipUnderRace(t *testing.T) {
	t.Helper()
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector needs several times the memory")
	}
}

// mostMemory is what the program may ever have resident, whatever the model.
const mostMemory = 32_000_000

// TestPullOfManyFilesNeedsLittleMemory measures the program itself: that of the tests is
// larger than what it may take.
func TestPullOfManyFilesNeedsLittleMemory(t *testing.T) {
	skipUnderRace(t)
	count := 100_000
	if n, err := strconv.Atoi(os.Getenv("PRELOADER_TEST_FILES")); err == nil {
		count = n // for a look at other numbers
	}
	program := buildProgram(t)
	s := newFaultServer(t)
	for i := range count {
		data := []byte{} // which takes no request
		if i%10 == 0 {
			data = noise(uint64(i), 10)
		}
		s.put(fmt.Sprintf("m/folder-%03d/file-%07d.bin", i%100, i), data)
	}
	dir := t.TempDir()
	fetched := 0
	for _, run := range []string{"killed halfway", "resumed", "complete"} {
		peak := filepath.Join(t.TempDir(), "peak")
		p := command(t, serverSettings(s), "s3://models/m", dir)
		p.Path = program
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		watched := p.watchPeak(peak)
		if run == "killed halfway" {
			eventually(t, "half of the files are noted", func() bool { return notedFiles(dir) > count/2 })
			if err := p.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		out := p.outcome(t)
		<-watched
		if run != "killed halfway" {
			wantCode(t, out, ExitOK, "Completed")
			fetched += out.report.Files - out.report.Skipped
		}
		got := peakOf(t, peak)
		t.Logf("%s: %d files, %.1f s, peak %s", run, count, out.report.Seconds, quantity.FormatBytes(got))
		if got > mostMemory && count <= 100_000 {
			t.Errorf("%s: peak of %s, want at most %s", run, quantity.FormatBytes(got), quantity.FormatBytes(mostMemory))
		}
		if run != "killed halfway" && out.report.Files != count {
			t.Errorf("%s: %d files, want %d", run, out.report.Files, count)
		}
	}
	if fetched == 0 || fetched > count/2 {
		t.Errorf("%d of %d files were fetched after half of them had been", fetched, count)
	}
}

// buildProgram builds the preloader as its image does.
func buildProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "preloader")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path,
		"serverless.xyz/outrigger/cmd/preloader")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the preloader: %v\n%s", err, out)
	}
	return path
}

// notedFiles returns how many files a run's journal says are done.
func notedFiles(dir string) int {
	raw, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		return 0
	}
	return bytes.Count(raw, []byte(`{"done":`))
}

// watchPeak keeps a copy of a process's status as long as it runs, and closes what it
// returns when that is over.
func (p *program) watchPeak(path string) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
			if err != nil || !bytes.Contains(status, []byte("VmHWM:")) {
				return
			}
			_ = os.WriteFile(path, status, 0o600)
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return over
}

// peakOf reads the largest resident set from a process's status.
func peakOf(t *testing.T, path string) int64 {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "VmHWM:")
	var kibibytes int64
	if _, err := fmt.Sscan(rest, &kibibytes); err != nil {
		t.Fatalf("reading the peak: %v in %s", err, raw)
	}
	return kibibytes << 10
}
