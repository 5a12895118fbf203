// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

func TestPullAddsConnectionsForAFarStore(t *testing.T) {
	cases := map[string]struct {
		env                 settings
		wantLeast, wantMost int64
	}{
		"left to itself":             {wantLeast: defaultConns + 1, wantMost: mostConns},
		"a number was asked for":     {env: settings{"PRELOADER_CONNS": "8"}, wantLeast: 2, wantMost: 8},
		"memory was bounded":         {env: settings{"PRELOADER_MEM": "9Mi"}, wantLeast: 2, wantMost: 12},
		"KServe's own bound was set": {env: settings{"S3_MAX_FILE_CONCURRENCY": "4"}, wantLeast: 2, wantMost: 4},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			want := map[string][]byte{}
			for i := range 200 {
				rel := fmt.Sprintf("small-%d", i)
				want[rel] = noise(uint64(i), 3000)
				s.put("m/"+rel, want[rel])
			}
			var running, most atomic.Int64
			s.faults(func(a asked) fault {
				if a.op != "Get" {
					return fault{}
				}
				return fault{
					before: func() {
						now := running.Add(1)
						for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); {
							seen = most.Load()
						}
					},
					pause: 4 * farAnswer,
					done:  func() { running.Add(-1) },
				}
			})
			dir := t.TempDir()
			wantCode(t, run(t, with(serverSettings(s), tc.env), "s3://models/m", dir), ExitOK, "Completed")
			wantTree(t, dir, want)
			if got := most.Load(); got < tc.wantLeast || got > tc.wantMost {
				t.Errorf("%d requests ran at once, want %d to %d", got, tc.wantLeast, tc.wantMost)
			}
		})
	}
}

func TestCrewKnowsANearStore(t *testing.T) {
	cases := map[string]struct {
		answers []time.Duration
		want    bool
	}{
		"too few answers to tell":   {answers: []time.Duration{farAnswer, farAnswer}},
		"all take long":             {answers: []time.Duration{farAnswer, 2 * farAnswer, farAnswer}, want: true},
		"one came at once":          {answers: []time.Duration{farAnswer, time.Millisecond, farAnswer, farAnswer}},
		"some took nobody knows it": {answers: []time.Duration{0, farAnswer, 0, farAnswer}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := crew{spare: make([][]byte, 1)}
			c.quickest.Store(int64(time.Hour))
			for _, a := range tc.answers {
				c.answered(a)
			}
			if got := c.wantsMore(3); got != tc.want {
				t.Errorf("more are wanted: %t, want %t", got, tc.want)
			}
		})
	}
}
