// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"bytes"
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// revisionShare is how two revisions of an InferenceService share its traffic.
type revisionShare struct {
	// revisions are the two, without names if there is one only.
	revisions v1alpha1.RolloutRevisions
	// rolledOut tells whether KServe takes the canary for rolled out, so that it goes on from there.
	rolledOut bool
	// edited tells whether the InferenceService's predictor was edited since they became the sides: a newer revision is
	// to be expected.
	edited bool
}

// known returns what is to be remembered of a share, nil for nothing.
func (s *revisionShare) known() *v1alpha1.RolloutRevisions {
	if s == nil || s.revisions == (v1alpha1.RolloutRevisions{}) {
		return nil
	}
	revisions := s.revisions
	return &revisions
}

// promoted reports whether KServe goes on from the canary.
func (s *revisionShare) promoted() bool { return s != nil && s.rolledOut }

// observeShare reads the InferenceService whose revisions are the sides, by a cache or past it.
func (r *Reconciler) observeShare(
	ctx context.Context, reader client.Reader, rollout *v1alpha1.CanaryRollout, seen *observed,
) error {
	of, known := rollout.Spec.Stable, rollout.Status.Revisions
	seen.share = &revisionShare{}
	seen.stable, seen.canary = side{of: of}, side{of: of}
	var isvc kserve.InferenceService
	served, err := r.kinds.has(kserve.GroupVersionKind)
	if err != nil {
		return err
	}
	if served {
		err = reader.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: of.InferenceService}, &isvc)
	}
	if !served || apierrors.IsNotFound(err) || err == nil && isvc.DeletionTimestamp != nil {
		seen.canary.revision.InferenceService = of.InferenceService
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading InferenceService %q: %w", of.InferenceService, err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&isvc)
	if err != nil {
		return fmt.Errorf("converting InferenceService %q: %w", isvc.Name, err)
	}
	seen.adopted = &unstructured.Unstructured{Object: content}
	seen.adopted.SetGroupVersionKind(routing.InferenceServiceKind)
	hash, err := kserve.PredictorHash(&isvc)
	if err != nil {
		return err
	}
	seen.share.revisions, seen.share.rolledOut = routing.KnativeRevisions(seen.adopted, known)
	if now := &seen.share.revisions; now.Canary != "" {
		now.Hash = hash
		if known != nil && known.Stable == now.Stable && known.Canary == now.Canary {
			seen.share.edited, now.Hash = known.Hash != hash, known.Hash
		}
	}
	return r.observeRevisionSides(ctx, &isvc, seen)
}

// observeRevisionSides fills in the two sides. The newest revision gets a share only once it is ready, which older ones
// got before; so the canary has pods only if it is that.
func (r *Reconciler) observeRevisionSides(ctx context.Context, isvc *kserve.InferenceService, seen *observed) error {
	names := seen.share.revisions
	entry := kserve.PredictorEntry(isvc)
	pods, err := r.podsBehind(ctx, isvc.Namespace, entry)
	if err != nil {
		return err
	}
	revision, err := kserve.RevisionOf(isvc, "")
	if err != nil {
		return err
	}
	// Another revision may come of a changed runtime, with no edit of the InferenceService.
	revision.Variant = names.Canary
	seen.canary.revision = revision
	revision.Variant, revision.Hash = names.Stable, names.Stable
	seen.stable.revision = revision
	for _, one := range []struct {
		*side

		name string
	}{{&seen.stable, names.Stable}, {&seen.canary, names.Canary}} {
		one.exists, one.mode, one.entry = true, isvc.Status.DeploymentMode, entry
		one.supported = one.mode == "" || kserve.UsesKnative(isvc)
		if one.name == "" {
			continue
		}
		one.knativeRevision, one.workload = one.name, kserve.WorkloadOf(one.name)
		one.fromZero = kserve.ScalesToZero(isvc)
		of := ofRevisions(pods, []string{one.name})
		one.learn(of)
		one.count(of)
	}
	if names.Stable != "" {
		// Knative lets go of the pods of a revision without a share, and makes them when it has one again: until then it
		// holds the requests. Were it not ready meanwhile, the canary would get them, and the pods would be let go again.
		seen.stable.ready = max(seen.stable.ready, 1)
	}
	switch {
	case kserve.ReadyRevision(isvc) != names.Canary:
		seen.canary.ready, seen.canary.pods = 0, nil
	case seen.canary.fromZero:
		seen.canary.ready = max(seen.canary.ready, 1)
	}
	return nil
}

// unshareable returns what the user must change before revisions of an InferenceService can share its traffic, nil if
// nothing.
func unshareable(one side) error {
	if !one.exists || one.supported {
		return nil
	}
	return status.Stalledf(v1alpha1.ReasonUnsupportedDeploymentMode,
		"InferenceService %q is in deployment mode %s, where KServe ignores canaryTrafficPercent; make it Knative with the "+
			"annotation serving.kserve.io/deploymentMode, or use another routing.provider", one.of.InferenceService, one.mode)
}

// holdShare leaves the InferenceService as it is because there is nothing to share.
func (p *plan) holdShare(seen observed) {
	if seen.adopted == nil {
		p.hold(seen.stable)
		return
	}
	p.heldReason = v1alpha1.ReasonOneRevision
	p.held = fmt.Sprintf("InferenceService %q has one revision, which gets everything; give it another model, with "+
		"spec.predictor.canaryTrafficPercent: 0 in the same edit.", seen.stable.of.InferenceService)
}

// holdEdited leaves a share as it is while a newer revision is to be expected, which would get it: it may be lowered,
// unless KServe would then go back to what was there before.
func (p *plan) holdEdited(seen observed) {
	if p.binding == nil || seen.share == nil || !seen.share.edited || p.binding.Carries(p.weights) {
		return
	}
	if !seen.share.rolledOut && p.weights.Canary < p.binding.Weights().Canary {
		return
	}
	p.binding = nil
	p.heldReason = v1alpha1.ReasonWaitingForRevision
	p.held = fmt.Sprintf("InferenceService %q was edited and has no revision of that yet; its canaryTrafficPercent is left "+
		"as it is until it has.", seen.stable.of.InferenceService)
}

// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=patch

// patchShare sets the share of the newest revision, or has the InferenceService say nothing of it. The weights are those
// of two revisions and of one spec, which the patch tests; where they are others by now, everything is looked at anew.
func (r *Reconciler) patchShare(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed,
	binding *routing.Binding, weights v1alpha1.WeightPair, unset bool,
) error {
	if binding.Carries(weights) && (binding.Unset() == unset || !unset) {
		return nil
	}
	patch, err := binding.Encode(weights, unset)
	if err != nil {
		return err
	}
	refusal := r.patch(ctx, seen.adopted, asRead(seen.adopted, patch))
	if refusal == nil || !apierrors.IsInvalid(refusal) {
		return refusal
	}
	same := false
	if route, rebound, err := r.rebind(ctx, rollout, seen); err == nil {
		again, err := rebound.Encode(weights, unset)
		same = err == nil && bytes.Equal(again, patch)
		if same && route.GetResourceVersion() == seen.adopted.GetResourceVersion() {
			return refusal
		}
	}
	if !same {
		guardFailures.Inc()
	}
	return moved(seen.adopted)
}
