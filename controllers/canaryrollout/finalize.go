// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=canaryrollouts,verbs=patch

// remember writes what a rollout must know before its route is written, if it does not yet, and returns the rollout as
// it is then.
func (r *Reconciler) remember(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, keep keepsake,
) (*v1alpha1.CanaryRollout, error) {
	after := rollout.DeepCopy()
	if keep.finalizer {
		controllerutil.AddFinalizer(after, v1alpha1.FinalizerRoute)
	} else {
		controllerutil.RemoveFinalizer(after, v1alpha1.FinalizerRoute)
	}
	delete(after.Annotations, v1alpha1.AnnotationFoundWeights)
	if keep.found != "" {
		metav1.SetMetaDataAnnotation(&after.ObjectMeta, v1alpha1.AnnotationFoundWeights, keep.found)
	}
	if equality.Semantic.DeepEqual(rollout.ObjectMeta, after.ObjectMeta) {
		return rollout, nil
	}
	patch := client.MergeFromWithOptions(rollout, client.MergeFromWithOptimisticLock{})
	if err := r.client.Patch(ctx, after, patch, client.FieldOwner(fieldManager)); err != nil {
		return nil, fmt.Errorf("writing the finalizer: %w", err)
	}
	return after, nil
}

// farewellLimit is for how long a deletion waits for an API server that cannot write the route, such as for a webhook that
// is away.
const farewellLimit = 5 * time.Minute

// finalize sees to the route of a rollout that is being deleted, and lets it go. What the API server refuses is given
// up, with an event, and so is after farewellLimit what it fails to do: a deletion must end.
func (r *Reconciler) finalize(ctx context.Context, rollout *v1alpha1.CanaryRollout) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(rollout, v1alpha1.FinalizerRoute) {
		return reconcile.Result{}, nil
	}
	if err := r.leave(ctx, rollout); err != nil {
		const left = "The route is left as it is: "
		stalled, refused := status.AsStalled(err)
		switch {
		case apierrors.IsNotFound(err):
		case refused:
			r.recorder.Event(rollout, corev1.EventTypeWarning, stalled.Reason, left+stalled.Message)
		case r.clock.Since(rollout.DeletionTimestamp.Time) >= farewellLimit:
			r.recorder.Event(rollout, corev1.EventTypeWarning, v1alpha1.ReasonRouteNotWritten, left+err.Error())
		default:
			return status.Result(0, err)
		}
	}
	_, err := r.remember(ctx, rollout, keepsake{})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return status.Result(0, err)
}

// leave does to the route what a rollout that is being deleted leaves behind.
func (r *Reconciler) leave(ctx context.Context, rollout *v1alpha1.CanaryRollout) error {
	seen, err := r.observe(ctx, rollout)
	if err != nil {
		return err
	}
	if seen.adopted != nil { // nobody looks again if the cache is behind
		if err := r.reread(ctx, rollout, &seen); err != nil {
			return err
		}
	}
	return r.bid(ctx, rollout, seen, farewellFor(rollout, seen))
}

// letGo gives the rule that a rollout has adopted and names no more the weights that a deletion would leave it with, once
// there is another route: nobody looks after it any more. A rule that is gone, that another rollout has, or that the API
// server does not have edited, is left as it is.
func (r *Reconciler) letGo(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed, p plan) error {
	ref, last, ok := forsaken(rollout, seen)
	if !ok || !p.routes() {
		return nil
	}
	var others v1alpha1.CanaryRolloutList
	if err := r.client.List(ctx, &others, client.InNamespace(rollout.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing CanaryRollouts: %w", err)
	}
	for i := range others.Items {
		if other, adopts := routing.Adopted(&others.Items[i]); adopts && other == ref {
			return nil
		}
	}
	provider := r.domain.ProviderNamed(ref.Provider)
	route := routing.NewRoute(provider)
	err := r.live.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: ref.Name}, route)
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	stable, canary := seen.destination(rollout, seen.stable), seen.destination(rollout, seen.canary)
	if ref.Provider == v1alpha1.ProviderKnative {
		sides, _ := routing.KnativeRevisions(route, nil)
		stable, canary = routing.Destination{Host: sides.Stable}, routing.Destination{Host: sides.Canary}
	}
	binding, err := provider.Bind(route, ref.Rule, stable, canary)
	if err != nil || binding.Carries(last.WeightPair) {
		return nil //nolint:nilerr // it is not what it was.
	}
	patch, err := binding.Encode(last.WeightPair, last.unset)
	if err != nil {
		return err
	}
	err = r.patch(ctx, route, patch)
	if stalled, refused := status.AsStalled(err); refused {
		r.recorder.Event(rollout, corev1.EventTypeWarning, stalled.Reason,
			"A route that was adopted is left as it is: "+stalled.Message)
		return nil
	}
	return client.IgnoreNotFound(err)
}

func (r *Reconciler) bid(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed, last farewell) error {
	if last.binding != nil {
		if last.unset {
			return r.patchShare(ctx, rollout, seen, last.binding, last.weights, true)
		}
		return r.patchRoute(ctx, rollout, seen, plan{binding: last.binding, weights: last.weights})
	}
	if !last.orphan {
		return nil
	}
	for _, route := range ownRoutes(rollout, seen) {
		if err := r.setOwner(ctx, route, nil); err != nil {
			return err
		}
	}
	if owns(rollout, seen.service) {
		return r.setOwner(ctx, seen.service, nil)
	}
	return nil
}

// setOwner makes a rollout the only owner of an object, or nobody if it is nil.
func (r *Reconciler) setOwner(ctx context.Context, object client.Object, owner *v1alpha1.CanaryRollout) error {
	references := []metav1.OwnerReference{}
	if owner != nil {
		references = append(references, *metav1.NewControllerRef(owner, rolloutGVK))
	}
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/uid", "value": object.GetUID()},
		{"op": "add", "path": "/metadata/ownerReferences", "value": references},
	})
	if err != nil {
		return fmt.Errorf("encoding owner references: %w", err)
	}
	target, _ := object.DeepCopyObject().(client.Object)
	err = r.client.Patch(ctx, target, client.RawPatch(types.JSONPatchType, patch), client.FieldOwner(fieldManager))
	if err != nil {
		return fmt.Errorf("changing the owner of %q: %w", object.GetName(), err)
	}
	return nil
}

// reclaim takes over what an earlier rollout of the same name left behind. It reports whether there was any, which the
// cache then does not know yet. A rollout that adopts has no use for it: it would remove what somebody asked to be kept.
func (r *Reconciler) reclaim(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed) (bool, error) {
	if rollout.Spec.Routing.Mode == v1alpha1.RoutingAdopt {
		return false, nil
	}
	reclaimed := false
	if orphaned(rollout, seen.route) {
		if err := r.setOwner(ctx, seen.route, rollout); err != nil {
			return false, err
		}
		reclaimed = true
	}
	if orphaned(rollout, seen.service) {
		if err := r.setOwner(ctx, seen.service, rollout); err != nil {
			return false, err
		}
		reclaimed = true
	}
	return reclaimed, nil
}

// orphaned reports whether an object exists and was left behind by an earlier rollout of this name.
func orphaned[T any, P interface {
	*T
	client.Object
}](rollout *v1alpha1.CanaryRollout, object P) bool {
	return object != nil && object.GetDeletionTimestamp() == nil && routing.LeftBehind(object, rollout)
}
