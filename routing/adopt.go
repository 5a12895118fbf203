// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// RefusedError says why a user's VirtualService cannot be adopted.
type RefusedError struct {
	// Reason is a reason constant of the API package.
	Reason string
	// Message is a sentence that names the mend.
	Message string
}

// Error implements error.
func (e *RefusedError) Error() string { return e.Message }

func refuse(reason, format string, args ...any) *RefusedError {
	return &RefusedError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Binding is the place in a user's VirtualService whose weights a rollout sets.
type Binding struct {
	uid            string
	route          string
	index          int
	stable, canary boundDestination
}

// boundDestination is one destination of the bound route.
type boundDestination struct {
	index       int
	destination map[string]any
	authority   any
	weight      int64
}

// Bind finds the named route of a VirtualService and in it the destinations of the two sides. The route must have one
// destination for each side, and no third one that gets traffic. A VirtualService that another controller keeps is
// refused, because that controller would put the weights back.
func Bind(vs *unstructured.Unstructured, route string, stable, canary Destination) (*Binding, error) {
	if owner := metav1.GetControllerOf(vs); owner != nil {
		return nil, refuse(
			v1alpha1.ReasonVirtualServiceControlled,
			"VirtualService %q is kept by %s %q, which would undo every change; make a VirtualService of your own, or use mode Owned",
			vs.GetName(),
			owner.Kind,
			owner.Name,
		)
	}
	index, found, err := findRoute(vs, route)
	if err != nil {
		return nil, err
	}
	b := &Binding{uid: string(vs.GetUID()), route: route, index: index}
	if err := b.findDestinations(vs, found, stable, canary); err != nil {
		return nil, err
	}
	return b, nil
}

// findRoute returns the one HTTP route of a name.
func findRoute(vs *unstructured.Unstructured, name string) (int, map[string]any, error) {
	spec, _ := vs.Object["spec"].(map[string]any)
	list, _ := spec["http"].([]any)
	index, found := -1, map[string]any(nil)
	for i, element := range list {
		route, ok := element.(map[string]any)
		if !ok || route["name"] != name {
			continue
		}
		if found != nil {
			return 0, nil, refuse(v1alpha1.ReasonRouteAmbiguous,
				"VirtualService %q has more than one HTTP route named %q; give each a name of its own", vs.GetName(), name)
		}
		index, found = i, route
	}
	if found == nil {
		return 0, nil, refuse(v1alpha1.ReasonRouteNotFound,
			"VirtualService %q has no HTTP route named %q; set spec.http[].name there, or virtualServiceRef.route here",
			vs.GetName(), name)
	}
	return index, found, nil
}

func (b *Binding) findDestinations(vs *unstructured.Unstructured, route map[string]any, stable, canary Destination) error {
	list, _ := route["route"].([]any)
	matches := map[string][]boundDestination{}
	for i, element := range list {
		entry, ok := element.(map[string]any)
		if !ok {
			return refuse(v1alpha1.ReasonRouteNotFound, "route %q of VirtualService %q has a malformed destination; correct it",
				b.route, vs.GetName())
		}
		bound, host := readDestination(i, entry, vs.GetNamespace())
		if host != stable.Host && host != canary.Host && bound.weight != 0 {
			return refuse(v1alpha1.ReasonRouteAmbiguous,
				"route %q of VirtualService %q gives weight %d to a third destination, %q; set its weight to 0 or remove it",
				b.route, vs.GetName(), bound.weight, host)
		}
		matches[host] = append(matches[host], bound)
	}
	for _, side := range []struct {
		host string
		into *boundDestination
	}{{stable.Host, &b.stable}, {canary.Host, &b.canary}} {
		switch found := matches[side.host]; len(found) {
		case 1:
			*side.into = found[0]
		case 0:
			return refuse(v1alpha1.ReasonRouteNotFound,
				"route %q of VirtualService %q has no destination with host %q; add it with weight 0",
				b.route, vs.GetName(), side.host)
		default:
			return refuse(v1alpha1.ReasonRouteAmbiguous,
				"route %q of VirtualService %q has more than one destination with host %q; keep one",
				b.route, vs.GetName(), side.host)
		}
	}
	return nil
}

// readDestination returns a destination and its full host name, "" if it has none.
func readDestination(index int, entry map[string]any, namespace string) (boundDestination, string) {
	destination, _ := entry["destination"].(map[string]any)
	host, _ := destination["host"].(string)
	return boundDestination{
		index: index, destination: destination, authority: authorityOf(entry), weight: weightOf(entry),
	}, ResolveHost(host, namespace)
}

// authorityOf returns the Host header that a destination's requests are given, nil if they keep theirs. Where all
// destinations are one gateway, it alone tells them apart.
func authorityOf(entry map[string]any) any {
	headers, _ := entry["headers"].(map[string]any)
	request, _ := headers["request"].(map[string]any)
	set, _ := request["set"].(map[string]any)
	return set["Host"]
}

// weightOf returns a destination's weight; Istio takes an absent one for 0 where there are several destinations.
func weightOf(entry map[string]any) int64 {
	switch weight := entry["weight"].(type) {
	case int64:
		return weight
	case float64:
		return int64(weight)
	default:
		return 0
	}
}

// Weights returns the weights that the route has.
func (b *Binding) Weights() v1alpha1.WeightPair {
	return v1alpha1.WeightPair{Stable: bounded(b.stable.weight), Canary: bounded(b.canary.weight)}
}

// bounded fits a weight into the API's type; Istio's own is no larger.
func bounded(weight int64) int32 {
	return int32(min(max(weight, 0), math.MaxInt32))
}

// Carries reports whether the route has these weights already.
func (b *Binding) Carries(weights v1alpha1.WeightPair) bool {
	return b.stable.weight == int64(weights.Stable) && b.canary.weight == int64(weights.Canary)
}

// operation is one step of a JSON Patch, RFC 6902.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Patch returns a JSON Patch that sets the two weights and nothing else. Its tests are evaluated by the API server on
// the stored object: if the route has moved, or the destinations have changed places, since the VirtualService was
// read, the patch fails as a whole. The old weights are not tested, or a foreign edit of them could never be repaired.
func (b *Binding) Patch(weights v1alpha1.WeightPair) ([]byte, error) {
	route := "/spec/http/" + strconv.Itoa(b.index)
	patch := []operation{
		{Op: "test", Path: "/metadata/uid", Value: b.uid},
		{Op: "test", Path: route + "/name", Value: b.route},
	}
	for _, side := range []boundDestination{b.stable, b.canary} {
		patch = append(patch, side.guards(route)...)
	}
	patch = append(patch,
		operation{Op: "add", Path: b.stable.path(route) + "/weight", Value: weights.Stable},
		operation{Op: "add", Path: b.canary.path(route) + "/weight", Value: weights.Canary},
	)
	raw, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("encoding patch of route %q: %w", b.route, err)
	}
	return raw, nil
}

func (d boundDestination) path(route string) string {
	return route + "/route/" + strconv.Itoa(d.index)
}

func (d boundDestination) guards(route string) []operation {
	guards := []operation{{Op: "test", Path: d.path(route) + "/destination", Value: d.destination}}
	if d.authority != nil {
		guards = append(guards, operation{
			Op:    "test",
			Path:  d.path(route) + strings.Join([]string{"", "headers", "request", "set", "Host"}, "/"),
			Value: d.authority,
		})
	}
	return guards
}
