// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func TestOwnedHTTPRoute(t *testing.T) {
	o := owned(20)
	o.Gateways = []string{"mesh", "public", "edge/private"}
	colours, err := Colours([]v1alpha1.Colour{{
		Name: "qa", To: v1alpha1.SideCanary, Match: v1alpha1.ColourMatch{Any: []v1alpha1.ColourMark{
			header("x-colour", "canary"),
			{Header: &v1alpha1.HeaderMark{Name: "x-team", Prefix: "ml."}, Cookie: &v1alpha1.CookieMark{Name: "beta", Value: "1"}},
		}},
	}}, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	o.Colours = colours
	const want = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: digits, namespace: ml}
spec:
  parentRefs:
  - {group: "", kind: Service, name: digits}
  - {group: gateway.networking.k8s.io, kind: Gateway, name: public}
  - {group: gateway.networking.k8s.io, kind: Gateway, name: private, namespace: edge}
  hostnames: [digits.ml.svc.cluster.local]
  rules:
  - name: colour-qa
    matches:
    - path: {type: PathPrefix, value: /}
      headers: [{type: Exact, name: x-colour, value: canary}]
    - path: {type: PathPrefix, value: /}
      headers:
      - {type: RegularExpression, name: x-team, value: ml\..*}
      - {type: RegularExpression, name: cookie, value: '^(.*;\s*)?beta=1\s*(;.*)?$'}
    backendRefs:
    - {group: "", kind: Service, name: v2-predictor, port: 80, weight: 100}
  - name: split
    matches:
    - path: {type: PathPrefix, value: /}
    backendRefs:
    - {group: "", kind: Service, name: v1-predictor, port: 80, weight: 80}
    - {group: "", kind: Service, name: v2-predictor, port: 80, weight: 20}
`
	if diff := cmp.Diff(parse(t, want).Object, render(t, DefaultDomain.HTTPRoutes(), o).Object); diff != "" {
		t.Errorf("rendered HTTPRoute (-want +got):\n%s", diff)
	}
	if hosts := render(t, DefaultDomain.HTTPRoutes(), owned(0)).Object["spec"].(map[string]any)["hostnames"]; hosts != nil {
		t.Errorf("host names %v of a route for callers of a Service only, who have none to match", hosts)
	}
}

func TestHTTPRouteRefuses(t *testing.T) {
	mark := func(i int, both bool) v1alpha1.ColourMark {
		m := header(fmt.Sprintf("x-%d", i), "y")
		if both {
			m.Cookie = &v1alpha1.CookieMark{Name: fmt.Sprintf("c%d", i), Value: "y"}
		}
		return m
	}
	marks := func(both bool) []v1alpha1.ColourMark {
		var list []v1alpha1.ColourMark
		for i := range 9 {
			list = append(list, mark(i, both))
		}
		return list
	}
	tests := map[string]struct {
		change func(o *Owned)
		want   string
	}{
		"a host of the mesh that is no Service": {func(o *Owned) { o.Hosts = []string{"shop.example.com"} }, "shop.example.com"},
		"colours that need too many matches": {func(o *Owned) {
			o.Colours = []Colour{
				{Name: "many", To: v1alpha1.SideCanary, marks: marks(false)},
				{Name: "more", To: v1alpha1.SideStable, marks: marks(true)},
			}
		}, `colour "many"`},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			o := owned(0)
			tc.change(&o)
			_, err := DefaultDomain.HTTPRoutes().Render(o)
			refusal, ok := errors.AsType[*RefusedError](err)
			if !ok || refusal.Reason != v1alpha1.ReasonUnsupportedByProvider || !strings.Contains(refusal.Message, tc.want) {
				t.Errorf("rendering: %v; want a refusal that names %s", err, tc.want)
			}
		})
	}
}

const userRoute = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: ml, uid: u-1, generation: 3}
spec:
  parentRefs: [{name: public}]
  hostnames: [shop.example.com]
  invented: {deep: [1, {x: true}]}
  rules:
  - name: static
    matches: [{path: {type: PathPrefix, value: /static}}]
    backendRefs: [{name: static, port: 80}]
  - name: predict
    timeouts: {request: 5s}
    sessionPersistence: {sessionName: s}
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]
    backendRefs:
    - {name: spare, port: 80, weight: 0}
    - {group: "", kind: Service, name: v2-predictor, port: 80, filters: [{type: ExtensionRef}]}
    - {name: v1-predictor, namespace: ml, port: 80, weight: 9, invented: 1}
`

func TestAdoptAnHTTPRoute(t *testing.T) {
	route := parse(t, userRoute)
	before := route.DeepCopy()
	binding, err := DefaultDomain.HTTPRoutes().Bind(route, "predict", sideV1, sideV2)
	if err != nil {
		t.Fatal(err)
	}
	// The Gateway API takes an absent weight for 1.
	if got, want := binding.Weights(), (v1alpha1.WeightPair{Stable: 9, Canary: 1}); got != want {
		t.Errorf("weights found %+v, want %+v", got, want)
	}
	raw, err := binding.Patch(v1alpha1.WeightPair{Stable: 70, Canary: 30})
	if err != nil {
		t.Fatal(err)
	}
	const want = `[` +
		`{"op":"test","path":"/metadata/uid","value":"u-1"},` +
		`{"op":"test","path":"/spec/rules/1/name","value":"predict"},` +
		`{"op":"test","path":"/spec/rules/1/backendRefs/2/name","value":"v1-predictor"},` +
		`{"op":"test","path":"/spec/rules/1/backendRefs/2/namespace","value":"ml"},` +
		`{"op":"test","path":"/spec/rules/1/backendRefs/2/port","value":80},` +
		`{"op":"test","path":"/spec/rules/1/backendRefs/1/group","value":""},` +
		`{"op":"test","path":"/spec/rules/1/backendRefs/1/kind","value":"Service"},` +
		`{"op":"test","path":"/spec/rules/1/backendRefs/1/name","value":"v2-predictor"},` +
		`{"op":"test","path":"/spec/rules/1/backendRefs/1/port","value":80},` +
		`{"op":"add","path":"/spec/rules/1/backendRefs/2/weight","value":70},` +
		`{"op":"add","path":"/spec/rules/1/backendRefs/1/weight","value":30}]`
	if diff := cmp.Diff(want, string(raw)); diff != "" {
		t.Errorf("patch (-want +got):\n%s", diff)
	}
	after := patched(t, route, raw)
	rule := before.Object["spec"].(map[string]any)["rules"].([]any)[1].(map[string]any)["backendRefs"].([]any)
	rule[1].(map[string]any)["weight"], rule[2].(map[string]any)["weight"] = int64(30), int64(70)
	if diff := cmp.Diff(before.Object, after.Object); diff != "" {
		t.Errorf("patched HTTPRoute (-want +got):\n%s", diff)
	}
}

func patched(t *testing.T, route *unstructured.Unstructured, raw []byte) *unstructured.Unstructured {
	t.Helper()
	patch, err := jsonpatch.DecodePatch(raw)
	if err != nil {
		t.Fatal(err)
	}
	document, err := route.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if document, err = patch.Apply(document); err != nil {
		t.Fatal(err)
	}
	return parse(t, string(document))
}

func TestHTTPRouteClaims(t *testing.T) {
	const head = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a, namespace: ml}\nspec:\n"
	gateway := func(host, gateway string) Claim { return Claim{Host: host, Gateway: gateway} }
	tests := map[string]struct {
		spec string
		want []Claim
	}{
		"a Gateway of its namespace": {
			"  {parentRefs: [{name: g}], hostnames: [x.example], rules: [{}]}", []Claim{gateway("x.example", "ml/g")},
		},
		"a Gateway of another": {
			"  {parentRefs: [{name: g, namespace: edge}], hostnames: [x.example], rules: [{}]}",
			[]Claim{gateway("x.example", "edge/g")},
		},
		"a Service": {
			"  {parentRefs: [{group: '', kind: Service, name: digits}], rules: [{matches: [{path: {type: PathPrefix, value: /}}]}]}",
			[]Claim{gateway("digits.ml.svc.cluster.local", Mesh)},
		},
		"a part of the host's paths": {
			"  {parentRefs: [{name: g}], hostnames: [x.example], rules: [{matches: [{path: {type: PathPrefix, value: /static}}]}]}",
			nil,
		},
		"marked requests only": {
			"  {parentRefs: [{name: g}], hostnames: [x.example], rules: [{matches: [{headers: [{name: a, value: b}]}]}]}", nil,
		},
		"a part, and the rest": {
			"  {parentRefs: [{name: g}], hostnames: [x.example], rules: [{matches: [{path: {type: PathPrefix, value: /static}}]}, {}]}",
			[]Claim{gateway("x.example", "ml/g")},
		},
		"nothing at all": {"  {}", nil},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, DefaultDomain.ClaimsOf(parse(t, head+tc.spec), "ml")); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAcceptance(t *testing.T) {
	condition := func(kind, status string, generation int64) map[string]any {
		return map[string]any{
			"type": kind, "status": status, "observedGeneration": generation, "reason": "R", "message": "says the gateway",
		}
	}
	report := func(ref map[string]any, conditions ...any) any {
		return map[string]any{"parentRef": ref, "controllerName": "c", "conditions": conditions}
	}
	service := map[string]any{"group": "", "kind": "Service", "name": "digits"}
	gateway := map[string]any{"name": "public"} // without the fields that have defaults
	yes := []any{condition("Accepted", "True", 4), condition("ResolvedRefs", "True", 4)}
	tests := map[string]struct {
		parents     []any
		want        bool
		wantRefusal string
	}{
		"nobody has answered":  {nil, false, ""},
		"all have accepted":    {[]any{report(service, yes...), report(gateway, yes...)}, true, ""},
		"one has not answered": {[]any{report(service, yes...)}, false, ""},
		"an older generation": {
			[]any{
				report(service, yes...),
				report(gateway, condition("Accepted", "True", 3), condition("ResolvedRefs", "True", 4)),
			},
			false,
			"",
		},
		"an older refusal": {[]any{report(service, yes...), report(gateway, condition("Accepted", "False", 3))}, false, ""},
		"one refuses": {
			[]any{report(service, yes...), report(gateway, condition("Accepted", "False", 4))},
			false,
			`Gateway "public" of HTTPRoute "digits": says the gateway (R)`,
		},
		"a backend is unknown": {
			[]any{
				report(gateway, yes...),
				report(service, condition("Accepted", "True", 4), condition("ResolvedRefs", "False", 4)),
			},
			false,
			`Service "digits" of HTTPRoute "digits": says the gateway (R)`,
		},
		"refs are not mentioned": {[]any{report(service, yes...), report(gateway, condition("Accepted", "True", 4))}, false, ""},
		"of two controllers, one accepts": {[]any{
			report(gateway, condition("Accepted", "False", 4)), report(service, yes...), report(gateway, yes...),
		}, true, ""},
		"another Gateway accepts": {[]any{
			report(service, yes...), report(map[string]any{"name": "public", "namespace": "edge"}, yes...),
		}, false, ""},
		"a listener of it accepts": {[]any{
			report(service, yes...), report(map[string]any{"name": "public", "sectionName": "https"}, yes...),
		}, false, ""},
		"malformed": {[]any{"x", map[string]any{"parentRef": 1, "conditions": []any{1, map[string]any{"type": 2}}}}, false, ""},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			o := owned(0)
			o.Gateways = []string{Mesh, "public"}
			route := render(t, DefaultDomain.HTTPRoutes(), o)
			route.SetGeneration(4)
			if tc.parents != nil {
				route.Object["status"] = map[string]any{"parents": tc.parents}
			}
			if diff := cmp.Diff(
				Acceptance{Accepted: tc.want, Refusal: tc.wantRefusal},
				DefaultDomain.HTTPRoutes().Acceptance(route),
			); diff != "" {
				t.Errorf("acceptance (-want +got):\n%s", diff)
			}
		})
	}
	if DefaultDomain.HTTPRoutes().Acceptance(nil).Accepted {
		t.Error("a route that is not written yet is accepted")
	}
}

func TestProviderOf(t *testing.T) {
	for _, p := range DefaultDomain.Providers() {
		if DefaultDomain.ProviderOf(NewRoute(p)) != p || DefaultDomain.ProviderNamed(p.Name()) != p {
			t.Errorf("%s is not found by its kind and its name", p.Name())
		}
	}
	stranger := &unstructured.Unstructured{Object: map[string]any{"kind": "HTTPRoute", "apiVersion": "example.com/v1"}}
	if DefaultDomain.ProviderOf(stranger) != nil || DefaultDomain.ProviderNamed(v1alpha1.ProviderAuto) != nil {
		t.Error("what is no provider has one")
	}
}
