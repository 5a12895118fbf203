// SPDX-License-Identifier: Apache-2.0

// Package canaryrollout reconciles CanaryRollout objects: it makes a route carry the weights that a rollout asks for,
// as far as the two sides can take the traffic.
//
// The route itself is the only memory. In mode Owned it is a VirtualService or HTTPRoute named like the rollout, applied
// whole; in mode Adopt it is one of the user's, of which only two weights are patched. An operator that is down changes nothing:
// the last weights stay in force.
package canaryrollout

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/apply"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// Name is the controller's name.
const Name = "canaryrollout"

// fieldManager must never change, or fields written by an older release would have two owners.
const fieldManager = "outrigger-canaryrollout"

// reclaimDelay is how long the cache is given to learn of objects that have been taken over.
const reclaimDelay = 100 * time.Millisecond

const rolloutKind = "CanaryRollout"

var rolloutGVK = v1alpha1.GroupVersion.WithKind(rolloutKind)

// Reconciler makes routes carry what CanaryRollouts ask for.
type Reconciler struct {
	clock    clock.PassiveClock
	client   client.Client
	live     client.Reader
	sides    client.Reader // Services and EndpointSlices of InferenceServices
	kinds    *servedKinds
	recorder record.EventRecorder
	applier  *apply.Applier
	reporter *status.Reporter
	asker    Asker  // nil where no rollout has an analysis
	warmer   Warmer // nil where ready pods are taken for warm
	domain   routing.Domain
}

// New returns a Reconciler. It reads through c, which may be a cache, and through live, which must not be one, where a
// cache has proved to be behind.
func New(c client.Client, live client.Reader, clk clock.PassiveClock, recorder record.EventRecorder) *Reconciler {
	return &Reconciler{
		clock:    clk,
		client:   c,
		live:     live,
		sides:    c,
		kinds:    newServedKinds(c.RESTMapper(), clk),
		recorder: recorder,
		applier:  apply.New(c, live, fieldManager),
		reporter: status.NewReporter(c, recorder, fieldManager),
		domain:   routing.DefaultDomain,
	}
}

// InDomain has the Reconciler take the names of Services to end in a domain, and returns it.
func (r *Reconciler) InDomain(domain routing.Domain) *Reconciler {
	r.domain = domain
	return r
}

// WithAsker has the Reconciler ask about canaries whose rollouts have an analysis, and returns it.
func (r *Reconciler) WithAsker(asker Asker) *Reconciler {
	r.asker = asker
	return r
}

// WithWarmer has the Reconciler warm the pods of canaries whose rollouts ask for it, and returns it.
func (r *Reconciler) WithWarmer(warmer Warmer) *Reconciler {
	r.warmer = warmer
	return r
}

// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=canaryrollouts,verbs=get;list;watch
// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=canaryrollouts/status,verbs=patch
// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=canaryrollouts/finalizers,verbs=update
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch

// Reconcile moves the route of a CanaryRollout to what the rollout asks for.
func (r *Reconciler) Reconcile(ctx context.Context, rollout *v1alpha1.CanaryRollout) (reconcile.Result, error) {
	rollout, err := r.current(ctx, rollout)
	if err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if rollout.DeletionTimestamp != nil {
		return r.finalize(ctx, rollout)
	}
	seen, err := r.observe(ctx, rollout)
	if err != nil {
		return reconcile.Result{}, err
	}
	if rollout, err = r.inForce(ctx, rollout, seen); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if rollout.Spec.DryRun {
		return r.tellPlan(ctx, rollout, seen)
	}
	if reclaimed, err := r.reclaim(ctx, rollout, seen); reclaimed || err != nil {
		return status.Result(reclaimDelay, err)
	}
	seen.warmth = r.warm(rollout, seen)
	rollout, unrecorded := r.progress(ctx, rollout, seen)
	seen.asked = r.asked(rollout, seen)
	p, err := r.planned(ctx, rollout, &seen)
	if err != nil {
		return reconcile.Result{}, err
	}
	return r.carryOut(ctx, rollout, seen, p, unrecorded)
}

// carryOut makes a plan true and tells what came of it. Progress that could not be recorded lets it take traffic from a
// canary, and nothing else.
func (r *Reconciler) carryOut(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed, p plan, unrecorded error,
) (reconcile.Result, error) {
	if unrecorded != nil && !lowers(rollout, p) {
		return status.Result(0, unrecorded)
	}
	err := r.letGo(ctx, rollout, seen, p)
	if err != nil {
		return status.Result(0, err)
	}
	if rollout, err = r.remember(ctx, rollout, keepsakeFor(rollout, p)); err != nil {
		return status.Result(0, err)
	}
	if err = r.apply(ctx, rollout, seen, p); err == nil {
		count(rollout, p, r.clock.Since(seen.now))
	}
	if apierrors.IsConflict(err) || unrecorded != nil {
		return status.Result(0, errors.Join(err, unrecorded)) // nothing to tell: it is tried again at once
	}
	rollout, reportErr := r.report(ctx, rollout, p, err)
	p.wakeIn(r.wake(rollout, seen))
	p.wakeIn(seen.warmth.Again)
	return status.Result(p.wake, errors.Join(err, reportErr))
}

// +kubebuilder:rbac:groups="",resources=services,verbs=create;patch;delete
// +kubebuilder:rbac:groups=networking.istio.io,resources=virtualservices,verbs=create;patch;delete
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=httproutes,verbs=create;patch;delete

// apply makes the plan true: first the name that clients call, then the route, and only when that is in place is
// anything taken away.
func (r *Reconciler) apply(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed, p plan) error {
	if p.service != nil {
		if _, err := r.applier.Apply(ctx, rollout, p.service); err != nil {
			return err
		}
	}
	var err error
	switch {
	case p.route != nil:
		err = r.applyRoute(ctx, rollout, seen.route, p.route)
	case p.binding != nil:
		err = r.patchRoute(ctx, rollout, seen, p)
	}
	if err != nil {
		return err
	}
	for _, route := range p.pruneRoutes {
		if err := r.applier.Delete(ctx, route); err != nil {
			return err
		}
	}
	if p.pruneService {
		if err := r.applier.Delete(ctx, seen.service); err != nil {
			return err
		}
	}
	return p.stalled
}

// report writes the status, and returns the rollout with it.
func (r *Reconciler) report(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, p plan, err error,
) (*v1alpha1.CanaryRollout, error) {
	after := rollout.DeepCopy()
	after.Status = statusFor(rollout, p, r.clock.Now(), err)
	if reportErr := r.reporter.Report(ctx, rollout, after, conditionsOf); reportErr != nil {
		return rollout, reportErr
	}
	show(after)
	if err == nil && p.drift != nil {
		r.tellDrift(after, p)
	}
	if was, is := rollout.Status.Weights.Applied, after.Status.Weights.Applied; is != nil && (was == nil || *was != *is) {
		stable, canary := titlesOf(rollout)
		r.recorder.Event(after, corev1.EventTypeNormal, v1alpha1.ReasonWeightsChanged,
			fmt.Sprintf("%s gets %d percent, %s %d.", stable.name, is.Stable, canary.name, is.Canary))
	}
	return after, nil
}
