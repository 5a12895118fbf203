// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// At the end of a run, some connections have nothing left to do while others
// still work. One that is much slower than usual, or stands still, would hold
// everybody up. An idle connection then asks for the rest of its span too, and
// takes over once bytes come: the slow one is stopped first, so that only one
// writes at any time and every byte is counted in one check. If the slow one is
// done before that, it has won. What comes twice is what the slow one brought
// between the second request and its first bytes, or these first bytes; once that
// adds up to mostTwice, nothing is overtaken any more.

// flight is a span on its way, over one connection.
type flight struct {
	// cursor belongs to whoever fetches the span, until done is closed.
	cursor
	file  *file
	whole span
	began time.Time
	stop  context.CancelCauseFunc
	done  chan struct{}
	// front is where the cursor stands, for others to see; brought counts bytes
	// that came, and quiet is since when none has, in nanoseconds since 1970.
	front, brought, quiet atomic.Int64
	// resting means that it waits before it asks again, as the store may want.
	resting atomic.Bool
	// handed counts how often the span was taken over, and overtaken says that
	// somebody is trying to; both belong to the engine's lock.
	handed    int
	overtaken bool
}

// errOvertaken says that another connection fetches the rest of a span.
var errOvertaken = errors.New("another connection took over")

const (
	// lookAround is how often idle connections look for slow ones.
	lookAround = 100 * time.Millisecond
	// slowAge is how long a span may take, whatever its speed.
	slowAge = time.Second
	// slowFactor is how much slower than usual is slow.
	slowFactor = 3
	// stillFor is how long no byte may come.
	stillFor = 2 * time.Second
	// mostHanded bounds how often a span is taken over.
	mostHanded = 2
	// mostTwice bounds what comes twice in a run, but for what is on its way then.
	mostTwice = 64 * mebibyte
	// firstBytes have to come before a span is taken over.
	firstBytes = 64 << 10
)

// depart notes that a span is on its way, and returns a context that ends with
// its flight.
func (e *engine) depart(ctx context.Context, f *file, part span, handed int) (context.Context, *flight) {
	ctx, stop := context.WithCancelCause(ctx)
	fl := &flight{
		cursor: cursor{span: part, pending: segment{span: span{off: part.off}}, unsent: span{off: part.off}},
		file:   f, whole: part, began: time.Now(), stop: stop, done: make(chan struct{}), handed: handed,
	}
	fl.front.Store(part.off)
	fl.quiet.Store(fl.began.UnixNano())
	e.mu.Lock()
	defer e.mu.Unlock()
	e.flights[fl] = struct{}{}
	return ctx, fl
}

// note takes note of bytes that came.
func (f *flight) note(n int, now time.Time) {
	f.brought.Add(int64(n))
	f.quiet.Store(now.UnixNano())
}

// arrive notes that a flight is over, whether or not all of its span came.
func (e *engine) arrive(fl *flight) {
	fl.stop(nil)
	close(fl.done)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.flights, fl)
	if seconds := time.Since(fl.began).Seconds(); fl.n == 0 && seconds > 0 {
		rate := float64(fl.whole.n) / seconds
		if e.usual > 0 {
			rate = e.usual*0.8 + rate*0.2
		}
		e.usual = rate
	}
}

// slowest returns the flight that is most worth a second connection, or nil. It
// must be called with the engine's lock.
func (e *engine) slowest(now time.Time) *flight {
	var worst *flight
	var longest time.Duration
	if e.twice > mostTwice {
		return nil
	}
	for fl := range e.flights {
		if fl.overtaken || fl.handed >= mostHanded || fl.resting.Load() {
			continue
		}
		quiet := now.Sub(time.Unix(0, fl.quiet.Load()))
		left, slow := slowFlight(fl.brought.Load(), fl.whole.n, now.Sub(fl.began), quiet, e.usual)
		if slow && left >= longest {
			worst, longest = fl, left
		}
	}
	return worst
}

// slowFlight estimates how long a flight of so many bytes will go on, by its age
// and what it brought, and reports whether another connection would be much
// faster: it has brought nothing for long, or is slow beside the usual rate, in
// bytes a second, if one is known.
func slowFlight(brought, whole int64, age, quiet time.Duration, usual float64) (left time.Duration, slow bool) {
	const forever = time.Hour
	missing := float64(whole - brought)
	switch {
	case missing <= 0:
		return 0, false
	case quiet > stillFor:
		return forever, true
	case age < slowAge || usual <= 0 || brought <= 0:
		return 0, false
	}
	seconds := min(forever.Seconds(), missing/float64(brought)*age.Seconds())
	return time.Duration(seconds * float64(time.Second)), seconds > max(slowAge.Seconds(), slowFactor*missing/usual)
}

// overtake fetches the rest of a slow flight's span, unless that one is faster
// after all. What becomes of a second request that fails is the slow one's to
// find out.
func (e *engine) overtake(ctx context.Context, w *worker, slow *flight) error {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	start := slow.front.Load()
	d, first := e.rival(asking, cancel, w, slow, start)
	if d == nil {
		return context.Cause(ctx)
	}
	slow.stop(errOvertaken)
	<-slow.done
	e.mu.Lock()
	e.twice += max(slow.off-start, int64(len(first)))
	e.mu.Unlock()
	if slow.n == 0 {
		d.end(nil)
		return nil
	}
	e.progress.overtaken.Add(1)
	e.log.Debug("Took over from a slow connection", "object", slow.file.uri, "offset", slow.off, "bytes", slow.n)
	known := min(slow.off-start, int64(len(first)))
	for skip := slow.off - start - known; skip > 0; {
		n, err := e.fill(w.buf[:min(skip, int64(len(w.buf)))], d, nil)
		if err != nil { // then the rest is asked for anew, at the right byte
			d.end(err)
			return e.fetchSpan(ctx, w, slow.file, slow.span, nil, slow.handed+1)
		}
		skip -= int64(n)
	}
	d.before = bytes.NewReader(first[known:])
	return e.fetchSpan(ctx, w, slow.file, slow.span, d, slow.handed+1)
}

// rival asks for the rest of a slow flight's span from start on, and waits for
// the first bytes. It returns nothing if the store is to be spared, the request
// fails, or the flight is done first, which calls giveUp.
func (e *engine) rival(ctx context.Context, giveUp func(), w *worker, slow *flight, start int64) (*download, []byte) {
	rest := span{start, slow.whole.end() - start}
	t, ok, _ := e.throttle.try(time.Now())
	if !ok {
		return nil, nil
	}
	won, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-slow.done:
			giveUp()
		case <-won:
		}
	}()
	defer func() {
		close(won)
		<-watched // or it would take the end of a flight that was stopped for the end of one that has won
	}()
	d, err := e.ask(ctx, w, slow.file, rest, t)
	if err != nil {
		return nil, nil
	}
	first := make([]byte, min(rest.n, firstBytes))
	if _, err := e.fill(first, d, nil); err != nil {
		d.end(err)
		return nil, nil
	}
	return d, first
}

// download is an answer whose body is being read.
type download struct {
	body
	// before holds bytes of the body that were read already, or is nil.
	before   *bytes.Reader
	turn     turn
	stop     context.CancelFunc
	watchdog *time.Timer
	stalled  atomic.Bool
}

// ask makes a request for a part of a file. The download must be ended; if there
// is none, the turn is over.
func (e *engine) ask(ctx context.Context, w *worker, f *file, part span, t turn) (*download, error) {
	ctx, stop := context.WithCancel(ctx)
	d := &download{turn: t, stop: stop}
	d.watchdog = time.AfterFunc(e.opts.Stall, func() {
		d.stalled.Store(true)
		stop()
	})
	var err error
	w.line.waited = 0
	d.body, err = e.src.open(ctx, &w.line, f.object, part)
	if err == nil {
		e.crew.answered(w.line.waited)
		err = e.learn(ctx, f, d.object)
	}
	if err != nil {
		err = d.explain(err)
		d.end(err)
		return nil, err
	}
	d.watchdog.Stop()
	return d, nil
}

// Read reads the body.
func (d *download) Read(p []byte) (int, error) {
	if d.before != nil && d.before.Len() > 0 {
		return d.before.Read(p)
	}
	return d.body.Read(p)
}

// explain returns the cause of a download's end if that was the watchdog.
func (d *download) explain(err error) error {
	if d.stalled.Load() {
		return errStalled
	}
	return err
}

// end gives the connection back, or closes it if not all was read.
func (d *download) end(err error) {
	d.watchdog.Stop()
	if d.ReadCloser != nil {
		_ = d.Close()
	}
	d.stop()
	d.turn.end(err)
}
