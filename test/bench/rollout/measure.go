// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// never stands for a change that did not come while it was waited for.
const never = time.Duration(-1)

// gap is how long a system rests between single edits, so that each meets it at rest.
const gap = 50 * time.Millisecond

// measure goes through one round of a system.
func (l *lab) measure(ctx context.Context, s system, o options, r *results) error {
	if err := l.edits(ctx, s, o, r); err != nil {
		return err
	}
	if err := l.drifts(ctx, s, o, r); err != nil {
		return err
	}
	for range o.storms {
		if err := l.storm(ctx, s, o, r); err != nil {
			return err
		}
	}
	_, err := l.settled(ctx)
	return err
}

// lanes is how many of n changes are waited for at once.
func lanes(s system, n int) int {
	if s.ticks() {
		return n
	}
	return 1
}

// edits measures single edits, each after the last has come into force.
func (l *lab) edits(ctx context.Context, s system, o options, r *results) error {
	return each(o.edits, lanes(s, o.edits), func(i int) error {
		took, err := l.fulfil(ctx, s, i, o.patience)
		if err != nil {
			return err
		}
		r.add(s.name(), cellEdit, took)
		time.Sleep(gap)
		return s.rest(ctx, i)
	})
}

// fulfil makes one edit and returns how long it took until the route had it.
func (l *lab) fulfil(ctx context.Context, s system, i int, patience time.Duration) (time.Duration, error) {
	carries, edit := s.wish(i)
	seen := l.await(s.key(i), carries)
	began := time.Now()
	if err := edit(ctx); err != nil {
		return 0, err
	}
	return waitFor(ctx, seen, began, patience)
}

func waitFor(ctx context.Context, seen <-chan time.Time, began time.Time, patience time.Duration) (time.Duration, error) {
	select {
	case at := <-seen:
		return at.Sub(began), nil
	case <-time.After(patience):
		return never, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// foreign is the share that somebody else gives a canary.
const foreign = 77

// drifts measures how long a foreign edit of the weights stays. A canary that rests is let go on for it. A system that
// undid none in the first round is not asked again.
func (l *lab) drifts(ctx context.Context, s system, o options, r *results) error {
	if r.gaveUp(s.name(), cellDrift) {
		return nil
	}
	return each(o.drifts, lanes(s, o.drifts), func(i int) error {
		if s.ticks() {
			if _, err := l.fulfil(ctx, s, i, o.patience); err != nil {
				return err
			}
		}
		took, err := l.drift(ctx, s.key(i), o.patience)
		if err != nil {
			return err
		}
		r.add(s.name(), cellDrift, took)
		time.Sleep(gap)
		return s.rest(ctx, i)
	})
}

// drift makes a foreign edit and waits until it is undone. One that stays is taken back.
func (l *lab) drift(ctx context.Context, key types.NamespacedName, patience time.Duration) (time.Duration, error) {
	var began time.Time
	seen := l.await(key, func(route *unstructured.Unstructured) bool {
		if canaryShare(route) >= foreign {
			began = time.Now()
			return false
		}
		return !began.IsZero()
	})
	if err := l.patch(ctx, virtualServiceKind, key, moved(l.route(key), foreign)); err != nil {
		return 0, err
	}
	select {
	case at := <-seen:
		return at.Sub(began), nil
	case <-time.After(patience):
		return never, l.patch(ctx, virtualServiceKind, key, moved(l.route(key), 20))
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// moved returns a merge patch that gives the canary of a route a share.
func moved(route *unstructured.Unstructured, percent int64) string {
	rules, _, _ := unstructured.NestedSlice(route.Object, "spec", "http")
	for _, rule := range rules {
		destinations, _ := rule.(map[string]any)["route"].([]any)
		if len(destinations) > 1 {
			destinations[0].(map[string]any)["weight"] = 100 - percent
			destinations[1].(map[string]any)["weight"] = percent
		}
	}
	raw, _ := json.Marshal(map[string]any{"spec": map[string]any{"http": rules}}) // it has come as JSON
	return string(raw)
}

// storm edits all canaries of a system at once, and measures what that costs.
func (l *lab) storm(ctx context.Context, s system, o options, r *results) error {
	namespace := s.key(0).Namespace
	before, err := l.settled(ctx)
	if err != nil {
		return err
	}
	used, err := l.processor(s.name())
	if err != nil {
		return err
	}
	stored, own := l.stored(namespace), o.rollouts
	if s.ticks() {
		own *= 2 // it is let go on, and suspended again
	}
	turns, began := make(chan struct{}, hands), time.Now()
	var mu sync.Mutex
	last := time.Duration(0)
	if err := each(o.rollouts, o.rollouts, func(i int) error {
		carries, edit := s.wish(i)
		seen := l.await(s.key(i), carries)
		turns <- struct{}{}
		wished := time.Now()
		err := edit(ctx)
		<-turns
		if err != nil {
			return err
		}
		took, err := waitFor(ctx, seen, wished, o.patience)
		if err != nil {
			return err
		}
		r.add(s.name(), cellStorm, took)
		mu.Lock()
		last = max(last, time.Since(began))
		mu.Unlock()
		return s.rest(ctx, i)
	}); err != nil {
		return err
	}
	after, err := l.settled(ctx)
	if err != nil {
		return err
	}
	usedAfter, err := l.processor(s.name())
	if err != nil {
		return err
	}
	r.add(s.name(), cellWhole, last)
	r.count(s.name(), cost{
		wishes: o.rollouts, routes: l.stored(namespace) - stored,
		writes: int(after-before) - own, processor: usedAfter - used,
	})
	return nil
}
