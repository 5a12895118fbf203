// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// observed is all that a plan is made from besides the spec.
type observed struct {
	// domain is that of the cluster's Services.
	domain routing.Domain
	// stable and canary are the two sides.
	stable, canary side
	// asked is the share that is asked for the canary, 0 to 100.
	asked int32
	// provider is that of the route, served tells whether the API server serves its kind.
	provider routing.Provider
	served   bool
	// route is the one of the provider that is named like the rollout, nil if there is none.
	route *unstructured.Unstructured
	// former is a route of the rollout's own that is of another provider, nil if there is none.
	former *unstructured.Unstructured
	// service is the one named like the rollout, nil if there is none.
	service *corev1.Service
	// adopted is the route that the rollout adopts, nil if there is none or the mode is not Adopt.
	adopted *unstructured.Unstructured
	// root is the user's VirtualService that delegates to the route named like the rollout, nil if there is none.
	root *unstructured.Unstructured
	// drift is a foreign change of the route, nil if there is none.
	drift *drift
	// warmth is how far the canary's pods are with their warm-up.
	warmth Warmth
	// now is when this was observed.
	now time.Time
	// share is that of two revisions, nil unless the provider is Knative.
	share *revisionShare
	// gateway is Knative's, for sides in that mode.
	gateway knativeGateway
	// targetPort is where stable's pods take requests, nil while stable's Service does not exist.
	targetPort *intstr.IntOrString
	// rival has the better right to the route, nil if nobody has.
	rival *routing.Rival
}

// side is one of the two sides.
type side struct {
	// of is what the spec says of it.
	of v1alpha1.RolloutSide
	// exists tells whether it exists and is to stay.
	exists bool
	// supported tells whether KServe's mode for it is one that is routed, and mode is that.
	supported bool
	mode      string
	// transformed tells whether they go through a transformer first.
	transformed bool
	// entry is where requests enter it, and gateway the host of Knative's gateway, for an entry there.
	entry   kserve.Entry
	gateway string
	// fromZero tells whether it may have no pod when a request comes, and gets one then.
	fromZero bool
	// workload is the Deployment behind the entry.
	workload string
	// knativeRevision is the revision that the side is, with provider Knative.
	knativeRevision string
	// ready is the number of ready endpoints behind the entry, and ill that of those that are to stay and are not ready.
	ready, ill int32
	// pods are the ready ones.
	pods []Pod
	// models are the names by which its pods know their models, sorted; none if they do not tell.
	models []string
	// templates tell the templates that its pods are made from, sorted; more than one while an update goes on.
	templates []string
	// revision tells what it is from what it may be later.
	revision v1alpha1.CanaryRevision
}

// plan is what to make true.
type plan struct {
	// desired is what the spec asks for, weights is what the route shall carry now.
	desired, weights v1alpha1.WeightPair
	// outcome tells why weights differs from desired.
	outcome routing.Outcome
	// most is the most that the canary can get, nil if nothing bounds it, and needed how many pods carry all traffic.
	most   *int32
	needed int32
	// warmth is how far the canary's pods are with their warm-up.
	warmth Warmth
	// unfit says why the canary, although its pods are ready, may not have traffic; empty if it may.
	unfit string
	// canaryGone tells that the canary has no ready pod because there is no such InferenceService, or it is being deleted.
	canaryGone bool
	// colours are those in force, in their order.
	colours []routing.Colour
	// shadow is the share of requests of which the canary gets a copy, 0 to 100.
	shadow int32
	// host is where clients find the route, empty if nowhere.
	host string
	// unbound says why no client finds the route that is planned, empty if one can.
	unbound string
	// service and route are the objects to apply, nil for none.
	service *corev1ac.ServiceApplyConfiguration
	route   *unstructured.Unstructured
	// provider is the kind of route that is planned.
	provider v1alpha1.RoutingProvider
	// binding is the rule to edit in mode Adopt, nil for none.
	binding *routing.Binding
	// carried tells whether the route carries it already.
	carried bool
	// drift is a foreign change that the plan undoes or leaves, nil if there is none.
	drift *drift
	// repairs are when foreign changes were undone, with the one planned now.
	repairs []time.Time
	// acceptance tells whether the route, as it is to be, has been taken up.
	acceptance routing.Acceptance
	// pruneRoutes are routes of the rollout's own that are no longer wanted, and pruneService tells whether its Service
	// is not, once the rest is in place.
	pruneRoutes  []*unstructured.Unstructured
	pruneService bool
	// wake is when to look again if nothing happens before, 0 for never.
	wake time.Duration
	// held says why the route is left as it is, and heldReason is the reason; both are empty if it is not.
	held, heldReason string
	// stalled says what the user must change, nil if nothing.
	stalled error
}

// routes reports whether the plan has a route to keep.
func (p plan) routes() bool {
	return p.stalled == nil && p.held == ""
}

// planFor decides what the route shall carry, and which objects that takes.
//
// A plan that is held or stalled changes nothing: whatever is routed stays routed. It is stalled when the user must act,
// and held when a side that is not in the route yet has still to come up, so that an edit which names a side that does
// not exist never takes traffic from one that does.
func planFor(rollout *v1alpha1.CanaryRollout, seen observed) plan {
	p := plan{desired: routing.Desired(seen.asked), provider: seen.provider.Name()}
	p.bind(rollout, seen)
	if p.stalled = refusal(rollout, seen); p.stalled != nil {
		if withdrawn(seen) {
			p.pruneRoutes = ownRoutes(rollout, seen)
		}
		if !seen.served {
			p.wake = kindsInterval
		}
		return p
	}
	canaryReady := seen.canary.ready
	p.canaryGone = !seen.canary.exists
	if p.unfit = unfit(rollout, seen); p.unfit != "" {
		canaryReady = 0
	}
	p.weights, p.outcome = routing.Split(seen.asked, seen.stable.ready, canaryReady)
	p.limit(rollout, seen)
	p.keepFromCold(rollout, seen)
	var err error
	if p.colours, err = routing.Colours(rollout.Spec.Colours, seen.stable.ready, canaryReady); err != nil {
		p.stalled = refused(err)
		return p
	}
	if shadow := rollout.Spec.Shadow; shadow != nil {
		p.shadow = routing.Shadow(shadow.Percent, p.weights, seen.stable.ready, canaryReady)
	}
	if _, adopts := routing.Adopted(rollout); adopts {
		p.adopt(rollout, seen)
		p.holdEdited(seen)
	} else {
		p.own(rollout, seen)
	}
	p.countDrift(rollout, seen)
	return p
}

// limit bounds the canary's share by its capacity and its warm-up.
func (p *plan) limit(rollout *v1alpha1.CanaryRollout, seen observed) {
	spec, inForce := rollout.Spec, rollout.Status.Weights.Applied
	p.warmth = seen.warmth
	if spec.Capacity == nil && spec.Warmup == nil {
		return
	}
	policy := v1alpha1.RolloutCapacity{}
	if spec.Capacity != nil {
		policy = *spec.Capacity
		p.needed = routing.NeededPods(policy, rollout.Status.NeededPods, inForce, seen.stable.ready)
	}
	has := int32(0)
	if inForce != nil {
		has = inForce.Canary
	}
	pods := routing.Pods{Ready: seen.canary.ready, Ill: seen.canary.ill, Warm: seen.warmth.Warm}
	most, why := routing.MaxSafe(policy, p.needed, pods, has)
	p.most = &most
	p.weights, p.outcome = routing.Limit(p.weights, p.outcome, most, why)
}

// unfit says why the canary cannot stand in for stable, empty if it can.
func unfit(rollout *v1alpha1.CanaryRollout, seen observed) string {
	stable, canary := seen.stable.models, seen.canary.models
	common := slices.ContainsFunc(stable, func(name string) bool { return slices.Contains(canary, name) })
	if rollout.Spec.ModelNames == v1alpha1.ModelNamesAny || len(stable) == 0 || len(canary) == 0 || common {
		return ""
	}
	one, other := titlesOf(rollout)
	return fmt.Sprintf("%s serves the model %q and %s the model %q, so that requests for one are not found on the other: give "+
		"both the same --model_name, or set modelNames to Any if their servers know more names than their arguments tell.",
		one.name, strings.Join(stable, ", "), other.name, strings.Join(canary, ", "))
}

// bind finds out where clients find the route.
func (p *plan) bind(rollout *v1alpha1.CanaryRollout, seen observed) {
	_, adopts := routing.Adopted(rollout)
	switch {
	case adopts:
		p.host = seen.hostOf(seen.adopted)
	case rollout.Spec.Routing.Mode == v1alpha1.RoutingDelegate:
		p.host = seen.hostOf(seen.root)
		if p.host == "" {
			p.unbound = fmt.Sprintf(
				"No VirtualService with a host delegates to %s; give a route of yours `delegate: {name: %s, namespace: %s}`.",
				rollout.Name,
				rollout.Name,
				rollout.Namespace,
			)
		}
	default:
		p.host = seen.domain.Hosts(rollout)[0]
	}
}

// refusal returns what keeps a rollout from having a route until the user acts, nil if nothing does.
func refusal(rollout *v1alpha1.CanaryRollout, seen observed) error {
	if _, adopts := routing.Adopted(rollout); rollout.Spec.Routing.Mode == v1alpha1.RoutingAdopt && !adopts {
		return status.Stalledf(v1alpha1.ReasonRouteNotFound, "virtualServiceRef or httpRouteRef is needed in mode Adopt; set one")
	}
	if !seen.served {
		return status.Stalledf(v1alpha1.ReasonProviderNotInstalled,
			"the API server serves no %s; install its definition, or choose another routing.provider", seen.provider.Kind().Kind)
	}
	if seen.rival != nil {
		return status.Stalledf(v1alpha1.ReasonRouteConflict,
			"%s %s/%s has this route already; change routing here or there, or delete one of the two",
			seen.rival.Kind, seen.rival.Namespace, seen.rival.Name)
	}
	return unroutable(rollout, seen)
}

// withdrawn reports whether a rollout lost its host to one whose own route is in place: of two routes the older one is
// obeyed, which may be the wrong one, so the loser's must go.
func withdrawn(seen observed) bool {
	return seen.rival != nil && seen.rival.Routes && seen.rival.Kind == rolloutKind
}

// ownRoutes returns the routes of the rollout's own.
func ownRoutes(rollout *v1alpha1.CanaryRollout, seen observed) []*unstructured.Unstructured {
	var routes []*unstructured.Unstructured
	for _, route := range []*unstructured.Unstructured{seen.route, seen.former} {
		if owns(rollout, route) {
			routes = append(routes, route)
		}
	}
	return routes
}

// mentions reports whether a route of the rollout's own leads to a destination.
func mentions(seen observed, to routing.Destination) bool {
	for _, route := range []*unstructured.Unstructured{seen.route, seen.former} {
		if route != nil && seen.domain.ProviderOf(route).Mentions(route, to) {
			return true
		}
	}
	return false
}

// own plans a route of the rollout's own and, if clients have no host of theirs, the Service that they call.
func (p *plan) own(rollout *v1alpha1.CanaryRollout, seen observed) {
	stable, canary := seen.destination(rollout, seen.stable), seen.destination(rollout, seen.canary)
	routed := len(ownRoutes(rollout, seen)) > 0 && mentions(seen, stable)
	if seen.stable.ready == 0 && !routed {
		p.hold(seen.stable)
		return
	}
	route := routing.Owned{
		Name: rollout.Name, Namespace: rollout.Namespace,
		Colours: p.colours, Sticky: routing.Sticky(rollout.Spec), Shadow: p.shadow,
		Stable: stable, Canary: canary, Weights: p.weights,
	}
	delegate := rollout.Spec.Routing.Mode == v1alpha1.RoutingDelegate
	if !delegate {
		route.Hosts, route.Gateways = seen.domain.Hosts(rollout), rollout.Spec.Routing.Gateways
	}
	if !delegate && seen.stable.entry.Knative && len(rollout.Spec.Routing.Hosts)+len(rollout.Spec.Routing.Gateways) == 0 {
		// Callers outside the mesh come to the gateway, by the rollout's Service.
		route.Gateways = []string{routing.Mesh, seen.gateway.gateway}
	}
	rendered, err := seen.provider.Render(route)
	if err != nil {
		p.stalled = refused(err)
		return
	}
	p.route = rendered
	var carrier *unstructured.Unstructured
	if seen.route != nil && routing.Carries(seen.route, rendered) {
		carrier = seen.route
	}
	p.carried, p.acceptance = carrier != nil, seen.provider.Acceptance(carrier)
	if seen.former != nil && p.acceptance.Accepted {
		p.pruneRoutes = append(p.pruneRoutes, seen.former)
	}
	switch {
	case delegate, len(rollout.Spec.Routing.Hosts) > 0:
		p.pruneService = owns(rollout, seen.service)
	case seen.stable.entry.Knative:
		p.service = gatewayService(rollout, seen.gateway.host)
	case seen.targetPort != nil:
		p.service = frontService(rollout, seen.stable.entry, *seen.targetPort)
	}
}

// adopt plans the edit of a user's route.
func (p *plan) adopt(rollout *v1alpha1.CanaryRollout, seen observed) {
	ref, _ := routing.Adopted(rollout)
	if seen.share != nil && (seen.adopted == nil || seen.share.revisions.Canary == "") {
		p.holdShare(seen)
		return
	}
	provider := seen.domain.ProviderNamed(ref.Provider)
	if seen.adopted == nil {
		reason, field := v1alpha1.ReasonVirtualServiceNotFound, "virtualServiceRef"
		if ref.Provider == v1alpha1.ProviderHTTPRoute {
			reason, field = v1alpha1.ReasonHTTPRouteNotFound, "httpRouteRef"
		}
		p.stalled = status.Stalledf(reason, "%s %q does not exist; create it, or correct %s.name",
			provider.Kind().Kind, ref.Name, field)
		return
	}
	binding, err := provider.Bind(seen.adopted, ref.Rule,
		seen.destination(rollout, seen.stable), seen.destination(rollout, seen.canary))
	switch {
	case err == nil:
		p.binding = binding
		var carrier *unstructured.Unstructured
		if binding.Carries(p.weights) {
			carrier = seen.adopted
		}
		p.carried = carrier != nil
		if p.acceptance = provider.Acceptance(carrier); p.acceptance.Accepted {
			p.pruneRoutes, p.pruneService = ownRoutes(rollout, seen), owns(rollout, seen.service)
		}
	case !seen.stable.exists:
		p.hold(seen.stable)
	case !seen.canary.exists:
		p.hold(seen.canary)
	default:
		p.stalled = refused(err)
	}
}

// refused turns a refusal of the routing package into one that is told to the user.
func refused(err error) error {
	if refusal, ok := errors.AsType[*routing.RefusedError](err); ok {
		return status.Stalledf(refusal.Reason, "%s", refusal.Message)
	}
	return err
}

// destination returns where a side is reached.
func (seen observed) destination(rollout *v1alpha1.CanaryRollout, one side) routing.Destination {
	host := seen.domain.ServiceHost(one.entry.Service, rollout.Namespace)
	if rollout.Spec.Routing.Provider == v1alpha1.ProviderKnative {
		return routing.Destination{Host: one.knativeRevision}
	}
	if one.entry.Knative {
		return routing.Destination{Host: one.gateway, Port: one.entry.Port, Authority: host}
	}
	return routing.Destination{Host: host, Port: one.entry.Port}
}

// owns reports whether an object exists and was made for this rollout.
func owns[T any, P interface {
	*T
	metav1.Object
}](rollout *v1alpha1.CanaryRollout, object P) bool {
	return object != nil && metav1.IsControlledBy(object, rollout)
}

func (seen observed) hostOf(route *unstructured.Unstructured) string {
	if route == nil {
		return ""
	}
	if hosts := seen.domain.ProviderOf(route).Hosts(route); len(hosts) > 0 {
		return hosts[0]
	}
	return ""
}

// hold leaves the route as it is until a side has come up.
func (p *plan) hold(one side) {
	if one.exists {
		p.heldReason = v1alpha1.ReasonInferenceServiceNotReady
		p.held = titleOf(one.of) + " has no ready pod; the route is left as it is until it has."
		return
	}
	p.heldReason = v1alpha1.ReasonInferenceServiceNotFound
	p.held = titleOf(one.of) + " does not exist; the route is left as it is until it does."
}

// titleOf names a side in a sentence of its own.
func titleOf(one v1alpha1.RolloutSide) string {
	if one.Variant != "" {
		return fmt.Sprintf("Variant %q of InferenceService %q", one.Variant, one.InferenceService)
	}
	return fmt.Sprintf("InferenceService %q", one.InferenceService)
}

// named is a side in messages: its title begins a sentence, its name stands within one.
type named struct{ title, name string }

// titlesOf returns how the sides of a rollout are called.
func titlesOf(rollout *v1alpha1.CanaryRollout) (stable, canary named) {
	if between := rollout.Status.Revisions; between != nil {
		return named{fmt.Sprintf("Revision %q", between.Stable), between.Stable},
			named{fmt.Sprintf("Revision %q", between.Canary), between.Canary}
	}
	stable = named{titleOf(rollout.Spec.Stable), nameOf(rollout.Spec.Stable)}
	return stable, named{titleOf(rollout.Spec.Canary), nameOf(rollout.Spec.Canary)}
}

// nameOf names a side within a sentence.
func nameOf(one v1alpha1.RolloutSide) string {
	if one.Variant != "" {
		return one.InferenceService + "/" + one.Variant
	}
	return one.InferenceService
}
