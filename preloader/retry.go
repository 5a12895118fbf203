// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	firstDelay = 100 * time.Millisecond
	longest    = 5 * time.Second
)

// delayBefore returns how long to wait before the nth retry, counted from 1:
// anything up to a bound that doubles, so that many clients spread out, but no
// less than what the store asked for.
func delayBefore(n int, err error) time.Duration {
	bound := longest
	if n < 7 {
		bound = min(longest, firstDelay<<(n-1))
	}
	delay := rand.N(bound) //nolint:gosec // spreading needs no secrecy
	if t, ok := errors.AsType[*throttled](err); ok {
		delay = max(delay, t.after)
	}
	return delay
}

// sleep waits, or returns the cause of the context's end.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// retryable reports whether trying again may help.
func retryable(err error) bool {
	var f *ExitError
	return !errors.As(err, &f) && !errors.Is(err, errChanged)
}

// patient repeats listings and heads that meet passing trouble. Reading data
// is repeated by byte reached, in stream.go.
type patient struct {
	source
	attempts int
	// stall ends a reading that brings no byte for so long.
	stall    time.Duration
	retries  *atomic.Int64
	throttle *throttle
	trouble  *trouble
}

// trouble says now and then why requests are made again: a store that does not answer
// keeps a run waiting for long. Nil says nothing.
type trouble struct {
	log *slog.Logger

	mu   sync.Mutex
	last time.Time
}

const (
	// longTry is a try so long that its end is worth a line; shorter ones are from the
	// second failure on.
	longTry = 2 * time.Second
	// sayEvery is how often trouble is spoken of at most.
	sayEvery = 5 * time.Second
)

// say speaks of the nth failure of a request that will be made again.
func (t *trouble) say(what string, n, most int, took time.Duration, err error) {
	if t == nil || n < 2 && took < longTry {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.last) >= sayEvery {
		t.last = now
		t.log.Warn("The store does not answer as it should, trying again", "what", what,
			"failures", n, "most", most, "cause", oneLine(err.Error()))
	}
}

// unhurried returns a source without the turns and repetitions of a patient one.
func unhurried(src source) source {
	if p, ok := src.(patient); ok {
		return p.source
	}
	return src
}

func (p patient) page(ctx context.Context, prefix, token string) (found []object, next string, err error) {
	err = p.repeat(ctx, "listing", func() error {
		var err error
		found, next, err = p.source.page(ctx, prefix, token)
		return err
	})
	return found, next, err
}

func (p patient) head(ctx context.Context, key string) (object, error) {
	var found object
	err := p.repeat(ctx, "reading the head of an object", func() error {
		var err error
		found, err = p.source.head(ctx, key)
		return err
	})
	return found, err
}

func (p patient) firstPart(ctx context.Context, key string) (int64, error) {
	var size int64
	err := p.repeat(ctx, "reading the head of a part", func() error {
		var err error
		size, err = p.source.firstPart(ctx, key)
		return err
	})
	return size, err
}

// repeat calls again until it works, cannot work, or the attempts are used up.
func (p patient) repeat(ctx context.Context, what string, call func() error) error {
	for n := 1; ; n++ {
		t, err := p.throttle.enter(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		err = call()
		t.end(err)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !retryable(err):
			return err
		case n >= p.attempts:
			return exhausted(what, n, err)
		}
		p.retries.Add(1)
		p.trouble.say(what, n, p.attempts, time.Since(began), err)
		if err := sleep(ctx, delayBefore(n, err)); err != nil {
			return err
		}
	}
}

// exhausted words the trouble that outlasted all retries.
func exhausted(what string, attempts int, err error) *ExitError {
	f := &ExitError{
		Code: ExitUnavailable, Reason: "Unavailable", Cause: what + " failed after repeated tries",
		Advice: "Check that the endpoint is reachable from this node; the next start goes on where this one stopped.", Err: err,
	}
	var p *protocolError
	var t *throttled
	var c *credentialsError
	var ended *expired
	switch {
	case errors.As(err, &c), errors.As(err, &ended):
		f.Code, f.Reason = ExitDenied, "NoCredentials"
		f.Advice = "Credentials have ended and could not be renewed: look at the pod's role and at who gives them; " +
			"the next start goes on where this one stopped."
	case errors.As(err, &p):
		f.Code, f.Reason = ExitIntegrity, "BadAnswer"
		f.Advice = "The endpoint, or a proxy before it, does not answer as S3 does."
	case errors.As(err, &t):
		f.Reason = "Throttled"
		f.Advice = "The store asks for fewer requests: lower PRELOADER_CONNS, or start fewer pods at once."
	case errors.Is(err, errStalled):
		f.Reason = "Stalled"
		f.Advice = "Connections open but bytes stop coming: look at the network, or raise PRELOADER_STALL."
	}
	if attempts == 1 {
		f.Cause = what + " failed"
	}
	return f
}
