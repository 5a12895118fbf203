// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Claim is something that only one rollout can have: a host at a gateway, or a route of a user's VirtualService.
type Claim struct {
	// Host and Gateway are set for a host. Both are in their full form.
	Host, Gateway string
	// Namespace, VirtualService and Route are set for a route.
	Namespace, VirtualService, Route string
}

// Claims returns what a rollout needs for itself.
func Claims(rollout *v1alpha1.CanaryRollout) []Claim {
	switch rollout.Spec.Routing.Mode {
	case v1alpha1.RoutingDelegate:
		return nil // its name is its own
	case v1alpha1.RoutingAdopt:
		ref := rollout.Spec.Routing.VirtualServiceRef
		if ref == nil {
			return nil
		}
		return []Claim{{Namespace: rollout.Namespace, VirtualService: ref.Name, Route: ref.Route}}
	default:
		return hostClaims(Hosts(rollout), rollout.Spec.Routing.Gateways, rollout.Namespace)
	}
}

// Hosts returns the full names of the hosts that a rollout in mode Owned routes.
func Hosts(rollout *v1alpha1.CanaryRollout) []string {
	if len(rollout.Spec.Routing.Hosts) == 0 {
		return []string{ServiceHost(rollout.Name, rollout.Namespace)}
	}
	hosts := make([]string, 0, len(rollout.Spec.Routing.Hosts))
	for _, host := range rollout.Spec.Routing.Hosts {
		hosts = append(hosts, ResolveHost(host, rollout.Namespace))
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

// ClaimsOf returns what a VirtualService takes for itself. One that only its own namespace can see takes nothing from
// the others, so it is empty for these.
func ClaimsOf(vs *unstructured.Unstructured, seenFrom string) []Claim {
	if vs.GetNamespace() != seenFrom && slices.Equal(stringsAt(vs, "exportTo"), []string{"."}) {
		return nil
	}
	return hostClaims(HostsOf(vs), stringsAt(vs, "gateways"), vs.GetNamespace())
}

// Overlap reports whether two lists have a claim in common.
func Overlap(a, b []Claim) bool {
	return slices.ContainsFunc(a, func(claim Claim) bool { return slices.Contains(b, claim) })
}

// Rival is who else claims the route of a rollout, and has the better right to it.
type Rival struct {
	// Kind, Namespace and Name identify a CanaryRollout or a VirtualService.
	Kind, Namespace, Name string
	// Routes is true if the rival's route is in place.
	Routes bool
}

// FindRival returns who has the better right to what a rollout claims, nil if nobody has.
//
// A VirtualService of somebody else that routes the same host at the same gateway comes first, unless the rollout's own
// is older: of the two, Istio obeys the older one. Among rollouts, one whose VirtualService routes the host already keeps it, so that a new or edited rollout
// never takes traffic from one that serves; then the older one wins; then the first by namespace and name.
func FindRival(
	rollout *v1alpha1.CanaryRollout, others []v1alpha1.CanaryRollout, virtualServices []unstructured.Unstructured,
) *Rival {
	claims := Claims(rollout)
	holders := map[string]bool{}
	var ours, foreign *unstructured.Unstructured
	for i := range virtualServices {
		vs := &virtualServices[i]
		owner := metav1.GetControllerOf(vs)
		switch {
		case !Overlap(claims, ClaimsOf(vs, rollout.Namespace)):
		case !isRollout(owner):
			if foreign == nil || older(vs, foreign) {
				foreign = vs
			}
		default:
			holders[string(owner.UID)] = true
			if owner.UID == rollout.UID {
				ours = vs
			}
		}
	}
	if foreign != nil && (ours == nil || older(foreign, ours)) {
		return &Rival{
			Kind: VirtualServiceKind.Kind, Namespace: foreign.GetNamespace(), Name: foreign.GetName(), Routes: true,
		}
	}
	best := rollout
	for i := range others {
		other := &others[i]
		if other.DeletionTimestamp == nil && other.UID != rollout.UID && Overlap(claims, Claims(other)) &&
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

func isRollout(owner *metav1.OwnerReference) bool {
	return owner != nil && owner.Kind == "CanaryRollout" && strings.HasPrefix(owner.APIVersion, v1alpha1.GroupName+"/")
}

func older(a, b *unstructured.Unstructured) bool {
	return a.GetCreationTimestamp().Time.Before(b.GetCreationTimestamp().Time)
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
