// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestBarFitsItsTerminal(t *testing.T) {
	s := Status{Files: 40, ReadyFiles: 12, Bytes: 15_100e6, ReadyBytes: 6_342e6, FetchedBytes: 6_342e6}
	cases := map[string]struct {
		status  Status
		rate    float64
		columns int
		want    string
	}{
		"all of it": {
			status: s, rate: 1.2e9, columns: 120,
			want: "[################........................]  42% 6.3 GB of 15.1 GB, 1.2 GB/s, 12 of 40 files, 7s left",
		},
		"a narrow terminal takes a shorter bar": {
			status:  s,
			rate:    1.2e9,
			columns: 80,
			want:    "[#######............]  42% 6.3 GB of 15.1 GB, 1.2 GB/s, 12 of 40 files, 7s left",
		},
		"a narrower one none": {
			status:  s,
			rate:    1.2e9,
			columns: 70,
			want:    " 42% 6.3 GB of 15.1 GB, 1.2 GB/s, 12 of 40 files, 7s left",
		},
		"the narrowest cuts it":   {status: s, rate: 1.2e9, columns: 20, want: " 42% 6.3 GB of 15.1"},
		"no columns":              {status: s, rate: 1.2e9, columns: 0, want: ""},
		"nothing moves, no guess": {status: s, columns: 55, want: " 42% 6.3 GB of 15.1 GB, 0 B/s, 12 of 40 files"},
		"retries show": {
			status:  Status{Bytes: 10, Retries: 3},
			columns: 60,
			want:    "  0% 0 B of 10 B, 0 B/s, 0 of 0 files, 3 retries",
		},
		"more than all is all": {
			status:  Status{Bytes: 10, ReadyBytes: 12},
			columns: 60,
			want:    "[##################] 100% 12 B of 10 B, 0 B/s, 0 of 0 files",
		},
		"a rate too slow to count": {status: s, rate: 1e-9, columns: 55, want: " 42% 6.3 GB of 15.1 GB, 0 B/s, 12 of 40 files"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := tc.status.bar(tc.rate, tc.columns)
			if got != tc.want {
				t.Errorf("bar %q, want %q", got, tc.want)
			}
			if tc.columns > 0 && len(got) >= tc.columns {
				t.Errorf("%d columns do not fit into %d", len(got), tc.columns)
			}
		})
	}
}

func TestSpeedLooksBackAWhile(t *testing.T) {
	var s speed
	start := time.Unix(1_700_000_000, 0)
	if got := s.add(start, 500); got != 0 {
		t.Errorf("%v bytes a second after one reading, want none", got)
	}
	for i := 1; i <= 60; i++ {
		bytes := int64(500 + 100*i)
		if i > 40 {
			bytes = 500 + 4000 // it stands still
		}
		got := s.add(start.Add(time.Duration(i)*time.Second), bytes)
		want := map[int]float64{1: 100, 40: 100, 48: 100 * 7.0 / 15, 60: 0}
		if w, ok := want[i]; ok && got != w {
			t.Errorf("%v bytes a second after %d s, want %v", got, i, w)
		}
	}
}

// openTerminal makes a terminal of so many columns and gathers what is written to it.
func openTerminal(t *testing.T, columns uint16) (*os.File, func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this machine makes no terminals: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("this machine shows no terminals: %v", err)
	}
	t.Cleanup(func() { terminal.Close() })
	var mu sync.Mutex
	var seen bytes.Buffer
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			mu.Lock()
			seen.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return terminal, func() string {
		mu.Lock()
		defer mu.Unlock()
		return seen.String()
	}
}

func TestPullDrawsABarOnATerminal(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 30*mebibyte))
	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	s.faults(func(a asked) fault {
		return fault{before: func() {
			if a.op == "Get" && a.off > 0 {
				<-release
			}
		}}
	})
	for k, v := range with(serverSettings(s), settings{"TERM": "xterm", "PRELOADER_CONNS": "1", "PRELOADER_TERMINATION_LOG": os.DevNull}) {
		t.Setenv(k, v)
	}
	terminal, seen := openTerminal(t, 100)
	command := Command{Args: []string{"s3://models/m", t.TempDir()}, Getenv: os.Getenv, Stdout: terminal, Stderr: terminal}
	done := make(chan ExitCode, 1)
	go func() { done <- command.Run(t.Context()) }()
	eventually(t, "a bar shows", func() bool { return strings.Contains(seen(), "26% 8.4 MB of 31.5 MB") })
	open()
	if code := <-done; code != ExitOK {
		t.Fatalf("exit code %d; output:\n%s", code, seen())
	}
	eventually(t, "the last line shows", func() bool { return strings.Contains(seen(), "Model ready") })
	// What a terminal shows in the end: of each line what stands after it was last cleared.
	for line := range strings.SplitSeq(strings.TrimSpace(seen()), "\n") {
		shown := line[strings.LastIndex(line, "\x1b[K")+1:]
		if shown = strings.TrimPrefix(shown, "[K"); !strings.HasPrefix(shown, "20") { // a line of the log begins with its date
			t.Errorf("a line %q is left on the terminal; output:\n%q", shown, seen())
		}
	}
}

func TestPullDrawsNoBarElsewhere(t *testing.T) {
	terminal, seen := openTerminal(t, 100)
	s := newFaultServer(t)
	s.put("m/model", noise(1, 1000))
	for name, env := range map[string]settings{
		"JSON": {"TERM": "xterm", "PRELOADER_LOG": "json"}, "a dumb terminal": {"TERM": "dumb"}, "no terminal's name": {"TERM": ""},
	} {
		for k, v := range with(with(serverSettings(s), settings{"PRELOADER_TERMINATION_LOG": os.DevNull}), env) {
			t.Setenv(k, v)
		}
		command := Command{Args: []string{"s3://models/m", t.TempDir()}, Getenv: os.Getenv, Stdout: terminal, Stderr: terminal}
		if code := command.Run(t.Context()); code != ExitOK {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
	if strings.Contains(seen(), "\x1b[K") {
		t.Errorf("lines are cleared: %q", seen())
	}
}

func TestJSONLinesHoldNumbers(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 1000))
	out := run(t, with(serverSettings(s), settings{"PRELOADER_LOG": "json"}), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitOK, "Completed")
	lines := map[string]map[string]any{}
	for text := range strings.Lines(out.log) {
		line := map[string]any{}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("line %q: %v", text, err)
		}
		message, _, _ := strings.Cut(fmt.Sprint(line["msg"]), ":")
		lines[message] = line
	}
	if got := lines["Downloading"]["bytes"]; got != 1000.0 {
		t.Errorf("bytes are %v, want the number 1000", got)
	}
	report, _ := lines["Model ready"]["report"].(map[string]any)
	if got := report["fetched"]; got != 1000.0 {
		t.Errorf("the report says %v bytes were fetched, want 1000: %v", got, report)
	}
}

func TestLinesHaveARateFromTheFirstOn(t *testing.T) {
	log := &strings.Builder{}
	p := &progress{}
	p.total.Store(1000)
	p.moving.Store(true)
	m := &Meter{}
	m.watch(p)
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			follow(ctx, m, (&Command{Stderr: log}).logger(false), "Downloading", nil)
		}()
		time.Sleep(time.Second / 2) // so that nothing moves while the counters are read
		for range 11 {
			time.Sleep(time.Second)
			p.fetched.Add(10)
			p.done.Add(10)
		}
		stop()
		<-ended
	})
	if n := strings.Count(log.String(), " rate=\"10 B/s\""); n != 2 {
		t.Errorf("%d lines in eleven seconds tell the rate, want 2:\n%s", n, log)
	}
}
