// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// drift is a foreign change of what the route carried when it was last reported.
type drift struct {
	// manager is the field manager that made it, "" if the route was deleted.
	manager string
	// what names the route, as kind and name.
	what string
}

// String tells who did what.
func (d drift) String() string {
	if d.manager == "" {
		return "Somebody deleted " + d.what
	}
	return fmt.Sprintf("Field manager %q changed %s", d.manager, d.what)
}

// observeDrift finds out whether somebody else changed the route. The cache alone cannot tell: it keeps no field
// managers, and it may be behind this controller's own writes. So it only raises the suspicion, and a read past it
// decides.
func (r *Reconciler) observeDrift(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) error {
	if !suspicious(rollout, *seen) {
		return nil
	}
	if err := r.reread(ctx, rollout, seen); err != nil {
		return err
	}
	if !suspicious(rollout, *seen) {
		return nil
	}
	provider, name, stored, fields := seen.provider, rollout.Name, seen.route, seen.provider.Fields()
	if ref, adopts := routing.Adopted(rollout); adopts {
		name, stored, fields = ref.Name, seen.adopted, []string{provider.RuleField()}
	}
	found := &drift{what: fmt.Sprintf("%s %q", provider.Kind().Kind, name)}
	if stored != nil {
		found.manager = routing.Opponent(stored, fieldManager, fields...)
		if found.manager == "" && seen.share != nil { // a field that is not there has no manager
			found.manager = routing.Opponent(stored, fieldManager, "predictor")
		}
		if found.manager == "" {
			return nil
		}
	}
	seen.drift = found
	return nil
}

// reread reads the route that the rollout has, or adopts, past the cache.
func (r *Reconciler) reread(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) error {
	if seen.share != nil {
		return r.observeShare(ctx, r.live, rollout, seen)
	}
	name, into := rollout.Name, &seen.route
	if ref, adopts := routing.Adopted(rollout); adopts {
		name, into = ref.Name, &seen.adopted
	}
	stored := routing.NewRoute(seen.provider)
	err := r.live.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: name}, stored)
	switch {
	case apierrors.IsNotFound(err):
		*into = nil
	case err != nil:
		return fmt.Errorf("reading %s %q past the cache: %w", seen.provider.Kind().Kind, name, err)
	default:
		*into = stored
	}
	return nil
}

// planned plans on what the cache says, unless that would do with no write what takes one, or write over what the cache
// has not heard of: a route that carries other weights already than were last in force may just not have been seen since
// they were, and one that is not there may be somebody else's. Then a read past the cache decides.
func (r *Reconciler) planned(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) (plan, error) {
	p := planFor(rollout, *seen)
	applied := rollout.Status.Weights.Applied
	others := p.carried && (applied == nil || *applied != p.weights)
	absent := p.route != nil && seen.route == nil
	if !others && !absent {
		return p, nil
	}
	if err := r.reread(ctx, rollout, seen); err != nil {
		return plan{}, err
	}
	return planFor(rollout, *seen), nil
}

// suspicious reports whether the route is not as this controller left it. After an edit of the spec it need not be.
func suspicious(rollout *v1alpha1.CanaryRollout, seen observed) bool {
	applied := rollout.Status.Weights.Applied
	if applied == nil || rollout.Status.ObservedGeneration != rollout.Generation ||
		rollout.Status.Provider != seen.provider.Name() {
		return false
	}
	if ref, adopts := routing.Adopted(rollout); adopts {
		if seen.adopted == nil {
			return false // the user is told of it otherwise
		}
		binding, err := seen.domain.ProviderNamed(ref.Provider).Bind(seen.adopted, ref.Rule,
			seen.destination(rollout, seen.stable), seen.destination(rollout, seen.canary))
		return err == nil && !binding.Carries(*applied)
	}
	if !owns(rollout, seen.route) {
		return seen.route == nil
	}
	fingerprint, err := routing.Fingerprint(seen.route)
	mark := seen.route.GetAnnotations()[v1alpha1.AnnotationAppliedHash]
	return err == nil && mark != "" && mark != fingerprint
}

// repairs are the times of earlier repairs that count: an edit of the spec is a new beginning.
func repairs(rollout *v1alpha1.CanaryRollout, now time.Time) []time.Time {
	if rollout.Status.Drift == nil || rollout.Status.ObservedGeneration != rollout.Generation {
		return nil
	}
	var times []time.Time
	for _, at := range rollout.Status.Drift.Repairs {
		times = append(times, at.Time)
	}
	return routing.Remember(times, now)
}

// countDrift decides whether a foreign change is undone now. Weights other than those that were last in force are no
// repair, and are written in any case.
func (p *plan) countDrift(rollout *v1alpha1.CanaryRollout, seen observed) {
	p.repairs = repairs(rollout, seen.now)
	if len(p.repairs) > 0 {
		p.wakeIn(p.repairs[len(p.repairs)-1].Add(routing.DriftPause).Sub(seen.now))
	}
	if seen.drift == nil || !p.routes() || p.carried {
		return
	}
	p.drift = seen.drift
	if applied := rollout.Status.Weights.Applied; applied == nil || *applied != p.weights {
		return
	}
	now, until := routing.Repair(rollout.Spec.Routing.DriftPolicy, p.repairs, seen.now)
	if now {
		p.repairs = routing.Remember(append(p.repairs, seen.now), seen.now)
		p.wakeIn(routing.DriftPause)
		return
	}
	p.route, p.binding, p.service, p.pruneRoutes, p.pruneService = nil, nil, nil, nil, false
	p.heldReason = v1alpha1.ReasonDriftHeld
	p.held = seen.drift.String() + "; it is left so until the spec is edited or other weights are due."
	if !until.IsZero() {
		p.held = fmt.Sprintf("%s more often than driftPolicy allows to repair; it is left so until ten minutes after the "+
			"last repair, or the spec is edited. Have that manager leave the weights alone, or use mode Delegate.", seen.drift)
		p.wakeIn(until.Sub(seen.now))
	}
}

// wakeIn has the rollout looked at again after a time at the latest.
func (p *plan) wakeIn(after time.Duration) {
	if after > 0 && (p.wake == 0 || after < p.wake) {
		p.wake = after
	}
}

// driftOf returns the drift to report, and its condition, nil for none.
func driftOf(rollout *v1alpha1.CanaryRollout, p plan) (*v1alpha1.RolloutDrift, *status.Condition) {
	if p.drift == nil && len(p.repairs) == 0 {
		return nil, nil
	}
	told := &v1alpha1.RolloutDrift{}
	for _, at := range p.repairs {
		told.Repairs = append(told.Repairs, metav1.NewTime(at.Truncate(time.Second)))
	}
	condition := &status.Condition{
		Type: v1alpha1.ConditionDriftDetected, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDriftRepaired,
	}
	switch {
	case p.drift == nil:
		told.Manager = rollout.Status.Drift.Manager
		condition.Message = repairedMessage(told.Manager)
	case p.heldReason == v1alpha1.ReasonDriftHeld:
		told.Manager = p.drift.manager
		condition.Reason, condition.Message = v1alpha1.ReasonDriftHeld, p.held
	default:
		told.Manager = p.drift.manager
		condition.Message = repairedMessage(told.Manager)
	}
	return told, condition
}

// tellDrift sends an event of every repair. That a route is left as it is, the event of the Ready condition tells.
func (r *Reconciler) tellDrift(after *v1alpha1.CanaryRollout, p plan) {
	if p.heldReason == v1alpha1.ReasonDriftHeld {
		return
	}
	r.recorder.Event(after, corev1.EventTypeWarning, v1alpha1.ReasonDriftRepaired, p.drift.String()+"; it was put right.")
}

func repairedMessage(manager string) string {
	return drift{manager: manager, what: "the route"}.String() + "; it was put right."
}

// isMarked reports whether a live route carries the mark of what is planned, as well as the plan itself.
func isMarked(live *unstructured.Unstructured, fingerprint string) bool {
	return live.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy &&
		live.GetAnnotations()[v1alpha1.AnnotationAppliedHash] == fingerprint
}
