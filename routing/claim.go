// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Claim is something that only one rollout can have: a host at a gateway, or a rule of a user's route.
type Claim struct {
	// Host and Gateway are set for a host. Both are in their full form.
	Host, Gateway string
	// Namespace, Kind, Name and Rule are set for a rule.
	Namespace, Kind, Name, Rule string
}

// Claims returns what a rollout needs for itself.
func (d Domain) Claims(rollout *v1alpha1.CanaryRollout) []Claim {
	ref, adopts := Adopted(rollout)
	switch mode := rollout.Spec.Routing.Mode; {
	case mode == v1alpha1.RoutingDelegate:
		return nil // its name is its own
	case mode == v1alpha1.RoutingAdopt && !adopts:
		return nil
	case adopts:
		return []Claim{
			{Namespace: rollout.Namespace, Kind: d.ProviderNamed(ref.Provider).Kind().Kind, Name: ref.Name, Rule: ref.Rule},
		}
	default:
		return hostClaims(d.Hosts(rollout), rollout.Spec.Routing.Gateways, rollout.Namespace)
	}
}

// Reference names a rule of a user's route.
type Reference struct {
	// Provider names that of the route, Name is the route's and Rule that of the rule in it.
	Provider v1alpha1.RoutingProvider
	Name     string
	Rule     string
}

// Adopted returns what a rollout adopts, false if that is nothing: a rule of a route, or the percentage of an
// InferenceService.
func Adopted(rollout *v1alpha1.CanaryRollout) (Reference, bool) {
	if rollout.Spec.Routing.Provider == v1alpha1.ProviderKnative {
		return Reference{Provider: v1alpha1.ProviderKnative, Name: rollout.Spec.Stable.InferenceService}, true
	}
	if ref := rollout.Spec.Routing.VirtualServiceRef; ref != nil {
		return Reference{Provider: v1alpha1.ProviderVirtualService, Name: ref.Name, Rule: ref.Route}, true
	}
	if ref := rollout.Spec.Routing.HTTPRouteRef; ref != nil {
		return Reference{Provider: v1alpha1.ProviderHTTPRoute, Name: ref.Name, Rule: ref.Rule}, true
	}
	return Reference{}, false
}

// Hosts returns the full names of the hosts that a rollout in mode Owned routes.
func (d Domain) Hosts(rollout *v1alpha1.CanaryRollout) []string {
	if len(rollout.Spec.Routing.Hosts) == 0 {
		return []string{d.ServiceHost(rollout.Name, rollout.Namespace)}
	}
	hosts := make([]string, 0, len(rollout.Spec.Routing.Hosts))
	for _, host := range rollout.Spec.Routing.Hosts {
		hosts = append(hosts, d.ResolveHost(host, rollout.Namespace))
	}
	return hosts
}

func hostClaims(hosts, gateways []string, namespace string) []Claim {
	if len(gateways) == 0 {
		gateways = []string{Mesh}
	}
	claims := make([]Claim, 0, len(hosts)*len(gateways))
	for _, host := range hosts {
		for _, gateway := range gateways {
			claims = append(claims, Claim{Host: host, Gateway: resolveGateway(gateway, namespace)})
		}
	}
	return claims
}

// ClaimsOf returns what a route takes for itself, as seen from a namespace.
func (d Domain) ClaimsOf(route *unstructured.Unstructured, seenFrom string) []Claim {
	provider := d.ProviderOf(route)
	if provider == nil {
		return nil
	}
	return provider.Claims(route, seenFrom)
}

// Overlap reports whether two lists have a claim in common.
func Overlap(a, b []Claim) bool {
	return slices.ContainsFunc(a, func(claim Claim) bool { return slices.Contains(b, claim) })
}

// Rival is who else claims the route of a rollout, and has the better right to it.
type Rival struct {
	// Kind, Namespace and Name identify a CanaryRollout or a route.
	Kind, Namespace, Name string
	// Routes is true if the rival's route is in place.
	Routes bool
}

// FindRival returns who has the better right to what a rollout claims, nil if nobody has.
//
// A route of somebody else that serves the same host at the same gateway comes first, unless the rollout's own is older:
// of the two, the older one is obeyed. Among rollouts, one whose route serves the host already keeps it, so that a new
// or edited rollout never takes traffic from one that serves; then the older one wins; then the first by namespace and
// name.
func (d Domain) FindRival(
	rollout *v1alpha1.CanaryRollout, others []v1alpha1.CanaryRollout, routes []unstructured.Unstructured,
) *Rival {
	claims := d.Claims(rollout)
	holders := map[string]bool{}
	var ours, foreign *unstructured.Unstructured
	for i := range routes {
		route := &routes[i]
		if !Overlap(claims, d.ClaimsOf(route, rollout.Namespace)) {
			continue
		}
		switch owner := metav1.GetControllerOf(route); {
		case keptFor(route, rollout):
			ours = oldest(ours, route)
		case !isRollout(owner):
			foreign = oldest(foreign, route)
		default:
			holders[string(owner.UID)] = true
			if owner.UID == rollout.UID {
				ours = oldest(ours, route)
			}
		}
	}
	if foreign != nil && (ours == nil || older(foreign, ours)) {
		return &Rival{Kind: foreign.GetKind(), Namespace: foreign.GetNamespace(), Name: foreign.GetName(), Routes: true}
	}
	best := rollout
	for i := range others {
		other := &others[i]
		if other.DeletionTimestamp == nil && other.UID != rollout.UID && Overlap(claims, d.Claims(other)) &&
			precedes(other, best, holders) {
			best = other
		}
	}
	if best == rollout {
		return nil
	}
	return &Rival{
		Kind: "CanaryRollout", Namespace: best.Namespace, Name: best.Name, Routes: holders[string(best.UID)],
	}
}

// keptFor reports whether a route is the one that an earlier rollout of this name has kept.
func keptFor(route *unstructured.Unstructured, rollout *v1alpha1.CanaryRollout) bool {
	return route.GetNamespace() == rollout.Namespace && route.GetName() == rollout.Name && LeftBehind(route, rollout)
}

// LeftBehind reports whether an object of the rollout's namespace was made by an earlier rollout of its name, and kept for
// this one to take over.
func LeftBehind(object metav1.Object, rollout *v1alpha1.CanaryRollout) bool {
	labels := object.GetLabels()
	return metav1.GetControllerOf(object) == nil &&
		labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy && labels[v1alpha1.LabelInstance] == rollout.Name
}

func isRollout(owner *metav1.OwnerReference) bool {
	return owner != nil && owner.Kind == "CanaryRollout" && strings.HasPrefix(owner.APIVersion, v1alpha1.GroupName+"/")
}

// oldest returns the older one of two routes, of which the first may be nil.
func oldest(a, b *unstructured.Unstructured) *unstructured.Unstructured {
	if a == nil || older(b, a) {
		return b
	}
	return a
}

// older orders routes as Istio does, and those of one second by their names: lists come in any order, and what is told
// of them must not change with it.
func older(a, b *unstructured.Unstructured) bool {
	if x, y := a.GetCreationTimestamp().Time, b.GetCreationTimestamp().Time; !x.Equal(y) {
		return x.Before(y)
	}
	return a.GetName()+"."+a.GetNamespace() < b.GetName()+"."+b.GetNamespace()
}

func precedes(a, b *v1alpha1.CanaryRollout, holders map[string]bool) bool {
	if x, y := holders[string(a.UID)], holders[string(b.UID)]; x != y {
		return x
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.Namespace+"/"+a.Name < b.Namespace+"/"+b.Name
}
