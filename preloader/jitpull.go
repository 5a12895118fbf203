// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"time"

	"serverless.xyz/outrigger/preloader/jitcache"
	"serverless.xyz/outrigger/preloader/quantity"
)

// jitWorkDir is where archives and trees gather, within the cache directory.
const jitWorkDir = ".preloader-jit"

const (
	jitFetched  = jitWorkDir + "/archive"
	jitUnpacked = jitWorkDir + "/trees"
)

// pullCaches brings the compiled kernels that fit, once the models are there. Nothing
// that goes wrong with them is the pull's failure; the report says what it was.
func pullCaches(ctx context.Context, opts Options, pairs []Pair, log *slog.Logger) *CacheReport {
	start := time.Now()
	late := fmt.Errorf("%w: %v", context.DeadlineExceeded, opts.JIT.Deadline)
	ctx, cancel := context.WithTimeoutCause(ctx, opts.JIT.Deadline, late)
	defer cancel()
	report := &CacheReport{}
	if err := stageCaches(ctx, opts, pairs, log, report); err != nil {
		f := asFailure(err)
		if errors.Is(err, late) {
			f = &ExitError{
				Code: ExitUnavailable, Reason: "DeadlineExceeded",
				Cause:  fmt.Sprintf("fetching them took longer than %v", opts.JIT.Deadline),
				Advice: "Raise PRELOADER_JIT_CACHE_DEADLINE.",
			}
		}
		report.State, report.Reason, report.Cause = CacheUnused, f.Reason, sentence(f)
	}
	report.shorten()
	report.Seconds = time.Since(start).Seconds()
	said := capitalized(report.String())
	if report.State == CacheUnused {
		log.Warn(said, "reason", report.Reason)
	} else {
		log.Info(said)
	}
	return report
}

func capitalized(s string) string {
	if s != "" && s[0] >= 'a' && s[0] <= 'z' {
		return string(s[0]-'a'+'A') + s[1:]
	}
	return s
}

// destinations lists the pairs' directories.
func destinations(pairs []Pair) []string {
	var dirs []string
	for _, p := range pairs {
		dirs = append(dirs, p.Dest)
	}
	return dirs
}

// stageCaches does it and fills in the report.
func stageCaches(ctx context.Context, opts Options, pairs []Pair, log *slog.Logger, report *CacheReport) error {
	c, err := openCaches(ctx, opts, destinations(pairs), log)
	if err != nil {
		return err
	}
	report.Key = c.key.Digest()
	m, _, err := c.manifest(ctx)
	if err != nil {
		return err
	}
	if m == nil {
		report.State, report.Cause = CacheAbsent, c.explain(ctx)
		return nil
	}
	err = c.stage(ctx, m, report)
	if isNotFound(err) {
		// It was replaced between the two requests: there is a new one.
		if m, _, err = c.manifest(ctx); err == nil && m != nil {
			err = c.stage(ctx, m, report)
		}
	}
	return err
}

// stage puts the trees of a manifest into the directory, unless they are there.
func (c *caches) stage(ctx context.Context, m *jitcache.Manifest, report *CacheReport) (err error) {
	dir := c.opts.JIT.Dir
	s, err := openStore(ctx, dir, queue{longest: c.opts.Wait, log: c.log})
	if err != nil {
		return err
	}
	defer s.close()
	ours, others := treesIn(dir, m)
	switch len(m.Trees) {
	case len(ours):
		report.State, report.Trees = CacheInPlace, ours
		return s.clearCacheWork()
	case len(ours) + len(others):
		return cmp.Or[error](s.clearCacheWork(), occupied(dir, others))
	}
	defer func() {
		// After a signal the archive stays for the next start; other failures leave nothing.
		if _, stopped := errors.AsType[*StoppedError](context.Cause(ctx)); !stopped {
			err = errors.Join(err, s.clearCacheWork())
		}
	}()
	if err := c.fits(s, m); err != nil {
		return err
	}
	if err := c.fetch(ctx, m, report); err != nil {
		return err
	}
	if err := c.unpack(ctx, s, m); err != nil {
		return err
	}
	return c.publishTrees(s, m, report)
}

// clearCacheWork removes what is only needed on the way.
func (s *store) clearCacheWork() error {
	if err := s.root.RemoveAll(jitWorkDir); err != nil {
		return diskFailure(s.dir, err)
	}
	return nil
}

// fits compares what the archive and its trees take with what there is.
func (c *caches) fits(s *store, m *jitcache.Manifest) error {
	if m.Stream > c.opts.JIT.Size {
		return &ExitError{
			Code: ExitNoSpace, Reason: "TooLarge",
			Cause:  fmt.Sprintf("they come to %s, more than PRELOADER_JIT_CACHE_SIZE", quantity.FormatBytes(m.Stream)),
			Advice: "Raise it if that is right.",
		}
	}
	need := m.Size + m.Stream
	if free, known := s.free(); known && need > free {
		return &ExitError{
			Code:   ExitNoSpace,
			Reason: "NoSpace",
			Cause: fmt.Sprintf(
				"they need %s in %s, which has %s left",
				quantity.FormatBytes(need),
				s.dir,
				quantity.FormatBytes(free),
			),
			Advice: "Give the volume more room.",
		}
	}
	if room := readLimits(os.DirFS("/")).room() - breath; s.memory && need > room {
		return &ExitError{
			Code:   ExitNoSpace,
			Reason: "NoMemory",
			Cause: fmt.Sprintf(
				"they need %s in %s, which is in memory, of which %s are left",
				quantity.FormatBytes(need),
				s.dir,
				quantity.FormatBytes(max(room, 0)),
			),
			Advice: "Raise the container's memory limit, or put them on disk.",
		}
	}
	return nil
}

// fetch brings the archive as if it were a model: in parallel, checked and resumed.
func (c *caches) fetch(ctx context.Context, m *jitcache.Manifest, report *CacheReport) error {
	opts := c.opts
	opts.Meter, opts.Filter, opts.SiblingPrefixes = nil, Filter{}, false
	opts.Select, opts.Lint, opts.IO = SelectAll, false, IOAuto
	one := &Report{}
	err := pullPair(
		ctx,
		opts,
		Pair{Source: c.uri(c.home() + m.ArchiveName()), Dest: path.Join(opts.JIT.Dir, jitFetched)},
		"",
		c.log,
		one,
	)
	report.Fetched += one.Fetched
	if f, ok := errors.AsType[*ExitError](err); ok && f.Reason == "NoModel" {
		return &ExitError{
			Code: ExitNotFound, Reason: "NotFound", Cause: "the manifest is there, but its archive is not",
			Advice: "Publish it again with publish-cache --replace=true.",
		}
	}
	return err
}

// unpack proves the archive while it unpacks it beside the trees.
func (c *caches) unpack(ctx context.Context, s *store, m *jitcache.Manifest) error {
	if err := s.root.RemoveAll(jitUnpacked); err != nil {
		return diskFailure(s.dir, err)
	}
	f, err := s.root.Open(jitFetched + "/" + m.ArchiveName())
	if err != nil {
		return diskFailure(s.dir, err)
	}
	defer f.Close() //nolint:errcheck // only read
	err = jitcache.Unpack(ctx, f, m, s.root, jitUnpacked)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, jitcache.ErrCorrupt):
		return badCache(c.uri(c.home()+m.ArchiveName()), err)
	}
	return diskFailure(s.dir, err)
}

// markTrees notes where the trees of a manifest come from, but for those that stay as
// they are. That they are noted before they are there harms nothing.
func (s *store) markTrees(m *jitcache.Manifest, but []string) error {
	marker := readCacheMarker(s.dir)
	if marker.Trees == nil {
		marker.Trees = map[string]string{}
	}
	for _, t := range m.Trees {
		if !slices.Contains(but, t.Name) {
			marker.Trees[t.Name] = m.Key.Digest()
		}
	}
	raw, err := json.Marshal(marker)
	if err != nil {
		return err
	}
	const fresh = jitWorkDir + "/marker"
	err = s.root.WriteFile(fresh, raw, fileMode)
	if err == nil {
		err = s.root.Rename(fresh, cacheMarkerName)
	}
	if err != nil {
		return diskFailure(s.dir, err)
	}
	return nil
}

// publishTrees gives the trees their names, each in one step. What an engine has made
// itself stays.
func (c *caches) publishTrees(s *store, m *jitcache.Manifest, report *CacheReport) error {
	ours, others := treesIn(s.dir, m)
	there := slices.Concat(ours, others)
	if err := s.markTrees(m, there); err != nil {
		return err
	}
	for _, t := range m.Trees {
		if slices.Contains(there, t.Name) {
			c.log.Info("A tree of compiled kernels is there already and stays", "tree", t.Name, "directory", s.dir)
			continue
		}
		if err := s.root.Rename(jitUnpacked+"/"+t.Name, t.Name); err != nil {
			return diskFailure(s.dir, err)
		}
		report.Trees = append(report.Trees, t.Name)
		if to := path.Join(s.dir, t.Name); t.Path != to {
			c.log.Info("Compiled kernels were packed elsewhere; engines that note paths find only some of them",
				"tree", t.Name, "packed", t.Path, "now", to)
		}
	}
	report.State, report.Files, report.Bytes = CacheReady, m.Files, m.Bytes
	return nil
}
