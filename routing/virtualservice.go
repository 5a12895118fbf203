// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// VirtualServiceKind is Istio's kind, in the version that Istio 1.22 and newer store.
var VirtualServiceKind = schema.GroupVersionKind{
	Group: "networking.istio.io", Version: "v1", Kind: "VirtualService",
}

// VirtualServices is the provider of Istio's routes.
func (d Domain) VirtualServices() Provider { return virtualServices{d} }

type virtualServices struct{ domain Domain }

// hostHeader is the header that a route may set for each destination.
const hostHeader = "Host"

// Name implements Provider.
func (virtualServices) Name() v1alpha1.RoutingProvider { return v1alpha1.ProviderVirtualService }

// Kind implements Provider.
func (virtualServices) Kind() schema.GroupVersionKind { return VirtualServiceKind }

// Fields implements Provider. exportTo is not among them: it says who sees the route, not where it leads.
func (virtualServices) Fields() []string { return []string{"gateways", "hosts", "http", "tcp", "tls"} }

// RuleField implements Provider.
func (virtualServices) RuleField() string { return "http" }

// Render implements Provider. Both sides are always in the split with explicit weights that add up to 100, since Istio
// sends everything to a lone destination, whatever its weight.
func (p virtualServices) Render(o Owned) (*unstructured.Unstructured, error) {
	routes := make([]any, 0, len(o.Colours)+3)
	for _, colour := range o.Colours {
		routes = append(routes, map[string]any{
			"name":  colour.RouteName(),
			"match": colour.virtualServiceMatches(),
			"route": []any{weighted(o.side(colour.To), 100)},
		})
	}
	routes = append(routes, stickyRoutes(o)...)
	split := map[string]any{"name": SplitRoute, "route": split(o)}
	if o.Shadow > 0 {
		if err := Mirrors(o.Canary); err != nil {
			return nil, err
		}
		split["mirrors"] = []any{map[string]any{
			"destination": destination(o.Canary), "percentage": map[string]any{"value": int64(o.Shadow)},
		}}
	}
	spec := map[string]any{"http": append(routes, split)}
	if len(o.Hosts) > 0 {
		spec["hosts"], spec["gateways"] = anySlice(o.Hosts), anySlice(o.gateways())
	}
	vs := NewRoute(p)
	vs.SetName(o.Name)
	vs.SetNamespace(o.Namespace)
	vs.Object["spec"] = spec
	return vs, nil
}

// stickyRoutes returns the routes of the sessions of each side.
func stickyRoutes(o Owned) []any {
	canary, stable := o.sessions()
	if canary == "" {
		return nil
	}
	route := func(name, regex string, to Destination) any {
		headers := map[string]any{o.Sticky.header(): map[string]any{"regex": regex}}
		return map[string]any{
			"name": name, "match": []any{map[string]any{"headers": headers}}, "route": []any{weighted(to, 100)},
		}
	}
	return []any{route(stickyCanary, canary, o.Canary), route(stickyStable, stable, o.Stable)}
}

// split returns the destinations of all requests that no other route takes. Where a cookie keeps sessions, there is one
// for each bucket, which its answers put the session into.
func split(o Owned) []any {
	if canary, _ := o.sessions(); canary == "" || o.Sticky.Cookie == "" {
		return []any{weighted(o.Stable, o.Weights.Stable), weighted(o.Canary, o.Weights.Canary)}
	}
	list := make([]any, cookieBuckets)
	for bucket, canary := range o.Sticky.buckets(cookieBuckets, o.Weights.Canary, true) {
		to := o.Stable
		if canary {
			to = o.Canary
		}
		entry := weighted(to, 1)
		headers, _ := entry["headers"].(map[string]any)
		if headers == nil {
			headers = map[string]any{}
			entry["headers"] = headers
		}
		headers["response"] = map[string]any{"add": map[string]any{"Set-Cookie": o.Sticky.setCookie(bucket)}}
		list[bucket] = entry
	}
	return list
}

// weighted returns a destination with its weight. What a route says of headers for all its destinations would be one
// Host for both sides, so that it stands in each of them.
func weighted(to Destination, weight int32) map[string]any {
	entry := map[string]any{"destination": destination(to), "weight": int64(weight)}
	if to.Authority != "" {
		entry["headers"] = map[string]any{"request": map[string]any{"set": map[string]any{hostHeader: to.Authority}}}
	}
	return entry
}

func destination(to Destination) map[string]any {
	return map[string]any{"host": to.Host, "port": map[string]any{"number": int64(to.Port)}}
}

// Strangers implements Provider. Routes of other protocols would take traffic, and a delegate with hosts is none.
func (p virtualServices) Strangers(live, rendered *unstructured.Unstructured) ([]byte, error) {
	return removal(live, rendered, p.Fields())
}

// removal returns a JSON Patch that removes those fields of a live spec that a rendered one lacks, nil if there is none.
func removal(live, rendered *unstructured.Unstructured, fields []string) ([]byte, error) {
	have, want := specOf(live), specOf(rendered)
	patch := []operation{{Op: "test", Path: "/metadata/uid", Value: string(live.GetUID())}}
	for _, field := range fields {
		if have[field] != nil && want[field] == nil {
			patch = append(patch, operation{Op: "remove", Path: "/spec/" + field})
		}
	}
	if len(patch) == 1 {
		return nil, nil
	}
	raw, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("encoding patch of %s %q: %w", live.GetKind(), live.GetName(), err)
	}
	return raw, nil
}

// Mentions implements Provider.
func (p virtualServices) Mentions(vs *unstructured.Unstructured, to Destination) bool {
	for _, route := range mapsAt(specOf(vs), "http") {
		for _, entry := range mapsAt(route, "route") {
			if read := p.domain.readDestination(entry, vs.GetNamespace()); to.is(read.host, read.authority) {
				return true
			}
		}
	}
	return false
}

// FirstDestination returns the host name of the first destination of a VirtualService, and the first of its gateways that
// is not the mesh; each is empty if there is none.
func (d Domain) FirstDestination(vs *unstructured.Unstructured) (host, gateway string) {
	for _, route := range mapsAt(specOf(vs), "http") {
		for _, entry := range mapsAt(route, "route") {
			if host == "" {
				host = d.readDestination(entry, vs.GetNamespace()).host
			}
		}
	}
	for _, one := range stringsAt(vs, "gateways") {
		if gateway == "" && one != Mesh {
			gateway = resolveGateway(one, vs.GetNamespace())
		}
	}
	return host, gateway
}

// SharedGateway returns the host name of the gateway to which a VirtualService sends requests with a Host header of the
// destination's own, "" if there is none.
func (d Domain) SharedGateway(vs *unstructured.Unstructured) string {
	for _, route := range mapsAt(specOf(vs), "http") {
		for _, entry := range mapsAt(route, "route") {
			if read := d.readDestination(entry, vs.GetNamespace()); read.authority != "" {
				return read.host
			}
		}
	}
	return ""
}

// Hosts implements Provider.
func (p virtualServices) Hosts(vs *unstructured.Unstructured) []string {
	hosts := stringsAt(vs, "hosts")
	for i, host := range hosts {
		hosts[i] = p.domain.ResolveHost(host, vs.GetNamespace())
	}
	return hosts
}

// Claims implements Provider. A VirtualService that only its own namespace can see takes nothing from the others.
func (p virtualServices) Claims(vs *unstructured.Unstructured, seenFrom string) []Claim {
	if vs.GetNamespace() != seenFrom && slices.Equal(stringsAt(vs, "exportTo"), []string{"."}) {
		return nil
	}
	return hostClaims(p.Hosts(vs), stringsAt(vs, "gateways"), vs.GetNamespace())
}

// Acceptance implements Provider: of VirtualServices nobody reports.
func (virtualServices) Acceptance(*unstructured.Unstructured) Acceptance {
	return Acceptance{Accepted: true}
}

// DelegatesTo reports whether a route of a VirtualService delegates to the one with this namespace and name.
func DelegatesTo(vs *unstructured.Unstructured, namespace, name string) bool {
	for _, route := range mapsAt(specOf(vs), "http") {
		delegate, _ := route["delegate"].(map[string]any)
		if delegate["name"] != name {
			continue
		}
		if in := stringAt(delegate, "namespace"); in == namespace || in == "" && vs.GetNamespace() == namespace {
			return true
		}
	}
	return false
}

// FindRoot returns the VirtualService with a host that delegates to the one with this namespace and name, the oldest if
// there are several, nil if there is none.
func FindRoot(routes []unstructured.Unstructured, namespace, name string) *unstructured.Unstructured {
	var root *unstructured.Unstructured
	for i := range routes {
		vs := &routes[i]
		if DelegatesTo(vs, namespace, name) && len(stringsAt(vs, "hosts")) > 0 && (root == nil || older(vs, root)) {
			root = vs
		}
	}
	return root
}

// Bind implements Provider.
func (p virtualServices) Bind(
	vs *unstructured.Unstructured, rule string, stable, canary Destination,
) (*Binding, error) {
	return bind(vs, rule, stable, canary, layout{
		kind:         VirtualServiceKind.Kind,
		rules:        p.RuleField(),
		destinations: "route",
		reference:    "virtualServiceRef.route",
		read:         p.domain.readDestination,
	})
}

// readDestination reads a destination. Istio takes an absent weight for 0 where there are several destinations. Where
// all destinations are one gateway, the Host header that they are given alone tells them apart.
func (d Domain) readDestination(entry map[string]any, namespace string) readEntry {
	destination, _ := entry["destination"].(map[string]any)
	read := readEntry{
		host:     d.ResolveHost(stringAt(destination, "host"), namespace),
		identity: map[string]any{"destination": destination},
		weight:   numberAt(entry, "weight", 0),
	}
	headers, _ := entry["headers"].(map[string]any)
	request, _ := headers["request"].(map[string]any)
	set, _ := request["set"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if strings.EqualFold(name, hostHeader) || strings.EqualFold(name, ":authority") {
			read.identity["headers/request/set/"+name] = set[name]
			authority, _ := set[name].(string)
			read.authority = d.resolveAuthority(authority)
		}
	}
	return read
}
