// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
)

const shop = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, labels: {team: web}, annotations: {note: mine}}
spec:
  hosts: [shop.example.com]
  gateways: [edge/public]
  http:
  - name: static
    match: [{uri: {prefix: /static}}]
    route: [{destination: {host: static}}]
  - name: predict
    timeout: 5s
    retries: {attempts: 2}
    route:
    - destination: {host: v1-predictor, port: {number: 80}}
      weight: 100
    - destination: {host: v2-predictor}
  - name: rest
    route: [{destination: {host: v1-predictor}}]
`

func wantShop(t *testing.T, w *faults.World, want string) {
	t.Helper()
	if got := weights(t, virtualService(t, w, "shop"), "predict"); got != want {
		t.Errorf("weights %q, want %q", got, want)
	}
}

// TestAdoptChangesTwoNumbers: in a stored VirtualService nothing differs but the weights.
func TestAdoptChangesTwoNumbers(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	full, err := os.ReadFile("../../routing/testdata/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"shop": shop, "every field": string(full)} {
		t.Run(what, func(t *testing.T) {
			route := map[string]string{"shop": "predict", "every field": "split"}[what]
			do(
				t,
				w,
				inferenceService("v1", 1),
				inferenceService("v2", 1),
				createYAML(ofNamespace(text, w)),
				rollout(adopts("shop", route)),
				percent(35),
			)
			before := virtualService(t, w, "shop")
			settle(t, w, r)
			wantReady(t, w)
			after := virtualService(t, w, "shop")
			if diff := cmp.Diff(withoutWeights(before), withoutWeights(after)); diff != "" {
				t.Errorf("more than the weights changed (-before +after):\n%s", diff)
			}
			if host := get(t, w, name).Status.Host; host != "shop.example.com" {
				t.Errorf("status.host %q, want the VirtualService's", host)
			}
			if virtualService(t, w, name) != nil {
				t.Error("mode Adopt made a VirtualService")
			}
			do(t, w, remove)
			settle(t, w, r)
			wantGone(t, w)
			after = virtualService(t, w, "shop")
			if diff := cmp.Diff(withoutWeights(before), withoutWeights(after)); diff != "" {
				t.Errorf("the deletion changed more than the weights (-before +after):\n%s", diff)
			}
		})
	}
}

// ofNamespace replaces the namespace of a text's hosts.
func ofNamespace(text string, w *faults.World) string {
	return strings.ReplaceAll(text, ".ml.svc.", "."+w.Namespace+".svc.")
}

// withoutWeights returns a copy without what every write changes and without the weights.
func withoutWeights(vs *unstructured.Unstructured) map[string]any {
	vs = vs.DeepCopy()
	vs.SetResourceVersion("")
	vs.SetGeneration(0)
	vs.SetManagedFields(nil)
	routes, _, _ := unstructured.NestedSlice(vs.Object, "spec", "http")
	for _, route := range routes {
		destinations, _ := route.(map[string]any)["route"].([]any)
		for _, destination := range destinations {
			maps.DeleteFunc(destination.(map[string]any), func(key string, _ any) bool { return key == "weight" })
		}
	}
	_ = unstructured.SetNestedSlice(vs.Object, routes, "spec", "http")
	return vs.Object
}

func TestAdoptRepairsDrift(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(
		t,
		w,
		inferenceService("v1", 1),
		inferenceService("v2", 1),
		applyYAML(shop),
		rollout(adopts("shop", "predict")),
		percent(35),
	)
	settle(t, w, r)
	wantShop(t, w, "v1=65 v2=35 ")
	do(t, w, applyYAML(shop)) // as a GitOps tool would
	wantShop(t, w, "v1=100 v2=0 ")
	settle(t, w, r)
	wantShop(t, w, "v1=65 v2=35 ")
	wantReady(t, w)
}

func TestAdoptStalls(t *testing.T) {
	const other = `{"spec":{"routing":{"virtualServiceRef":{"name":"shop","route":"other"}}}}`
	tests := map[string]struct {
		before faults.Step
		want   string
		mend   faults.Step
	}{
		"no VirtualService": {
			func(ctx context.Context, w *faults.World) error { return w.Client.Delete(ctx, named("shop", w)) },
			v1alpha1.ReasonVirtualServiceNotFound, applyYAML(shop),
		},
		"no such route": {
			edit(other), v1alpha1.ReasonRouteNotFound,
			edit(`{"spec":{"routing":{"virtualServiceRef":{"name":"shop","route":"predict"}}}}`),
		},
		"a route of two that have one name": {
			applyYAML(strings.ReplaceAll(shop, "name: rest", "name: predict")), v1alpha1.ReasonRouteAmbiguous, applyYAML(shop),
		},
		"no destination for the canary": {
			applyYAML(
				strings.ReplaceAll(shop, "    - destination: {host: v2-predictor}\n", ""),
			),
			v1alpha1.ReasonRouteNotFound,
			applyYAML(shop),
		},
		"kept by KServe": {
			ownedBy("serving.kserve.io/v1beta1", "InferenceService"),
			v1alpha1.ReasonRouteControlled,
			ownedBy("", ""),
		},
		"kept by Knative": {
			ownedBy(
				"networking.internal.knative.dev/v1alpha1",
				"Ingress",
			),
			v1alpha1.ReasonRouteControlled,
			ownedBy("", ""),
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			do(
				t,
				w,
				inferenceService("v1", 1),
				inferenceService("v2", 1),
				applyYAML(shop),
				rollout(adopts("shop", "predict")),
				percent(50),
				tc.before,
			)
			before := virtualService(t, w, "shop")
			settle(t, w, r)
			wantStalled(t, w, name, tc.want)
			if diff := cmp.Diff(before, virtualService(t, w, "shop")); diff != "" {
				t.Errorf("the VirtualService changed (-before +after):\n%s", diff)
			}
			do(t, w, tc.mend)
			settle(t, w, r)
			wantReady(t, w)
			wantShop(t, w, "v1=50 v2=50 ")
		})
	}
}

func named(name string, w *faults.World) *unstructured.Unstructured {
	vs := &unstructured.Unstructured{}
	vs.SetAPIVersion("networking.istio.io/v1")
	vs.SetKind("VirtualService")
	vs.SetNamespace(w.Namespace)
	vs.SetName(name)
	return vs
}

// ownedBy gives the shop a controller, or takes it away.
func ownedBy(apiVersion, kind string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		vs := named("shop", w)
		if err := w.Client.Get(ctx, client.ObjectKeyFromObject(vs), vs); err != nil {
			return err
		}
		controller := true
		vs.SetOwnerReferences(nil)
		if kind != "" {
			vs.SetOwnerReferences(
				[]metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: "x", UID: "u", Controller: &controller}},
			)
		}
		return w.Client.Update(ctx, vs)
	}
}

// TestAdoptWithStaleReads: the route moves between the read and the patch. The patch fails as a whole, is worked out
// anew, and lands where it belongs.
func TestAdoptWithStaleReads(t *testing.T) {
	w := soleWorld(t)
	do(
		t,
		w,
		inferenceService("v1", 1),
		inferenceService("v2", 1),
		applyYAML(shop),
		rollout(adopts("shop", "predict")),
		percent(25),
	)
	old := virtualService(t, w, "shop")
	moved := strings.ReplaceAll(
		shop,
		"  http:\n",
		"  http:\n  - {name: new, match: [{uri: {prefix: /new}}], route: [{destination: {host: v1-predictor}, weight: 1}, {destination: {host: v2-predictor}, weight: 2}]}\n",
	)
	do(t, w, applyYAML(moved))
	patches := 0
	stale := interceptor.NewClient(w.Client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
			if vs, ok := into.(*unstructured.Unstructured); ok && key.Name == "shop" {
				old.DeepCopyInto(vs)
				return nil
			}
			return c.Get(ctx, key, into, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			err := c.Patch(ctx, o, p, opts...)
			if o.GetName() != "shop" {
				return err
			}
			patches++
			if patches == 1 && !apierrors.IsInvalid(err) {
				t.Errorf("the first patch: %v; want it refused with 422", err)
			}
			return err
		},
	})
	reconcileOnce(t, w, newReconciler(stale, w))
	if patches != 2 {
		t.Errorf("%d patches, want 2", patches)
	}
	wantShop(t, w, "v1=75 v2=25 ")
	if got := weights(t, virtualService(t, w, "shop"), "new"); got != "v1=1 v2=2 " {
		t.Errorf("weights of the route that stands where ours stood: %q", got)
	}
}

// TestAdoptOfARefusedWeight: a 422 that is no failed guard is the API server's own, and is told to the user.
func TestAdoptOfARefusedWeight(t *testing.T) {
	w := soleWorld(t)
	do(
		t,
		w,
		inferenceService("v1", 1),
		inferenceService("v2", 1),
		applyYAML(shop),
		rollout(adopts("shop", "predict")),
		percent(25),
	)
	patches := 0
	refusing := interceptor.NewClient(w.Client, interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if o.GetName() != "shop" {
				return c.Patch(ctx, o, p, opts...)
			}
			patches++
			return apierrors.NewGenericServerResponse(
				422,
				"patch",
				schema.GroupResource{Group: "networking.istio.io", Resource: "virtualservices"},
				"shop",
				"weights are out of fashion",
				0,
				false,
			)
		},
	})
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	if _, err := newReconciler(refusing, w).Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err == nil {
		t.Error("no error: what the API server refuses now, it may take later")
	}
	wantStalled(t, w, name, v1alpha1.ReasonRefused)
	if patches != 1 {
		t.Errorf("%d patches, want 1", patches)
	}
	if applied := get(t, w, name).Status.Weights.Applied; applied != nil {
		t.Errorf("status says that %+v is applied", applied)
	}
}

func TestOneRolloutPerAdoptedRoute(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), rollout(func(first *v1alpha1.CanaryRollout) {
		adopts("shop", "predict")(first)
		first.Name, first.Spec.CanaryPercent = "a-first", 10
	}), rollout(adopts("shop", "predict")), percent(90))
	settle(t, w, r, name, "a-first")
	wantStalled(t, w, name, v1alpha1.ReasonRouteConflict)
	wantShop(t, w, "v1=90 v2=10 ")
}

func TestFromOwnedToAdoptAndBack(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), rollout(nil), percent(20))
	settle(t, w, r)
	wantWeights(t, w, "v1=80 v2=20 ")

	do(t, w, edit(`{"spec":{"routing":{"mode":"Adopt","virtualServiceRef":{"name":"shop","route":"wrong"}}}}`))
	settle(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonRouteNotFound)
	wantWeights(t, w, "v1=80 v2=20 ") // what serves stays until its successor does

	do(t, w, edit(`{"spec":{"routing":{"virtualServiceRef":{"name":"shop","route":"predict"}}}}`))
	settle(t, w, r)
	wantReady(t, w)
	wantShop(t, w, "v1=80 v2=20 ")
	wantWeights(t, w, "no VirtualService")

	do(t, w, edit(`{"spec":{"routing":{"mode":"Owned","virtualServiceRef":null}}}`), percent(60))
	settle(t, w, r)
	wantReady(t, w)
	wantWeights(t, w, "v1=40 v2=60 ")
	wantShop(t, w, "v1=100 v2=0 ") // left as a deletion would leave it
}

// TestAdoptANameWithDots: a dot in the name of a route does not part it from a namespace.
func TestAdoptANameWithDots(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1),
		createYAML(strings.ReplaceAll(shop, "name: shop", "name: shop.web")), rollout(adopts("shop.web", "predict")), percent(20))
	settle(t, w, r)
	wantReady(t, w)
	if got := weights(t, virtualService(t, w, "shop.web"), "predict"); got != "v1=80 v2=20 " {
		t.Errorf("weights %q", got)
	}
}
