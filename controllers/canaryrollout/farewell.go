// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"encoding/json"
	"slices"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/routing"
)

// keepsake is what a rollout remembers of itself in its metadata.
type keepsake struct {
	// finalizer tells whether the rollout must not go before its route has been seen to.
	finalizer bool
	// found is the route as it was before, in the form of foundWeights, or empty.
	found string
}

// foundWeights is the value of the annotation of that name.
type foundWeights struct {
	VirtualService string `json:"virtualService,omitempty"`
	HTTPRoute      string `json:"httpRoute,omitempty"`
	// InferenceService is set where the weights are its canaryTrafficPercent, and Unset if it had none.
	InferenceService string `json:"inferenceService,omitempty"`
	Unset            bool   `json:"unset,omitempty"`

	Route  string `json:"route"`
	Stable int32  `json:"stable"`
	Canary int32  `json:"canary"`
}

// keepsakeFor returns what a rollout must remember before its route is written: of an adopted route the weights as they
// are, unless they are remembered already, because what is there later is Outrigger's own. They are remembered whatever
// onDelete says, since that may be edited, and so may the reference to the route.
func keepsakeFor(rollout *v1alpha1.CanaryRollout, p plan) keepsake {
	spec := rollout.Spec.Routing
	_, adopts := routing.Adopted(rollout)
	has := slices.Contains(rollout.Finalizers, v1alpha1.FinalizerRoute)
	keep := keepsake{
		finalizer: adopts != (spec.OnDelete == v1alpha1.OnDeleteKeep) && (p.routes() || has),
		found:     rollout.Annotations[v1alpha1.AnnotationFoundWeights],
	}
	switch {
	case !adopts:
		keep.found = ""
	case p.binding != nil && !remembers(rollout):
		found, _ := foundIn(rollout)
		weights := p.binding.Weights()
		found.Stable, found.Canary, found.Unset = weights.Stable, weights.Canary, p.binding.Unset()
		raw, err := json.Marshal(found)
		if err == nil {
			keep.found = string(raw)
		}
	}
	return keep
}

// remembers reports whether a rollout knows how the route that it adopts now was before.
func remembers(rollout *v1alpha1.CanaryRollout) bool {
	_, ok := recall(rollout)
	return ok
}

// foundIn returns the place of a rollout's adopted rule, without weights; false if it adopts none.
func foundIn(rollout *v1alpha1.CanaryRollout) (foundWeights, bool) {
	ref, ok := routing.Adopted(rollout)
	if !ok {
		return foundWeights{}, false
	}
	found := foundWeights{Route: ref.Rule}
	switch ref.Provider {
	case v1alpha1.ProviderKnative:
		found.InferenceService = ref.Name
	case v1alpha1.ProviderHTTPRoute:
		found.HTTPRoute = ref.Name
	default:
		found.VirtualService = ref.Name
	}
	return found, true
}

// recall returns the weights that the adopted route had before, and whether it had them by saying nothing.
func recall(rollout *v1alpha1.CanaryRollout) (had foundShare, ok bool) {
	place, adopts := foundIn(rollout)
	former, had, ok := recorded(rollout)
	return had, ok && adopts && former == place
}

// foundShare is what a route had before.
type foundShare struct {
	v1alpha1.WeightPair

	// unset tells whether it had that by saying nothing.
	unset bool
}

// recorded returns the place of the rule that a rollout has adopted, and the weights that it had before; false if there is
// none.
func recorded(rollout *v1alpha1.CanaryRollout) (foundWeights, foundShare, bool) {
	var found foundWeights
	if json.Unmarshal([]byte(rollout.Annotations[v1alpha1.AnnotationFoundWeights]), &found) != nil {
		return foundWeights{}, foundShare{}, false
	}
	had := foundShare{v1alpha1.WeightPair{Stable: found.Stable, Canary: found.Canary}, found.Unset}
	found.Stable, found.Canary, found.Unset = 0, 0, false
	return found, had, true
}

// reference is the place as a rollout names it.
func (f foundWeights) reference() routing.Reference {
	if f.InferenceService != "" {
		return routing.Reference{Provider: v1alpha1.ProviderKnative, Name: f.InferenceService}
	}
	if f.HTTPRoute != "" {
		return routing.Reference{Provider: v1alpha1.ProviderHTTPRoute, Name: f.HTTPRoute, Rule: f.Route}
	}
	return routing.Reference{Provider: v1alpha1.ProviderVirtualService, Name: f.VirtualService, Rule: f.Route}
}

// forsaken returns the rule that a rollout has adopted and names no more, and the weights to leave it with; false if there
// is none, or it is to be left as it is.
func forsaken(rollout *v1alpha1.CanaryRollout, seen observed) (routing.Reference, foundShare, bool) {
	former, found, ok := recorded(rollout)
	place, _ := foundIn(rollout)
	if !ok || former == place || rollout.Spec.Routing.OnDelete == v1alpha1.OnDeleteKeep {
		return routing.Reference{}, foundShare{}, false
	}
	last := foundShare{WeightPair: routing.Desired(0)}
	if rollout.Spec.Routing.OnDelete == v1alpha1.OnDeleteRestore {
		last = found
	}
	return former.reference(), last, !strands(last.WeightPair, seen)
}

// farewell is what to do with the route of a rollout that is being deleted.
type farewell struct {
	// binding is the adopted route to give weights, nil for none.
	binding *routing.Binding
	// weights are these, and unset tells whether they are given by saying nothing.
	weights v1alpha1.WeightPair
	unset   bool
	// orphan tells whether the rollout's own objects shall stay without it.
	orphan bool
}

// farewellFor decides what a rollout leaves behind. A route that it never had, that is gone, or that cannot be
// understood any more is left alone, so that the deletion always ends.
func farewellFor(rollout *v1alpha1.CanaryRollout, seen observed) farewell {
	spec := rollout.Spec.Routing
	ref, adopts := routing.Adopted(rollout)
	switch {
	case seen.rival != nil:
		return farewell{}
	case !adopts:
		return farewell{orphan: spec.OnDelete == v1alpha1.OnDeleteKeep}
	case spec.OnDelete == v1alpha1.OnDeleteKeep || seen.adopted == nil:
		return farewell{}
	case spec.OnDelete == v1alpha1.OnDeleteStable && seen.share.promoted():
		return farewell{} // nobody is left to go back from
	}
	binding, err := seen.domain.ProviderNamed(ref.Provider).Bind(seen.adopted, ref.Rule,
		seen.destination(rollout, seen.stable), seen.destination(rollout, seen.canary))
	if err != nil {
		return farewell{}
	}
	last := farewell{binding: binding, weights: routing.Desired(0)}
	if found, ok := recall(rollout); ok && spec.OnDelete == v1alpha1.OnDeleteRestore {
		last.weights, last.unset = found.WeightPair, found.unset
	}
	if strands(last.weights, seen) {
		return farewell{}
	}
	return last
}

// strands reports whether weights send traffic to a side that has no ready endpoint while the other has.
func strands(weights v1alpha1.WeightPair, seen observed) bool {
	return weights.Stable > 0 && seen.stable.ready == 0 && seen.canary.ready > 0 ||
		weights.Canary > 0 && seen.canary.ready == 0 && seen.stable.ready > 0
}
