// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// maxPlan bounds the plan in a status, in bytes.
const maxPlan = 16 << 10

// Preview is what a rollout would do to its route.
type Preview struct {
	// Weights is what the route would carry, and Desired what is asked.
	Weights, Desired v1alpha1.WeightPair
	// Diff is the change of the route, as a unified diff; empty if there is none.
	Diff string
	// Why tells why the route would be left as it is, although something else is asked; empty if it would not.
	Why string
}

// Preview works out what Reconcile would do to the route of a rollout now, and writes nothing. The rollout need not be
// as it is stored: that is how a change of its spec is tried.
func (r *Reconciler) Preview(ctx context.Context, rollout *v1alpha1.CanaryRollout) (Preview, error) {
	seen, err := r.observe(ctx, rollout)
	if err != nil {
		return Preview{}, err
	}
	seen.asked, seen.warmth = r.asked(rollout, seen), Warmth{Warm: seen.canary.ready}
	return previewOf(rollout, planFor(rollout, seen), seen)
}

func previewOf(rollout *v1alpha1.CanaryRollout, p plan, seen observed) (Preview, error) {
	preview := Preview{Weights: p.weights, Desired: p.desired, Why: p.held}
	if refused := p.refusedBy(rollout, seen); refused != "" {
		preview.Why = refused
		return preview, nil
	}
	before, after, err := p.change(seen)
	if err != nil {
		return preview, err
	}
	preview.Diff, err = routing.Diff(before, after)
	return preview, err
}

// refusedBy says why a plan would not be carried out, empty if it would.
func (p plan) refusedBy(rollout *v1alpha1.CanaryRollout, seen observed) string {
	switch {
	case p.stalled != nil:
		return p.stalled.Error()
	case p.route != nil && seen.route != nil && !orphaned(rollout, seen.route): // one that was kept is taken over
		if err := checkOwner(rollout, seen.route); err != nil {
			return err.Error()
		}
	}
	return ""
}

// change returns the route that a plan changes, before and after; both are nil if it changes none.
func (p plan) change(seen observed) (before, after *unstructured.Unstructured, err error) {
	switch {
	case p.held != "":
		return nil, nil, nil
	case p.route != nil:
		return seen.route, p.route, nil
	case p.binding != nil:
		after, err = p.binding.Set(seen.adopted, p.weights)
		return seen.adopted, after, err
	default:
		return nil, nil, nil
	}
}

// tellPlan reports what would be written for a rollout with dryRun, and writes nothing else.
func (r *Reconciler) tellPlan(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed) (reconcile.Result, error) {
	seen.asked, seen.warmth = r.asked(rollout, seen), Warmth{Warm: seen.canary.ready}
	p := planFor(rollout, seen)
	preview, err := previewOf(rollout, p, seen)
	if err != nil {
		return reconcile.Result{}, err
	}
	after := rollout.DeepCopy()
	s := &after.Status
	s.ObservedGeneration, s.Host, s.Weights.Desired, s.Plan = rollout.Generation, p.host, &p.desired, planText(preview)
	const message = "Nothing is written because dryRun is set; status.plan tells what would be."
	status.Set(&s.Conditions, rollout.Generation,
		failed(v1alpha1.ConditionReady, v1alpha1.ReasonDryRun, message),
		failed(v1alpha1.ConditionRouteApplied, v1alpha1.ReasonDryRun, message),
		status.StalledCondition(p.stalled))
	show(after)
	return status.Result(p.wake, r.reporter.Report(ctx, rollout, after, conditionsOf))
}

// planText returns the change for the status.
func planText(preview Preview) string {
	text := preview.Diff
	if text == "" {
		text = "No change of the route."
	}
	if preview.Why != "" {
		text = "No change of the route: " + preview.Why
	}
	if len(text) > maxPlan {
		text = strings.ToValidUTF8(text[:maxPlan-4], "") + "\n..."
	}
	return text
}
