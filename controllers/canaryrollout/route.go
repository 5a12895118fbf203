// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
//
// A route that has changed since it was read is written only if the plan is still due: a manager that has lost its lease
// meanwhile, or was asleep for long, must not put back what its successor has changed.
func (r *Reconciler) applyRoute(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, live, want *unstructured.Unstructured,
) error {
	fingerprint, err := routing.Fingerprint(want)
	if err != nil {
		return err
	}
	if live == nil {
		if live, err = r.routePastCache(ctx, want); err != nil {
			return err
		}
	}
	for range patchAttempts {
		if live != nil {
			if err := checkOwner(rollout, live); err != nil {
				return err
			}
			if routing.Carries(live, want) && isMarked(live, fingerprint) {
				return nil
			}
		}
		stored := r.completed(rollout, live, want, fingerprint)
		err := r.client.Apply(
			ctx,
			client.ApplyConfigurationFromUnstructured(stored), // which becomes what the API server has stored
			client.FieldOwner(fieldManager),
			client.ForceOwnership,
		)
		if err == nil {
			return r.removeStrangers(ctx, stored, want)
		}
		if err = fmt.Errorf("applying %s %q: %w", want.GetKind(), want.GetName(), err); !apierrors.IsConflict(err) {
			return err
		}
		if err := r.stillDue(ctx, rollout, err); err != nil {
			return err
		}
		if live, err = r.routePastCache(ctx, want); err != nil {
			return err
		}
	}
	return errRouteMoves
}

// completed returns a rollout's own route as it is to be stored, over the live one if there is one.
func (r *Reconciler) completed(
	rollout *v1alpha1.CanaryRollout, live, want *unstructured.Unstructured, fingerprint string,
) *unstructured.Unstructured {
	stored := want.DeepCopy()
	stored.SetLabels(map[string]string{
		v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelInstance: rollout.Name,
	})
	stored.SetAnnotations(map[string]string{v1alpha1.AnnotationAppliedHash: fingerprint})
	stored.SetOwnerReferences([]metav1.OwnerReference{*metav1.NewControllerRef(rollout, rolloutGVK)})
	if live != nil {
		stored.SetResourceVersion(live.GetResourceVersion())
	}
	return stored
}

// removeStrangers removes from a route that was applied what others have set and we never did: that has been left alone.
func (r *Reconciler) removeStrangers(ctx context.Context, stored, want *unstructured.Unstructured) error {
	strangers, err := r.domain.ProviderOf(want).Strangers(stored, want)
	if err != nil || strangers == nil {
		return err
	}
	return r.patch(ctx, stored, strangers)
}

// routePastCache reads a route of the same kind and name as it is stored now, nil if there is none.
func (r *Reconciler) routePastCache(ctx context.Context, want *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	live := routing.NewRoute(r.domain.ProviderOf(want))
	err := r.live.Get(ctx, client.ObjectKeyFromObject(want), live)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %q past the cache: %w", want.GetKind(), want.GetName(), err)
	}
	return live, nil
}

// stillDue returns an error if what was planned for a rollout may not be due any more: its spec or its turn is another
// by now.
func (r *Reconciler) stillDue(ctx context.Context, rollout *v1alpha1.CanaryRollout, otherwise error) error {
	now, err := r.stored(ctx, rollout)
	switch {
	case err != nil:
		return err
	case now.UID != rollout.UID, now.Generation != rollout.Generation, now.Status.Turn != rollout.Status.Turn:
		return otherwise
	default:
		return nil
	}
}

// asRead returns a JSON Patch that fails if the route has changed since it was read.
func asRead(route *unstructured.Unstructured, patch []byte) []byte {
	test := fmt.Sprintf(`[{"op":"test","path":"/metadata/resourceVersion","value":%q},`, route.GetResourceVersion())
	return append([]byte(test), patch[1:]...)
}

// moved is the conflict that a route is in which is not as it was read.
func moved(route *unstructured.Unstructured) error {
	kind := route.GroupVersionKind()
	return apierrors.NewConflict(
		schema.GroupResource{Group: kind.Group, Resource: strings.ToLower(kind.Kind) + "s"}, route.GetName(), errRouteMoves)
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
// tells the two apart: if the route has changed, the patch is worked out anew, as long as the plan is still due.
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
		refusal := r.patch(ctx, route, asRead(route, patch))
		if refusal == nil || !apierrors.IsInvalid(refusal) {
			return refusal
		}
		if err := r.stillDue(ctx, rollout, moved(route)); err != nil {
			return err
		}
		before := route
		if route, binding, err = r.rebind(ctx, rollout, seen); err != nil {
			return err
		}
		again, err := binding.Patch(p.weights)
		if err != nil {
			return err
		}
		switch same := bytes.Equal(again, patch); {
		case same && route.GetResourceVersion() == before.GetResourceVersion():
			return refusal
		case !same:
			guardFailures.Inc()
		}
	}
	return errRouteMoves
}

// rebind finds the rule in the route as it is stored now.
func (r *Reconciler) rebind(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed,
) (*unstructured.Unstructured, *routing.Binding, error) {
	ref, _ := routing.Adopted(rollout)
	provider := r.domain.ProviderNamed(ref.Provider)
	route := routing.NewRoute(provider)
	err := r.live.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: ref.Name}, route)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s %q past the cache: %w", route.GetKind(), ref.Name, err)
	}
	binding, err := provider.Bind(route, ref.Rule, seen.destination(rollout, seen.stable), seen.destination(rollout, seen.canary))
	return route, binding, refused(err)
}
