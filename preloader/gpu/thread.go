// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// thread is an OS thread on which calls into the driver are made, one at a time and
// each with a deadline. It belongs to one goroutine.
//
// A call that misses its deadline cannot be ended: a driver that hangs does so in the
// kernel. The thread is then lost, and refuses all further calls at once.
type thread struct {
	limit time.Duration
	work  chan func()
	// lost is why the thread takes no more calls.
	lost error
}

// stuckError says that a call into the driver did not come back.
type stuckError struct {
	call  string
	limit time.Duration
}

func (s *stuckError) Error() string {
	return fmt.Sprintf("%s did not come back within %v", s.call, s.limit)
}

func newThread(limit time.Duration) *thread {
	t := &thread{limit: limit, work: make(chan func())}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for call := range t.work {
			call()
		}
	}()
	return t
}

// do makes the call and waits for it. What the call writes may be read only if do
// returns nil: otherwise the call may still be running.
func (t *thread) do(ctx context.Context, name string, call func()) error {
	if t.lost != nil {
		return t.lost
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	done := make(chan struct{})
	t.work <- func() {
		call()
		close(done)
	}
	timer := time.NewTimer(t.limit)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		t.lost = &stuckError{name, t.limit}
	case <-ctx.Done():
		t.lost = fmt.Errorf("%w, while it waited for %s", context.Cause(ctx), name)
	}
	return t.lost
}

// stuck reports whether the thread is lost.
func (t *thread) stuck() bool { return t.lost != nil }

// close ends the thread, unless it is lost.
func (t *thread) close() {
	if !t.stuck() {
		close(t.work)
	}
}
