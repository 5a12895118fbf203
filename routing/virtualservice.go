// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"reflect"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// VirtualServiceKind is Istio's kind, in the version that Istio 1.22 and newer store.
var VirtualServiceKind = schema.GroupVersionKind{
	Group: "networking.istio.io", Version: "v1", Kind: "VirtualService",
}

// SplitRoute is the name of the route that carries the weights in a VirtualService that Outrigger owns.
const SplitRoute = "split"

// Destination is where one side of a rollout is reached.
type Destination struct {
	// Host is the full host name of its Service.
	Host string
	// Port is the Service's port number, 1 to 65535.
	Port int32
}

// Owned describes a VirtualService that Outrigger owns.
type Owned struct {
	// Name and Namespace identify it.
	Name, Namespace string
	// Hosts are the full names of the hosts that it routes, at least one.
	Hosts []string
	// Gateways are those whose traffic it routes; empty means callers inside the mesh.
	Gateways []string
	// Stable and Canary are the two sides.
	Stable, Canary Destination
	// Weights are their shares.
	Weights v1alpha1.WeightPair
}

// VirtualService renders a VirtualService. Both sides are always in it with explicit weights that add up to 100, since
// Istio sends everything to a lone destination, whatever its weight.
func (o Owned) VirtualService() *unstructured.Unstructured {
	gateways := o.Gateways
	if len(gateways) == 0 {
		gateways = []string{Mesh}
	}
	vs := NewVirtualService()
	vs.SetName(o.Name)
	vs.SetNamespace(o.Namespace)
	vs.Object["spec"] = map[string]any{
		"hosts":    anySlice(o.Hosts),
		"gateways": anySlice(gateways),
		"http": []any{
			map[string]any{
				"name": SplitRoute,
				"route": []any{
					o.Stable.weighted(o.Weights.Stable),
					o.Canary.weighted(o.Weights.Canary),
				},
			},
		},
	}
	return vs
}

// NewVirtualService returns an empty VirtualService.
func NewVirtualService() *unstructured.Unstructured {
	vs := &unstructured.Unstructured{Object: map[string]any{}}
	vs.SetGroupVersionKind(VirtualServiceKind)
	return vs
}

func (d Destination) weighted(weight int32) map[string]any {
	return map[string]any{
		"destination": map[string]any{
			"host": d.Host,
			"port": map[string]any{"number": int64(d.Port)},
		},
		"weight": int64(weight),
	}
}

// Carries reports whether a live VirtualService has exactly the hosts, gateways and routes of a rendered one. A route
// that somebody added is a difference: it could stand above ours and take its traffic.
func Carries(live, rendered *unstructured.Unstructured) bool {
	have, _ := live.Object["spec"].(map[string]any)
	want, _ := rendered.Object["spec"].(map[string]any)
	for field, value := range want {
		if !reflect.DeepEqual(have[field], value) {
			return false
		}
	}
	return true
}

// Mentions reports whether a route of a VirtualService has a destination with this full host name.
func Mentions(vs *unstructured.Unstructured, host string) bool {
	spec, _ := vs.Object["spec"].(map[string]any)
	list, _ := spec["http"].([]any)
	for _, element := range list {
		route, _ := element.(map[string]any)
		destinations, _ := route["route"].([]any)
		for _, one := range destinations {
			entry, _ := one.(map[string]any)
			if _, found := readDestination(0, entry, vs.GetNamespace()); found == host {
				return true
			}
		}
	}
	return false
}

// HostsOf returns the full names of the hosts that a VirtualService routes. One without hosts is a delegate.
func HostsOf(vs *unstructured.Unstructured) []string {
	hosts := stringsAt(vs, "hosts")
	for i, host := range hosts {
		hosts[i] = ResolveHost(host, vs.GetNamespace())
	}
	return hosts
}

// stringsAt returns the strings of a list in the spec, and leaves out what is no string.
func stringsAt(vs *unstructured.Unstructured, field string) []string {
	spec, _ := vs.Object["spec"].(map[string]any)
	list, _ := spec[field].([]any)
	out := make([]string, 0, len(list))
	for _, element := range list {
		if s, ok := element.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func anySlice(in []string) []any {
	out := make([]any, len(in))
	for i, s := range in {
		out[i] = s
	}
	return out
}
