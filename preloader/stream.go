// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// errStalled says that a connection stood still.
var errStalled = errors.New("no byte arrived in time")

// recordEvery is how many bytes a connection moves before it tells the journal:
// what a killed process has to fetch again, at most, for each connection.
const recordEvery = 4 * mebibyte

// worker is one connection's state: a buffer, the connection itself, and nothing
// that grows.
type worker struct {
	buf  []byte
	line line
}

// fetchSpan brings the bytes of one span of f to disk, the first of them by a
// download that has begun, if there is one. Trouble costs only what had not been
// written yet: the next request starts at the byte reached. Only tries in a row
// that bring nothing count against the limit.
func (e *engine) fetchSpan(ctx context.Context, w *worker, f *file, part span, begun *download, handed int) error {
	ctx, at := e.depart(ctx, f, part, handed)
	defer e.arrive(at)
	if begun != nil { // it began before this flight, whose end must reach it too
		defer context.AfterFunc(ctx, begun.stop)()
	}
	// What arrived before trouble is kept for the next start, as far as that works.
	defer func() { _ = e.flush(f, at) }()
	for tries := (attempts{}); at.n > 0; begun = nil {
		before := at.off
		err := e.stream(ctx, w, f, at, begun)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !retryable(err) {
			return err
		}
		tries.failed(err, at.off > before, e.progress.fetched.Load())
		if tries.inVain >= e.opts.Attempts {
			what := fmt.Sprintf("reading bytes %d to %d of %s", at.off, at.end()-1, f.uri)
			return exhausted(what, tries.inVain, err)
		}
		e.progress.retries.Add(1)
		e.log.Debug("Retrying a request", "object", f.uri, "offset", at.off, "cause", err.Error())
		at.resting.Store(true)
		err = sleep(ctx, delayBefore(tries.inVain, err))
		at.resting.Store(false)
		if err != nil {
			return err
		}
		at.note(0, time.Now())
	}
	return nil
}

// attempts counts tries in a row that were in vain.
type attempts struct {
	inVain int
	// fetched is what the run had fetched when a try last failed.
	fetched int64
}

// failed counts a try that brought some of what it asked for, or nothing, at a
// time when the run has fetched so many bytes altogether. A store that asks for
// fewer requests is not failing as long as it serves others.
func (a *attempts) failed(err error, some bool, fetched int64) {
	var slowDown *throttled
	if some || a.inVain > 0 && errors.As(err, &slowDown) && fetched > a.fetched {
		a.inVain = 0
	}
	a.inVain++
	a.fetched = fetched
}

// cursor is what of a span is still to come, and what was written since the
// journal was last told.
type cursor struct {
	span
	pending segment
	// check is that of pending and of what came since.
	check uint64
	// unsent is what was written but not handed to the disk yet.
	unsent span
}

// stream makes one request for what is left, unless one has begun, and writes
// what it brings, also if it breaks off.
func (e *engine) stream(ctx context.Context, w *worker, f *file, at *flight, begun *download) (err error) {
	d := begun
	if d == nil {
		t, err := e.throttle.enter(ctx)
		if err != nil {
			return err
		}
		if d, err = e.ask(ctx, w, f, at.span, t); err != nil {
			return err
		}
	}
	defer func() { d.end(err) }()
	for at.n > 0 {
		want := min(int64(len(w.buf)), at.n, f.proof.untilCut(at.off))
		if beyond := at.off % alignment; f.direct != nil && beyond != 0 {
			want = min(want, alignment-beyond)
		}
		n, readErr := e.fill(w.buf[:want], d, at)
		if n > 0 {
			if err := e.put(f, at, w.buf[:n]); err != nil {
				return err
			}
		}
		if readErr != nil && at.n > 0 {
			return d.explain(readErr)
		}
	}
	return nil
}

// fill reads until p is full or the body ends, so that one large write takes
// the place of many small ones. The watchdog runs only here: a slow disk is not
// a stalled connection. The flight, if there is one, takes note of what comes,
// and its check goes on while the bytes are still in the processor's cache.
func (e *engine) fill(p []byte, d *download, at *flight) (int, error) {
	defer d.watchdog.Stop()
	d.watchdog.Reset(e.opts.Stall)
	total, wound := 0, time.Now()
	for total < len(p) {
		n, err := d.Read(p[total:])
		if n > 0 {
			total += n
			e.progress.fetched.Add(int64(n))
			now := time.Now()
			if now.Sub(wound) > e.opts.Stall/16 { // winding it up costs more than a look at the clock
				d.watchdog.Reset(e.opts.Stall)
				wound = now
			}
			if at != nil {
				e.progress.done.Add(int64(n)) // now, because a slow link takes long to fill a buffer
				at.note(n, now)
				at.check = at.file.proof.crc.Update(at.check, p[total-n:total])
			}
		}
		if errors.Is(err, io.EOF) {
			return total, io.ErrUnexpectedEOF
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// put writes p at the cursor and moves it on.
func (e *engine) put(f *file, at *flight, p []byte) error {
	if err := f.writeAt(p, at.off); err != nil {
		return diskFailure(e.store.dir, err)
	}
	at.pending.crc = at.check
	at.pending.n += int64(len(p))
	at.off += int64(len(p))
	at.n -= int64(len(p))
	at.front.Store(at.off)
	if err := e.handOver(f, at, int64(len(p))); err != nil {
		return diskFailure(e.store.dir, err)
	}
	if at.n > 0 && (at.pending.n >= recordEvery || f.proof.untilCut(at.off) == f.proof.cut) {
		return e.flush(f, at)
	}
	return nil
}

// writeAt writes around the page cache what is aligned, if that was opened.
func (f *file) writeAt(p []byte, off int64) error {
	if f.direct != nil && off%alignment == 0 {
		whole := len(p) - len(p)%alignment
		if _, err := f.direct.WriteAt(p[:whole], off); err != nil {
			return err
		}
		p, off = p[whole:], off+int64(whole)
	}
	if len(p) == 0 {
		return nil
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	for len(p) > 0 {
		n, err := f.temp.WriteAt(p[:min(len(p), bufferSize)], off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// handOver gives the disk what was written, in stretches that it likes.
func (e *engine) handOver(f *file, at *flight, n int64) error {
	if e.back == nil {
		return nil
	}
	at.unsent.n += n
	if at.unsent.n < e.back.stretch && at.n > 0 {
		return nil
	}
	s := at.unsent
	at.unsent = span{off: at.off}
	return e.back.wrote(f.temp, s)
}

// flush hands over what was written, to the file and to the journal.
func (e *engine) flush(f *file, at *flight) error {
	if at.pending.n == 0 {
		return nil
	}
	s := at.pending
	at.pending, at.check = segment{span: span{off: at.off}}, 0
	f.add(s)
	if f.id == 0 {
		return nil
	}
	if err := e.journal.wrote(f.id, s); err != nil {
		return diskFailure(e.store.dir, err)
	}
	return nil
}

// stallOr returns the cause of a request's end if that was the watchdog.
func stallOr(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}
