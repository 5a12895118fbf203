// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Provider is a kind of route: how it is rendered, read, claimed and adopted. What differs between the kinds stays
// behind it.
type Provider interface {
	// Name is the provider's name in the API.
	Name() v1alpha1.RoutingProvider
	// Kind is that of its routes.
	Kind() schema.GroupVersionKind
	// Render returns the route that a description asks for. What the kind cannot say is a *RefusedError.
	Render(route Owned) (*unstructured.Unstructured, error)
	// Strangers returns a JSON Patch that removes from a live route what a rendered one lacks and server-side apply would
	// leave there, nil if that is nothing.
	Strangers(live, rendered *unstructured.Unstructured) ([]byte, error)
	// Bind finds the named rule of a route and in it the two sides. A route that cannot be adopted is a *RefusedError.
	Bind(live *unstructured.Unstructured, rule string, stable, canary Destination) (*Binding, error)
	// Mentions reports whether a route leads to a destination.
	Mentions(live *unstructured.Unstructured, to Destination) bool
	// Hosts returns the full names of the hosts that a route serves, none for one that others delegate to.
	Hosts(live *unstructured.Unstructured) []string
	// Fields are those of the spec that decide where requests go, RuleField is the one of them with the rules.
	Fields() []string
	RuleField() string
	// Claims returns what a route takes for itself, as seen from a namespace.
	Claims(live *unstructured.Unstructured, seenFrom string) []Claim
	// Acceptance returns whether those who obey the route have taken it up in its present generation. Nil stands for a
	// route that is still to be written.
	Acceptance(live *unstructured.Unstructured) Acceptance
}

// Providers are all kinds that are routes of their own, the one first that Auto prefers where both are as good.
func (d Domain) Providers() []Provider { return []Provider{d.VirtualServices(), d.HTTPRoutes()} }

// ProviderNamed returns the provider of a name, nil for Auto.
func (d Domain) ProviderNamed(name v1alpha1.RoutingProvider) Provider {
	for _, p := range append(d.Providers(), KnativeTraffic()) {
		if p.Name() == name {
			return p
		}
	}
	return nil
}

// ProviderOf returns the provider of a route, nil if it is no route.
func (d Domain) ProviderOf(route *unstructured.Unstructured) Provider {
	for _, p := range append(d.Providers(), KnativeTraffic()) {
		if p.Kind().GroupKind() == route.GroupVersionKind().GroupKind() {
			return p
		}
	}
	return nil
}

// kindOf returns the provider of a route, for what is the same in every domain.
func kindOf(route *unstructured.Unstructured) Provider { return DefaultDomain.ProviderOf(route) }

// NewRoute returns an empty route of a provider.
func NewRoute(p Provider) *unstructured.Unstructured {
	route := &unstructured.Unstructured{Object: map[string]any{}}
	route.SetGroupVersionKind(p.Kind())
	return route
}

// Owned describes a route that Outrigger owns.
type Owned struct {
	// Name and Namespace identify it.
	Name, Namespace string
	// Hosts are the full names of the hosts that it serves; without any it is a delegate.
	Hosts []string
	// Gateways are those whose traffic it routes; empty means callers inside the mesh. A delegate has none.
	Gateways []string
	// Colours are the routes above the split, in their order.
	Colours []Colour
	// Sticky keeps sessions on their side, below the colours; nil for none.
	Sticky *Stickiness
	// Shadow is the share of the requests of the split of which the canary gets a copy, 0 to 100.
	Shadow int32
	// Stable and Canary are the two sides.
	Stable, Canary Destination
	// Weights are their shares.
	Weights v1alpha1.WeightPair
}

func (o Owned) side(name v1alpha1.SideName) Destination {
	if name == v1alpha1.SideCanary {
		return o.Canary
	}
	return o.Stable
}

func (o Owned) gateways() []string {
	if len(o.Gateways) == 0 {
		return []string{Mesh}
	}
	return o.Gateways
}

// SplitRoute is the name of the rule that carries the weights in a route that Outrigger owns.
const SplitRoute = "split"

// Destination is where one side of a rollout is reached.
type Destination struct {
	// Host is the full host name of its Service, or of a gateway that it shares with others.
	Host string
	// Port is the Service's port number, 1 to 65535.
	Port int32
	// Authority is the full host name by which the gateway knows the side: the Host header that its requests are given.
	// It is empty for a Service of the side's own, whose requests keep theirs.
	Authority string
}

// is reports whether a destination of a route, with the Host header that it sets, leads to this side. Where sides share
// a gateway the header alone tells them apart, by whatever name the gateway is called; elsewhere the Service does,
// whatever header its requests are given.
func (d Destination) is(host, authority string) bool {
	if d.Authority != "" {
		return authority == d.Authority
	}
	return host == d.Host
}

// String names a destination in a message.
func (d Destination) String() string {
	if d.Authority != "" {
		return fmt.Sprintf("whose headers.request.set.Host is %q", d.Authority)
	}
	return fmt.Sprintf("with host %q", d.Host)
}

// Acceptance says whether those who obey a route have taken it up.
type Acceptance struct {
	// Accepted is true if all have. It is true at once for routes of which nobody reports.
	Accepted bool
	// Refusal says who refuses the route and why, empty if nobody has answered for its present generation yet.
	Refusal string
}

// Carries reports whether a live route routes exactly as a rendered one. A rule that somebody added is a difference: it
// could stand above ours and take its traffic.
func Carries(live, rendered *unstructured.Unstructured) bool {
	have, want := specOf(live), specOf(rendered)
	for _, field := range kindOf(rendered).Fields() {
		if !reflect.DeepEqual(have[field], want[field]) {
			return false
		}
	}
	return true
}

func specOf(route *unstructured.Unstructured) map[string]any {
	spec, _ := route.Object["spec"].(map[string]any)
	return spec
}

// mapsAt returns the objects of a list, leaving out what is no object.
func mapsAt(parent map[string]any, field string) []map[string]any {
	list, _ := parent[field].([]any)
	out := make([]map[string]any, 0, len(list))
	for _, element := range list {
		if one, ok := element.(map[string]any); ok {
			out = append(out, one)
		}
	}
	return out
}

// stringsAt returns the strings of a list in the spec, and leaves out what is no string.
func stringsAt(route *unstructured.Unstructured, field string) []string {
	list, _ := specOf(route)[field].([]any)
	out := make([]string, 0, len(list))
	for _, element := range list {
		if s, ok := element.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func stringAt(parent map[string]any, field string) string {
	s, _ := parent[field].(string)
	return s
}

// numberAt returns a whole number, which may have come as any kind of JSON number, or a fallback if there is none.
func numberAt(parent map[string]any, field string, fallback int64) int64 {
	switch n := parent[field].(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	default:
		return fallback
	}
}

func anySlice(in []string) []any {
	out := make([]any, len(in))
	for i, s := range in {
		out[i] = s
	}
	return out
}
