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
	Route          string `json:"route"`
	Stable         int32  `json:"stable"`
	Canary         int32  `json:"canary"`
}

// keepsakeFor returns what a rollout must remember before its route is written: of an adopted route the weights as they
// are, unless they are remembered already, because what is there later is Outrigger's own. They are remembered whatever
// onDelete says, since that may be edited, and so may the reference to the route.
func keepsakeFor(rollout *v1alpha1.CanaryRollout, p plan) keepsake {
	spec := rollout.Spec.Routing
	adopts := spec.Mode == v1alpha1.RoutingAdopt
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
		found.Stable, found.Canary = weights.Stable, weights.Canary
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
	if ref.Provider == routing.HTTPRoutes {
		found.HTTPRoute = ref.Name
	} else {
		found.VirtualService = ref.Name
	}
	return found, true
}

// recall returns the weights that the adopted route had before.
func recall(rollout *v1alpha1.CanaryRollout) (v1alpha1.WeightPair, bool) {
	place, adopts := foundIn(rollout)
	former, weights, ok := recorded(rollout)
	return weights, ok && adopts && former == place
}

// recorded returns the place of the rule that a rollout has adopted, and the weights that it had before; false if there is
// none.
func recorded(rollout *v1alpha1.CanaryRollout) (foundWeights, v1alpha1.WeightPair, bool) {
	var found foundWeights
	if json.Unmarshal([]byte(rollout.Annotations[v1alpha1.AnnotationFoundWeights]), &found) != nil {
		return foundWeights{}, v1alpha1.WeightPair{}, false
	}
	weights := v1alpha1.WeightPair{Stable: found.Stable, Canary: found.Canary}
	found.Stable, found.Canary = 0, 0
	return found, weights, true
}

// reference is the place as a rollout names it.
func (f foundWeights) reference() routing.Reference {
	if f.HTTPRoute != "" {
		return routing.Reference{Provider: routing.HTTPRoutes, Name: f.HTTPRoute, Rule: f.Route}
	}
	return routing.Reference{Provider: routing.VirtualServices, Name: f.VirtualService, Rule: f.Route}
}

// forsaken returns the rule that a rollout has adopted and names no more, and the weights to leave it with; false if there
// is none, or it is to be left as it is.
func forsaken(rollout *v1alpha1.CanaryRollout, seen observed) (routing.Reference, v1alpha1.WeightPair, bool) {
	former, found, ok := recorded(rollout)
	place, _ := foundIn(rollout)
	if !ok || former == place || rollout.Spec.Routing.OnDelete == v1alpha1.OnDeleteKeep {
		return routing.Reference{}, v1alpha1.WeightPair{}, false
	}
	weights := routing.Desired(0)
	if rollout.Spec.Routing.OnDelete == v1alpha1.OnDeleteRestore {
		weights = found
	}
	return former.reference(), weights, !strands(weights, seen)
}

// farewell is what to do with the route of a rollout that is being deleted.
type farewell struct {
	// binding is the adopted route to give weights, nil for none.
	binding *routing.Binding
	// weights are these.
	weights v1alpha1.WeightPair
	// orphan tells whether the rollout's own objects shall stay without it.
	orphan bool
}

// farewellFor decides what a rollout leaves behind. A route that it never had, that is gone, or that cannot be
// understood any more is left alone, so that the deletion always ends.
func farewellFor(rollout *v1alpha1.CanaryRollout, seen observed) farewell {
	spec := rollout.Spec.Routing
	switch {
	case seen.rival != nil:
		return farewell{}
	case spec.Mode != v1alpha1.RoutingAdopt:
		return farewell{orphan: spec.OnDelete == v1alpha1.OnDeleteKeep}
	case spec.OnDelete == v1alpha1.OnDeleteKeep || seen.adopted == nil:
		return farewell{}
	}
	ref, _ := routing.Adopted(rollout)
	binding, err := ref.Provider.Bind(seen.adopted, ref.Rule,
		destination(rollout, seen.stable), destination(rollout, seen.canary))
	if err != nil {
		return farewell{}
	}
	weights := routing.Desired(0)
	if found, ok := recall(rollout); ok && spec.OnDelete == v1alpha1.OnDeleteRestore {
		weights = found
	}
	if strands(weights, seen) {
		return farewell{}
	}
	return farewell{binding: binding, weights: weights}
}

// strands reports whether weights send traffic to a side that has no ready endpoint while the other has.
func strands(weights v1alpha1.WeightPair, seen observed) bool {
	return weights.Stable > 0 && seen.stable.ready == 0 && seen.canary.ready > 0 ||
		weights.Canary > 0 && seen.canary.ready == 0 && seen.stable.ready > 0
}
