// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// slowly lets a request for a large part take a while, so that a test can step
// in between.
func slowly(a asked) fault {
	if a.op == "Get" && a.off > 0 {
		return fault{pause: 20 * time.Millisecond}
	}
	return fault{}
}

// recorded returns how many ranges the journal in dir holds.
func recorded(dir string) int {
	raw, _ := os.ReadFile(filepath.Join(dir, journalName))
	return bytes.Count(raw, []byte(`{"range"`))
}

// recordedOf is the like for one file, by its path below dir.
func recordedOf(dir, path string) int {
	raw, _ := os.ReadFile(filepath.Join(dir, journalName))
	ids, count := map[int]string{}, 0
	for line := range bytes.Lines(raw) {
		var r journalLine
		if json.Unmarshal(line, &r) != nil {
			continue // it is being written
		}
		if r.Begun != nil {
			ids[r.Begun.ID] = r.Begun.Path
		}
		if r.Range != nil && ids[r.Range.ID] == path {
			count++
		}
	}
	return count
}

func TestPullGoesOnAfterKill(t *testing.T) {
	for name, at := range map[string]int{"early": 1, "halfway": 8, "late": 15} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFaultServer(t)
			want := map[string][]byte{"one": noise(1, 40*mebibyte), "two": noise(2, 33*mebibyte+7), "small": noise(3, 1000)}
			for k, v := range want {
				s.put("m/"+k, v)
			}
			// The end of each stays away, so that the first run cannot be done before it is killed.
			s.faults(func(a asked) fault {
				f := slowly(a)
				f.stall = a.op == "Get" && a.off >= 32*mebibyte
				return f
			})
			dir := t.TempDir()
			env := with(serverSettings(s), settings{"PRELOADER_CONNS": "2"})
			first := start(t, env, "s3://models/m", dir)
			eventually(t, "ranges are recorded", func() bool { return recorded(dir) >= at })
			if err := first.Process.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = first.Wait()
			var safe int64
			raw, err := os.ReadFile(filepath.Join(dir, journalName))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range tell(raw).everything() {
				safe += f
			}
			wantNothingPartial(t, dir, want)
			s.faults(slowly)
			out := start(t, env, "s3://models/m", dir).outcome(t)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dir, want)
			if most := out.report.Bytes - safe; out.report.Fetched > most {
				t.Errorf("fetched %d bytes after %d were recorded, want at most %d", out.report.Fetched, safe, most)
			}
		})
	}
}

// everything returns how many bytes of each file a journal says are on disk.
func (d told) everything() []int64 {
	var sizes []int64
	for _, r := range d.done {
		sizes = append(sizes, r.Size)
	}
	for _, f := range d.begun {
		for _, seg := range f.segments {
			sizes = append(sizes, seg.n)
		}
	}
	return sizes
}

// wantNothingPartial fails if a final name holds anything but the whole file.
func wantNothingPartial(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	for rel, data := range tree(t, dir) {
		if data != string(want[rel]) {
			t.Errorf("file %s is visible with %d bytes that are not its own", rel, len(data))
		}
	}
}

// TestPullGoesOnAfterKillAtAnyTime kills runs at times that drift over the
// whole life of a pull, restarting on the same directory until one is let live.
func TestPullGoesOnAfterKillAtAnyTime(t *testing.T) {
	s := newFaultServer(t)
	want := map[string][]byte{}
	for i, rel := range []string{"a", "b", "c/d", "c/e", "f"} {
		want[rel] = noise(uint64(i), 1+i*5*mebibyte)
		s.put("m/"+rel, want[rel])
	}
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_CONNS": "3"})
	kills := 0
	for i := range 40 {
		p := start(t, env, "s3://models/m", dir)
		timer := time.AfterFunc(time.Duration(20+7*i)*time.Millisecond, func() { _ = p.Process.Kill() })
		out := p.outcome(t)
		timer.Stop()
		wantNothingPartial(t, dir, want)
		if out.code == ExitOK {
			break
		}
		kills++
	}
	wantCode(t, start(t, env, "s3://models/m", dir).outcome(t), ExitOK, "Completed")
	wantTree(t, dir, want)
	if kills == 0 {
		t.Error("no run was killed, so nothing was tested")
	}
}

func TestPullStopsAtOnceAndGoesOnToTheByte(t *testing.T) {
	for name, tc := range map[string]struct {
		signal syscall.Signal
		code   ExitCode
	}{
		"SIGTERM": {syscall.SIGTERM, ExitTerminated},
		"SIGINT":  {syscall.SIGINT, ExitInterrupt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFaultServer(t)
			data := noise(1, 50*mebibyte)
			s.put("m/model", data)
			s.faults(func(a asked) fault {
				return fault{stall: a.op == "Get", after: 5*mebibyte + 4321}
			})
			dir := t.TempDir()
			env := with(serverSettings(s), settings{"PRELOADER_CONNS": "2"})
			p := start(t, env, "s3://models/m", dir)
			eventually(t, "ranges are recorded", func() bool { return recorded(dir) >= 2 })
			asked := time.Now()
			if err := p.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			first := p.outcome(t)
			if took := time.Since(asked); took > 10*time.Second {
				t.Errorf("stopping took %v", took)
			}
			wantCode(t, first, tc.code, "Stopped")
			s.faults(nil)
			second := start(t, env, "s3://models/m", dir).outcome(t)
			wantCode(t, second, ExitOK, "Completed")
			wantTree(t, dir, map[string][]byte{"model": data})
			if got := first.report.Fetched + second.report.Fetched; got != int64(len(data)) {
				t.Errorf("both runs fetched %d bytes together, want %d: none twice", got, len(data))
			}
		})
	}
}

// TestPullDoesNotGoOnWithAFileThatIsGone has a cleaner remove what a killed run had
// gathered, but not its journal, of an object whose store knows no checksum.
func TestPullDoesNotGoOnWithAFileThatIsGone(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 40*mebibyte)
	s.putWith("m/model", data, nil)
	s.faults(func(a asked) fault { return fault{stall: a.op == "Get", after: 6 * mebibyte} })
	dir := t.TempDir()
	p := start(t, serverSettings(s), "s3://models/m", dir)
	eventually(t, "ranges are recorded", func() bool { return recorded(dir) >= 2 })
	_ = p.Process.Kill()
	_ = p.Wait()
	if err := os.Remove(filepath.Join(dir, tempName("model"))); err != nil {
		t.Fatal(err)
	}
	s.faults(nil)
	out := run(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
	if out.report.Resumed != 0 {
		t.Errorf("resumed %d bytes of a file that was gone", out.report.Resumed)
	}
}

// TestPullDoesNotGoOnWithAnotherVersionsBytes has an object replaced by a small one while
// it is fetched, the run killed, and the object put back.
func TestPullDoesNotGoOnWithAnotherVersionsBytes(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 40*mebibyte)
	s.putWith("m/model", data, nil)
	s.faults(func(a asked) fault { return fault{stall: a.op == "Get", after: 6 * mebibyte} })
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_CONNS": "1", "PRELOADER_STALL": "1s"})
	p := start(t, env, "s3://models/m", dir)
	eventually(t, "a range is recorded", func() bool { return recorded(dir) >= 1 })
	s.putWith("m/model", noise(2, mebibyte/2), nil)
	s.faults(func(a asked) fault { return fault{stall: a.op == "Get" && a.n == mebibyte/2, after: mebibyte / 4} })
	s.forget()
	eventually(t, "the small one is asked for", func() bool { return s.count("Get m/model") >= 2 })
	_ = p.Process.Kill()
	_ = p.Wait()
	s.putWith("m/model", data, nil)
	s.faults(nil)
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
}

func TestPullDoesNotBelieveAnotherBoot(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 40*mebibyte)
	s.put("m/model", data)
	s.put("m/done", []byte("finished before"))
	s.faults(func(a asked) fault {
		return fault{stall: a.op == "Get" && a.key == "m/model", after: 6 * mebibyte}
	})
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_CONNS": "2"})
	p := start(t, env, "s3://models/m", dir)
	eventually(t, "ranges are recorded", func() bool { return recorded(dir) >= 2 })
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	// What a power cut leaves: names and lengths, but not all of the content.
	path := filepath.Join(dir, journalName)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte(bootID()), []byte("another-boot"), 1)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	part, err := os.OpenFile(filepath.Join(dir, tempName("model")), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	_ = part.Close()
	s.faults(nil)
	out := run(t, env, "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data, "done": []byte("finished before")})
	if out.report.Resumed != recordEvery {
		t.Errorf("resumed %d bytes, want the one intact range of %d", out.report.Resumed, recordEvery)
	}
}

func TestPullChecksACompleteTreeAfterAnotherBoot(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/good", noise(1, mebibyte))
	s.put("m/lost", noise(2, mebibyte))
	dir := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	path := filepath.Join(dir, "lost")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, mebibyte), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	marker := filepath.Join(dir, markerName)
	raw, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(marker, []byte(strings.Replace(string(raw), bootID(), "another-boot", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.forget()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	if s.count("Get m/good") != 0 || s.count("Get m/lost") != 1 {
		t.Errorf("%d gets of the good file and %d of the lost one, want 0 and 1", s.count("Get m/good"), s.count("Get m/lost"))
	}

	// A tree that is whole is checked once.
	raw, err = os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(marker, []byte(strings.Replace(string(raw), bootID(), "another-boot", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, times := range []int{1, 0} {
		out := run(t, serverSettings(s), "s3://models/m", dir)
		wantCode(t, out, ExitOK, "Completed")
		if got := strings.Count(out.log, "the machine has restarted"); got != times || out.report.Fetched != 0 {
			t.Errorf("checked %d times, want %d; fetched %d bytes", got, times, out.report.Fetched)
		}
	}
}

func TestPullWithoutResumeStartsAfresh(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 20*mebibyte)
	s.put("m/model", data)
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_RESUME": "off"})
	for range 2 {
		out := run(t, env, "s3://models/m", dir)
		wantCode(t, out, ExitOK, "Completed")
		if out.report.Fetched != int64(len(data)) {
			t.Errorf("fetched %d bytes, want all %d", out.report.Fetched, len(data))
		}
	}
	wantTree(t, dir, map[string][]byte{"model": data})
}

func TestTwoPreloadersInOneDirectoryTakeTurns(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 30*mebibyte)
	s.put("m/model", data)
	release := make(chan struct{})
	s.faults(func(a asked) fault {
		if a.op == "Get" && a.off > 0 {
			return fault{before: func() { <-release }}
		}
		return fault{}
	})
	dir := t.TempDir()
	first := start(t, serverSettings(s), "s3://models/m", dir)
	eventually(t, "the first is at work", func() bool { return recorded(dir) >= 1 })
	second := start(t, serverSettings(s), "s3://models/m", dir)
	time.Sleep(50 * time.Millisecond) // gives a second one that does not wait the time to do harm
	close(release)
	wantCode(t, first.outcome(t), ExitOK, "Completed")
	out := second.outcome(t)
	wantCode(t, out, ExitOK, "Completed")
	if out.report.Fetched != 0 || out.report.Skipped != 1 {
		t.Errorf("the second fetched %d bytes and skipped %d files, want 0 and 1", out.report.Fetched, out.report.Skipped)
	}
	wantTree(t, dir, map[string][]byte{"model": data})
}
