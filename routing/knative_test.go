// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

const gatewayHost = "knative-local-gateway.istio-system.svc.cluster.local"

// byHost is a side that is reached by Knative's gateway.
func byHost(service string) Destination {
	return Destination{Host: gatewayHost, Port: 80, Authority: DefaultDomain.ServiceHost(service, "ml")}
}

// hostShares returns the share of each Host header among the destinations of a rule, and of each host without one.
func hostShares(rule map[string]any) map[string]int64 {
	shares := map[string]int64{}
	for _, entry := range mapsAt(rule, "route") {
		read := DefaultDomain.readDestination(entry, "ml")
		key := read.authority
		if key == "" {
			key = read.host
		}
		shares[key] += read.weight
	}
	return shares
}

// TestSidesByHost: behind one gateway every destination, of whatever rule, says by its Host header which side it is.
func TestSidesByHost(t *testing.T) {
	const stable, canary = "v1-predictor.ml.svc.cluster.local", "v2-predictor.ml.svc.cluster.local"
	standard := Destination{Host: stable, Port: 80}
	qa := Colour{Name: "qa", To: v1alpha1.SideCanary, marks: []v1alpha1.ColourMark{
		{Header: &v1alpha1.HeaderMark{Name: "x-colour", Exact: "canary"}},
	}}
	tests := map[string]struct {
		change func(*Owned)
		want   []map[string]int64
	}{
		"weights": {want: []map[string]int64{{stable: 70, canary: 30}}},
		"a side without a share": {
			change: func(o *Owned) { o.Weights = pair(0) },
			want:   []map[string]int64{{stable: 100, canary: 0}},
		},
		"a stable side in Standard mode": {
			change: func(o *Owned) { o.Stable = standard },
			want:   []map[string]int64{{stable: 70, canary: 30}},
		},
		"a colour": {
			change: func(o *Owned) { o.Colours = []Colour{qa} },
			want:   []map[string]int64{{canary: 100}, {stable: 70, canary: 30}},
		},
		"sessions by header": {
			change: func(o *Owned) { o.Sticky = &Stickiness{Header: "x-session-id"} },
			want:   []map[string]int64{{canary: 100}, {stable: 100}, {stable: 70, canary: 30}},
		},
		"sessions by cookie": {
			change: func(o *Owned) { o.Sticky = &Stickiness{Cookie: "side", TTL: time.Hour} },
			want:   []map[string]int64{{canary: 100}, {stable: 100}, {stable: 70, canary: 30}},
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			o := Owned{
				Name: "fraud", Namespace: "ml", Hosts: []string{"fraud.ml.svc.cluster.local"},
				Stable: byHost("v1-predictor"), Canary: byHost("v2-predictor"), Weights: pair(30),
			}
			if tc.change != nil {
				tc.change(&o)
			}
			vs, err := DefaultDomain.VirtualServices().Render(o)
			if err != nil {
				t.Fatal(err)
			}
			var got []map[string]int64
			for _, rule := range mapsAt(specOf(vs), "http") {
				got = append(got, hostShares(rule))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("shares (-want +got):\n%s", diff)
			}
			for _, rule := range mapsAt(specOf(vs), "http") {
				for _, entry := range mapsAt(rule, "route") {
					if read := DefaultDomain.readDestination(entry, "ml"); read.authority != "" && read.host != gatewayHost {
						t.Errorf("%s is not sent to the gateway", read)
					}
				}
			}
			if !DefaultDomain.VirtualServices().Mentions(vs, o.Stable) ||
				!DefaultDomain.VirtualServices().Mentions(vs, o.Canary) ||
				DefaultDomain.VirtualServices().Mentions(vs, byHost("v3-predictor")) {
				t.Error("the route does not know its own sides")
			}
			if got := DefaultDomain.SharedGateway(vs); got != gatewayHost {
				t.Errorf("the gateway is %q", got)
			}
		})
	}
}

// TestSessionsByCookieKeepTheirHost: the cookie that an answer sets is beside the Host that the request is given.
func TestSessionsByCookieKeepTheirHost(t *testing.T) {
	vs, err := DefaultDomain.VirtualServices().Render(Owned{
		Name: "fraud", Namespace: "ml", Sticky: &Stickiness{Cookie: "side", TTL: time.Hour},
		Stable: byHost("v1-predictor"), Canary: byHost("v2-predictor"), Weights: pair(30),
	})
	if err != nil {
		t.Fatal(err)
	}
	rules := mapsAt(specOf(vs), "http")
	for _, entry := range mapsAt(rules[len(rules)-1], "route") {
		cookie, _, _ := unstructured.NestedString(entry, "headers", "response", "add", "Set-Cookie")
		host, _, _ := unstructured.NestedString(entry, "headers", "request", "set", "Host")
		if cookie == "" || host == "" {
			t.Fatalf("a destination has the headers %v", entry["headers"])
		}
	}
}

const adoptedByHost = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: ml, uid: 7}
spec:
  hosts: [shop.example.com]
  http:
  - name: predict
    route:
    - {destination: {host: knative-local-gateway.istio-system.svc.cluster.local, port: {number: 80}}, headers: {request: {set: {Host: v1-predictor.ml.svc.cluster.local}}}, weight: 100}
    - {destination: {host: knative-local-gateway.istio-system.svc.cluster.local, port: {number: 80}}, headers: {request: {set: {Host: v2-predictor.ml.svc.cluster.local, x-a: b}}}}
`

func readRoute(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	route := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &route.Object); err != nil {
		t.Fatal(err)
	}
	return route
}

func TestBindByHost(t *testing.T) {
	tests := map[string]struct {
		old, new string // what is replaced in the route
		stable   Destination
		// want is a word of the refusal, empty if the route is bound.
		want string
		// wantGuard is a guard that the patch must have.
		wantGuard string
	}{
		"as KServe writes them": {
			wantGuard: `{"op":"test","path":"/spec/http/0/route/1/headers/request/set/Host","value":"v2-predictor.ml.svc.cluster.local"}`,
		},
		"by their short names": {
			old: "v2-predictor.ml.svc.cluster.local", new: "v2-predictor.ml",
			wantGuard: `{"op":"test","path":"/spec/http/0/route/1/headers/request/set/Host","value":"v2-predictor.ml"}`,
		},
		"by another name of the header": {
			old:       "{Host: v2-predictor",
			new:       "{':authority': v2-predictor",
			wantGuard: `{"op":"test","path":"/spec/http/0/route/1/headers/request/set/:authority","value":"v2-predictor.ml.svc.cluster.local"}`,
		},
		"at a gateway of another name": {
			old:       "host: knative-local-gateway.istio-system",
			new:       "host: my-gateway.edge",
			wantGuard: `{"op":"test","path":"/spec/http/0/route/0/destination","value":{"host":"my-gateway.edge.svc.cluster.local","port":{"number":80}}}`,
		},
		"a third side at the same gateway": {
			old:  "    - {destination",
			new:  "    - {destination: {host: knative-local-gateway.istio-system.svc.cluster.local}, headers: {request: {set: {Host: v3-predictor.ml}}}, weight: 1}\n    - {destination",
			want: "v3-predictor",
		},
		"the gateway without a Host": {
			old: "headers: {request: {set: {Host: v1-predictor.ml.svc.cluster.local}}}, ", new: "",
			want: "weight 100 to a third destination",
		},
		"one side twice": {
			old: "Host: v2-predictor", new: "Host: v1-predictor", want: "more than one destination",
		},
		"stable in Standard mode": {
			old:       "{destination: {host: knative-local-gateway.istio-system.svc.cluster.local, port: {number: 80}}, headers: {request: {set: {Host: v1-predictor.ml.svc.cluster.local}}}, weight: 100}",
			new:       "{destination: {host: v1-predictor}, weight: 100}",
			stable:    Destination{Host: "v1-predictor.ml.svc.cluster.local", Port: 80},
			wantGuard: `{"op":"test","path":"/spec/http/0/route/0/destination","value":{"host":"v1-predictor"}}`,
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			route := readRoute(t, strings.Replace(adoptedByHost, tc.old, tc.new, 1))
			if tc.stable.Host == "" {
				tc.stable = byHost("v1-predictor")
			}
			binding, err := DefaultDomain.VirtualServices().Bind(route, "predict", tc.stable, byHost("v2-predictor"))
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want a word of %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			patch, err := binding.Patch(pair(30))
			if err != nil {
				t.Fatal(err)
			}
			var operations []json.RawMessage
			if err := json.Unmarshal(patch, &operations); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(patch), tc.wantGuard) {
				t.Errorf("the patch lacks the guard %s:\n%s", tc.wantGuard, patch)
			}
		})
	}
}

func TestNotByHost(t *testing.T) {
	o := Owned{
		Name:      "fraud",
		Namespace: "ml",
		Hosts:     []string{"fraud.ml.svc.cluster.local"},
		Stable: Destination{
			Host: "v1-predictor.ml.svc.cluster.local",
			Port: 80,
		},
		Canary:  byHost("v2-predictor"),
		Weights: pair(0),
	}
	_, byHTTPRoute := DefaultDomain.HTTPRoutes().Render(o)
	o.Shadow = 10
	_, mirrored := DefaultDomain.VirtualServices().Render(o)
	for what, err := range map[string]error{"an HTTPRoute": byHTTPRoute, "a shadow": mirrored} {
		refusal, ok := errors.AsType[*RefusedError](err)
		if !ok || refusal.Reason != v1alpha1.ReasonUnsupportedByProvider {
			t.Errorf("%s for a side that is known by its Host is not refused: %v", what, err)
		}
	}
	if err := Mirrors(o.Stable); err != nil {
		t.Errorf("a Service of its own is refused: %v", err)
	}
}

// TestGatewayOfKServe: KServe's own route tells which gateway it uses.
func TestGatewayOfKServe(t *testing.T) {
	host, gateway := DefaultDomain.FirstDestination(readRoute(t, `
kind: VirtualService
metadata: {name: v1, namespace: ml}
spec:
  gateways: [knative-serving/inner, mesh, knative-serving/outer]
  http: [{route: [{destination: {host: gateway.edge.svc.cluster.local, port: {number: 80}}, weight: 100}]}]
`))
	if host != "gateway.edge.svc.cluster.local" || gateway != "knative-serving/inner" {
		t.Errorf("the gateway is %q at %q", gateway, host)
	}
}
