// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"sync"
	"time"
)

// throttle bounds how many requests are under way. It starts at the most that is
// allowed; when the store asks for fewer, the bound is halved, and then grows by
// one for each stretch of time without such an answer. The store's own clients,
// together, so find what it can serve.
type throttle struct {
	most int

	mu   sync.Mutex
	busy int
	// bound was set at the time of since; it has grown from then on.
	bound int
	since time.Time
	// era counts how often the bound was halved. Requests that were sent before
	// the last time say nothing new.
	era int
	// left is closed, and made anew, whenever a request ends.
	left chan struct{}
}

// throttleStep is how long the bound takes to grow by one.
const throttleStep = time.Second

func newThrottle(most int) *throttle {
	return &throttle{most: most, bound: most, left: make(chan struct{})}
}

// allowed returns the bound as it is now.
func (p *throttle) allowed(now time.Time) int {
	if p.bound >= p.most {
		return p.most
	}
	return min(p.most, p.bound+int(now.Sub(p.since)/throttleStep))
}

// widen lets one more request run at once, unless the store has asked for fewer,
// and reports whether it does.
func (p *throttle) widen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.era > 0 {
		return false
	}
	p.most++
	p.bound++
	return true
}

// enter waits until one more request may be made. The turn that it returns must
// be ended.
func (p *throttle) enter(ctx context.Context) (turn, error) {
	for {
		now := time.Now()
		t, ok, left := p.try(now)
		if ok {
			return t, nil
		}
		// The bound also grows with time; a step that was half over is not worth a timer of its own.
		grows := time.NewTimer(throttleStep)
		select {
		case <-ctx.Done():
		case <-left:
		case <-grows.C:
		}
		grows.Stop()
		if ctx.Err() != nil {
			return turn{}, context.Cause(ctx)
		}
	}
}

// try is enter without the wait; where there is no turn, it returns what closes
// when a request ends.
func (p *throttle) try(now time.Time) (turn, bool, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy >= p.allowed(now) {
		return turn{}, false, p.left
	}
	p.busy++
	return turn{throttle: p, era: p.era}, true, nil
}

// turn is a request under way.
type turn struct {
	throttle *throttle
	era      int
}

// end says that the request is over, and how it ended.
func (t turn) end(err error) {
	var asked *throttled
	t.throttle.leave(t.era, errors.As(err, &asked), time.Now())
}

func (p *throttle) leave(era int, slowDown bool, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	if slowDown && era == p.era {
		p.bound, p.since = max(1, p.allowed(now)/2), now
		p.era++
	}
	close(p.left)
	p.left = make(chan struct{})
}
