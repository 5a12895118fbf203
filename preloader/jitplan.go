// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"serverless.xyz/outrigger/preloader/jitcache"
	"serverless.xyz/outrigger/preloader/quantity"
)

// CachePlan is what a pull would do about compiled kernels.
type CachePlan struct {
	URI       string `json:"uri"`
	Directory string `json:"directory"`
	// State is as in a CacheReport, where ready means that they would be fetched; empty
	// if that shows only once the model is there.
	State CacheState `json:"state,omitempty"`
	// Cause says why there are none.
	Cause string       `json:"cause,omitempty"`
	Key   jitcache.Key `json:"key,omitempty"`
	Trees []string     `json:"trees,omitempty"`
	// Fetch is the archive's length, and Unpacked what it comes to, in bytes.
	Fetch    int64 `json:"fetchBytes,omitempty"`
	Unpacked int64 `json:"unpackedBytes,omitempty"`
	Files    int   `json:"files,omitempty"`
}

// planCaches looks for the compiled kernels that would come with the models. Like the
// pull, it fails nothing. whole means that the models are in place: only then is their
// digest known.
func planCaches(ctx context.Context, opts Options, pairs []Pair, whole bool, log *slog.Logger) *CachePlan {
	plan := &CachePlan{URI: opts.JIT.URI, Directory: opts.JIT.Dir}
	if !whole && opts.JIT.Key[jitcache.KeyModel] == "" {
		plan.Cause = "whether any fit shows once the model is there, whose digest is part of their key"
		return plan
	}
	if err := plan.look(ctx, opts, pairs, log); err != nil {
		plan.State, plan.Cause = CacheUnused, sentence(asFailure(err))
	}
	return plan
}

func (plan *CachePlan) look(ctx context.Context, opts Options, pairs []Pair, log *slog.Logger) error {
	c, err := openCaches(ctx, opts, destinations(pairs), log)
	if err != nil {
		return err
	}
	plan.Key = c.key
	m, _, err := c.manifest(ctx)
	if err != nil {
		return err
	}
	if m == nil {
		plan.State, plan.Cause = CacheAbsent, c.explain(ctx)
		return nil
	}
	ours, others := treesIn(plan.Directory, m)
	switch len(m.Trees) {
	case len(ours):
		plan.State, plan.Trees = CacheInPlace, ours
		return nil
	case len(ours) + len(others):
		return occupied(plan.Directory, others)
	}
	for _, t := range m.Trees {
		if !slices.Contains(ours, t.Name) && !slices.Contains(others, t.Name) {
			plan.Trees = append(plan.Trees, t.Name)
		}
	}
	plan.State, plan.Fetch, plan.Unpacked, plan.Files = CacheReady, m.Size, m.Bytes, m.Files
	s, err := viewStore(plan.Directory)
	if err != nil {
		return err
	}
	defer s.close()
	return c.fits(s, m)
}

// String says it in a line.
func (plan *CachePlan) String() string {
	switch plan.State {
	case CacheReady:
		return fmt.Sprintf(
			"%s for %s, %s with %d files when unpacked into %s",
			quantity.FormatBytes(plan.Fetch),
			strings.Join(plan.Trees, ", "),
			quantity.FormatBytes(plan.Unpacked),
			plan.Files,
			plan.Directory,
		)
	case CacheInPlace:
		return "in place for " + strings.Join(plan.Trees, ", ")
	case CacheAbsent, CacheUnused:
		return "none: " + plan.Cause
	}
	return plan.Cause
}
