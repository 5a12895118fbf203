// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPullAddsConnectionsForAFarStore(t *testing.T) {
	cases := map[string]struct {
		env                 settings
		wantLeast, wantMost int64
	}{
		"left to itself":             {wantLeast: nearConns + 1, wantMost: mostConns},
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
			most := s.mostAtOnce(fault{pause: 4 * farAnswer}, tc.wantLeast)
			dir := t.TempDir()
			wantCode(t, run(t, with(serverSettings(s), tc.env), "s3://models/m", dir), ExitOK, "Completed")
			wantTree(t, dir, want)
			if got := most.Load(); got < tc.wantLeast || got > tc.wantMost {
				t.Errorf("%d requests ran at once, want %d to %d", got, tc.wantLeast, tc.wantMost)
			}
		})
	}
}

func TestPullAddsConnectionsWhereEachIsSlow(t *testing.T) {
	s := newFaultServer(t)
	want := map[string][]byte{}
	for i := range 64 {
		rel := fmt.Sprintf("shard-%d", i)
		want[rel] = noise(uint64(i), mebibyte/8)
		s.put("m/"+rel, want[rel])
	}
	// So slow that even a busy machine has next to nothing to do.
	most := s.mostAtOnce(fault{trickle: 10 * time.Millisecond}, 0)
	dir := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, want)
	if got := most.Load(); got <= nearConns || got > mostConns {
		t.Errorf("%d requests ran at once, want %d to %d", got, nearConns+1, mostConns)
	}
}

// mostAtOnce lets every Get suffer the fault, and counts how many run at once at most. After the first 60, which tell how
// far the store is, none is answered before so many run at once, however long a busy machine takes to send them.
func (s *faultServer) mostAtOnce(f fault, least int64) *atomic.Int64 {
	var running, most, begun atomic.Int64
	reached := make(chan struct{})
	reach := sync.OnceFunc(func() { close(reached) })
	f.before = func() {
		now := running.Add(1)
		for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); {
			seen = most.Load()
		}
		if now >= least {
			reach()
		}
		if begun.Add(1) > 60 {
			select {
			case <-reached:
			case <-s.closing:
			}
		}
	}
	f.done = func() { running.Add(-1) }
	s.faults(func(a asked) fault {
		if a.op != "Get" {
			return fault{}
		}
		return f
	})
	return &most
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
			var c crew
			c.quickest.Store(int64(time.Hour))
			for _, a := range tc.answers {
				c.answered(a)
			}
			if got := c.isFar(3); got != tc.want {
				t.Errorf("it is far: %t, want %t", got, tc.want)
			}
		})
	}
}
