// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"serverless.xyz/outrigger/preloader/quantity"
)

const (
	// fewConns and nearConns are how many requests run at once if nothing else is asked
	// for, with one or two processors and with more; mostConns is how many may where a
	// store is far, or slow on each connection.
	fewConns  = 4
	nearConns = 8
	mostConns = 32

	// ampleBuffers is what the buffers of the first connections take together, if these
	// are few, and ampleBuffer what one of them is at most: the larger a read, the
	// fewer acknowledgements the kernel sends, and the fewer wakings.
	ampleBuffers = 8 * mebibyte
	ampleBuffer  = 2 * mebibyte
)

// Pull fetches every pair in turn, as KServe does, and stops at the first
// failure; then the compiled kernels that fit, which cannot make it fail. The report covers what was done until then; it is never nil.
// The error, if any, is a *ExitError or the cause of the context's end.
func Pull(ctx context.Context, opts Options, pairs []Pair, log *slog.Logger) (*Report, error) {
	if opts.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, opts.Deadline)
		defer cancel()
	}
	opts = opts.settled().filling(pairs)
	total := &Report{}
	for i, pair := range pairs {
		start := time.Now()
		one := Report{}
		err := pullPair(ctx, opts, pair, opts.pin(i), log, &one)
		one.Seconds = time.Since(start).Seconds()
		total.add(one)
		if err != nil {
			return total, err
		}
	}
	if opts.JIT.URI == "" {
		return total, nil
	}
	total.JITCache = pullCaches(ctx, opts, pairs, log)
	total.Seconds += total.JITCache.Seconds
	// The models are there, so only a signal still counts.
	if stopped, ok := errors.AsType[*StoppedError](context.Cause(ctx)); ok {
		return total, stopped
	}
	return total, nil
}

// settled returns the options with what was left to be chosen.
func (o Options) settled() Options {
	auto := o.Conns == 0
	o.cpus = readLimits(os.DirFS("/")).processors()
	if auto {
		o.Conns = nearConns
		if o.cpus <= 2 {
			o.Conns = fewConns
		}
	}
	o.Conns = int(min(int64(o.Conns), max(1, o.Memory/bufferSize)))
	o.buffer = int(max(bufferSize, min(ampleBuffer, min(o.Memory, ampleBuffers)/int64(o.Conns))))
	o.buffer -= o.buffer % bufferSize
	if auto && o.FileConcurrency == 0 {
		o.more = int(min(mostConns-int64(o.Conns), max(0, o.Memory-int64(o.Conns)*int64(o.buffer))/extraBuffer))
	}
	return o
}

func pullPair(ctx context.Context, opts Options, pair Pair, pin string, log *slog.Logger, report *Report) error {
	at, err := parseSource(pair.Source)
	if err != nil {
		return err
	}
	switch at.kind {
	case sourceMounted:
		log.Info("Nothing to do: the model agent fills this directory", "source", pair.Source)
		return nil
	case sourceLocal:
		return linkLocal(ctx, at.path, pair.Dest, opts, log, report)
	case sourceS3:
	}
	p := &pull{opts: opts, at: at, pair: pair, pin: pin, log: log, report: report, progress: &progress{}}
	p.forget()
	defer p.free()
	opts.Meter.watch(p.progress)
	if done, err := p.pinnedInPlace(ctx); done || err != nil {
		return err
	}
	client, err := newS3Client(ctx, opts, opts.Conns)
	if err != nil {
		return err
	}
	p.connect(client)
	return p.run(ctx)
}

func (p *pull) connect(client *s3.Client) {
	p.throttle = newThrottle(p.opts.Conns)
	p.src = patient{
		source: newS3Source(
			client,
			p.at.bucket,
			p.opts,
		),
		attempts: p.opts.Attempts,
		stall:    p.opts.Stall,
		retries:  &p.progress.retries,
		throttle: p.throttle,
		trouble:  &trouble{log: p.log},
	}
}

// pull is the state of fetching one pair.
type pull struct {
	opts Options
	at   location
	pair Pair
	// pin is the digest that is asked for, or empty.
	pin      string
	log      *slog.Logger
	report   *Report
	src      patient
	progress *progress
	throttle *throttle

	store *store
	saved *saved
	// files are those of the source, and others what earlier runs left beside them.
	files, others *catalog
	// archives are the objects that were unpacked earlier.
	archives []string
	// shape is what the model says about itself.
	shape shape
	// sums are digests that the model brings along.
	sums sums
	// shelf is the node's cache while files are being fetched, or nil.
	shelf *shelf
	// rechecked means that what earlier runs left was read and is as it was.
	rechecked bool
	// looksOnly means that nothing may be written: it is a plan.
	looksOnly bool
}

// forget starts with nothing known of files, and free gives the memory back.
func (p *pull) forget() {
	p.free()
	p.saved, p.files, p.others = newSaved(), &catalog{}, &catalog{}
}

func (p *pull) free() {
	for _, c := range []*catalog{p.files, p.others, p.shape.dropped} {
		if c != nil {
			c.free()
		}
	}
}

// open opens the directory.
func (p *pull) open(ctx context.Context) (err error) {
	p.store, err = openStore(ctx, p.pair.Dest, queue{longest: p.opts.Wait, log: p.log})
	return err
}

func (p *pull) run(ctx context.Context) error {
	if err := p.open(ctx); err != nil {
		return err
	}
	defer p.store.close()
	p.log.Info("Listing", "source", p.pair.Source)
	if err := p.list(ctx); err != nil {
		return err
	}
	marker, err := p.recall(ctx)
	if err != nil {
		return err
	}
	if err := p.leaveOut(ctx); err != nil {
		return err
	}
	if sole := soleArchive(p.files); sole != "" {
		return p.fetchArchive(ctx, sole, marker)
	}
	wanted := p.sift()
	p.tally()
	if wanted+p.others.count(stale) == 0 && marker != nil && slices.Contains(marker.Sources, p.pair.Source) {
		p.log.Info("Everything is in place already", "files", p.files.len())
		p.believeFromNowOn(marker)
		p.measureCache()
		return p.meetsPin()
	}
	if err := p.lint(ctx); err != nil {
		return err
	}
	if p.sums, err = p.readSums(ctx); err != nil {
		return err
	}
	if err := p.foreseePin(ctx); err != nil {
		return err
	}
	if err := p.fetch(ctx); err != nil {
		return err
	}
	return p.complete(marker)
}

// list lists the source and lays its files out, of which there is at least one.
func (p *pull) list(ctx context.Context) error {
	p.forget()
	l := newLayout(p.at.bucket, p.at.path, p.opts.Filter)
	p.files, p.shape.dropped = l.files, l.dropped
	if err := each(ctx, p.src, p.at.path, p.opts.SiblingPrefixes, l.take); err != nil {
		return err
	}
	if err := l.done(); err != nil {
		return err
	}
	if p.files.len() == 0 {
		return p.nothingFound(ctx, l.listed)
	}
	return nil
}

// recall reads what earlier runs left, and checks it against the bytes if the
// machine has restarted since.
func (p *pull) recall(ctx context.Context) (*Marker, error) {
	if !p.opts.Resume {
		return nil, nil //nolint:nilnil // no marker is believed
	}
	marker, suspect, err := p.remember()
	if err != nil {
		return nil, err
	}
	if suspect {
		p.log.Info("Checking what an earlier run left, because the machine has restarted since")
		p.rechecked = true
		if err := p.recheck(ctx); err != nil {
			return nil, err
		}
	}
	return marker, nil
}

// remember reads what earlier runs left, and reports whether the machine has
// restarted since, so that it must be checked before it is believed.
func (p *pull) remember() (*Marker, bool, error) {
	marker, err := loadMarker(p.store.root, p.remind)
	if err != nil {
		return nil, false, err
	}
	if marker == nil { // or one that is torn: what it said before is not believed
		p.unlearn()
	}
	if p.saved, err = loadSaved(p.store.root, p.remind); err != nil {
		return nil, false, err
	}
	p.others.settle()
	boot := bootID()
	suspect := boot == "" || p.saved.boot != boot && p.saved.boot != ""
	if marker != nil {
		suspect = suspect || marker.Boot != boot
		for _, a := range marker.Archives {
			p.archives = append(p.archives, a.Object)
		}
	}
	return marker, suspect, nil
}

// remind takes the record of a file that an earlier run has finished. A later one
// counts more.
func (p *pull) remind(r *FileRecord) {
	i, listed := p.files.find(r.Path)
	if !listed {
		p.others.put(r, noted)
		return
	}
	e := p.files.entry(i)
	if r.Object != e.uri || r.Version != e.object.version() || r.Size != e.object.size || !p.files.note(i, r, noted) {
		p.files.set(i, missing)
		if archiveOf(r.Path) != notArchive { // what was unpacked may have had the archive's own name
			p.others.put(r, noted)
		}
	}
}

// unlearn forgets what it was reminded of.
func (p *pull) unlearn() {
	for i := range p.files.len() {
		p.files.set(i, missing)
	}
	p.others.free()
}

// sift looks which files are in place, and returns how many have to be fetched.
func (p *pull) sift() int {
	for i := range p.files.having(noted) {
		p.files.set(i, missing)
		if r := p.files.record(i); p.enough(r) && p.inPlace(r) {
			p.files.set(i, ready)
		}
	}
	p.others.drop(func(i int) bool {
		_, listed := p.files.find(string(p.others.path(i)))
		return listed || p.others.standing(i) == missing || !p.inPlace(p.others.record(i))
	})
	for i := range p.others.having(noted) {
		p.others.set(i, ready)
		if p.isStale(p.others.record(i)) {
			p.others.set(i, stale)
		}
	}
	for rel, s := range p.saved.begun {
		if i, listed := p.files.find(rel); !listed || p.files.standing(i) == ready || !s.of(p.files.entry(i)) {
			delete(p.saved.begun, rel)
		}
	}
	return p.files.count(missing)
}

// todo returns the files that have to be fetched, once they are sifted.
func (p *pull) todo() iter.Seq[*file] {
	return func(yield func(*file) bool) {
		for i := range p.files.having(missing) {
			if !yield(p.file(i)) {
				return
			}
		}
	}
}

// file returns a file that has to be fetched, with what an earlier run left of it.
func (p *pull) file(i int) *file {
	f := &file{entry: p.files.entry(i)}
	f.saved = p.saved.begun[f.rel]
	return f
}

// of reports whether it is of the object as it is now.
func (s *savedFile) of(e entry) bool {
	return s.Object == e.uri && s.Version == e.object.version() && s.Size == e.object.size
}

// current reports whether a file is in place as the object is now.
func (p *pull) current(e entry) bool {
	if p.files.standing(e.at) == missing {
		return false
	}
	r := p.files.record(e.at)
	return p.enough(r) && p.inPlace(r)
}

// enough reports whether a file was checked as strictly as this run asks.
func (p *pull) enough(r *FileRecord) bool {
	return p.opts.Verify != VerifyRequire || r.Evidence != EvidenceSize || r.Size == 0
}

// inPlace reports whether the file that r speaks of is there, after giving it
// its final name if an earlier run died just before that.
func (p *pull) inPlace(r *FileRecord) bool {
	if p.store.holds(r) {
		return true
	}
	gathered := *r
	gathered.Path = tempName(r.Path)
	return p.store.holds(&gathered) && (p.looksOnly || p.store.publish(r.Path, nil) == nil)
}

// tally starts the counters with what this source comes to.
func (p *pull) tally() {
	for i := range p.files.len() {
		size := p.files.size(i)
		p.progress.wanted.Add(1)
		p.progress.total.Add(size)
		if p.files.standing(i) == ready {
			p.progress.done.Add(size)
			p.progress.skipped.Add(1)
			p.report.believe(p.files.evidence(i), 1)
			p.report.Bytes += size
			p.report.Files++
			p.report.Skipped++
		}
	}
}

// fetch brings the missing files. The working directory stays.
func (p *pull) fetch(ctx context.Context) error {
	var closeShelf func()
	var err error
	if p.shelf, closeShelf, err = p.openShelf(ctx); err != nil {
		return err
	}
	defer closeShelf()
	if err := p.fits(); err != nil {
		return err
	}
	policy, err := p.choosePolicy()
	if err != nil {
		return err
	}
	if err := p.store.prepare(p.saved); err != nil {
		return err
	}
	journal, err := startJournal(p.store.root, bootID(), p.saved, records(p.files, p.others))
	if err != nil {
		return diskFailure(p.store.dir, err)
	}
	defer journal.close() //nolint:errcheck // every line was written with its own check
	// Also one that is not believed.
	if err := p.store.root.Remove(markerName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskFailure(p.store.dir, err)
	}
	engine := &engine{
		src: p.src, store: p.store, journal: journal, opts: p.opts, log: p.log, progress: p.progress, policy: policy,
		files:    p.files,
		begun:    p.saved.begun,
		sums:     p.sums,
		shelf:    p.shelf,
		report:   p.report,
		throttle: p.throttle,
	}
	if policy.window > 0 {
		engine.back = newWriteback(policy.window, p.opts.Conns)
	}
	p.log.Info(
		"Downloading",
		"source",
		p.pair.Source,
		"files",
		p.files.count(missing),
		"bytes",
		byteCount(p.toFetch()),
		"connections",
		p.opts.Conns,
		"io",
		string(policy.mode),
		"because",
		policy.why,
	)
	p.progress.moving.Store(true)
	err = engine.run(ctx, p.opts.Conns)
	p.progress.moving.Store(false)
	p.account()
	return err
}

// account notes what moving the bytes came to.
func (p *pull) account() {
	p.report.Fetched = p.progress.fetched.Load()
	p.report.Resumed = p.progress.resumed.Load()
	p.report.Reused = p.progress.reused.Load()
	p.report.Retries = p.progress.retries.Load()
	p.report.Overtaken = p.progress.overtaken.Load()
}

// toFetch returns how many bytes are left to fetch.
func (p *pull) toFetch() int64 {
	var bytes int64
	for f := range p.todo() {
		bytes += f.object.size
		if f.saved != nil {
			for _, s := range f.saved.segments {
				bytes -= s.n
			}
		}
	}
	return bytes
}

// choosePolicy settles how bytes are written. Files on disk are judged by the
// whole model, which is what may stay in the page cache; files in memory by what
// is still to come, because the rest is taken already.
func (p *pull) choosePolicy() (ioPolicy, error) {
	model := p.progress.total.Load()
	if p.store.memory {
		model -= p.progress.done.Load()
	}
	policy, err := choosePolicy(p.opts.IO, readLimits(os.DirFS("/")), p.store.memory, model)
	p.report.IO = policy.mode
	return policy, err
}

// complete leaves the marker, and nothing of what was needed on the way.
func (p *pull) complete(marker *Marker, archives ...FileRecord) error {
	next := &Marker{Boot: bootID(), Finished: time.Now().UTC(), Sources: []string{p.pair.Source}, Archives: archives}
	if marker != nil {
		for _, a := range marker.Archives {
			if len(archives) == 0 || a.Object != archives[0].Object {
				next.Archives = append(next.Archives, a)
			}
		}
		for _, s := range marker.Sources {
			if s != p.pair.Source {
				next.Sources = append(next.Sources, s)
			}
		}
	}
	if err := p.removeStale(); err != nil {
		return err
	}
	p.measureCache()
	if err := p.meetsPin(); err != nil {
		return err
	}
	if err := writeMarker(p.store.root, next, records(p.files, p.others)); err != nil {
		return diskFailure(p.store.dir, err)
	}
	return p.store.finish()
}

// believeFromNowOn notes in the marker that its files were checked since the machine
// restarted, so that the next start need not read them again. The volume may be
// read-only, which is none of its business.
func (p *pull) believeFromNowOn(marker *Marker) {
	boot := bootID()
	if !p.rechecked || boot == "" || p.store.prepare(newSaved()) != nil {
		return
	}
	marker.Boot = boot
	if err := errors.Join(writeMarker(p.store.root, marker, records(p.files, p.others)), p.store.finish()); err != nil {
		p.log.Warn("The next start will check all files again", "cause", err.Error())
	}
}

// measureCache reports how much of the model a reader would find in memory.
func (p *pull) measureCache() {
	if n, of := p.store.cached(p.files); of > 0 {
		p.report.Cached, p.report.cacheable = &n, of
	}
}

// fits compares what is to come with what the volume has left, so that one that is
// too small fails at once and says by how much.
func (p *pull) fits() error {
	if free, known := p.store.left(p.opts); known {
		return p.fitsInto(p.need(), free)
	}
	return nil
}

// need returns how many bytes of disk the files will take beyond what they have.
func (p *pull) need() int64 {
	var need int64
	for f := range p.todo() {
		if p.shelf.shares(f, p.store) {
			continue
		}
		need += f.object.size
		if f.saved != nil {
			need -= min(f.object.size, p.store.allocated(f.rel))
		}
	}
	return need
}

func (p *pull) fitsInto(need, free int64) error {
	if need <= free {
		return nil
	}
	lacking := strconv.FormatInt((need-free)/mebibyte+1, 10) + "Mi"
	advice := "Give the volume at least " + lacking + " more room."
	if onDisk, known := p.store.free(); !known || need <= onDisk {
		advice = "Raise the volume's sizeLimit, of which PRELOADER_VOLUME_SIZE tells, by at least " + lacking + "."
	}
	return &ExitError{
		Code: ExitNoSpace, Reason: "NoSpace",
		Cause: fmt.Sprintf("the model needs %s more in %s, which has %s left",
			quantity.FormatBytes(need), p.pair.Dest, quantity.FormatBytes(free)),
		Advice: advice,
	}
}
