// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/quantity"
)

// Plan is what a pull would do and what it would need, as far as that can be
// known without fetching the model. It writes nothing.
type Plan struct {
	// Pairs are in the order in which they would be pulled. The last one is
	// filled only as far as the failure, if there is one, let it.
	Pairs []*PairPlan `json:"pairs"`
	// Memory is what bounds the memory of a pull that ran where the plan was made.
	Memory MemoryPlan `json:"memory"`
	// Forecast is absent if nothing would be fetched.
	Forecast *Forecast `json:"forecast,omitempty"`
	// JITCache is absent if no compiled kernels were asked for.
	JITCache *CachePlan `json:"jitCache,omitempty"`
	// Failure is what the pull would end with, as far as that shows beforehand.
	Failure *PlanFailure `json:"failure,omitempty"`
}

// PairPlan is the plan for one source and its directory.
type PairPlan struct {
	Source    string `json:"source"`
	Directory string `json:"directory"`
	// Note says what happens to sources that are not fetched; empty for those that are.
	Note string `json:"note,omitempty"`
	// Total is the model; InPlace is what of it needs no fetching, and Resumed
	// what an earlier run left of unfinished files.
	Total   Amount `json:"total"`
	InPlace Amount `json:"inPlace"`
	Resumed int64  `json:"resumedBytes"`
	// Rechecked means that the machine has restarted since, so that what is in
	// place is read and checked first.
	Rechecked bool `json:"rechecked,omitempty"`
	// LeftOut is what the selection leaves out of the source.
	LeftOut Amount `json:"leftOut"`
	// Fetch is what is left to fetch.
	Fetch Amount `json:"fetch"`
	// Archive is the only file of the model if it will be unpacked. The room that
	// its content takes comes on top and is not known.
	Archive string `json:"archive,omitempty"`
	// Disk is what the destination has to take.
	Disk DiskPlan `json:"disk"`
	// IO is how bytes would be written, and why.
	IO  IOMode `json:"io,omitempty"`
	Why string `json:"ioBecause,omitempty"`
	// Wanted is the memory, in bytes, with which all of the model could stay in
	// the page cache, or be held at all where the volume is in memory.
	Wanted int64 `json:"memoryWanted"`
	// Evidence counts files by how they can be believed, those in place included.
	Evidence map[Evidence]int `json:"evidence,omitempty"`
	// Digest is what the pull would tell of the content, to be pinned; empty where the
	// store does not tell all of it beforehand.
	Digest string `json:"digest,omitempty"`
	// Objects lists every file of the model.
	Objects []ObjectPlan `json:"objects,omitempty"`
}

// Amount counts files and their bytes.
type Amount struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

func (a *Amount) add(bytes int64) {
	a.Files++
	a.Bytes += bytes
}

// DiskPlan says what a directory has to take, in bytes.
type DiskPlan struct {
	// Needed is what the files that are missing will take.
	Needed int64 `json:"neededBytes"`
	// Free is what the file system has left for this user; absent if it does not say.
	Free *int64 `json:"freeBytes,omitempty"`
	// InMemory means that the files take memory, not disk.
	InMemory bool `json:"inMemory"`
}

// MemoryPlan is what the kernel says of memory, in bytes.
type MemoryPlan struct {
	// Limit is the smallest limit over this process, 0 if there is none.
	Limit int64 `json:"limitBytes"`
	// Room is what of it, or of the machine, is left for the page cache; absent
	// if nothing bounds it.
	Room *int64 `json:"roomBytes,omitempty"`
}

// ObjectPlan is the plan for one file.
type ObjectPlan struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	// State is missing, begun or inPlace.
	State string `json:"state"`
	// Evidence is the best that the store offers for it, in the mode asked for.
	Evidence Evidence `json:"evidence,omitempty"`
}

// PlanFailure is a failure that shows beforehand.
type PlanFailure struct {
	Code   ExitCode `json:"code"`
	Reason string   `json:"reason"`
	// Message is the cause and what to do about it.
	Message string `json:"message"`
}

// planner makes a plan.
type planner struct {
	opts   Options
	log    *slog.Logger
	limits limits
	// taken is what earlier pairs will have taken of a file system, by device.
	taken map[uint64]int64
	pace  pace
}

// MakePlan looks at the sources and the directories and says what Pull would do.
// The plan is never nil; an error is what Pull would end with and is also in the
// plan, unless the context ended.
func MakePlan(ctx context.Context, opts Options, pairs []Pair, log *slog.Logger) (*Plan, error) {
	opts = opts.settled().filling(pairs)
	m := &planner{opts: opts, log: log, limits: readLimits(os.DirFS("/")), taken: map[uint64]int64{}}
	plan := &Plan{Memory: MemoryPlan{Limit: m.limits.memory}}
	if m.limits.memory > 0 || m.limits.available > 0 {
		room := m.limits.room()
		plan.Memory.Room = &room
	}
	var err error
	for i, pair := range pairs {
		one := &PairPlan{Source: pair.Source, Directory: pair.Dest}
		plan.Pairs = append(plan.Pairs, one)
		if err = m.pair(ctx, pair, opts.pin(i), one); err != nil {
			break
		}
	}
	plan.Forecast = m.pace.forecast(plan, opts)
	if err == nil && opts.JIT.URI != "" {
		plan.JITCache = planCaches(ctx, opts, pairs, plan.Forecast == nil, log)
	}
	if err != nil && ctx.Err() == nil {
		f := asFailure(err)
		plan.Failure = &PlanFailure{Code: f.Code, Reason: f.Reason, Message: sentence(f)}
	}
	return plan, err
}

func (m *planner) pair(ctx context.Context, pair Pair, pin string, plan *PairPlan) error {
	at, err := parseSource(pair.Source)
	if err != nil {
		return err
	}
	switch at.kind {
	case sourceMounted:
		plan.Note = "nothing to do: the model agent fills this directory"
		return nil
	case sourceLocal:
		plan.Note = "linked, not copied"
		if _, err := os.Stat(at.path); err != nil {
			return noLocalPath(at.path, err)
		}
		return nil
	case sourceS3:
	}
	p := &pull{
		opts: m.opts, at: at, pair: pair, pin: pin, log: m.log, report: &Report{}, progress: &progress{}, looksOnly: true,
	}
	defer p.free()
	if done, err := m.pinnedInPlace(p, plan); done || err != nil {
		return err
	}
	client, err := newS3Client(ctx, m.opts, m.opts.Conns)
	if err != nil {
		return err
	}
	p.connect(client)
	return m.model(ctx, p, plan)
}

// pinnedInPlace plans for a directory that holds what is pinned, and reports whether it
// does.
func (m *planner) pinnedInPlace(p *pull, plan *PairPlan) (bool, error) {
	if p.pin == "" || !m.opts.Resume {
		return false, nil
	}
	p.forget()
	var err error
	if p.store, err = viewStore(p.pair.Dest); err != nil {
		return false, err
	}
	defer p.store.close()
	if p.store.root == nil {
		return false, nil
	}
	var marker *Marker
	if marker, plan.Rechecked, err = p.remember(); err != nil || !p.holdsPinned(marker) {
		plan.Rechecked = false
		return false, err
	}
	p.tally()
	plan.fill(p)
	plan.Digest = p.pin
	return true, nil
}

// model plans the pull of one model from S3.
func (m *planner) model(ctx context.Context, p *pull, plan *PairPlan) error {
	err := p.list(ctx)
	if err != nil {
		return err
	}
	if p.store, err = viewStore(p.pair.Dest); err != nil {
		return err
	}
	defer p.store.close()
	if p.store.root != nil {
		if _, plan.Rechecked, err = p.remember(); err != nil {
			return err
		}
	}
	if err := p.leaveOut(ctx); err != nil {
		return err
	}
	if left := p.report.LeftOut; left != nil {
		plan.LeftOut = *left
	}
	plan.Archive = soleArchive(p.files)
	wanted := p.sift()
	p.tally()
	plan.fill(p)
	if wanted == 0 {
		if plan.Archive != "" {
			return nil
		}
		plan.Digest = p.digest()
		return p.pinned(plan.Digest)
	}
	// What does not fit is worth knowing together with all the rest.
	lintErr := p.lint(ctx)
	if f, broken := errors.AsType[*ExitError](lintErr); lintErr != nil && (!broken || f.Code != ExitIntegrity) {
		return lintErr // of a store that does not answer, nothing else is to be learnt
	}
	diskErr := m.disk(p, plan)
	policy, policyErr := p.choosePolicy()
	plan.IO, plan.Why = policy.mode, policy.why
	if p.sums, err = p.readSums(ctx); err != nil {
		return err
	}
	files := slices.Collect(p.todo())
	foreseen := p.foresight()
	proveErr := m.prove(ctx, p, plan, files, foreseen)
	if proveErr == nil && plan.Archive == "" {
		plan.Digest = foreseen.digest()
		proveErr = p.pinned(plan.Digest)
	}
	if err := cmp.Or(lintErr, diskErr, policyErr, proveErr); err != nil {
		return err
	}
	return m.pace.measure(ctx, p.src, files)
}

// viewStore opens a directory to look at it. One that does not exist yet has no
// root, and its file system is that of the folder in which it would be made.
func viewStore(dir string) (*store, error) {
	s := &store{dir: dir}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return nil, diskFailure(dir, unix.ENOTDIR)
	}
	if s.root, err = os.OpenRoot(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, diskFailure(dir, err)
	}
	at, err := filepath.Abs(dir)
	if err != nil {
		return nil, diskFailure(dir, err)
	}
	for {
		if s.lock, err = os.Open(at); err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || at == "/" {
			s.close()
			return nil, diskFailure(dir, err)
		}
		at = filepath.Dir(at)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		s.close()
		return nil, diskFailure(dir, err)
	}
	s.detectMemory()
	return s, nil
}

// fill notes what is in place and what is not.
func (plan *PairPlan) fill(p *pull) {
	for i := range p.files.len() {
		size := p.files.size(i)
		o := ObjectPlan{Path: string(p.files.path(i)), Bytes: size, State: "inPlace"}
		plan.Total.add(size)
		if p.files.standing(i) == ready {
			o.Evidence = p.files.evidence(i)
			plan.believe(o.Evidence)
			plan.InPlace.add(size)
		} else {
			var have int64
			if s := p.saved.begun[o.Path]; s != nil {
				for _, segment := range s.segments {
					have += segment.n
				}
			}
			o.State = "missing"
			if have > 0 {
				o.State = "begun"
			}
			plan.Resumed += have
			plan.Fetch.add(size - have)
		}
		plan.Objects = append(plan.Objects, o)
	}
	plan.Wanted = wantedMemory(plan.Total.Bytes, p.store.memory)
}

// prove asks for every missing file what evidence the store has for it.
func (m *planner) prove(ctx context.Context, p *pull, plan *PairPlan, files []*file, foreseen *foresight) error {
	var mu sync.Mutex
	return eachOf(ctx, m.opts.Conns, slices.Values(files), func(ctx context.Context, f *file) error {
		start := time.Now()
		now, err := p.src.head(ctx, f.object.key)
		if err != nil {
			return err
		}
		took := time.Since(start)
		f.begin()
		f.object = now
		if err = (&engine{src: p.src, opts: m.opts, sums: p.sums}).prove(ctx, f, now, p.src); err == nil {
			foreseen.take(f, f.proof)
		}
		mu.Lock()
		defer mu.Unlock()
		m.pace.answers = append(m.pace.answers, took)
		if err == nil { // the plan has the files in the order of the catalog
			plan.Objects[f.at].Evidence = f.proof.evidence
			plan.believe(f.proof.evidence)
		}
		return err
	})
}

func (plan *PairPlan) believe(e Evidence) {
	if plan.Evidence == nil {
		plan.Evidence = map[Evidence]int{}
	}
	plan.Evidence[e]++
}

// eachOf calls for every item, several at once, until one call fails.
func eachOf[T any](ctx context.Context, atOnce int, items iter.Seq[T], call func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	queue := make(chan T)
	for range atOnce {
		group.Go(func() {
			for item := range queue {
				if err := call(ctx, item); err != nil {
					cancel(err)
				}
			}
		})
	}
	for item := range items {
		select {
		case queue <- item:
		case <-ctx.Done():
		}
	}
	close(queue)
	group.Wait()
	return context.Cause(ctx)
}

// disk compares what is missing with what the volume has left after the pairs before.
func (m *planner) disk(p *pull, plan *PairPlan) error {
	plan.Disk = DiskPlan{Needed: p.need(), InMemory: p.store.memory}
	free, known := p.store.left(p.opts)
	if !known {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(p.store.lock.Fd()), &st); err != nil {
		return diskFailure(p.pair.Dest, err)
	}
	free = max(0, free-m.taken[st.Dev])
	m.taken[st.Dev] += plan.Disk.Needed
	plan.Disk.Free = &free
	return p.fitsInto(plan.Disk.Needed, free)
}

// plan prints what a pull would do.
func (c *Command) plan(ctx context.Context, flags map[string]string, args []string) ExitCode {
	output := firstOf(flags["output"], "text")
	switch {
	case output != "text" && output != "json":
		return c.misused("plan", usageFailure("flag --output is %q, want one of text, json", output))
	case len(args) < 2 || len(args)%2 != 0:
		return c.misused("plan", noPairs(args))
	}
	opts, err := c.options()
	log := c.logger(opts.JSONLogs)
	plan := &Plan{}
	if err == nil {
		warnOfStrangers(c.Environ, log)
		plan, err = MakePlan(ctx, opts, pairsOf(args), log)
	}
	if ctx.Err() == nil && (err == nil || plan.Failure != nil) {
		if printErr := c.printPlan(plan, output); printErr != nil {
			err = errors.Join(err, printErr)
		}
	}
	if err == nil {
		return ExitOK
	}
	if output == "text" && plan.Failure != nil && ctx.Err() == nil {
		return plan.Failure.Code // which was just told
	}
	return c.failed(log, err)
}

func (c *Command) printPlan(plan *Plan, output string) error {
	if output == "text" {
		_, err := fmt.Fprint(c.Stdout, plan.String())
		return err
	}
	encoder := json.NewEncoder(c.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(plan)
}

// String is the plan for people.
func (plan *Plan) String() string {
	var b strings.Builder
	for _, p := range plan.Pairs {
		p.describe(&b)
	}
	line := func(name, format string, args ...any) { describeLine(&b, name, format, args...) }
	switch {
	case plan.Memory.Limit > 0:
		line(
			"memory limit",
			"%s, %s of it free",
			quantity.FormatBytes(plan.Memory.Limit),
			quantity.FormatBytes(*plan.Memory.Room),
		)
	case plan.Memory.Room != nil:
		line("memory limit", "none; the machine has %s available", quantity.FormatBytes(*plan.Memory.Room))
	}
	if plan.JITCache != nil {
		line("kernels", "%s", plan.JITCache)
	}
	if f := plan.Forecast; f != nil {
		line("forecast", "%s", f)
	}
	if plan.Failure != nil {
		line("would fail", "%s (%s, exit code %d)", plan.Failure.Message, plan.Failure.Reason, plan.Failure.Code)
	}
	return b.String()
}

func describeLine(b *strings.Builder, name, format string, args ...any) {
	fmt.Fprintf(b, "  %-13s %s\n", name, shown(fmt.Sprintf(format, args...)))
}

// mostNamed bounds how many files a plan names in text.
const mostNamed = 5

func (plan *PairPlan) describe(b *strings.Builder) {
	fmt.Fprintf(b, "%s -> %s\n", shown(plan.Source), shown(plan.Directory))
	line := func(name, format string, args ...any) { describeLine(b, name, format, args...) }
	if plan.Note != "" {
		line("note", "%s", plan.Note)
		return
	}
	if plan.Total.Files == 0 {
		return
	}
	line("model", "%s, %s", countOf(plan.Total.Files, "file"), quantity.FormatBytes(plan.Total.Bytes))
	if plan.LeftOut.Files > 0 {
		line("left out", "%s, %s", countOf(plan.LeftOut.Files, "file"), quantity.FormatBytes(plan.LeftOut.Bytes))
	}
	if plan.InPlace.Files > 0 || plan.Resumed > 0 {
		text := countOf(plan.InPlace.Files, "file") + ", " + quantity.FormatBytes(plan.InPlace.Bytes)
		if plan.Resumed > 0 {
			text += "; " + quantity.FormatBytes(plan.Resumed) + " of unfinished files"
		}
		if plan.Rechecked {
			text += "; read and checked first, because the machine has restarted"
		}
		line("in place", "%s", text)
	}
	if plan.Fetch.Files == 0 {
		line("to fetch", "nothing")
	} else {
		line("to fetch", "%s, %s", countOf(plan.Fetch.Files, "file"), quantity.FormatBytes(plan.Fetch.Bytes))
	}
	if plan.Archive != "" {
		line("unpacks", "%s; what it holds takes room on top", plan.Archive)
	}
	if plan.Fetch.Files > 0 {
		room := "of unknown room"
		if plan.Disk.Free != nil {
			room = "of " + quantity.FormatBytes(*plan.Disk.Free) + " free"
		}
		if plan.Disk.InMemory {
			room += ", in memory"
		}
		line("disk needed", "%s %s", quantity.FormatBytes(plan.Disk.Needed), room)
	}
	if plan.IO != "" {
		line("writes", "%s, because %s", plan.IO, plan.Why)
	}
	line("memory wanted", "%s to keep all of it in the page cache", quantity.FormatBytes(plan.Wanted))
	plan.describeEvidence(b)
	if plan.Digest != "" {
		line("digest", "%s", plan.Digest)
	}
}

func (plan *PairPlan) describeEvidence(b *strings.Builder) {
	var rungs []string
	for _, e := range []Evidence{EvidenceChecksum, EvidenceParts, EvidenceMD5, EvidenceSums, EvidenceSize} {
		if n := plan.Evidence[e]; n > 0 {
			rungs = append(rungs, fmt.Sprintf("%s %d", e, n))
		}
	}
	if len(rungs) == 0 {
		return
	}
	describeLine(b, "evidence", "%s", strings.Join(rungs, ", "))
	weak := slices.DeleteFunc(slices.Clone(plan.Objects), func(o ObjectPlan) bool { return o.Evidence != EvidenceSize })
	for i, o := range weak {
		if i == mostNamed {
			describeLine(b, "", "and %d more by size only", len(weak)-i)
			break
		}
		describeLine(b, "", "by size only: %s", o.Path)
	}
}
