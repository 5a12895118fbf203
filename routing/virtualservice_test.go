// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func owned(canary int32) Owned {
	return Owned{
		Name: "digits", Namespace: "ml", Hosts: []string{"digits.ml.svc.cluster.local"},
		Stable:  Destination{Host: "v1-predictor.ml.svc.cluster.local", Port: 80},
		Canary:  Destination{Host: "v2-predictor.ml.svc.cluster.local", Port: 80},
		Weights: v1alpha1.WeightPair{Stable: 100 - canary, Canary: canary},
	}
}

func render(tb testing.TB, p Provider, o Owned) *unstructured.Unstructured {
	tb.Helper()
	route, err := p.Render(o)
	if err != nil {
		tb.Fatal(err)
	}
	return route
}

func TestOwnedVirtualService(t *testing.T) {
	const want = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: digits, namespace: ml}
spec:
  hosts: [digits.ml.svc.cluster.local]
  gateways: [mesh]
  http:
  - name: split
    route:
    - destination: {host: v1-predictor.ml.svc.cluster.local, port: {number: 80}}
      weight: 100
    - destination: {host: v2-predictor.ml.svc.cluster.local, port: {number: 80}}
      weight: 0
`
	if diff := cmp.Diff(parse(t, want).Object, render(t, DefaultDomain.VirtualServices(), owned(0)).Object); diff != "" {
		t.Errorf("rendered VirtualService (-want +got):\n%s", diff)
	}
}

func TestCarriesFindsEveryDifference(t *testing.T) {
	spec := func(vs *unstructured.Unstructured) map[string]any { return vs.Object["spec"].(map[string]any) }
	http := func(vs *unstructured.Unstructured) []any { return spec(vs)["http"].([]any) }
	split := func(vs *unstructured.Unstructured) map[string]any { return http(vs)[0].(map[string]any) }
	tests := map[string]struct {
		change func(vs *unstructured.Unstructured)
		want   bool
	}{
		"nothing": {func(*unstructured.Unstructured) {}, true},
		"a label, which is not the route's": {func(vs *unstructured.Unstructured) {
			vs.SetLabels(map[string]string{"team": "fraud"})
		}, true},
		"a weight": {func(vs *unstructured.Unstructured) {
			split(vs)["route"].([]any)[0].(map[string]any)["weight"] = int64(70)
		}, false},
		"a weight of 0 that is absent": {func(vs *unstructured.Unstructured) {
			delete(split(vs)["route"].([]any)[1].(map[string]any), "weight")
		}, false},
		"a route above ours": {func(vs *unstructured.Unstructured) {
			spec(vs)["http"] = append([]any{map[string]any{"name": "thief"}}, http(vs)...)
		}, false},
		"a route below ours": {func(vs *unstructured.Unstructured) {
			spec(vs)["http"] = append(http(vs), map[string]any{"name": "spare"})
		}, false},
		"a third destination": {func(vs *unstructured.Unstructured) {
			split(vs)["route"] = append(split(vs)["route"].([]any), map[string]any{"weight": int64(0)})
		}, false},
		"a timeout":      {func(vs *unstructured.Unstructured) { split(vs)["timeout"] = "1s" }, false},
		"another host":   {func(vs *unstructured.Unstructured) { spec(vs)["hosts"] = []any{"a.example"} }, false},
		"no spec at all": {func(vs *unstructured.Unstructured) { delete(vs.Object, "spec") }, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			live := render(t, DefaultDomain.VirtualServices(), owned(0))
			tc.change(live)
			if got := Carries(live, render(t, DefaultDomain.VirtualServices(), owned(0))); got != tc.want {
				t.Errorf("Carries = %t, want %t", got, tc.want)
			}
		})
	}
}

func TestResolveHost(t *testing.T) {
	for host, want := range map[string]string{
		"v1":                "v1.ml.svc.cluster.local",
		"V1":                "v1.ml.svc.cluster.local",
		"v1.other":          "v1.other",
		"fraud.example.com": "fraud.example.com",
		"*":                 "*",
		"":                  "",
	} {
		if got := DefaultDomain.ResolveHost(host, "ml"); got != want {
			t.Errorf("DefaultDomain.ResolveHost(%q) = %q, want %q", host, got, want)
		}
	}
}

func parse(tb testing.TB, text string) *unstructured.Unstructured {
	tb.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(raw); err != nil {
		tb.Fatal(err)
	}
	return object
}

func TestFindRoot(t *testing.T) {
	vs := func(namespace, name, spec string) unstructured.Unstructured {
		return *parse(t, "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"+
			"metadata: {namespace: "+namespace+", name: "+name+"}\nspec: "+spec+"\n")
	}
	tests := map[string]struct {
		given []unstructured.Unstructured
		want  string
	}{
		"nobody": {nil, ""},
		"of the namespace": {
			[]unstructured.Unstructured{vs("ml", "a", "{hosts: [x], http: [{delegate: {name: digits}}]}")},
			"a",
		},
		"of another": {
			[]unstructured.Unstructured{vs("web", "a", "{hosts: [x], http: [{delegate: {name: digits, namespace: ml}}]}")},
			"a",
		},
		"to another's": {
			[]unstructured.Unstructured{vs("web", "a", "{hosts: [x], http: [{delegate: {name: digits}}]}")},
			"",
		},
		"to another name": {
			[]unstructured.Unstructured{vs("ml", "a", "{hosts: [x], http: [{delegate: {name: letters}}]}")},
			"",
		},
		"without hosts": {[]unstructured.Unstructured{vs("ml", "a", "{http: [{delegate: {name: digits}}]}")}, ""},
		"in a later route": {
			[]unstructured.Unstructured{vs("ml", "a", "{hosts: [x], http: [{}, null, {delegate: {name: digits}}]}")},
			"a",
		},
		"without any routes": {[]unstructured.Unstructured{vs("ml", "a", "{hosts: [x]}")}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := ""
			if root := FindRoot(tc.given, "ml", "digits"); root != nil {
				got = root.GetName()
			}
			if got != tc.want {
				t.Errorf("FindRoot = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestStrangers(t *testing.T) {
	live := render(t, DefaultDomain.VirtualServices(), owned(0))
	live.SetUID("u")
	spec := live.Object["spec"].(map[string]any)
	if patch, err := DefaultDomain.VirtualServices().
		Strangers(live, render(t, DefaultDomain.VirtualServices(), owned(0))); patch != nil ||
		err != nil {
		t.Errorf("of our own: %s, %v; want nothing", patch, err)
	}
	spec["tls"], spec["exportTo"] = []any{}, []any{"."}
	delegate := owned(0)
	delegate.Hosts = nil
	patch, err := DefaultDomain.VirtualServices().Strangers(live, render(t, DefaultDomain.VirtualServices(), delegate))
	const want = `[{"op":"test","path":"/metadata/uid","value":"u"},{"op":"remove","path":"/spec/gateways"},` +
		`{"op":"remove","path":"/spec/hosts"},{"op":"remove","path":"/spec/tls"}]`
	if string(patch) != want || err != nil {
		t.Errorf("of a delegate with hosts: %s, %v; want %s", patch, err, want)
	}
}
