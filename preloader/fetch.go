// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"
)

// maxConns bounds how many requests may run at once.
const maxConns = 256

// bufferSize is a buffer for files that are read or written by one hand, and what one
// write takes of a larger one: the page cache takes more at once in pieces that are
// dear to find in memory which has been in use for long.
const bufferSize = mebibyte

// engine moves the files of one destination. Connections take work from one
// queue: parts of files that are open first, in file order, so that writes stay
// close to sequential; then the next file.
type engine struct {
	src      source
	store    *store
	journal  *journal
	opts     Options
	log      *slog.Logger
	progress *progress
	policy   ioPolicy
	// files are those of the source; the missing ones are to be fetched. It belongs to
	// the engine's lock, as does the report.
	files  *catalog
	report *Report
	// begun is what an earlier run left of missing files, by path.
	begun map[string]*savedFile
	// sums are digests that the model brings along.
	sums sums
	// shelf is where files of this node are found and kept; nil if there is none.
	shelf *shelf
	// back bounds the pages on their way to disk; nil if nothing does.
	back *writeback
	// throttle bounds the requests that are under way.
	throttle *throttle
	// crew are the connections, and growth decides whether they are too few.
	crew   crew
	growth growth

	mu      sync.Mutex
	changed *sync.Cond
	next    int                // files before this one are not waiting any more
	waiting int                // missing files from there on
	again   []*file            // files that start over
	busy    map[*file]struct{} // taken from those, and not finished
	open    []*file            // opened, with parts that nobody has taken
	opened  int                // files between opening and finishing
	left    int                // files not finished
	err     error              // the first failure; ends the run
	// flights are the spans on their way, and usual is the bytes a second that
	// those which are over came at.
	flights map[*flight]struct{}
	usual   float64
	// twice counts bytes that came twice because a flight was overtaken.
	twice int64
}

// file is one object that is to be fetched.
type file struct {
	entry

	// saved is what an earlier run left of it, or nil.
	saved *savedFile
	*transfer
}

// transfer is a file on its way to disk.
type transfer struct {
	// These are set while the file is opened, before others see it.
	id   int
	temp *os.File
	// direct is the same file, opened to write around the page cache, or nil.
	direct *os.File
	proof  proof

	// writing lets one connection at a time write through the page cache: the
	// kernel would let the others wait too, but turning on a processor.
	writing sync.Mutex

	// reused means that the bytes came from the node's cache.
	reused bool

	learning sync.Mutex
	mu       sync.Mutex
	chosen   bool
	segments []segment

	// These belong to the engine's lock.
	parts    []span
	inFlight int
	again    error // why the file has to start over
	restarts int
}

// begin lets a file be on its way.
func (f *file) begin() {
	if f.transfer == nil {
		f.transfer = &transfer{}
	}
}

func (f *file) add(s segment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.segments = append(f.segments, s)
}

// small files take one request that brings data and checksum together.
func (f *file) small() bool { return f.object.size <= minPart }

// run fetches the missing files with this many connections.
func (e *engine) run(ctx context.Context, conns int) error {
	e.changed = sync.NewCond(&e.mu)
	e.waiting = e.files.count(missing)
	e.left, e.flights, e.busy = e.waiting, map[*flight]struct{}{}, map[*file]struct{}{}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { e.fail(context.Cause(ctx)) })
	defer stop()
	most := e.mostRequests()
	conns = max(1, min(conns, most))
	e.growth.begin(time.Now(), processorTime(), e.opts.cpus)
	secure := e.src.secure(ctx)
	err := e.crew.run(conns, max(0, min(e.opts.more, most-conns)), e.opts.buffer, func(buf []byte) {
		w := &worker{buf: buf, line: line{most: mostWater(e.opts.Stall, len(buf))}}
		if secure {
			w.buf, w.line.ahead = buf[:len(buf)/2], buf[len(buf)/2:]
		}
		defer w.line.hangUp()
		if err := e.work(ctx, w); err != nil {
			e.fail(err)
			cancel(err)
		}
	})
	if err != nil {
		return err
	}
	for f := range e.busy {
		_ = f.close()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// mostRequests returns how many requests could ever run at once.
func (e *engine) mostRequests() int {
	most := 0
	for i := range e.files.having(missing) {
		most += int(e.files.size(i)/minPart) + 1
	}
	return most
}

func (e *engine) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil && e.left > 0 {
		e.err = err
	}
	e.changed.Broadcast()
}

// task is what a connection does next: open a file, fetch a part of one that is
// open, or overtake a slow flight.
type task struct {
	file *file
	part span
	slow *flight
}

// work is one connection's life.
func (e *engine) work(ctx context.Context, w *worker) error {
	for {
		t := e.pick()
		if t.file == nil {
			return nil
		}
		var err error
		switch {
		case t.slow != nil:
			err = e.overtake(ctx, w, t.slow)
		case t.part.n > 0:
			err = e.fetchSpan(ctx, w, t.file, t.part, nil, 0)
		default:
			err = e.openFile(ctx, w, t.file)
		}
		if err := e.settle(ctx, w, t.file, err); err != nil {
			return err
		}
	}
}

// pick returns what to do; no file means that nothing is left to do.
func (e *engine) pick() task {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.err == nil && e.left > 0 {
		if len(e.open) > 0 {
			f := e.open[0]
			part := f.parts[0]
			if f.parts = f.parts[1:]; len(f.parts) == 0 {
				e.open = e.open[1:]
			}
			f.inFlight++
			e.hire()
			return task{file: f, part: part}
		}
		limit := e.opts.FileConcurrency
		if e.waiting+len(e.again) > 0 && (limit == 0 || e.opened < limit) {
			f := e.takeFile()
			f.begin()
			e.busy[f] = struct{}{}
			e.opened++
			f.inFlight++
			e.hire()
			return task{file: f}
		}
		if slow := e.slowest(time.Now()); slow != nil {
			slow.overtaken = true
			slow.file.inFlight++
			return task{file: slow.file, slow: slow}
		}
		again := time.AfterFunc(lookAround, e.changed.Broadcast)
		e.changed.Wait()
		again.Stop()
	}
	return task{}
}

// takeFile returns the next file that waits. It must be called with the engine's
// lock, and only if there is one.
func (e *engine) takeFile() *file {
	if e.waiting == 0 {
		f := e.again[0]
		e.again = e.again[1:]
		return f
	}
	for e.files.standing(e.next) != missing {
		e.next++
	}
	f := &file{entry: e.files.entry(e.next)}
	f.saved = e.begun[f.rel]
	e.next++
	e.waiting--
	return f
}

// hire adds connections if that would help and there is work for them. It must be
// called with the engine's lock.
func (e *engine) hire() {
	work := len(e.open) + e.waiting + len(e.again)
	if work == 0 || len(e.crew.spare) == 0 {
		return
	}
	add := 0
	if now := time.Now(); e.growth.due(now) {
		add = e.growth.look(now, e.progress.fetched.Load(), processorTime(), e.crew.size)
	}
	if add == 0 && e.crew.isFar(2*e.opts.Conns) {
		add = 1
	}
	for ; add > 0 && len(e.crew.spare) > 0 && e.throttle.widen(); add-- {
		e.crew.add()
	}
}

// settle takes note of how a piece of work ended, and finishes or restarts the
// file if it was the last piece.
func (e *engine) settle(ctx context.Context, w *worker, f *file, err error) error {
	if errors.Is(err, errOvertaken) {
		err = nil
	}
	if err != nil && !startsOver(err) {
		return err
	}
	if !e.lastPiece(f, err) {
		return nil
	}
	if f.again == nil {
		record, err := e.finish(ctx, f, w.buf)
		if err == nil {
			e.keep(ctx, w, f, record)
			e.finished(f, record)
			return nil
		}
		if !startsOver(err) {
			return err
		}
		f.again = err
	}
	return e.restart(ctx, f)
}

// startsOver reports whether an error is about one file's content, which a
// fresh download may mend.
func startsOver(err error) bool {
	var corrupt *corruptError
	return errors.Is(err, errChanged) || errors.As(err, &corrupt)
}

// lastPiece reports whether nothing of the file is being worked on or waiting.
func (e *engine) lastPiece(f *file, err error) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	f.inFlight--
	if err != nil && f.again == nil {
		f.again = err
		f.parts = nil
		for i, o := range e.open {
			if o == f {
				e.open = append(e.open[:i:i], e.open[i+1:]...)
				break
			}
		}
	}
	return f.inFlight == 0 && len(f.parts) == 0
}

func (e *engine) finished(f *file, record *FileRecord) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.busy, f)
	e.files.fetched(&f.entry, record)
	e.report.believe(record.Evidence, 1)
	e.report.Bytes += record.Size
	e.report.Files++
	e.opened--
	e.left--
	e.progress.files.Add(1)
	e.changed.Broadcast()
}

// restart queues a file once more from its first byte, as the object is now.
func (e *engine) restart(ctx context.Context, f *file) error {
	if f.restarts++; f.restarts > 1 {
		return twiceWrong(f, f.again)
	}
	e.log.Warn("Starting a file over", "object", f.uri, "cause", f.again.Error())
	now, err := e.src.head(ctx, f.object.key)
	if err != nil {
		return err
	}
	var lost int64
	for _, s := range f.segments {
		lost += s.n
	}
	e.progress.done.Add(-lost)
	e.progress.total.Add(now.size - f.object.size)
	_ = e.closeFile(f)
	f.object, f.temp, f.saved, f.segments, f.chosen, f.again = now, nil, nil, nil, false, nil
	f.reused = false
	e.mu.Lock()
	defer e.mu.Unlock()
	e.opened--
	e.again = append(e.again, f)
	e.changed.Broadcast()
	return nil
}

func twiceWrong(f *file, err error) *ExitError {
	out := &ExitError{Code: ExitIntegrity, Err: err}
	if errors.Is(err, errChanged) {
		out.Reason, out.Cause = "ObjectChanged", f.uri+" kept changing while it was being read"
		out.Advice = "Wait until its upload has ended, or publish versions under new names."
		return out
	}
	out.Reason, out.Cause = "ChecksumMismatch", f.uri+" does not match its checksum, twice"
	out.Advice = "The stored object, or something on the way, is damaged: upload it again and look at proxies between."
	return out
}

// openFile settles what is to be fetched of a file and hands its parts out.
func (e *engine) openFile(ctx context.Context, w *worker, f *file) error {
	if !f.small() || f.saved != nil || e.shelf.takes(f) {
		if err := e.confirm(ctx, f); err != nil {
			return err
		}
	}
	if reused, err := e.reuse(ctx, w, f); reused || err != nil {
		return err
	}
	fresh := f.saved == nil || f.saved.CRC != f.proof.crc.Name || !e.store.gathers(f.rel, f.object.size)
	// The journal first: it must never tell of bytes that have been dropped since.
	if err := e.enroll(f, fresh); err != nil {
		return err
	}
	var err error
	if f.temp, err = e.store.openTemp(f.rel, f.object.size, fresh); err != nil {
		return err
	}
	if e.policy.mode == IODirect {
		if f.direct, err = e.store.openDirect(f.rel); err != nil {
			return err
		}
	}
	e.handOut(f)
	return nil
}

// confirm asks for the object as it is now, which tells its checksum.
func (e *engine) confirm(ctx context.Context, f *file) error {
	now, err := e.src.head(ctx, f.object.key)
	if err != nil {
		return err
	}
	if now.version() != f.object.version() || now.size != f.object.size {
		return errChanged
	}
	f.object = now
	return e.prove(ctx, f, now, e.src)
}

// handOut puts the parts of an open file into the queue.
func (e *engine) handOut(f *file) {
	part := e.opts.PartSize
	if part == 0 {
		part = partSize(f.object.size, max(e.opts.Conns, nearConns))
	}
	if f.small() && len(f.segments) == 0 {
		part = max(f.object.size, 1) // in one request, which tells the checksum too
	}
	parts := split(gaps(f.object.size, f.segments), part)
	if len(parts) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	f.parts = parts
	e.open = append(e.open, f)
	e.changed.Broadcast()
}

// enroll takes over what an earlier run left, and makes the file known to the
// journal if it is worth resuming.
func (e *engine) enroll(f *file, fresh bool) error {
	if !fresh {
		f.id = f.saved.ID
		f.segments = mergeSegments(f.proof.crc, f.object.size, f.proof.cut, f.saved.segments)
		var have int64
		for _, s := range f.segments {
			have += s.n
		}
		e.progress.done.Add(have)
		e.progress.resumed.Add(have)
		return nil
	}
	if f.small() && f.id == 0 && f.saved == nil {
		return nil
	}
	id, err := e.journal.begin(begunFile{
		Path: f.rel, Object: f.uri, Version: f.object.version(), Size: f.object.size, CRC: f.proof.crc.Name,
	})
	if err != nil {
		return diskFailure(e.store.dir, err)
	}
	f.id = id
	return nil
}

// learn takes the checksum from the first answer for a small file.
func (e *engine) learn(ctx context.Context, f *file, answered object) error {
	f.learning.Lock()
	defer f.learning.Unlock()
	f.mu.Lock()
	chosen := f.chosen
	f.mu.Unlock()
	if chosen {
		return nil
	}
	o := f.object // which others read
	o.answer = answered.answer
	// The request that has been answered holds a turn. To wait for another would be to
	// wait for oneself where there is one, and for each other where there are many.
	return e.prove(ctx, f, o, unhurried(e.src))
}

// prove settles how the file will be checked, by what is known of its object, asking
// src for what else that takes.
func (e *engine) prove(ctx context.Context, f *file, o object, src source) error {
	if needsParts(e.opts.Verify, o) {
		part, err := src.firstPart(ctx, o.key)
		if err != nil {
			return err
		}
		told := o.told()
		told.part, o.answer = part, &told
	}
	p, err := choose(e.opts.Verify, o, f.small())
	if err != nil {
		return exhausted("reading the checksum of "+f.uri, 1, err)
	}
	p = e.sums.prove(p, f.rel)
	// Where there is no content, its size proves it.
	if e.opts.Verify == VerifyRequire && p.evidence == EvidenceSize && o.size > 0 {
		return &ExitError{
			Code: ExitIntegrity, Reason: "NoChecksum", Cause: f.uri + " has no checksum that can be checked",
			Advice: "Upload it again with a checksum (any current S3 client adds one), or set PRELOADER_VERIFY to auto.",
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proof, f.chosen = p, true
	return nil
}

// finish checks a file whose bytes are all there and gives it its final name.
// The journal is told first: a process that dies between the two then finds
// either the final file, known by its time, or one to rename.
func (e *engine) finish(ctx context.Context, f *file, buf []byte) (*FileRecord, error) {
	if !f.chosen { // an empty file, for which nothing was asked
		if err := e.prove(ctx, f, f.object, e.src); err != nil {
			return nil, err
		}
	}
	segments, err := f.whole()
	if err != nil {
		return nil, err
	}
	if err := f.proof.check(segments, f.object.size, f.temp, buf); err != nil {
		return nil, err
	}
	info, err := f.temp.Stat()
	if err != nil {
		return nil, diskFailure(e.store.dir, err)
	}
	if err = e.closeFile(f); err != nil {
		return nil, diskFailure(e.store.dir, err)
	}
	record := &FileRecord{
		Path: f.rel, Object: f.uri, Version: f.object.version(), Size: f.object.size, Modified: info.ModTime().UnixNano(),
		CRC: f.proof.crc.Name, Sum: f.proof.crc.Encode(total(f.proof.crc, segments)), Evidence: f.proof.evidence,
	}
	if err := e.journal.finished(record); err != nil {
		return nil, diskFailure(e.store.dir, err)
	}
	return record, e.store.publish(f.rel, info)
}

// closeFile closes a file after what is on its way to disk has arrived there.
func (e *engine) closeFile(f *file) error {
	var err error
	if e.back != nil && f.temp != nil {
		err = e.back.finish(f.temp)
	}
	return errors.Join(err, f.close())
}

func (f *file) close() error {
	var err error
	for _, open := range []*os.File{f.temp, f.direct} {
		if open != nil {
			err = errors.Join(err, open.Close())
		}
	}
	f.temp, f.direct = nil, nil
	return err
}

// whole returns the pieces of the file in order, which must leave no gap.
func (f *file) whole() ([]segment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := mergeSegments(f.proof.crc, f.object.size, f.proof.cut, f.segments)
	if len(gaps(f.object.size, all)) > 0 {
		return nil, &corruptError{"some of its bytes are missing"}
	}
	return all, nil
}
