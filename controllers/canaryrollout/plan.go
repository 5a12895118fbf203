// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"errors"
	"fmt"

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
	// stable and canary are the two sides.
	stable, canary side
	// asked is the share that is asked for the canary, 0 to 100.
	asked int32
	// virtualService is the one named like the rollout, nil if there is none.
	virtualService *unstructured.Unstructured
	// service is the one named like the rollout, nil if there is none.
	service *corev1.Service
	// adopted is the one that virtualServiceRef names, nil if there is none or the mode is not Adopt.
	adopted *unstructured.Unstructured
	// root is the user's VirtualService that delegates to the one named like the rollout, nil if there is none.
	root *unstructured.Unstructured
	// targetPort is where stable's pods take requests, nil while stable's Service does not exist.
	targetPort *intstr.IntOrString
	// rival has the better right to the route, nil if nobody has.
	rival *routing.Rival
}

// side is one of the two InferenceServices.
type side struct {
	// name is that of the InferenceService.
	name string
	// exists tells whether it exists and is to stay.
	exists bool
	// supported tells whether its requests enter by a Service.
	supported bool
	// entry is where requests enter it.
	entry kserve.Entry
	// ready is the number of ready endpoints behind the entry.
	ready int32
	// revision tells what it is from what it may be later.
	revision v1alpha1.CanaryRevision
}

// plan is what to make true.
type plan struct {
	// desired is what the spec asks for, weights is what the route shall carry now.
	desired, weights v1alpha1.WeightPair
	// outcome tells why weights differs from desired.
	outcome routing.Outcome
	// colours are those in force, in their order.
	colours []routing.Colour
	// host is where clients find the route, empty if nowhere.
	host string
	// unbound says why no client finds the route that is planned, empty if one can.
	unbound string
	// service and virtualService are the objects to apply, nil for none.
	service        *corev1ac.ServiceApplyConfiguration
	virtualService *unstructured.Unstructured
	// binding is the route to edit in mode Adopt, nil for none.
	binding *routing.Binding
	// pruneService and pruneVirtualService tell whether those of the rollout's own are no longer wanted, once the rest
	// is in place.
	pruneService, pruneVirtualService bool
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
	p := plan{desired: routing.Desired(seen.asked)}
	p.bind(rollout, seen)
	if p.stalled = refusal(rollout, seen); p.stalled != nil {
		p.pruneVirtualService = withdrawn(rollout, seen)
		return p
	}
	p.weights, p.outcome = routing.Split(seen.asked, seen.stable.ready, seen.canary.ready)
	var err error
	if p.colours, err = routing.Colours(rollout.Spec.Colours, seen.stable.ready, seen.canary.ready); err != nil {
		p.stalled = refused(err)
		return p
	}
	if rollout.Spec.Routing.Mode == v1alpha1.RoutingAdopt {
		p.adopt(rollout, seen)
	} else {
		p.own(rollout, seen)
	}
	return p
}

// bind finds out where clients find the route.
func (p *plan) bind(rollout *v1alpha1.CanaryRollout, seen observed) {
	switch rollout.Spec.Routing.Mode {
	case v1alpha1.RoutingAdopt:
		p.host = hostOf(seen.adopted)
	case v1alpha1.RoutingDelegate:
		p.host = hostOf(seen.root)
		if p.host == "" {
			p.unbound = fmt.Sprintf(
				"No VirtualService with a host delegates to %s; give a route of yours `delegate: {name: %s, namespace: %s}`.",
				rollout.Name,
				rollout.Name,
				rollout.Namespace,
			)
		}
	default:
		p.host = routing.Hosts(rollout)[0]
	}
}

// refusal returns what keeps a rollout from having a route until the user acts, nil if nothing does.
func refusal(rollout *v1alpha1.CanaryRollout, seen observed) error {
	if rollout.Spec.Routing.Mode == v1alpha1.RoutingAdopt && rollout.Spec.Routing.VirtualServiceRef == nil {
		return status.Stalledf(v1alpha1.ReasonVirtualServiceNotFound, "virtualServiceRef is needed in mode Adopt; set it")
	}
	if seen.rival != nil {
		return status.Stalledf(v1alpha1.ReasonRouteConflict,
			"%s %s/%s has this route already; change routing here or there, or delete one of the two",
			seen.rival.Kind, seen.rival.Namespace, seen.rival.Name)
	}
	for _, one := range []side{seen.stable, seen.canary} {
		if one.exists && !one.supported {
			return status.Stalledf(
				v1alpha1.ReasonUnsupportedDeploymentMode,
				"InferenceService %q is not in deployment mode Standard; make it so with the annotation serving.kserve.io/deploymentMode",
				one.name,
			)
		}
	}
	return nil
}

// withdrawn reports whether a rollout that lost its host to one whose own route is in place still has a VirtualService
// for it: Istio takes the older VirtualService, which may be the wrong one.
func withdrawn(rollout *v1alpha1.CanaryRollout, seen observed) bool {
	rival := seen.rival
	return rival != nil && rival.Routes && rival.Kind == rolloutKind && owns(rollout, seen.virtualService)
}

// own plans a VirtualService of the rollout's own and, if clients have no host of theirs, the Service that they call.
func (p *plan) own(rollout *v1alpha1.CanaryRollout, seen observed) {
	stable, canary := destination(rollout, seen.stable), destination(rollout, seen.canary)
	routed := owns(rollout, seen.virtualService) && routing.Mentions(seen.virtualService, stable.Host)
	if seen.stable.ready == 0 && !routed {
		p.hold(seen.stable)
		return
	}
	route := routing.Owned{
		Name: rollout.Name, Namespace: rollout.Namespace,
		Colours: p.colours, Stable: stable, Canary: canary, Weights: p.weights,
	}
	delegate := rollout.Spec.Routing.Mode == v1alpha1.RoutingDelegate
	if !delegate {
		route.Hosts, route.Gateways = routing.Hosts(rollout), rollout.Spec.Routing.Gateways
	}
	p.virtualService = route.VirtualService()
	switch {
	case delegate, len(rollout.Spec.Routing.Hosts) > 0:
		p.pruneService = owns(rollout, seen.service)
	case seen.targetPort != nil:
		p.service = frontService(rollout, seen.stable.entry, *seen.targetPort)
	}
}

// adopt plans the edit of a user's VirtualService.
func (p *plan) adopt(rollout *v1alpha1.CanaryRollout, seen observed) {
	ref := rollout.Spec.Routing.VirtualServiceRef
	if seen.adopted == nil {
		p.stalled = status.Stalledf(v1alpha1.ReasonVirtualServiceNotFound,
			"VirtualService %q does not exist; create it, or correct virtualServiceRef.name", ref.Name)
		return
	}
	binding, err := routing.Bind(seen.adopted, ref.Route,
		destination(rollout, seen.stable), destination(rollout, seen.canary))
	switch {
	case err == nil:
		p.binding = binding
		p.pruneVirtualService, p.pruneService = owns(rollout, seen.virtualService), owns(rollout, seen.service)
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
func destination(rollout *v1alpha1.CanaryRollout, one side) routing.Destination {
	return routing.Destination{
		Host: routing.ServiceHost(one.entry.Service, rollout.Namespace), Port: one.entry.Port,
	}
}

// owns reports whether an object exists and was made for this rollout.
func owns[T any, P interface {
	*T
	metav1.Object
}](rollout *v1alpha1.CanaryRollout, object P) bool {
	return object != nil && metav1.IsControlledBy(object, rollout)
}

func hostOf(vs *unstructured.Unstructured) string {
	if vs == nil {
		return ""
	}
	if hosts := routing.HostsOf(vs); len(hosts) > 0 {
		return hosts[0]
	}
	return ""
}

// hold leaves the route as it is until a side has come up.
func (p *plan) hold(one side) {
	if one.exists {
		p.heldReason = v1alpha1.ReasonInferenceServiceNotReady
		p.held = fmt.Sprintf("InferenceService %q has no ready pod; the route is left as it is until it has.", one.name)
		return
	}
	p.heldReason = v1alpha1.ReasonInferenceServiceNotFound
	p.held = fmt.Sprintf("InferenceService %q does not exist; the route is left as it is until it does.", one.name)
}
