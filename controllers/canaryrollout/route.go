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

// errRouteMoves is returned when an adopted VirtualService changes faster than it can be patched.
var errRouteMoves = errors.New("the VirtualService changed during every attempt to patch it")

// patchAttempts bounds how often a patch is worked out anew in one reconcile.
const patchAttempts = 4

// applyRoute writes the rollout's own VirtualService, if the live one differs. The lists of a VirtualService are atomic,
// so they are compared and written whole: a route that somebody added goes.
func (r *Reconciler) applyRoute(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, live, want *unstructured.Unstructured,
) (bool, error) {
	if live != nil {
		if err := checkOwner(rollout, live); err != nil {
			return false, err
		}
		if routing.Carries(live, want) && live.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy {
			return r.removeStrangers(ctx, live, want)
		}
	}
	want.SetLabels(map[string]string{
		v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelInstance: rollout.Name,
	})
	want.SetOwnerReferences([]metav1.OwnerReference{*metav1.NewControllerRef(rollout, rolloutGVK)})
	err := r.client.Apply(
		ctx,
		client.ApplyConfigurationFromUnstructured(want),
		client.FieldOwner(fieldManager),
		client.ForceOwnership,
	)
	if err != nil {
		return false, fmt.Errorf("applying VirtualService %q: %w", want.GetName(), err)
	}
	return true, nil
}

// removeStrangers removes fields that somebody else set, which server-side apply leaves alone.
func (r *Reconciler) removeStrangers(ctx context.Context, live, want *unstructured.Unstructured) (bool, error) {
	strangers, err := routing.Strangers(live, want)
	if err != nil || strangers == nil {
		return false, err
	}
	return true, r.patch(ctx, live, strangers)
}

// patch sends a JSON Patch of a VirtualService, which is not changed.
func (r *Reconciler) patch(ctx context.Context, vs *unstructured.Unstructured, patch []byte) error {
	raw := client.RawPatch(types.JSONPatchType, patch)
	if err := r.client.Patch(ctx, vs.DeepCopy(), raw, client.FieldOwner(fieldManager)); err != nil {
		return fmt.Errorf("patching VirtualService %q: %w", vs.GetName(), err)
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

// patchRoute sets the weights in a user's VirtualService, if they differ. The API server evaluates the patch's tests on
// the stored object and answers a failed one with 422, as it does for an object that it will not have. A read past the
// cache tells the two apart: if the route has moved, the patch is worked out anew.
func (r *Reconciler) patchRoute(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed, p plan) (bool, error) {
	binding, vs := p.binding, seen.adopted
	for range patchAttempts {
		if binding.Carries(p.weights) {
			return false, nil
		}
		patch, err := binding.Patch(p.weights)
		if err != nil {
			return false, err
		}
		if err = r.patch(ctx, vs, patch); err == nil {
			return true, nil
		}
		if !apierrors.IsInvalid(err) {
			return false, err
		}
		refusal := err
		if vs, binding, err = r.rebind(ctx, rollout, seen); err != nil {
			return false, err
		}
		again, err := binding.Patch(p.weights)
		if err != nil {
			return false, err
		}
		if bytes.Equal(again, patch) {
			return false, refusal
		}
	}
	return false, errRouteMoves
}

// rebind finds the route in the VirtualService as it is stored now.
func (r *Reconciler) rebind(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed,
) (*unstructured.Unstructured, *routing.Binding, error) {
	ref := rollout.Spec.Routing.VirtualServiceRef
	vs := routing.NewVirtualService()
	err := r.live.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: ref.Name}, vs)
	if err != nil {
		return nil, nil, fmt.Errorf("reading VirtualService %q past the cache: %w", ref.Name, err)
	}
	binding, err := routing.Bind(vs, ref.Route, destination(rollout, seen.stable), destination(rollout, seen.canary))
	return vs, binding, refused(err)
}
