// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// provided is what the suite must know of a provider: how the same things are said in its kind of route.
type provided struct {
	provider routing.Provider
	// rules and destinations are the fields that hold them.
	rules, destinations string
	// users is a route of a user's, named shop, with the rules static, predict and rest.
	users string
	// reference adopts the rule predict of shop.
	reference func(*v1alpha1.RolloutRouting)
	// edits are what others may do to a route of ours, as JSON Patches.
	edits map[string]string
}

var providers = []provided{
	{
		provider: routing.DefaultDomain.VirtualServices(), rules: "http", destinations: "route", users: shop,
		reference: func(r *v1alpha1.RolloutRouting) {
			r.VirtualServiceRef = &v1alpha1.VirtualServiceReference{Name: "shop", Route: "predict"}
		},
		edits: map[string]string{
			"weights":       `[{"op":"replace","path":"/spec/http/0/route/0/weight","value":1},{"op":"replace","path":"/spec/http/0/route/1/weight","value":99}]`,
			"a route above": `[{"op":"add","path":"/spec/http/0","value":{"name":"thief","route":[{"destination":{"host":"thief"}}]}}]`,
			"a timeout":     `[{"op":"add","path":"/spec/http/0/timeout","value":"1s"}]`,
			"hosts":         `[{"op":"replace","path":"/spec/hosts","value":["elsewhere"]}]`,
			"a TCP route":   `[{"op":"add","path":"/spec/tcp","value":[{"route":[{"destination":{"host":"thief"}}]}]}]`,
		},
	},
	{
		provider: routing.DefaultDomain.HTTPRoutes(), rules: "rules", destinations: "backendRefs",
		users: `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, labels: {team: web}, annotations: {note: mine}}
spec:
  parentRefs: [{name: public, namespace: edge}]
  hostnames: [shop.example.com]
  rules:
  - name: static
    matches: [{path: {type: PathPrefix, value: /static}}]
    backendRefs: [{name: static, port: 80}]
  - name: predict
    timeouts: {request: 5s}
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]
    backendRefs:
    - {name: v1-predictor, port: 80, weight: 100}
    - {name: v2-predictor, port: 80, weight: 0}
  - name: rest
    matches: [{method: PUT}]
    backendRefs: [{name: v1-predictor, port: 80}]
`,
		reference: func(r *v1alpha1.RolloutRouting) {
			r.HTTPRouteRef = &v1alpha1.HTTPRouteReference{Name: "shop", Rule: "predict"}
		},
		edits: map[string]string{
			"weights":        `[{"op":"replace","path":"/spec/rules/0/backendRefs/0/weight","value":1},{"op":"replace","path":"/spec/rules/0/backendRefs/1/weight","value":99}]`,
			"a rule above":   `[{"op":"add","path":"/spec/rules/0","value":{"name":"thief","backendRefs":[{"name":"thief","port":80}]}}]`,
			"a timeout":      `[{"op":"add","path":"/spec/rules/0/timeouts","value":{"request":"1s"}}]`,
			"parents":        `[{"op":"replace","path":"/spec/parentRefs","value":[{"name":"elsewhere"}]}]`,
			"another's host": `[{"op":"add","path":"/spec/hostnames","value":["elsewhere.example"]}]`,
		},
	},
}

// everyProvider runs a test over all of them.
func everyProvider(t *testing.T, test func(t *testing.T, p provided)) {
	t.Helper()
	for _, p := range providers {
		t.Run(string(p.provider.Name()), func(t *testing.T) { test(t, p) })
	}
}

// owned makes a rollout with a route of its own.
func (p provided) owned(change ...func(*v1alpha1.CanaryRollout)) faults.Step {
	return rollout(func(r *v1alpha1.CanaryRollout) {
		r.Spec.Routing.Provider = p.provider.Name()
		for _, one := range change {
			one(r)
		}
	})
}

// adopting makes a rollout that adopts the shop.
func (p provided) adopting(change ...func(*v1alpha1.CanaryRollout)) faults.Step {
	return rollout(func(r *v1alpha1.CanaryRollout) {
		r.Spec.Routing.Mode = v1alpha1.RoutingAdopt
		p.reference(&r.Spec.Routing)
		for _, one := range change {
			one(r)
		}
	})
}

// live returns a route, nil if there is none.
func (p provided) live(t *testing.T, w *faults.World, name string) *unstructured.Unstructured {
	t.Helper()
	route := routing.NewRoute(p.provider)
	err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, route)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return route
}

// weights returns the weights of a rule by the first letters of their destinations.
func (p provided) weights(t *testing.T, w *faults.World, name, rule string) string {
	t.Helper()
	route := p.live(t, w, name)
	if route == nil {
		return "no route"
	}
	list, _, _ := unstructured.NestedSlice(route.Object, "spec", p.rules)
	var text strings.Builder
	for _, one := range list {
		if one.(map[string]any)["name"] != rule {
			continue
		}
		for _, destination := range one.(map[string]any)[p.destinations].([]any) {
			entry := destination.(map[string]any)
			host, found, _ := unstructured.NestedString(entry, "destination", "host")
			if !found {
				host, _ = entry["name"].(string)
			}
			weight, _, _ := unstructured.NestedInt64(entry, "weight")
			_, _ = fmt.Fprintf(&text, "%.2s=%d ", host, weight)
		}
	}
	return text.String()
}

func (p provided) want(t *testing.T, w *faults.World, name, rule, want string) {
	t.Helper()
	if got := p.weights(t, w, name, rule); got != want {
		t.Errorf("weights of %s/%s are %q, want %q", name, rule, got, want)
	}
}

func (p provided) ruleNames(t *testing.T, w *faults.World) []string {
	t.Helper()
	list, _, _ := unstructured.NestedSlice(p.live(t, w, name).Object, "spec", p.rules)
	var names []string
	for _, rule := range list {
		names = append(names, rule.(map[string]any)["name"].(string))
	}
	return names
}

// settleAll reconciles rollouts and has the gateways answer, until nothing can be left to do.
func settleAll(t *testing.T, w *faults.World, r reconcile.Reconciler, rollouts ...string) {
	t.Helper()
	for range 2 {
		settle(t, w, r, rollouts...)
		do(t, w, gatewaysAccept)
	}
	settle(t, w, r, rollouts...)
}

// gatewaysAccept stands in for gateway controllers, of which none runs on an API server alone: every parent of every
// HTTPRoute accepts it as it is.
func gatewaysAccept(ctx context.Context, w *faults.World) error {
	return gatewaysSay(ctx, w, "True", "")
}

func gatewaysSay(ctx context.Context, w *faults.World, accepted, message string) error {
	list := httpRouteList()
	if err := w.Client.List(ctx, list, client.InNamespace(w.Namespace)); err != nil {
		return err
	}
	for i := range list.Items {
		route := &list.Items[i]
		condition := func(kind, status string) any {
			return map[string]any{
				"type": kind, "status": status, "reason": "Said", "message": message,
				"observedGeneration": route.GetGeneration(), "lastTransitionTime": "2026-01-01T00:00:00Z",
			}
		}
		refs, _, _ := unstructured.NestedSlice(route.Object, "spec", "parentRefs")
		parents := []any{}
		for _, ref := range refs {
			parents = append(parents, map[string]any{
				"parentRef": ref, "controllerName": "example.com/test",
				"conditions": []any{condition("Accepted", accepted), condition("ResolvedRefs", "True")},
			})
		}
		before := route.DeepCopy()
		route.Object["status"] = map[string]any{"parents": parents}
		if cmp.Equal(before.Object["status"], route.Object["status"]) {
			continue
		}
		if err := w.Client.Status().Update(ctx, route); err != nil {
			return err
		}
	}
	return nil
}

func httpRouteList() *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(routing.HTTPRouteKind.GroupVersion().WithKind("HTTPRouteList"))
	return list
}

func TestConformanceWeights(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 2), inferenceService("v2", 1), p.owned())
		for _, n := range []int32{0, 10, 50, 100, 1, 0} {
			do(t, w, percent(int(n)))
			settleAll(t, w, r)
			p.want(t, w, name, routing.SplitRoute, fmt.Sprintf("v1=%d v2=%d ", 100-n, n))
			wantReady(t, w)
			got := get(t, w, name).Status
			want := v1alpha1.WeightPair{Stable: 100 - n, Canary: n}
			if got.Weights.Applied == nil || *got.Weights.Applied != want || got.Provider != p.provider.Name() {
				t.Errorf("status %s %+v, want %s %+v", got.Provider, got.Weights.Applied, p.provider.Name(), want)
			}
			if host := name + "." + w.Namespace + ".svc.cluster.local"; got.Host != host {
				t.Errorf("status.host %q, want %q", got.Host, host)
			}
		}
	})
}

func TestConformanceSidesComeAndGo(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, p.owned(), edit(coloured), percent(30))
		for _, step := range []struct {
			when      string
			do        faults.Step
			want      string
			wantRules []string
		}{
			{"stable is not ready", inferenceService("v1", 0), "no route", nil},
			{"the canary is ready first", inferenceService("v2", 1), "no route", nil},
			{"both are ready", inferenceService("v1", 1), "v1=70 v2=30 ", []string{"colour-qa", "colour-vip", "split"}},
			{"the canary dies", inferenceService("v2", 0), "v1=100 v2=0 ", []string{"colour-vip", "split"}},
			{"the canary is back", inferenceService("v2", 1), "v1=70 v2=30 ", []string{"colour-qa", "colour-vip", "split"}},
			{"stable dies", inferenceService("v1", 0), "v1=0 v2=100 ", []string{"colour-qa", "split"}},
			{"a canary that does not exist", edit(`{"spec":{"canary":{"inferenceService":"v3"}}}`), "v1=100 v3=0 ", []string{"split"}},
		} {
			do(t, w, step.do)
			settleAll(t, w, r)
			t.Log("when", step.when)
			p.want(t, w, name, routing.SplitRoute, step.want)
			if step.wantRules != nil {
				if diff := cmp.Diff(step.wantRules, p.ruleNames(t, w)); diff != "" {
					t.Errorf("rules (-want +got):\n%s", diff)
				}
			}
		}
	})
}

// countWrites returns a client that counts what is written through it.
func countWrites(c client.WithWatch, count *int) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			*count++
			return c.Apply(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			*count++
			return c.Patch(ctx, o, p, opts...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			*count++
			return c.SubResource(sub).Patch(ctx, o, p, opts...)
		},
	})
}

func TestConformanceIdempotence(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		for what, made := range map[string]faults.Step{"owned": p.owned(), "adopted": p.adopting()} {
			w := soleWorld(t)
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(p.users), made, percent(35))
			settleAll(t, w, newReconciler(w.Client, w))
			wantReady(t, w)
			count := 0
			restarted := newReconciler(countWrites(w.Client, &count), w)
			settle(t, w, restarted)
			if count != 0 {
				t.Errorf("%s: %d writes at rest after a restart", what, count)
			}
			do(t, w, percent(36))
			settleAll(t, w, restarted)
			// The route and the status and, of routes that are reported on, the status again once they are.
			if want := map[bool]int{true: 2, false: 3}[p.provider == routing.DefaultDomain.VirtualServices()]; count != want {
				t.Errorf("%s: %d writes for an edit, want %d", what, count, want)
			}
		}
	})
}

func TestConformanceDrift(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), p.owned(), percent(30))
		settleAll(t, w, r)
		want := p.live(t, w, name).Object["spec"]
		for what, patch := range p.edits {
			route := p.live(t, w, name)
			if err := w.Client.Patch(
				t.Context(),
				route,
				client.RawPatch("application/json-patch+json", []byte(patch)),
			); err != nil {
				t.Fatal(err)
			}
			settleAll(t, w, r)
			if diff := cmp.Diff(want, p.live(t, w, name).Object["spec"]); diff != "" {
				t.Errorf("after a foreign edit of %s (-want +got):\n%s", what, diff)
			}
		}
		if err := w.Client.Delete(t.Context(), p.live(t, w, name)); err != nil {
			t.Fatal(err)
		}
		settleAll(t, w, r)
		p.want(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")
	})
}

func TestConformanceAdopt(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(p.users), p.adopting(), percent(35))
		before := p.live(t, w, "shop")
		settleAll(t, w, r)
		wantReady(t, w)
		p.want(t, w, "shop", "predict", "v1=65 v2=35 ")
		if diff := cmp.Diff(p.withoutWeights(before), p.withoutWeights(p.live(t, w, "shop"))); diff != "" {
			t.Errorf("more than the weights changed (-before +after):\n%s", diff)
		}
		if p.live(t, w, name) != nil {
			t.Error("mode Adopt made a route")
		}
		do(t, w, applyYAML(p.users)) // as a GitOps tool would
		p.want(t, w, "shop", "predict", "v1=100 v2=0 ")
		settleAll(t, w, r)
		p.want(t, w, "shop", "predict", "v1=65 v2=35 ")
		wantReady(t, w)
	})
}

// withoutWeights returns a copy without weights, without status and without what every write changes.
func (p provided) withoutWeights(route *unstructured.Unstructured) map[string]any {
	route = route.DeepCopy()
	route.SetResourceVersion("")
	route.SetGeneration(0)
	route.SetManagedFields(nil)
	delete(route.Object, "status")
	rules, _, _ := unstructured.NestedSlice(route.Object, "spec", p.rules)
	for _, rule := range rules {
		destinations, _ := rule.(map[string]any)[p.destinations].([]any)
		for _, destination := range destinations {
			delete(destination.(map[string]any), "weight")
		}
	}
	_ = unstructured.SetNestedSlice(route.Object, rules, "spec", p.rules)
	return route.Object
}

func TestConformanceAdoptStalls(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		missing := v1alpha1.ReasonVirtualServiceNotFound
		if p.provider == routing.DefaultDomain.HTTPRoutes() {
			missing = v1alpha1.ReasonHTTPRouteNotFound
		}
		for what, tc := range map[string]struct {
			before faults.Step
			want   string
		}{
			"no route":     {func(ctx context.Context, w *faults.World) error { return w.Client.Delete(ctx, p.usersRoute(w)) }, missing},
			"no such rule": {createYAML(strings.ReplaceAll(p.users, "name: predict", "name: other")), v1alpha1.ReasonRouteNotFound},
			"no destination for the canary": {
				createYAML(strings.ReplaceAll(p.users, "v2-predictor", "v9-predictor")), v1alpha1.ReasonRouteNotFound,
			},
			"kept by KServe": {func(ctx context.Context, w *faults.World) error {
				route := p.usersRoute(w)
				if err := w.Client.Get(ctx, client.ObjectKeyFromObject(route), route); err != nil {
					return err
				}
				route.SetOwnerReferences([]metav1.OwnerReference{{
					APIVersion: "serving.kserve.io/v1beta1", Kind: "InferenceService", Name: "x", UID: "u", Controller: new(true),
				}})
				return w.Client.Update(ctx, route)
			}, v1alpha1.ReasonRouteControlled},
		} {
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			do(
				t,
				w,
				inferenceService("v1", 1),
				inferenceService("v2", 1),
				createYAML(p.users),
				p.adopting(),
				percent(50),
				tc.before,
			)
			before := p.live(t, w, "shop")
			settleAll(t, w, r)
			t.Log("when there is", what)
			wantStalled(t, w, name, tc.want)
			if after := p.live(t, w, "shop"); after != nil {
				if diff := cmp.Diff(before.Object["spec"], after.Object["spec"]); diff != "" {
					t.Errorf("the route changed (-before +after):\n%s", diff)
				}
			}
		}
	})
}

// usersRoute names the user's route.
func (p provided) usersRoute(w *faults.World) *unstructured.Unstructured {
	route := routing.NewRoute(p.provider)
	route.SetNamespace(w.Namespace)
	route.SetName("shop")
	return route
}

func TestConformanceDeletion(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		for policy, want := range map[v1alpha1.OnDelete]string{
			v1alpha1.OnDeleteStable: "v1=100 v2=0 ", v1alpha1.OnDeleteKeep: "v1=60 v2=40 ", v1alpha1.OnDeleteRestore: "v1=88 v2=12 ",
		} {
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			found := strings.NewReplacer("weight: 100", "weight: 88", "80, weight: 0", "80, weight: 12",
				"{host: v2-predictor}", "{host: v2-predictor}\n      weight: 12").Replace(p.users)
			do(
				t,
				w,
				inferenceService("v1", 1),
				inferenceService("v2", 1),
				createYAML(found),
				p.adopting(),
				onDelete(policy),
				percent(40),
			)
			settleAll(t, w, r)
			p.want(t, w, "shop", "predict", "v1=60 v2=40 ")
			do(t, w, remove)
			settleAll(t, w, r)
			wantGone(t, w)
			t.Log("policy", policy)
			p.want(t, w, "shop", "predict", want)
		}

		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), p.owned(), onDelete(v1alpha1.OnDeleteKeep), percent(40))
		settleAll(t, w, r)
		do(t, w, remove)
		settleAll(t, w, r)
		wantGone(t, w)
		if err := faults.CollectGarbage(t.Context(), w, kinds...); err != nil {
			t.Fatal(err)
		}
		p.want(t, w, name, routing.SplitRoute, "v1=60 v2=40 ")
		// The next one of the name takes the route over, also without naming its kind.
		do(t, w, rollout(nil), percent(70))
		settleAll(t, w, r)
		wantReady(t, w)
		p.want(t, w, name, routing.SplitRoute, "v1=30 v2=70 ")
	})
}

func TestConformanceForeignRoutes(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		taken := strings.ReplaceAll(p.users, "name: shop", "name: "+name)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(taken), p.owned())
		before := p.live(t, w, name)
		settleAll(t, w, r)
		wantStalled(t, w, name, v1alpha1.ReasonNameTaken)
		if diff := cmp.Diff(before.Object["spec"], p.live(t, w, name).Object["spec"]); diff != "" {
			t.Errorf("the user's route changed (-before +after):\n%s", diff)
		}
	})
}

// TestConformanceOneRouteOfAHost: of two rollouts the first keeps the host, whatever kinds of routes they use.
func TestConformanceOneRouteOfAHost(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		for _, other := range providers {
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			host := name + "." + w.Namespace + ".svc.cluster.local"
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), p.owned(), percent(10))
			settleAll(t, w, r)
			do(t, w, other.owned(func(second *v1alpha1.CanaryRollout) {
				second.Name, second.Spec.CanaryPercent, second.Spec.Routing.Hosts = "another", 90, []string{host}
			}))
			settleAll(t, w, r, name, "another")
			wantReady(t, w)
			p.want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
			wantStalled(t, w, "another", v1alpha1.ReasonRouteConflict)
			other.want(t, w, "another", routing.SplitRoute, "no route")
		}
	})
}

// TestFaultsOfHTTPRoutes is for one provider what the other faults tests are for the other.
func TestFaultsOfHTTPRoutes(t *testing.T) {
	p := providers[1]
	restoring := func(r *v1alpha1.CanaryRollout) { r.Spec.Routing.OnDelete = v1alpha1.OnDeleteRestore }
	for what, made := range map[string]faults.Step{
		"owned": p.owned(), "adopted": all(createYAML(p.users), p.adopting(restoring)),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			faults.Run(t, testcluster.New(t), faults.Scenario{
				Name: name, Kinds: kinds, New: anew, Environment: all(gatewaysAccept, collectGarbage), Forget: addresses,
				Steps: []faults.Step{all(inferenceService("v1", 1), inferenceService("v2", 1), made, percent(20)), percent(70)},
			})
		})
	}
}

// TestAcceptanceIsAwaited: a route that the gateways have not taken up is written, and not said to be in force.
func TestAcceptanceIsAwaited(t *testing.T) {
	p := providers[1]
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), p.owned(), percent(10))
	settle(t, w, r)
	p.want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonWaitingForGateway)
	if applied := get(t, w, name).Status.Weights.Applied; applied != nil {
		t.Errorf("status says that %+v is applied before any gateway has spoken", applied)
	}
	do(t, w, gatewaysAccept)
	settle(t, w, r)
	wantReady(t, w)
	do(t, w, percent(20))
	settle(t, w, r)
	if applied := get(t, w, name).Status.Weights.Applied; applied == nil || applied.Canary != 10 {
		t.Errorf("status says that %+v is applied; the gateway has accepted 10 percent, of an older generation", applied)
	}
	do(t, w, func(ctx context.Context, w *faults.World) error {
		return gatewaysSay(ctx, w, "False", "no such listener")
	})
	settle(t, w, r)
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonRouteNotAccepted)
	wantCondition(t, w, name, v1alpha1.ConditionStalled, metav1.ConditionFalse, v1alpha1.ReasonNotStalled)
	do(t, w, gatewaysAccept)
	settle(t, w, r)
	wantReady(t, w)
}

// TestChangeOfProvider: the former route goes when its successor has been taken up, and not before.
func TestChangeOfProvider(t *testing.T) {
	vs, hr := providers[0], providers[1]
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), percent(10))
	settleAll(t, w, r)
	vs.want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	do(t, w, edit(`{"spec":{"routing":{"provider":"HTTPRoute"}}}`))
	settle(t, w, r)
	hr.want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	vs.want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	do(t, w, gatewaysAccept)
	settle(t, w, r)
	vs.want(t, w, name, routing.SplitRoute, "no route")
	wantReady(t, w)
	do(t, w, edit(`{"spec":{"routing":{"provider":"Auto"}}}`)) // which keeps what is there
	settleAll(t, w, r)
	hr.want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	do(t, w, edit(`{"spec":{"routing":{"provider":"VirtualService"}}}`))
	settleAll(t, w, r)
	vs.want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	hr.want(t, w, name, routing.SplitRoute, "no route")
	wantReady(t, w)
}

// TestAutoFollowsKServe: where KServe makes HTTPRoutes for stable, so does a rollout that names no provider.
func TestAutoFollowsKServe(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	kserves := `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: v1, ownerReferences: [{apiVersion: serving.kserve.io/v1beta1, kind: InferenceService, name: v1, uid: u, controller: true}]}
spec: {parentRefs: [{name: kserve, namespace: kserve}], hostnames: [v1.example.com]}
`
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(kserves), rollout(nil), percent(10))
	settleAll(t, w, r)
	providers[1].want(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	providers[0].want(t, w, name, routing.SplitRoute, "no route")
	wantReady(t, w)
}

// TestProviderIsNotInstalled: the user is told, and nothing that serves is touched.
func TestProviderIsNotInstalled(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), percent(10))
	settleAll(t, w, newReconciler(w.Client, w))
	without := withoutKind{w.Client, routing.HTTPRouteKind}
	do(t, w, edit(`{"spec":{"routing":{"provider":"HTTPRoute"}}}`))
	r := newReconciler(without, w)
	result, err := r.Reconcile(
		t.Context(),
		reconcile.Request{NamespacedName: client.ObjectKey{Namespace: w.Namespace, Name: name}},
	)
	if err != nil || result.RequeueAfter == 0 {
		t.Errorf("reconciling: %+v, %v; want it to look again for the kind", result, err)
	}
	wantStalled(t, w, name, v1alpha1.ReasonProviderNotInstalled)
	wantWeights(t, w, "v1=90 v2=10 ")
}
