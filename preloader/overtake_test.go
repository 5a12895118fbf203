// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSlowFlight(t *testing.T) {
	const whole, usual = 64 * mebibyte, 100 * mebibyte // bytes, and bytes a second
	cases := map[string]struct {
		brought    int64
		age, quiet time.Duration
		usual      float64
		wantLeft   time.Duration
		wantSlow   bool
	}{
		"just begun":                {age: 50 * time.Millisecond, usual: usual},
		"young, whatever its speed": {brought: 1, age: 900 * time.Millisecond, usual: usual},
		"as fast as usual":          {brought: 32 * mebibyte, age: time.Second, usual: 32 * mebibyte, wantLeft: time.Second},
		"half as fast as usual": {
			brought:  16 * mebibyte,
			age:      time.Second,
			usual:    32 * mebibyte,
			wantLeft: 3 * time.Second,
		},
		"a tenth as fast as usual": {
			brought:  8 * mebibyte,
			age:      time.Second,
			usual:    usual,
			wantLeft: 7 * time.Second,
			wantSlow: true,
		},
		"slow, but soon done": {
			brought:  60 * mebibyte,
			age:      12 * time.Second,
			usual:    usual,
			wantLeft: 800 * time.Millisecond,
		},
		"slow where nothing is usual": {brought: mebibyte, age: time.Second, wantLeft: 0},
		"silent for long": {
			brought:  8 * mebibyte,
			age:      5 * time.Second,
			quiet:    3 * time.Second,
			wantLeft: time.Hour,
			wantSlow: true,
		},
		"silent from the first":         {age: 3 * time.Second, quiet: 3 * time.Second, wantLeft: time.Hour, wantSlow: true},
		"silent because it is all in":   {brought: whole, age: 5 * time.Second, quiet: 3 * time.Second},
		"nothing yet, but not for long": {age: 1500 * time.Millisecond, quiet: 1500 * time.Millisecond, usual: usual},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			left, slow := slowFlight(tc.brought, whole, tc.age, tc.quiet, tc.usual)
			if left.Round(time.Millisecond) != tc.wantLeft || slow != tc.wantSlow {
				t.Errorf("left %v, slow %t; want %v and %t", left, slow, tc.wantLeft, tc.wantSlow)
			}
		})
	}
}

// TestPullOvertakesSlowConnections lets the first request for one part misbehave
// for much longer than a test lasts: without another connection the run would not
// end in time.
func TestPullOvertakesSlowConnections(t *testing.T) {
	just := func(f fault) func(*faultServer) fault { return func(*faultServer) fault { return f } }
	cases := map[string]struct {
		fault func(*faultServer) fault
		// key is the object whose request is slow.
		key string
		off int64
	}{
		"one stands still in the middle": {
			fault: just(fault{stall: true, after: 1_500_000}),
			key:   "m/large",
			off:   24 * mebibyte,
		},
		"one stands still from the start": {fault: just(fault{stall: true}), key: "m/large", off: 24 * mebibyte},
		"one trickles": {
			fault: just(fault{trickle: 20 * time.Millisecond, after: 100_000}),
			key:   "m/large",
			off:   16 * mebibyte,
		},
		"a small file's only one trickles": {fault: just(fault{trickle: 50 * time.Millisecond}), key: "m/small"},
		"one never answers": {
			fault: func(s *faultServer) fault { return fault{before: func() { <-s.closing }} },
			key:   "m/large",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFaultServer(t)
			want := map[string][]byte{"large": noise(1, 40*mebibyte), "small": noise(2, 5*mebibyte)}
			for k, v := range want {
				s.put("m/"+k, v)
			}
			var once sync.Once
			s.faults(func(a asked) (f fault) {
				if a.op == "Get" && a.key == tc.key && a.off == tc.off {
					once.Do(func() { f = tc.fault(s) })
				}
				return f
			})
			dir := t.TempDir()
			env := with(serverSettings(s), settings{
				"PRELOADER_CONNS": "4", "PRELOADER_PARTSIZE": "8Mi", "PRELOADER_STALL": "60", "S3_READ_TIMEOUT": "60",
			})
			out := start(t, env, "s3://models/m", dir).outcome(t)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dir, want)
			if out.report.Overtaken == 0 || out.report.Retries != 0 {
				t.Errorf(
					"%d flights were overtaken and %d requests repeated, want some and none",
					out.report.Overtaken,
					out.report.Retries,
				)
			}
			// On a machine that is busy with other things, healthy connections look slow too, and bring most of their part
			// while another one begins.
			most := int64(4 * mebibyte)
			if out.report.Overtaken > 1 {
				most = out.report.Overtaken * 8 * mebibyte
			}
			if twice := out.report.Fetched - out.report.Bytes; twice > most {
				t.Errorf("%d bytes came twice for %d flights that were overtaken, want %d at most",
					twice, out.report.Overtaken, most)
			}
		})
	}
}

// TestPullOvertakesTheOvertaker: the second connection to a span may stand still like the first. The third does not wait
// for the watchdog of the second.
func TestPullOvertakesTheOvertaker(t *testing.T) {
	s := newFaultServer(t)
	want := map[string][]byte{"large": noise(1, 10*mebibyte)}
	s.put("m/large", want["large"])
	var gets atomic.Int64
	s.faults(func(a asked) (f fault) {
		if a.op == "Get" && gets.Add(1) <= 2 {
			f = fault{stall: true, after: 1_500_000}
		}
		return f
	})
	dir := t.TempDir()
	out := run(t, with(serverSettings(s), settings{
		"PRELOADER_CONNS": "3", "PRELOADER_PARTSIZE": "64Mi", "PRELOADER_STALL": "3600", "S3_READ_TIMEOUT": "3600",
	}), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, want)
	if out.report.Overtaken < 2 || out.report.Retries != 0 {
		t.Errorf(
			"%d flights were overtaken and %d requests repeated, want two and none",
			out.report.Overtaken,
			out.report.Retries,
		)
	}
}

func TestPullLetsASlowConnectionWin(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 32*mebibyte)
	s.put("m/model", data)
	var mu sync.Mutex
	requests := 0
	release, over := make(chan struct{}), make(chan struct{})
	s.faults(func(a asked) fault {
		if a.op != "Get" || a.off < 24*mebibyte {
			return fault{}
		}
		mu.Lock()
		defer mu.Unlock()
		requests++
		if requests == 1 {
			return fault{hold: release, after: 2_000_000, done: func() { close(over) }}
		}
		return fault{before: func() { // the second request makes the first go on, and is not answered before that is done
			close(release)
			<-over
		}}
	})
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_CONNS": "4", "PRELOADER_PARTSIZE": "8Mi", "PRELOADER_STALL": "60"})
	out := start(t, env, "s3://models/m", dir).outcome(t)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
	if requests != 2 || out.report.Retries != 0 {
		t.Errorf("%d requests for the last part and %d repeated ones, want 2 and 0", requests, out.report.Retries)
	}
}
