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

// measure goes through one round of a system.
func (l *lab) measure(ctx context.Context, s system, o options, r *results) error {
	if err := l.edits(ctx, s, o, r); err != nil {
		return err
	}
	if err := l.drifts(ctx, s, o, r); err != nil {
		return err
	}
	return l.storm(ctx, s, o, r)
}

// edits measures single edits, each after the last has come into force.
func (l *lab) edits(ctx context.Context, s system, o options, r *results) error {
	n := min(o.edits, o.rollouts)
	return each(n, s.lanes(), func(i int) error {
		took, err := l.fulfil(ctx, s, i, o.patience)
		if err != nil {
			return err
		}
		r.add(s.name(), cellEdit, took)
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

// drifts measures how long a foreign edit of the weights stays. A canary that is suspended is let go on for it.
func (l *lab) drifts(ctx context.Context, s system, o options, r *results) error {
	n, lanes := min(o.drifts, o.rollouts), 1
	if s.lanes() > 1 {
		lanes = n
	}
	return each(n, lanes, func(i int) error {
		if s.lanes() > 1 {
			if _, err := l.fulfil(ctx, s, i, o.patience); err != nil {
				return err
			}
		}
		took, err := l.drift(ctx, s.key(i), o.patience)
		if err != nil {
			return err
		}
		r.add(s.name(), cellDrift, took)
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

var virtualServiceKind = virtualServices.GroupVersion().WithKind("VirtualService")

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

// storm edits all canaries of a system at once.
func (l *lab) storm(ctx context.Context, s system, o options, r *results) error {
	type one struct {
		began time.Time
		seen  <-chan time.Time
	}
	var mu sync.Mutex
	all := map[types.NamespacedName]one{}
	began := time.Now()
	if err := each(o.rollouts, hands, func(i int) error {
		carries, edit := s.wish(i)
		w := one{seen: l.await(s.key(i), carries), began: time.Now()}
		mu.Lock()
		all[s.key(i)] = w
		mu.Unlock()
		return edit(ctx)
	}); err != nil {
		return err
	}
	last := time.Duration(0)
	for _, w := range all {
		took, err := waitFor(ctx, w.seen, w.began, o.patience)
		if err != nil {
			return err
		}
		r.add(s.name(), cellStorm, took)
		if took != never {
			last = max(last, w.began.Add(took).Sub(began))
		}
	}
	r.add(s.name(), cellWhole, last)
	return each(o.rollouts, hands, func(i int) error { return s.rest(ctx, i) })
}
