// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/routing"
)

func TestWeightsFollowTheSpec(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 2), inferenceService("v2", 1), rollout(nil))
	for _, step := range []struct {
		percent int
		want    string
	}{{0, "v1=100 v2=0 "}, {10, "v1=90 v2=10 "}, {50, "v1=50 v2=50 "}, {100, "v1=0 v2=100 "}, {0, "v1=100 v2=0 "}} {
		do(t, w, percent(step.percent))
		settle(t, w, r)
		wantWeights(t, w, step.want)
		wantReady(t, w)
		got := get(t, w, name).Status
		want := v1alpha1.WeightPair{Stable: 100 - int32(step.percent), Canary: int32(step.percent)}
		if got.Weights.Desired == nil || *got.Weights.Desired != want || got.Weights.Applied == nil ||
			*got.Weights.Applied != want {
			t.Errorf("status.weights %+v, %+v; want %+v twice", got.Weights.Desired, got.Weights.Applied, want)
		}
		if host := name + "." + w.Namespace + ".svc.cluster.local"; got.Host != host {
			t.Errorf("status.host %q, want %q", got.Host, host)
		}
	}
}

func TestServiceLeadsToStable(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil))
	settle(t, w, r)
	var service corev1.Service
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	if err := w.Client.Get(t.Context(), key, &service); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"app": "isvc.v1-predictor"}, service.Spec.Selector); diff != "" {
		t.Errorf("selector (-want +got):\n%s", diff)
	}
	port := service.Spec.Ports[0]
	if port.Name != "http" || port.Port != 80 || port.TargetPort.IntValue() != 8080 {
		t.Errorf("port %+v; want http, 80 to 8080", port)
	}
	if _, both := service.Labels[kserve.LabelInferenceService]; both {
		t.Error("the Service has a label by which KServe may take it for its own")
	}

	// Hosts of the user's need no Service: it goes, once the route is in place.
	host := w.Namespace + ".example.com"
	do(t, w, edit(`{"spec":{"routing":{"hosts":["`+host+`"]}}}`))
	settle(t, w, r)
	if err := w.Client.Get(t.Context(), key, &service); !apierrors.IsNotFound(err) {
		t.Errorf("reading the Service that is no longer wanted: %v", err)
	}
	hosts := routing.DefaultDomain.VirtualServices().Hosts(virtualService(t, w, name))
	if diff := cmp.Diff([]string{host}, hosts); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
}

// TestSidesComeAndGo: weights follow the readiness of both sides, and no spec that names the wrong side moves traffic.
func TestSidesComeAndGo(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	const notReady, notFound = v1alpha1.ReasonInferenceServiceNotReady, v1alpha1.ReasonInferenceServiceNotFound
	steps := []struct {
		when       string
		do         faults.Step
		want       string
		wantReason string
	}{
		{"nothing exists", func() faults.Step {
			return rollout(func(r *v1alpha1.CanaryRollout) { r.Spec.CanaryPercent = 20 })
		}(), "no VirtualService", notFound},
		{"the canary is ready before stable", inferenceService("v2", 1), "no VirtualService", notFound},
		{"stable exists", inferenceService("v1", 0), "no VirtualService", notReady},
		{"stable is ready", inferenceService("v1", 1), "v1=80 v2=20 ", v1alpha1.ReasonWeightsApplied},
		{"the canary dies", inferenceService("v2", 0), "v1=100 v2=0 ", notReady},
		{"the canary is back", inferenceService("v2", 2), "v1=80 v2=20 ", v1alpha1.ReasonWeightsApplied},
		{"stable dies", inferenceService("v1", 0), "v1=0 v2=100 ", notReady},
		{"stable dies while the canary is asked for nothing", percent(0), "v1=100 v2=0 ", notReady},
		{"stable is back", inferenceService("v1", 3), "v1=100 v2=0 ", v1alpha1.ReasonWeightsApplied},
		{"half", percent(50), "v1=50 v2=50 ", v1alpha1.ReasonWeightsApplied},
		{"another canary that does not exist", func() faults.Step {
			return edit(`{"spec":{"canary":{"inferenceService":"v3"}}}`)
		}(), "v1=100 v3=0 ", notFound},
		{"another canary that is not ready", inferenceService("v3", 0), "v1=100 v3=0 ", notReady},
		{"the other canary is ready", inferenceService("v3", 1), "v1=50 v3=50 ", v1alpha1.ReasonWeightsApplied},
		{"another stable that does not exist", edit(`{"spec":{"stable":{"inferenceService":"x1"}}}`), "v1=50 v3=50 ", notFound},
		{"another stable that is not ready", inferenceService("x1", 0), "v1=50 v3=50 ", notReady},
		{"the other stable is ready", inferenceService("x1", 1), "x1=50 v3=50 ", v1alpha1.ReasonWeightsApplied},
	}
	for _, step := range steps {
		do(t, w, step.do)
		settle(t, w, r)
		if got := weights(t, virtualService(t, w, name), routing.SplitRoute); got != step.want {
			t.Errorf("when %s: weights %q, want %q", step.when, got, step.want)
		}
		status := metav1.ConditionFalse
		if step.wantReason == v1alpha1.ReasonWeightsApplied {
			status = metav1.ConditionTrue
		}
		t.Log("when", step.when)
		wantCondition(t, w, name, v1alpha1.ConditionReady, status, step.wantReason)
		wantCondition(t, w, name, v1alpha1.ConditionStalled, metav1.ConditionFalse, v1alpha1.ReasonNotStalled)
	}
}

func TestDeletedStableLeavesAllToTheCanary(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), percent(30))
	settle(t, w, r)
	isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "v1"}}
	if err := w.Client.Delete(t.Context(), isvc); err != nil {
		t.Fatal(err)
	}
	settle(t, w, r)
	wantWeights(t, w, "v1=0 v2=100 ")
}

func TestTransformerIsTheEntry(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(
		t,
		w,
		inferenceService("v1", 1),
		inferenceService("v2", 1),
		endpoints("v2-transformer", "v2", 1),
		rollout(nil),
		percent(40),
	)
	var isvc kserve.InferenceService
	if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: "v2"}, &isvc); err != nil {
		t.Fatal(err)
	}
	patch := client.RawPatch(
		"application/merge-patch+json",
		[]byte(`{"spec":{"transformer":{"containers":[{"name":"t","image":"t"}]}}}`),
	)
	if err := w.Client.Patch(t.Context(), &isvc, patch); err != nil {
		t.Fatal(err)
	}
	settle(t, w, r)
	vs := virtualService(t, w, name)
	at := func(service string) routing.Destination {
		return routing.Destination{Host: routing.DefaultDomain.ServiceHost(service, w.Namespace)}
	}
	if !routing.DefaultDomain.VirtualServices().Mentions(vs, at("v2-transformer")) ||
		routing.DefaultDomain.VirtualServices().Mentions(vs, at("v2-predictor")) {
		t.Errorf("the canary is not reached by its transformer: %v", vs.Object["spec"])
	}
}

// TestDriftOfAnOwnedRoute: whatever anybody does to a VirtualService of ours is undone.
func TestDriftOfAnOwnedRoute(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), percent(30))
	settle(t, w, r)
	want := virtualService(t, w, name).Object["spec"]
	for what, patch := range map[string]string{
		"weights":       `[{"op":"replace","path":"/spec/http/0/route/0/weight","value":1},{"op":"replace","path":"/spec/http/0/route/1/weight","value":99}]`,
		"a route above": `[{"op":"add","path":"/spec/http/0","value":{"name":"thief","route":[{"destination":{"host":"thief"}}]}}]`,
		"a timeout":     `[{"op":"add","path":"/spec/http/0/timeout","value":"1s"}]`,
		"hosts":         `[{"op":"replace","path":"/spec/hosts","value":["elsewhere"]}]`,
		"a TCP route":   `[{"op":"add","path":"/spec/tcp","value":[{"route":[{"destination":{"host":"thief"}}]}]}]`,
	} {
		vs := virtualService(t, w, name)
		if err := w.Client.Patch(t.Context(), vs, client.RawPatch("application/json-patch+json", []byte(patch))); err != nil {
			t.Fatal(err)
		}
		settle(t, w, r)
		if diff := cmp.Diff(want, virtualService(t, w, name).Object["spec"]); diff != "" {
			t.Errorf("after a foreign edit of %s (-want +got):\n%s", what, diff)
		}
	}
	if err := w.Client.Delete(t.Context(), virtualService(t, w, name)); err != nil {
		t.Fatal(err)
	}
	settle(t, w, r)
	wantWeights(t, w, "v1=70 v2=30 ")
}

// TestForeignVirtualServiceOfOurName: what belongs to somebody else is never written.
func TestForeignVirtualServiceOfOurName(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: digits}
spec:
  hosts: [users.example.com]
  http: [{route: [{destination: {host: users}}]}]
`), rollout(nil))
	before := virtualService(t, w, name)
	settle(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonNameTaken)
	if diff := cmp.Diff(before, virtualService(t, w, name)); diff != "" {
		t.Errorf("the user's VirtualService changed (-before +after):\n%s", diff)
	}
}

func TestSecondRolloutOfAHostStalls(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	host := w.Namespace + ".example.com" // all tests share one API server
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(func(first *v1alpha1.CanaryRollout) {
		first.Spec.Routing.Hosts = []string{host}
	}), percent(10))
	settle(t, w, r)
	do(t, w, rollout(func(second *v1alpha1.CanaryRollout) {
		// Of equal age by the API server's clock, it would even come first by name.
		second.Name, second.Spec.CanaryPercent = "another", 90
		second.Spec.Routing.Hosts = []string{host}
	}))
	settle(t, w, r, name, "another")
	wantReady(t, w)
	wantWeights(t, w, "v1=90 v2=10 ")
	wantStalled(t, w, "another", v1alpha1.ReasonRouteConflict)
	if vs := virtualService(t, w, "another"); vs != nil {
		t.Errorf("the second rollout wrote a VirtualService: %v", vs.Object)
	}

	if err := w.Client.Delete(t.Context(), get(t, w, name)); err != nil {
		t.Fatal(err)
	}
	if err := faults.CollectGarbage(t.Context(), w, kinds...); err != nil {
		t.Fatal(err)
	}
	settle(t, w, r, "another")
	if got, want := weights(t, virtualService(t, w, "another"), routing.SplitRoute), "v1=10 v2=90 "; got != want {
		t.Errorf("weights of the successor %q, want %q", got, want)
	}
}

func TestHostOfAUsersVirtualService(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: users}
spec:
  hosts: [digits]
  http: [{route: [{destination: {host: users}}]}]
`), rollout(nil))
	settle(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonRouteConflict)
	wantWeights(t, w, "no VirtualService")
	if err := w.Client.Delete(t.Context(), virtualService(t, w, "users")); err != nil {
		t.Fatal(err)
	}
	settle(t, w, r)
	wantWeights(t, w, "v1=100 v2=0 ")
}
