// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

var (
	sideV1 = Destination{Host: "v1-predictor.ml.svc.cluster.local", Port: 80}
	sideV2 = Destination{Host: "v2-predictor.ml.svc.cluster.local", Port: 80}
)

func everything(tb testing.TB) *unstructured.Unstructured {
	tb.Helper()
	raw, err := os.ReadFile("testdata/everything.yaml")
	if err != nil {
		tb.Fatal(err)
	}
	return parse(tb, string(raw))
}

// TestAdoptKeepsEverythingElse is the promise of mode Adopt: of an object that uses every field, also such as nobody
// knows yet, exactly two numbers change.
func TestAdoptKeepsEverythingElse(t *testing.T) {
	vs := everything(t)
	before := vs.DeepCopy()
	binding, err := DefaultDomain.VirtualServices().Bind(vs, "split", sideV1, sideV2)
	if err != nil {
		t.Fatalf("binding: %v", err)
	}
	after := applied(t, vs, binding, v1alpha1.WeightPair{Stable: 1, Canary: 99})

	if diff := cmp.Diff(before.Object, vs.Object); diff != "" {
		t.Errorf("the object that was read has changed (-before +after):\n%s", diff)
	}
	want := before.DeepCopy()
	destinations := want.Object["spec"].(map[string]any)["http"].([]any)[2].(map[string]any)["route"].([]any)
	destinations[0].(map[string]any)["weight"] = int64(1)
	destinations[2].(map[string]any)["weight"] = int64(99)
	if diff := cmp.Diff(want.Object, after.Object); diff != "" {
		t.Errorf("patched VirtualService (-want +got):\n%s", diff)
	}
	again, err := DefaultDomain.VirtualServices().Bind(after, "split", sideV1, sideV2)
	if err != nil {
		t.Fatalf("binding the patched object: %v", err)
	}
	if !again.Carries(v1alpha1.WeightPair{Stable: 1, Canary: 99}) {
		t.Error("the patched object would be patched again")
	}
}

func TestAdoptGuards(t *testing.T) {
	const want = `[
 {"op":"test","path":"/metadata/uid","value":"0d6a3a4e-2f6b-4a56-9d2d-6f4f0f7f3a51"},
 {"op":"test","path":"/spec/http/2/name","value":"split"},
 {"op":"test","path":"/spec/http/2/route/0/destination","value":{"host":"v1-predictor","port":{"number":80}}},
 {"op":"test","path":"/spec/http/2/route/2/destination","value":{"host":"v2-predictor.ml.svc.cluster.local","inventedInDestination":7,"subset":"warm"}},
 {"op":"test","path":"/spec/http/2/route/2/headers/request/set/Host","value":"v2.example.com"},
 {"op":"add","path":"/spec/http/2/route/0/weight","value":100},
 {"op":"add","path":"/spec/http/2/route/2/weight","value":0}
]`
	binding, err := DefaultDomain.VirtualServices().Bind(everything(t), "split", sideV1, sideV2)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := binding.Patch(v1alpha1.WeightPair{Stable: 100})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(decoded(t, []byte(want)), decoded(t, patch)); diff != "" {
		t.Errorf("patch (-want +got):\n%s", diff)
	}
}

// TestAdoptGuardsHold checks that a patch made from an old read never lands on another route, destination or object.
func TestAdoptGuardsHold(t *testing.T) {
	http := func(vs *unstructured.Unstructured) []any { return vs.Object["spec"].(map[string]any)["http"].([]any) }
	tests := map[string]struct {
		change      func(vs *unstructured.Unstructured)
		wantApplied bool
	}{
		"an annotation": {func(vs *unstructured.Unstructured) { vs.SetAnnotations(nil) }, true},
		"a timeout of the route": {func(vs *unstructured.Unstructured) {
			http(vs)[2].(map[string]any)["timeout"] = "9s"
		}, true},
		"the weights, by somebody else": {func(vs *unstructured.Unstructured) {
			http(vs)[2].(map[string]any)["route"].([]any)[0].(map[string]any)["weight"] = int64(5)
		}, true},
		"made anew under its old name": {func(vs *unstructured.Unstructured) { vs.SetUID("another") }, false},
		"a route inserted above": {func(vs *unstructured.Unstructured) {
			vs.Object["spec"].(map[string]any)["http"] = append([]any{map[string]any{"name": "new"}}, http(vs)...)
		}, false},
		"routes removed": {func(vs *unstructured.Unstructured) {
			vs.Object["spec"].(map[string]any)["http"] = http(vs)[:1]
		}, false},
		"destinations exchanged": {func(vs *unstructured.Unstructured) {
			slices.Reverse(http(vs)[2].(map[string]any)["route"].([]any))
		}, false},
		"a subset added": {func(vs *unstructured.Unstructured) {
			route := http(vs)[2].(map[string]any)["route"].([]any)
			route[0].(map[string]any)["destination"].(map[string]any)["subset"] = "cold"
		}, false},
		"another Host header": {func(vs *unstructured.Unstructured) {
			route := http(vs)[2].(map[string]any)["route"].([]any)
			route[2].(map[string]any)["headers"] = map[string]any{"request": map[string]any{"set": map[string]any{"Host": "v3"}}}
		}, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			vs := everything(t)
			binding, err := DefaultDomain.VirtualServices().Bind(vs, "split", sideV1, sideV2)
			if err != nil {
				t.Fatal(err)
			}
			stored := vs.DeepCopy()
			tc.change(stored)
			raw, err := binding.Patch(v1alpha1.WeightPair{Stable: 50, Canary: 50})
			if err != nil {
				t.Fatal(err)
			}
			_, err = tryPatch(t, stored, raw)
			if got := err == nil; got != tc.wantApplied {
				t.Errorf("patch applied: %t (%v), want %t", got, err, tc.wantApplied)
			}
		})
	}
}

func TestBindRefuses(t *testing.T) {
	const head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: shop, namespace: ml}\n"
	const both = "[{destination: {host: v1-predictor}, weight: 100}, {destination: {host: v2-predictor}}]"
	controlled := func(group, kind string) func(*unstructured.Unstructured) {
		return func(vs *unstructured.Unstructured) {
			vs.SetOwnerReferences([]metav1.OwnerReference{{
				APIVersion: group, Kind: kind, Name: "x", UID: "u", Controller: new(true),
			}})
		}
	}
	tests := map[string]struct {
		spec       string
		change     func(*unstructured.Unstructured)
		wantReason string
	}{
		"kept by an InferenceService": {
			"{http: [{name: split, route: " + both + "}]}", controlled("serving.kserve.io/v1beta1", "InferenceService"),
			v1alpha1.ReasonRouteControlled,
		},
		"kept by a Knative Ingress": {
			"{http: [{name: split, route: " + both + "}]}", controlled("networking.internal.knative.dev/v1alpha1", "Ingress"),
			v1alpha1.ReasonRouteControlled,
		},
		"no route of the name":    {"{http: [{name: other, route: " + both + "}]}", nil, v1alpha1.ReasonRouteNotFound},
		"an unnamed route only":   {"{http: [{route: " + both + "}]}", nil, v1alpha1.ReasonRouteNotFound},
		"a TLS route of the name": {"{tls: [{name: split, route: " + both + "}]}", nil, v1alpha1.ReasonRouteNotFound},
		"a TCP route only":        {"{tcp: [{route: " + both + "}]}", nil, v1alpha1.ReasonRouteNotFound},
		"no spec":                 {"{}", nil, v1alpha1.ReasonRouteNotFound},
		"two routes of the name": {
			"{http: [{name: split, route: " + both + "}, {name: split}]}",
			nil,
			v1alpha1.ReasonRouteAmbiguous,
		},
		"a redirect": {"{http: [{name: split, redirect: {uri: /x}}]}", nil, v1alpha1.ReasonRouteNotFound},
		"a mirror without a route": {
			"{http: [{name: split, mirror: {host: v1-predictor}}]}",
			nil,
			v1alpha1.ReasonRouteNotFound,
		},
		"stable missing": {
			"{http: [{name: split, route: [{destination: {host: v2-predictor}}]}]}",
			nil,
			v1alpha1.ReasonRouteNotFound,
		},
		"canary missing": {
			"{http: [{name: split, route: [{destination: {host: v1-predictor}}]}]}",
			nil,
			v1alpha1.ReasonRouteNotFound,
		},
		"a host of the same label": {
			"{http: [{name: split, route: [{destination: {host: v1-predictor}}, {destination: {host: v2-predictor.elsewhere.svc.cluster.local}}]}]}",
			nil,
			v1alpha1.ReasonRouteNotFound,
		},
		"an empty host": {
			"{http: [{name: split, route: [{destination: {host: v1-predictor}}, {destination: {host: ''}}]}]}",
			nil,
			v1alpha1.ReasonRouteNotFound,
		},
		"stable twice": {
			"{http: [{name: split, route: [{destination: {host: v1-predictor}}, {destination: {host: v1-predictor, subset: b}}, {destination: {host: v2-predictor}}]}]}",
			nil,
			v1alpha1.ReasonRouteAmbiguous,
		},
		"a third one with a share": {
			"{http: [{name: split, route: [{destination: {host: v1-predictor}}, {destination: {host: v2-predictor}}, {destination: {host: third}, weight: 5}]}]}",
			nil,
			v1alpha1.ReasonRouteAmbiguous,
		},
		"a destination that is text": {
			"{http: [{name: split, route: [v1-predictor, v2-predictor]}]}",
			nil,
			v1alpha1.ReasonRouteNotFound,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			vs := parse(t, head+"spec: "+tc.spec+"\n")
			if tc.change != nil {
				tc.change(vs)
			}
			_, err := DefaultDomain.VirtualServices().Bind(vs, "split", sideV1, sideV2)
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Reason != tc.wantReason {
				t.Errorf("Bind = %v, want a refusal with reason %s", err, tc.wantReason)
			}
		})
	}
}

// FuzzAdopt: whatever a route looks like, Bind and Patch neither panic nor change anything but two weights.
func FuzzAdopt(f *testing.F) {
	raw, err := everything(f).MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(
		[]byte(
			`{"spec":{"http":[{"name":"split","route":[{"destination":{"host":"v1-predictor.ml.svc.cluster.local"}},{"weight":1e2,"destination":{"host":"v2-predictor.ml.svc.cluster.local"}}]}]}}`,
		),
	)
	f.Add([]byte(`{"spec":{"http":[null,{"name":"split","route":[null]}]},"metadata":{"ownerReferences":[{}]}}`))
	f.Add(
		[]byte(
			`{"spec":{"rules":[{"name":"split","backendRefs":[{"name":"v1-predictor"},{"name":"v2-predictor","weight":7,"a~/b":1}]}]}}`,
		),
	)
	f.Fuzz(func(t *testing.T, raw []byte) {
		route := &unstructured.Unstructured{}
		if json.Unmarshal(raw, &route.Object) != nil || route.Object == nil {
			return
		}
		if metadata, ok := route.Object["metadata"].(map[string]any); !ok || metadata["uid"] == nil {
			route.Object["metadata"] = map[string]any{"namespace": "ml", "uid": "u"}
		}
		for _, p := range DefaultDomain.Providers() {
			adoptAny(t, p, route.DeepCopy())
		}
	})
}

func adoptAny(t *testing.T, p Provider, route *unstructured.Unstructured) {
	t.Helper()
	binding, err := p.Bind(route, "split", sideV1, sideV2)
	if err != nil {
		return
	}
	set, err := binding.Set(route, v1alpha1.WeightPair{Stable: 37, Canary: 63})
	if err != nil {
		t.Fatalf("setting the weights of what was bound: %v", err)
	}
	after := applied(t, route, binding, v1alpha1.WeightPair{Stable: 37, Canary: 63})
	if diff := cmp.Diff(canonical(t, after.Object), canonical(t, set.Object)); diff != "" {
		t.Errorf("Set differs from the patch (-patch +set):\n%s", diff)
	}
	for _, side := range []struct {
		bound boundDestination
		want  float64
	}{{binding.stable, 37}, {binding.canary, 63}} {
		if got, _ := json.Marshal(dropWeight(after, side.bound.path)); string(got) != jsonOf(side.want) {
			t.Errorf("weight = %s, want %v", got, side.want)
		}
		dropWeight(route, side.bound.path)
	}
	if diff := cmp.Diff(canonical(t, route.Object), canonical(t, after.Object)); diff != "" {
		t.Errorf("more than the weights changed (-before +after):\n%s", diff)
	}
}

// dropWeight removes the weight of the destination at a path and returns it.
func dropWeight(route *unstructured.Unstructured, path string) any {
	entry, err := entryAt(route, path)
	if err != nil {
		panic(err)
	}
	defer maps.DeleteFunc(entry, func(key string, _ any) bool { return key == "weight" })
	return entry["weight"]
}

func jsonOf(value any) string {
	raw, _ := json.Marshal(value)
	return string(raw)
}

func canonical(tb testing.TB, object map[string]any) string {
	tb.Helper()
	raw, err := json.Marshal(object)
	if err != nil {
		tb.Fatal(err)
	}
	return string(raw)
}

// applied patches an object as the API server does.
func applied(
	tb testing.TB,
	vs *unstructured.Unstructured,
	binding *Binding,
	weights v1alpha1.WeightPair,
) *unstructured.Unstructured {
	tb.Helper()
	raw, err := binding.Patch(weights)
	if err != nil {
		tb.Fatal(err)
	}
	after, err := tryPatch(tb, vs, raw)
	if err != nil {
		tb.Fatalf("applying %s: %v", raw, err)
	}
	return after
}

func tryPatch(tb testing.TB, vs *unstructured.Unstructured, raw []byte) (*unstructured.Unstructured, error) {
	tb.Helper()
	patch, err := jsonpatch.DecodePatch(raw)
	if err != nil {
		tb.Fatalf("decoding %s: %v", raw, err)
	}
	document, err := patch.Apply([]byte(canonical(tb, vs.Object)))
	if err != nil {
		return nil, err
	}
	after := &unstructured.Unstructured{}
	decode := json.Unmarshal
	if vs.GetKind() != "" {
		decode = func(raw []byte, _ any) error { return after.UnmarshalJSON(raw) }
	}
	if err := decode(document, &after.Object); err != nil {
		tb.Fatalf("decoding the patched object: %v", err)
	}
	return after, nil
}

func decoded(tb testing.TB, raw []byte) any {
	tb.Helper()
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		tb.Fatal(err)
	}
	return value
}
