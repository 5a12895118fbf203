// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// HTTPRouteKind is the Gateway API's kind.
var HTTPRouteKind = schema.GroupVersionKind{Group: gatewayGroup, Version: "v1", Kind: "HTTPRoute"}

// HTTPRoutes is the provider of the Gateway API's routes.
func (d Domain) HTTPRoutes() Provider { return httpRoutes{d} }

const (
	gatewayGroup = "gateway.networking.k8s.io"
	gatewayKind  = "Gateway"
	serviceKind  = "Service"

	// maxRuleMatches and maxMatches are the Gateway API's bounds, of a rule and of all rules.
	maxRuleMatches = 64
	maxMatches     = 128
)

type httpRoutes struct{ domain Domain }

// Name implements Provider.
func (httpRoutes) Name() v1alpha1.RoutingProvider { return v1alpha1.ProviderHTTPRoute }

// Kind implements Provider.
func (httpRoutes) Kind() schema.GroupVersionKind { return HTTPRouteKind }

// Fields implements Provider.
func (httpRoutes) Fields() []string { return []string{"hostnames", "parentRefs", "rules"} }

// RuleField implements Provider.
func (httpRoutes) RuleField() string { return "rules" }

// Render implements Provider. Every field that the API server would fill in is written out, so that what is stored is
// what was rendered. Callers inside the mesh reach a Service, so that each host of theirs is one.
func (p httpRoutes) Render(o Owned) (*unstructured.Unstructured, error) {
	parents, err := p.parentsOf(o)
	if err != nil {
		return nil, err
	}
	rules, err := p.rulesOf(o)
	if err != nil {
		return nil, err
	}
	spec := map[string]any{"parentRefs": parents, "rules": rules}
	if slices.ContainsFunc(o.gateways(), func(g string) bool { return g != Mesh }) {
		spec["hostnames"] = anySlice(o.Hosts)
	}
	route := NewRoute(p)
	route.SetName(o.Name)
	route.SetNamespace(o.Namespace)
	route.Object["spec"] = spec
	return route, nil
}

// parentsOf returns who the route is attached to: Gateways and, for callers inside the mesh, Services.
func (p httpRoutes) parentsOf(o Owned) ([]any, error) {
	var parents []any
	for _, gateway := range o.gateways() {
		if gateway != Mesh {
			namespace, name, _ := strings.Cut(resolveGateway(gateway, o.Namespace), "/")
			parents = append(parents, parent(gatewayGroup, gatewayKind, name, namespace, o.Namespace))
			continue
		}
		for _, host := range o.Hosts {
			name, namespace, ok := p.domain.serviceOf(host)
			if !ok {
				return nil, refuse(v1alpha1.ReasonUnsupportedByProvider,
					"host %q is no Service, and an HTTPRoute serves callers inside the mesh by Services only; "+
						"name Services in routing.hosts, Gateways in routing.gateways, or use provider VirtualService", host)
			}
			parents = append(parents, parent("", serviceKind, name, namespace, o.Namespace))
		}
	}
	return parents, nil
}

func parent(group, kind, name, namespace, routeNamespace string) map[string]any {
	ref := map[string]any{"group": group, "kind": kind, "name": name}
	if namespace != routeNamespace {
		ref["namespace"] = namespace
	}
	return ref
}

// rulesOf returns a rule for each colour, and the split.
func (p httpRoutes) rulesOf(o Owned) ([]any, error) {
	all := httpRouteMatches(o.Colours)
	rules := make([]any, 0, len(o.Colours)+3)
	total := 3
	for i, colour := range o.Colours {
		total += len(all[i])
		if len(all[i]) > maxRuleMatches || total > maxMatches {
			return nil, refuse(v1alpha1.ReasonUnsupportedByProvider,
				"colour %q takes more matches than an HTTPRoute may have; give colours fewer marks, put those with "+
					"both a header and a cookie first, or use provider VirtualService", colour.Name)
		}
		to, err := p.backend(o.side(colour.To), 100, o.Namespace)
		if err != nil {
			return nil, err
		}
		rules = append(rules, map[string]any{"name": colour.RouteName(), "matches": all[i], "backendRefs": []any{to}})
	}
	sticky, err := p.stickyRules(o)
	if err != nil {
		return nil, err
	}
	split, err := p.splitRule(o)
	if err != nil {
		return nil, err
	}
	return append(append(rules, sticky...), split), nil
}

// stickyRules returns the rules of the sessions of each side. They have one header each, like a colour at least, and
// stand below the colours, which therefore go before.
func (p httpRoutes) stickyRules(o Owned) ([]any, error) {
	if o.Sticky != nil && o.Sticky.Cookie != "" {
		return nil, refuse(v1alpha1.ReasonUnsupportedByProvider,
			"stickiness.cookie needs %d destinations in a rule, and an HTTPRoute may have 16; "+
				"use stickiness.header, or provider VirtualService", cookieBuckets)
	}
	canary, stable := o.sessions()
	if canary == "" {
		return nil, nil
	}
	rules := make([]any, 0, 2)
	for _, one := range []struct {
		name, regex string
		to          Destination
	}{{stickyCanary, canary, o.Canary}, {stickyStable, stable, o.Stable}} {
		to, err := p.backend(one.to, 100, o.Namespace)
		if err != nil {
			return nil, err
		}
		header := map[string]any{"type": "RegularExpression", "name": o.Sticky.Header, "value": one.regex}
		match := map[string]any{"path": everyPath(), "headers": []any{header}}
		rules = append(rules, map[string]any{"name": one.name, "matches": []any{match}, "backendRefs": []any{to}})
	}
	return rules, nil
}

// splitRule returns the rule of all requests that no other rule takes.
func (p httpRoutes) splitRule(o Owned) (map[string]any, error) {
	stable, err := p.backend(o.Stable, o.Weights.Stable, o.Namespace)
	if err != nil {
		return nil, err
	}
	canary, err := p.backend(o.Canary, o.Weights.Canary, o.Namespace)
	if err != nil {
		return nil, err
	}
	rule := map[string]any{
		"name": SplitRoute, "matches": []any{map[string]any{"path": everyPath()}}, "backendRefs": []any{stable, canary},
	}
	if o.Shadow > 0 {
		copies := maps.Clone(canary)
		delete(copies, "weight")
		rule["filters"] = []any{map[string]any{
			"type": "RequestMirror", "requestMirror": map[string]any{"backendRef": copies, "percent": int64(o.Shadow)},
		}}
	}
	return rule, nil
}

func everyPath() map[string]any { return map[string]any{"type": "PathPrefix", "value": "/"} }

func (p httpRoutes) backend(to Destination, weight int32, routeNamespace string) (map[string]any, error) {
	if to.Authority != "" {
		return nil, refuse(v1alpha1.ReasonUnsupportedByProvider,
			"a side in KServe's Knative mode is known by its Host header, which a destination of an HTTPRoute cannot set on "+
				"every gateway; use provider VirtualService")
	}
	name, namespace, ok := p.domain.serviceOf(to.Host)
	if !ok {
		return nil, fmt.Errorf("destination %q is no Service", to.Host)
	}
	ref := parent("", serviceKind, name, namespace, routeNamespace)
	ref["port"], ref["weight"] = int64(to.Port), int64(weight)
	return ref, nil
}

// httpRouteMatches returns the matches of each colour's rule.
//
// An HTTPRoute has no order that decides: of two rules that fit a request, the one with more headers wins, and only
// among equals the first. The order of colours is kept nevertheless: to a mark of one header, marks are added that have
// the header and a further one, for each later mark of two headers that leads elsewhere. A request that carries both
// then finds two rules of two headers, and the first wins. Added marks count as later marks too, so the last colour
// comes first.
func httpRouteMatches(colours []Colour) [][]any {
	marks, all := make([][]v1alpha1.ColourMark, len(colours)), make([][]any, len(colours))
	for i := len(colours) - 1; i >= 0; i-- {
		wanted := slices.Clone(colours[i].marks)
		for _, mark := range colours[i].marks {
			for j := i + 1; j < len(colours); j++ {
				if colours[j].To != colours[i].To {
					wanted = append(wanted, completed(mark, marks[j])...)
				}
			}
		}
		seen := map[string]bool{}
		for _, mark := range wanted {
			if match, key := httpRouteMatch(mark); !seen[key] {
				seen[key] = true
				marks[i], all[i] = append(marks[i], mark), append(all[i], match)
			}
		}
	}
	return all
}

// completed returns a mark of one header completed by what it lacks of each mark of two.
func completed(mark v1alpha1.ColourMark, others []v1alpha1.ColourMark) []v1alpha1.ColourMark {
	var list []v1alpha1.ColourMark
	for _, other := range others {
		switch {
		case other.Header == nil || other.Cookie == nil:
		case mark.Cookie == nil:
			list = append(list, v1alpha1.ColourMark{Header: mark.Header, Cookie: other.Cookie})
		case mark.Header == nil:
			list = append(list, v1alpha1.ColourMark{Header: other.Header, Cookie: mark.Cookie})
		}
	}
	return list
}

// httpRouteMatch returns a match and a text that tells it from others.
func httpRouteMatch(mark v1alpha1.ColourMark) (map[string]any, string) {
	var headers []any
	if header := mark.Header; header != nil {
		kind, value := "RegularExpression", header.Regex
		switch {
		case header.Exact != "":
			kind, value = "Exact", header.Exact
		case header.Prefix != "":
			value = regexp.QuoteMeta(header.Prefix) + ".*"
		}
		headers = append(headers, map[string]any{"type": kind, "name": header.Name, "value": value})
	}
	if cookie := mark.Cookie; cookie != nil {
		headers = append(headers, map[string]any{
			"type": "RegularExpression", "name": "cookie", "value": CookieRegex(cookie.Name, cookie.Value),
		})
	}
	return map[string]any{"path": everyPath(), "headers": headers}, fmt.Sprintf("%q", headers)
}

// Strangers implements Provider. Hosts that somebody added would be served too.
func (p httpRoutes) Strangers(live, rendered *unstructured.Unstructured) ([]byte, error) {
	return removal(live, rendered, p.Fields())
}

// Mentions implements Provider.
func (p httpRoutes) Mentions(route *unstructured.Unstructured, to Destination) bool {
	for _, rule := range mapsAt(specOf(route), "rules") {
		for _, entry := range mapsAt(rule, "backendRefs") {
			if to.is(p.backendHost(entry, route.GetNamespace()), "") {
				return true
			}
		}
	}
	return false
}

// backendHost returns the full host name of the Service that a reference leads to, "" if it is none.
func (p httpRoutes) backendHost(ref map[string]any, namespace string) string {
	if stringAt(ref, "group") != "" || ref["kind"] != nil && ref["kind"] != serviceKind {
		return ""
	}
	if other := stringAt(ref, "namespace"); other != "" {
		namespace = other
	}
	return p.domain.ServiceHost(stringAt(ref, "name"), namespace)
}

// Hosts implements Provider: the Services and host names that the route serves.
func (p httpRoutes) Hosts(route *unstructured.Unstructured) []string {
	var hosts []string
	for _, claim := range p.claims(route) {
		if !slices.Contains(hosts, claim.Host) {
			hosts = append(hosts, claim.Host)
		}
	}
	return hosts
}

// Claims implements Provider. Routes of one host share it by their matches, so only one with a rule for every request
// takes it from others.
func (p httpRoutes) Claims(route *unstructured.Unstructured, _ string) []Claim {
	if !slices.ContainsFunc(mapsAt(specOf(route), "rules"), matchesAll) {
		return nil
	}
	return p.claims(route)
}

func (p httpRoutes) claims(route *unstructured.Unstructured) []Claim {
	var claims []Claim
	for _, ref := range mapsAt(specOf(route), "parentRefs") {
		if ref["kind"] == serviceKind {
			claims = append(claims, Claim{Host: p.backendHost(ref, route.GetNamespace()), Gateway: Mesh})
			continue
		}
		gateway := stringAt(ref, "name")
		if namespace := stringAt(ref, "namespace"); namespace != "" {
			gateway = namespace + "/" + gateway
		}
		claims = append(claims, hostClaims(stringsAt(route, "hostnames"), []string{gateway}, route.GetNamespace())...)
	}
	return claims
}

func matchesAll(rule map[string]any) bool {
	matches := mapsAt(rule, "matches")
	return len(matches) == 0 || slices.ContainsFunc(matches, func(match map[string]any) bool {
		path, _ := match["path"].(map[string]any)
		return match["headers"] == nil && match["queryParams"] == nil && match["method"] == nil &&
			(path == nil || path["type"] == "PathPrefix" && path["value"] == "/")
	})
}

// Bind implements Provider.
func (p httpRoutes) Bind(
	route *unstructured.Unstructured, rule string, stable, canary Destination,
) (*Binding, error) {
	return bind(route, rule, stable, canary, layout{
		kind: HTTPRouteKind.Kind, rules: p.RuleField(), destinations: "backendRefs", reference: "httpRouteRef.rule",
		read: p.readBackend,
	})
}

// readBackend reads a destination; the Gateway API takes an absent weight for 1.
func (p httpRoutes) readBackend(entry map[string]any, namespace string) readEntry {
	identity := map[string]any{}
	for _, field := range []string{"group", "kind", "namespace", "name", "port"} {
		if entry[field] != nil {
			identity[field] = entry[field]
		}
	}
	return readEntry{
		host: p.backendHost(entry, namespace), identity: identity, weight: numberAt(entry, "weight", 1),
	}
}
