// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/apply"
	"serverless.xyz/outrigger/routing"
)

// errRouteMoves is returned when an adopted route changes faster than it can be patched.
var errRouteMoves = errors.New("the route changed during every attempt to patch it")

// patchAttempts bounds how often a patch is worked out anew in one reconcile.
const patchAttempts = 4

// applyRoute writes the rollout's own route, if the live one differs. The lists of a route are atomic, so they are
// compared and written whole: a rule that somebody added goes. What was written is marked, by which foreign changes are
// known later.
func (r *Reconciler) applyRoute(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, live, want *unstructured.Unstructured,
) error {
	fingerprint, err := routing.Fingerprint(want)
	if err != nil {
		return err
	}
	if live != nil {
		if err := checkOwner(rollout, live); err != nil {
			return err
		}
		if routing.Carries(live, want) && isMarked(live, fingerprint) {
			return nil
		}
	}
	stored := want.DeepCopy()
	stored.SetLabels(map[string]string{
		v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelInstance: rollout.Name,
	})
	stored.SetAnnotations(map[string]string{v1alpha1.AnnotationAppliedHash: fingerprint})
	stored.SetOwnerReferences([]metav1.OwnerReference{*metav1.NewControllerRef(rollout, rolloutGVK)})
	err = r.client.Apply(
		ctx,
		client.ApplyConfigurationFromUnstructured(stored), // which becomes what the API server has stored
		client.FieldOwner(fieldManager),
		client.ForceOwnership,
	)
	if err != nil {
		return fmt.Errorf("applying %s %q: %w", want.GetKind(), want.GetName(), err)
	}
	// What others set, and we never did, has been left alone.
	strangers, err := routing.ProviderOf(want).Strangers(stored, want)
	if err != nil || strangers == nil {
		return err
	}
	return r.patch(ctx, stored, strangers)
}

// patch sends a JSON Patch of a route, which is not changed.
func (r *Reconciler) patch(ctx context.Context, route *unstructured.Unstructured, patch []byte) error {
	raw := client.RawPatch(types.JSONPatchType, patch)
	if err := r.client.Patch(ctx, route.DeepCopy(), raw, client.FieldOwner(fieldManager)); err != nil {
		return fmt.Errorf("patching %s %q: %w", route.GetKind(), route.GetName(), err)
	}
	return nil
}

func checkOwner(rollout *v1alpha1.CanaryRollout, live *unstructured.Unstructured) error {
	owner := metav1.GetControllerOf(live)
	taken := &apply.TakenError{Kind: live.GetKind(), Namespace: live.GetNamespace(), Name: live.GetName()}
	switch {
	case owner == nil:
		return taken
	case owner.UID == rollout.UID:
		return nil
	case owner.Kind == rolloutKind && owner.Name == rollout.Name:
		return apply.ErrOwnerGone
	default:
		taken.Holder = owner.Kind + "/" + owner.Name
		return taken
	}
}

// patchRoute sets the weights in a user's route, if they differ. The API server evaluates the patch's tests on the
// stored object and answers a failed one with 422, as it does for an object that it will not have. A read past the cache
// tells the two apart: if the rule has moved, the patch is worked out anew.
func (r *Reconciler) patchRoute(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed, p plan) error {
	if seen.share != nil {
		return r.patchShare(ctx, rollout, seen, p.binding, p.weights, false)
	}
	binding, route := p.binding, seen.adopted
	for range patchAttempts {
		if binding.Carries(p.weights) {
			return nil
		}
		patch, err := binding.Patch(p.weights)
		if err != nil {
			return err
		}
		refusal := r.patch(ctx, route, patch)
		if refusal == nil || !apierrors.IsInvalid(refusal) {
			return refusal
		}
		if route, binding, err = r.rebind(ctx, rollout, seen); err != nil {
			return err
		}
		again, err := binding.Patch(p.weights)
		if err != nil {
			return err
		}
		if bytes.Equal(again, patch) {
			return refusal
		}
		guardFailures.Inc()
	}
	return errRouteMoves
}

// rebind finds the rule in the route as it is stored now.
func (r *Reconciler) rebind(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed,
) (*unstructured.Unstructured, *routing.Binding, error) {
	ref, _ := routing.Adopted(rollout)
	route := routing.NewRoute(ref.Provider)
	err := r.live.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: ref.Name}, route)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s %q past the cache: %w", route.GetKind(), ref.Name, err)
	}
	binding, err := ref.Provider.Bind(route, ref.Rule, destination(rollout, seen.stable), destination(rollout, seen.canary))
	return route, binding, refused(err)
}
