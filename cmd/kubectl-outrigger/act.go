// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/routing"
)

// say tells a rollout with a strategy what to do, for the turn that it is at, and waits until it has obeyed and the share
// that follows from it is in force.
func (a *app) say(v verb) func(*session, []string) error {
	return func(s *session, args []string) error {
		r, err := s.get(args[0])
		if err != nil {
			return err
		}
		if err := applicable(r, v); err != nil {
			return err
		}
		turn := r.Status.Turn
		change := map[string]any{"metadata": map[string]any{"annotations": map[string]any{v.annotation: turn}}}
		if err := s.patch(r, change); err != nil {
			return err
		}
		return a.await(s, r.Name, v.name, func(now *v1alpha1.CanaryRollout) (bool, error) {
			return now.Status.Turn != turn && inForce(now), nil
		})
	}
}

// inForce reports whether a rollout's canary has the share that its progress asks for, or the rollout says why not. A
// share that is taken back gradually takes minutes.
func inForce(r *v1alpha1.CanaryRollout) bool {
	applied := r.Status.Weights.Applied
	if applied == nil || !meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.ConditionReady) {
		return true
	}
	if r.Status.Phase == v1alpha1.PhaseRollingBack {
		return applied.Canary == 0 || r.Spec.Strategy.Abort.Mode == v1alpha1.AbortGradual
	}
	return applied.Canary == routing.Percent(*r.Spec.Strategy, r.Status.RolloutProgress, applied, 0, time.Now())
}

// applicable returns why a verb would do nothing.
func applicable(r *v1alpha1.CanaryRollout, v verb) error {
	switch phase := r.Status.Phase; {
	case r.Spec.Strategy == nil:
		return fmt.Errorf("%s needs a rollout with a strategy; the canary of %q gets what canaryPercent says: use set-percent",
			v.name, r.Name)
	case phase == "" || r.Status.Turn == "":
		return fmt.Errorf("the operator has not looked at %q yet; is it running?", r.Name)
	case !slices.Contains(v.phases, phase):
		names := make([]string, len(v.phases))
		for i, p := range v.phases {
			names[i] = string(p)
		}
		return fmt.Errorf("%s does nothing in phase %s; it does in %s", v.name, phase, strings.Join(names, ", "))
	default:
		return nil
	}
}

// suspend stops the steps of a rollout, or lets them go on.
func (a *app) suspend(suspended bool) func(*session, []string) error {
	name := map[bool]string{true: "pause", false: "resume"}[suspended]
	return func(s *session, args []string) error {
		r, err := s.get(args[0])
		if err != nil {
			return err
		}
		if r.Spec.Strategy == nil {
			return fmt.Errorf("%s needs a rollout with a strategy; the share of %q changes only when canaryPercent is edited",
				name, r.Name)
		}
		if r.Spec.Suspend == suspended {
			shown := reportOf(r)
			return a.print(shown, func(out io.Writer) { _, _ = fmt.Fprintf(out, "%s: nothing to %s\n", r.Name, name) })
		}
		if err := s.patch(r, map[string]any{"spec": map[string]any{"suspend": suspended}}); err != nil {
			return err
		}
		generation := r.Generation
		return a.await(s, r.Name, name, func(now *v1alpha1.CanaryRollout) (bool, error) {
			return now.Status.ObservedGeneration >= generation, nil
		})
	}
}

// setPercent edits the canary's share, and waits until it is in force.
func (a *app) setPercent(s *session, args []string) error {
	percent, err := parsePercent(args[1])
	if err != nil {
		return err
	}
	r, err := s.get(args[0])
	if err != nil {
		return err
	}
	if r.Spec.Strategy != nil {
		return fmt.Errorf("%q has a strategy, which sets the share; use promote, skip, pause or abort", r.Name)
	}
	if err := s.patch(r, map[string]any{"spec": map[string]any{"canaryPercent": percent}}); err != nil {
		return err
	}
	generation := r.Generation
	return a.await(s, r.Name, "set-percent", func(now *v1alpha1.CanaryRollout) (bool, error) {
		shown := reportOf(now)
		if now.Status.ObservedGeneration < generation {
			return false, nil
		}
		if shown.Stalled {
			return false, errors.New(shown.Message)
		}
		return shown.Ready && shown.Canary.Applied != nil && *shown.Canary.Applied == percent, nil
	})
}

// await waits until the operator has acted, and shows the rollout then.
func (a *app) await(s *session, name, what string, done func(*v1alpha1.CanaryRollout) (bool, error)) error {
	var last report
	see := func(r *v1alpha1.CanaryRollout) (bool, error) {
		last = reportOf(r)
		if a.timeout == 0 {
			return true, nil
		}
		return done(r)
	}
	limit := a.timeout
	if limit == 0 {
		limit = time.Minute // for the one look
	}
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	err := s.follow(ctx, name, see)
	if errors.Is(err, context.DeadlineExceeded) {
		why := last.Message
		if !last.Current || why == "" {
			why = "the operator has not looked at it; is it running?"
		}
		return fmt.Errorf("%s is asked for, and not done after %s: %s", what, a.timeout, why)
	}
	if err != nil {
		return err
	}
	return a.print(last, func(out io.Writer) { last.picture(out, time.Now(), a.width()) })
}
