// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/quantity"
)

// Load is what loading a model came to. Sizes are in bytes, rates in bytes a second.
type Load struct {
	// Files and Bytes count what was to be loaded; headers are not.
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	// Seconds is from the first read until the last copy, Rate what that makes.
	Seconds float64 `json:"seconds,omitempty"`
	Rate    float64 `json:"rate,omitempty"`
	// Link is what the links of all GPUs carried together right before, by copies of
	// page-locked memory: the ceiling of Rate. 0 if that was not measured.
	Link float64 `json:"link,omitempty"`
	// Proven counts files whose bytes met the check that the pull noted, Unproven those
	// for which there was none to meet.
	Proven   int `json:"proven"`
	Unproven int `json:"unproven"`
	// ReadBack counts bytes that were copied back and compared.
	ReadBack int64 `json:"readBack"`
	// CachedBefore and Cached are the bytes of the files in the page cache before and
	// after; absent if the kernel, older than 6.5, does not tell.
	CachedBefore *int64 `json:"cachedBefore,omitempty"`
	Cached       *int64 `json:"cached,omitempty"`
	// Remains says what is left of it all when the process ends.
	Remains []string `json:"remains,omitempty"`
}

// Loaded is one GPU's part of a load.
type Loaded struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"rate"`
}

// LoadModel loads the safetensors files of the paths into the memory of all GPUs,
// checks them, and frees the memory again. The report has everything; again is as for
// [Preflight].
func LoadModel(ctx context.Context, opts Options, paths []string) (report *Report, again bool) {
	report = &Report{Check: "load"}
	began := time.Now()
	shards, err := openModel(paths)
	if err == nil {
		defer closeModel(shards)
		again, err = loadShards(ctx, opts, shards, report)
	}
	if err != nil {
		report.add(explain(err))
	}
	report.Seconds = since(began)
	report.finish()
	return report, again
}

func loadShards(ctx context.Context, opts Options, shards []*shard, report *Report) (again bool, err error) {
	report.Load = &Load{Files: len(shards), CachedBefore: cached(shards)}
	for _, s := range shards {
		report.Load.Bytes += s.header.FileBytes() - s.header.Start
	}
	s, err := start(ctx, opts, report)
	defer s.end(ctx)
	if err != nil {
		return hasCode(err, systemNotReady), err
	}
	l := &loading{session: s, shards: shards}
	if l.open(ctx); s.report.failed() {
		return false, nil
	}
	if err := l.place(); err != nil {
		return false, err
	}
	l.run(ctx)
	l.conclude(ctx)
	report.Load.Cached = cached(shards)
	if !report.failed() {
		report.Load.Remains = l.remains()
	}
	return false, nil
}

// loading is the state of one load.
type loading struct {
	*session
	shards  []*shard
	workers []*worker
	// examiners watch each GPU; nil without NVML.
	examiners []*examiner
}

// worker is one GPU's part of it.
type worker struct {
	device *device
	pieces []piece
	chunks []*chunk
	*streamer
}

// each runs f for every GPU at once and reports errors.
func (l *loading) each(f func(i int, d *device) error) {
	failed := make([]error, len(l.devices))
	var all sync.WaitGroup
	for i, d := range l.devices {
		all.Go(func() { failed[i] = f(i, d) })
	}
	all.Wait()
	for i, err := range failed {
		if err != nil {
			l.report.add(l.devices[i].explain(err).on(i))
		}
	}
}

// open asks every GPU for its health and its free memory.
func (l *loading) open(ctx context.Context) {
	found := make([][]Finding, len(l.devices))
	l.examiners = make([]*examiner, len(l.devices))
	l.each(func(i int, d *device) error {
		if err := d.identify(ctx); err != nil {
			return err
		}
		if d.nvml != nil {
			x, err := d.examine(ctx)
			if err != nil {
				return err
			}
			l.examiners[i], found[i] = x, judgeHealth(x.health)
		}
		return d.open(ctx)
	})
	l.addAll(found)
}

// conclude asks for what happened to the GPUs meanwhile.
func (l *loading) conclude(ctx context.Context) {
	found := make([][]Finding, len(l.devices))
	l.each(func(i int, d *device) error {
		x := l.examiners[i]
		if x == nil || d.thread.stuck() {
			return nil
		}
		err := x.conclude(ctx)
		found[i] = judgeEvents(x.health)
		return err
	})
	l.addAll(found)
}

// addAll reports findings by GPU.
func (s *session) addAll(found [][]Finding) {
	for i, findings := range found {
		for _, f := range findings {
			s.report.add(f.on(i))
		}
	}
}

// place decides which bytes go to which GPU.
func (l *loading) place() error {
	var free []uint64
	for _, d := range l.devices {
		free = append(free, d.info.MemoryFree)
	}
	layout, err := place(l.shards, free)
	if err != nil {
		return err
	}
	for i, d := range l.devices {
		l.workers = append(l.workers, &worker{device: d, pieces: layout[i]})
	}
	return nil
}

// run loads, in steps that all GPUs do at once, and stops after a step that failed.
func (l *loading) run(ctx context.Context) {
	steps := []func(context.Context){l.measure, l.prepare, l.stream, l.readBack}
	for _, step := range steps {
		if step(ctx); l.report.failed() {
			return
		}
	}
	l.verify()
}

// measure finds out what the links carry when all GPUs use theirs.
func (l *loading) measure(ctx context.Context) {
	if l.opts.Link <= 0 {
		return
	}
	l.each(func(_ int, d *device) error {
		link, err := d.measureLink(ctx, l.opts.Link)
		if err != nil {
			return err
		}
		d.info.Link = link
		return nil
	})
	for i, d := range l.devices {
		if d.info.Link == nil {
			continue
		}
		l.report.Load.Link += d.info.Link.ToDevice
		for _, f := range judgeLink(d.info.Link, nil) {
			l.report.add(f.on(i))
		}
	}
}

// prepare takes buffers and GPU memory, and cuts pieces into chunks of a buffer each.
func (l *loading) prepare(ctx context.Context) {
	l.each(func(i int, d *device) error {
		w := l.workers[i]
		if len(w.pieces) == 0 {
			return nil
		}
		var err error
		if w.streamer, err = d.newStreamer(ctx, l.opts.Buffers, l.opts.BufferSize); err != nil {
			return err
		}
		for _, p := range w.pieces {
			there, err := d.alloc(ctx, p.bytes)
			if err != nil {
				return err
			}
			w.chunks = append(w.chunks, p.chunks(l.shards[p.shard], there, l.opts.BufferSize)...)
		}
		return nil
	})
}

// chunks cuts a piece into chunks.
func (p piece) chunks(s *shard, there uintptr, size int64) []*chunk {
	var chunks []*chunk
	for at := int64(0); at < p.bytes; at += size {
		n := min(size, p.bytes-at)
		chunks = append(chunks, &chunk{shard: s, offset: p.offset + at, n: int(n), there: there + uintptr(at)})
	}
	return chunks
}

func (l *loading) stream(ctx context.Context) {
	seconds, _ := timed(func() error {
		l.each(func(i int, d *device) error {
			w := l.workers[i]
			if len(w.chunks) == 0 {
				return nil
			}
			loaded := &Loaded{}
			var err error
			loaded.Seconds, err = timed(func() error { return w.load(ctx, w.chunks, l.opts.Readers) })
			for _, c := range w.chunks {
				loaded.Bytes += int64(c.n)
			}
			loaded.Rate = float64(loaded.Bytes) / loaded.Seconds
			if err == nil {
				d.info.Loaded = loaded
			}
			return err
		})
		return nil
	})
	if !l.report.failed() {
		l.report.Load.Seconds, l.report.Load.Rate = seconds, float64(l.report.Load.Bytes)/seconds
	}
}

func (l *loading) readBack(ctx context.Context) {
	compared := make([]int64, len(l.devices))
	l.each(func(i int, _ *device) error {
		w := l.workers[i]
		var err error
		if len(w.chunks) > 0 {
			compared[i], err = w.readBack(ctx, sample(w.chunks, l.opts.ReadBack))
		}
		return err
	})
	for _, n := range compared {
		l.report.Load.ReadBack += n
	}
}

// verify compares each file, as it went through the buffers, with what the pull noted.
func (l *loading) verify() {
	chunks := map[*shard][]*chunk{}
	for _, w := range l.workers {
		for _, c := range w.chunks {
			chunks[c.shard] = append(chunks[c.shard], c)
		}
	}
	for _, s := range l.shards {
		if err := s.verify(chunks[s]); err != nil {
			l.report.add(explain(err))
			continue
		}
		if s.proven {
			l.report.Load.Proven++
		} else {
			l.report.Load.Unproven++
		}
	}
	if n := l.report.Load.Unproven; n > 0 {
		l.report.add(Finding{
			Severity: Note, Reason: "Unproven", Cause: fmt.Sprintf("of %d files, no check of their content was at hand", n),
			Advice: "Files that preloader pull fetched are checked against what it noted.",
		})
	}
}

// remains says plainly what is left when the process ends.
func (l *loading) remains() []string {
	gone := "The GPU memory, the contexts and the page-locked buffers are freed with this process: no weight stays on a GPU."
	cache := "Whether the files are in the page cache cannot be told on this kernel."
	if c := l.report.Load.Cached; c != nil {
		var size int64
		for _, s := range l.shards {
			size += s.size
		}
		cache = fmt.Sprintf("%s of the files' %s are in the page cache, where the model server reads them from memory.",
			quantity.FormatBytes(*c), quantity.FormatBytes(size))
	}
	driver := "Whether the driver stays initialised is not known."
	for _, d := range l.devices {
		if h := d.info.Health; h != nil && h.Persistence != nil {
			driver = "The driver stays initialised: persistence mode is on."
			if !*h.Persistence {
				driver = "The driver lets go of the GPU when no process uses it: persistence mode is off, so the model server initialises it again."
				break
			}
		}
	}
	return []string{gone, cache, driver}
}

// cached returns how many bytes of the files are in the page cache, or nil if the
// kernel does not tell.
func cached(shards []*shard) *int64 {
	var total int64
	for _, s := range shards {
		var stat unix.Cachestat_t
		//nolint:gosec // sizes and descriptors are not below zero
		if err := unix.Cachestat(uint(s.file.Fd()), &unix.CachestatRange{Len: uint64(s.size)}, &stat, 0); err != nil {
			return nil
		}
		total += min(s.size, int64(stat.Cache)*int64(os.Getpagesize())) //nolint:gosec // pages of one file
	}
	return &total
}

// sentence sums a load up.
func (l *Load) sentence() string {
	text := fmt.Sprintf("%s in %.1f s at %s", quantity.FormatBytes(l.Bytes), l.Seconds, rate(l.Rate))
	if l.Link > 0 {
		text += fmt.Sprintf(", %.0f %% of the %s that the links carry", 100*l.Rate/l.Link, rate(l.Link))
	}
	return text
}

func (l *Load) describe(b *strings.Builder) {
	fmt.Fprintf(b, "model    %d files, %s of tensors\n", l.Files, quantity.FormatBytes(l.Bytes))
	if l.Rate > 0 {
		fmt.Fprintf(b, "loaded   %s\n", l.sentence())
		fmt.Fprintf(b, "checked  %d files against the pull, %d against nothing; %s read back and compared\n",
			l.Proven, l.Unproven, quantity.FormatBytes(l.ReadBack))
	}
	for _, r := range l.Remains {
		fmt.Fprintf(b, "remains  %s\n", r)
	}
}

func (l *Loaded) describe(b *strings.Builder) {
	fmt.Fprintf(b, "  loaded  %s in %.1f s at %s\n", quantity.FormatBytes(l.Bytes), l.Seconds, rate(l.Rate))
}
