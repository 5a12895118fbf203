// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"encoding/json"
	"fmt"
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
	// Hosts are the full names of the hosts that it routes; without any it is a delegate.
	Hosts []string
	// Gateways are those whose traffic it routes; empty means callers inside the mesh. A delegate has none.
	Gateways []string
	// Colours are the routes above the split, in their order.
	Colours []Colour
	// Stable and Canary are the two sides.
	Stable, Canary Destination
	// Weights are their shares.
	Weights v1alpha1.WeightPair
}

// VirtualService renders a VirtualService. Both sides are always in it with explicit weights that add up to 100, since
// Istio sends everything to a lone destination, whatever its weight.
func (o Owned) VirtualService() *unstructured.Unstructured {
	routes := make([]any, 0, len(o.Colours)+1)
	for _, colour := range o.Colours {
		routes = append(routes, colour.route(o.side(colour.To)))
	}
	spec := map[string]any{
		"http": append(routes, map[string]any{
			"name": SplitRoute,
			"route": []any{
				o.Stable.weighted(o.Weights.Stable),
				o.Canary.weighted(o.Weights.Canary),
			},
		}),
	}
	if len(o.Hosts) > 0 {
		gateways := o.Gateways
		if len(gateways) == 0 {
			gateways = []string{Mesh}
		}
		spec["hosts"], spec["gateways"] = anySlice(o.Hosts), anySlice(gateways)
	}
	vs := NewVirtualService()
	vs.SetName(o.Name)
	vs.SetNamespace(o.Namespace)
	vs.Object["spec"] = spec
	return vs
}

func (o Owned) side(name v1alpha1.SideName) Destination {
	if name == v1alpha1.SideCanary {
		return o.Canary
	}
	return o.Stable
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

// Carries reports whether a live VirtualService has the fields of a rendered one, each with exactly its value. A route
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

// Strangers returns a JSON Patch that removes from a live VirtualService what a rendered one lacks, nil if that is
// nothing. Server-side apply leaves such fields to whoever set them, but routes of other protocols would take traffic,
// and a delegate with hosts is none. exportTo stays: it says who sees the route, not where it leads.
func Strangers(live, rendered *unstructured.Unstructured) ([]byte, error) {
	have, _ := live.Object["spec"].(map[string]any)
	want, _ := rendered.Object["spec"].(map[string]any)
	patch := []operation{{Op: "test", Path: "/metadata/uid", Value: string(live.GetUID())}}
	for _, field := range []string{"gateways", "hosts", "tcp", "tls"} {
		if have[field] != nil && want[field] == nil {
			patch = append(patch, operation{Op: "remove", Path: "/spec/" + field})
		}
	}
	if len(patch) == 1 {
		return nil, nil
	}
	raw, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("encoding patch of VirtualService %q: %w", live.GetName(), err)
	}
	return raw, nil
}

// DelegatesTo reports whether a route of a VirtualService delegates to the one with this namespace and name.
func DelegatesTo(vs *unstructured.Unstructured, namespace, name string) bool {
	spec, _ := vs.Object["spec"].(map[string]any)
	list, _ := spec["http"].([]any)
	for _, element := range list {
		route, _ := element.(map[string]any)
		delegate, _ := route["delegate"].(map[string]any)
		if delegate["name"] != name {
			continue
		}
		if in, _ := delegate["namespace"].(string); in == namespace || in == "" && vs.GetNamespace() == namespace {
			return true
		}
	}
	return false
}

// FindRoot returns the VirtualService with a host that delegates to the one with this namespace and name, the oldest if
// there are several, nil if there is none.
func FindRoot(virtualServices []unstructured.Unstructured, namespace, name string) *unstructured.Unstructured {
	var root *unstructured.Unstructured
	for i := range virtualServices {
		vs := &virtualServices[i]
		if DelegatesTo(vs, namespace, name) && len(HostsOf(vs)) > 0 && (root == nil || older(vs, root)) {
			root = vs
		}
	}
	return root
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
