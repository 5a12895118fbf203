// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestThrottle(t *testing.T) {
	type step struct {
		// after is how much later than the step before.
		after time.Duration
		// enter requests turns; leave ends one that was entered at this era.
		enter    int
		leave    int
		era      int
		slowDown bool
		wantBusy int
	}
	cases := map[string][]step{
		"all may go at first, and no more": {{enter: 10, wantBusy: 8}},
		"one that asks for fewer halves the bound": {
			{enter: 8, wantBusy: 8}, {leave: 8, slowDown: true, wantBusy: 0}, {enter: 8, wantBusy: 4},
		},
		"requests sent before do not halve it again": {
			{enter: 8, wantBusy: 8},
			{leave: 4, slowDown: true, wantBusy: 4},
			{leave: 4, slowDown: true, wantBusy: 0},
			{enter: 8, wantBusy: 4},
		},
		"requests sent after do": {
			{enter: 8, wantBusy: 8},
			{leave: 8, slowDown: true, wantBusy: 0},
			{enter: 8, wantBusy: 4},
			{leave: 1, era: 1, slowDown: true, wantBusy: 3},
			{enter: 8, wantBusy: 3},
			{leave: 3, era: 1, wantBusy: 0},
			{enter: 8, wantBusy: 2},
		},
		"one may always go": {
			{enter: 8, wantBusy: 8},
			{leave: 8, slowDown: true, wantBusy: 0},
			{enter: 4, wantBusy: 4},
			{leave: 4, era: 1, slowDown: true, wantBusy: 0},
			{enter: 2, wantBusy: 2},
			{leave: 2, era: 2, slowDown: true, wantBusy: 0},
			{enter: 2, wantBusy: 1},
			{leave: 1, era: 3, slowDown: true, wantBusy: 0},
			{enter: 2, wantBusy: 1},
		},
		"the bound grows by one a step": {
			{enter: 8, wantBusy: 8},
			{leave: 8, slowDown: true, wantBusy: 0},
			{enter: 8, wantBusy: 4},
			{after: 2 * throttleStep, enter: 8, wantBusy: 6},
			{after: 10 * throttleStep, enter: 8, wantBusy: 8},
		},
	}
	for name, steps := range cases {
		t.Run(name, func(t *testing.T) {
			p := newThrottle(8)
			now := time.Now()
			for i, s := range steps {
				now = now.Add(s.after)
				for range s.enter {
					p.try(now)
				}
				for range s.leave {
					p.leave(s.era, s.slowDown, now)
				}
				if p.busy != s.wantBusy {
					t.Fatalf("after step %d, %d requests are under way, want %d", i, p.busy, s.wantBusy)
				}
			}
		})
	}
}

func TestThrottleLetsTheNextGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newThrottle(1)
		first, err := p.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		entered := make(chan error)
		go func() {
			second, err := p.enter(t.Context())
			if err == nil {
				second.end(nil)
			}
			entered <- err
		}()
		synctest.Wait()
		select {
		case <-entered:
			t.Fatal("two requests are under way, want one")
		default:
		}
		first.end(nil)
		if err := <-entered; err != nil {
			t.Error(err)
		}
		blocked, err := p.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer blocked.end(nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errStalled)
		if _, err := p.enter(ctx); !errors.Is(err, errStalled) {
			t.Errorf("entering with a context that ended gave %v, want its cause", err)
		}
	})
}

// TestPullAsksForLessWhenToldTo counts the requests that a store has to bear at
// once while it says that they are too many.
func TestPullAsksForLessWhenToldTo(t *testing.T) {
	s := newFaultServer(t)
	want := map[string][]byte{}
	for i := range 120 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26))
		want[name] = noise(uint64(i), 2000)
		s.put("m/"+name, want[name])
	}
	var mu sync.Mutex
	busy, refused, peakBefore, peakAfter := 0, 0, 0, 0
	crowd := make(chan struct{}) // closes when more are there than the store wants
	s.faults(func(a asked) fault {
		if a.op != "Get" {
			return fault{}
		}
		mu.Lock()
		defer mu.Unlock()
		busy++
		if busy == 4 && refused == 0 {
			close(crowd)
		}
		if refused == 0 {
			peakBefore = max(peakBefore, busy)
		}
		if refused >= 8 { // as many as were under way when the first was refused
			peakAfter = max(peakAfter, busy)
		}
		// It is over before the answer is: whoever has the answer may well ask anew before this store knows that it is sent.
		f := fault{before: func() {
			<-crowd
			time.Sleep(5 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			busy--
		}}
		if busy > 3 {
			refused++
			f.status, f.code = http.StatusServiceUnavailable, "SlowDown"
		}
		return f
	})
	dir := t.TempDir()
	out := run(t, with(serverSettings(s), settings{"PRELOADER_CONNS": "8"}), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, want)
	if peakBefore < 4 {
		t.Fatalf("at most %d requests ran at once, so that nothing was refused", peakBefore)
	}
	if peakAfter > 5 {
		t.Errorf("%d requests ran at once after the store had asked for fewer, want about half of 8", peakAfter)
	}
	if refused > 60 {
		t.Errorf("%d requests were refused for 120 files", refused)
	}
}

func TestThrottleWidensOnlyForAWillingStore(t *testing.T) {
	p := newThrottle(1)
	if !p.widen() {
		t.Error("it was not widened")
	}
	now := time.Now()
	first, _, _ := p.try(now)
	if _, ok, _ := p.try(now); !ok {
		t.Error("no second request may run")
	}
	first.throttle.leave(first.era, true, now)
	if p.widen() {
		t.Error("it was widened after the store had asked for fewer requests")
	}
}
