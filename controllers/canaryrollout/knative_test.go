// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// knativeService makes an InferenceService in Knative mode as KServe reports it when its first revision has all its
// requests and that many ready pods, or changes the number of these.
func knativeService(name string, ready int) faults.Step {
	return all(
		func(ctx context.Context, w *faults.World) error {
			return createOnce(ctx, w, &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}})
		},
		knativeStatus(name, fmt.Sprintf(
			`{"predictor":{"address":{"url":"http://in.cluster"},"latestReadyRevision":%[1]q,"latestCreatedRevision":%[1]q,"latestRolledoutRevision":%[1]q,`+
				`"traffic":[{"revisionName":%[1]q,"latestRevision":true,"percent":100}]}}`,
			name+"-predictor-00001",
		)),
		revisionPods(name, "00001", ready),
	)
}

// knativeStatus sets what KServe says of the components of an InferenceService in Knative mode.
func knativeStatus(name, components string) faults.Step {
	return all(routeReady(name, "True"), func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		patch := `{"status":{"deploymentMode":"Knative","components":` + components + `}}`
		return w.Client.Status().Patch(ctx, isvc, client.RawPatch(types.MergePatchType, []byte(patch)))
	})
}

// routeReady sets what KServe says of Knative's way to the predictor.
func routeReady(name, status string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"PredictorRouteReady","status":%q}]}}`, status)
		return w.Client.Status().Patch(ctx, isvc, client.RawPatch(types.MergePatchType, []byte(patch)))
	}
}

// changeService edits the spec of an InferenceService.
func changeService(name, mergePatch string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		return w.Client.Patch(ctx, isvc, client.RawPatch(types.MergePatchType, []byte(mergePatch)))
	}
}

// revisionPods makes the pods of a revision as Knative makes them: that many that are ready, and one that is not. Those
// of an earlier call go.
func revisionPods(name, revision string, ready int) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		full := name + "-predictor-" + revision
		labels := map[string]string{
			kserve.LabelInferenceService: name, "component": "predictor", "serving.knative.dev/revision": full,
		}
		err := w.Client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(w.Namespace), client.MatchingLabels(labels),
			client.GracePeriodSeconds(0))
		if err != nil {
			return err
		}
		for i := range ready + 1 {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: fmt.Sprintf("%s-%d", full, i), Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{
					{Name: kserve.ContainerPredictor, Image: "model"},
					{
						Name:  "queue-proxy",
						Image: "queue",
						Ports: []corev1.ContainerPort{{Name: "queue-port", ContainerPort: 8013}},
					},
				}},
			}
			if err := w.Client.Create(ctx, pod); err != nil {
				return err
			}
			pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, fmt.Sprintf("10.0.1.%d", i+1)
			pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
			is := corev1.ConditionTrue
			if i == ready {
				is = corev1.ConditionFalse
			}
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: is}}
			if err := w.Client.Status().Update(ctx, pod); err != nil {
				return err
			}
		}
		return nil
	}
}

// weightsByHost returns the weights of a rule by the Host headers of its destinations, or by their hosts where they set
// none, without KServe's ending.
func weightsByHost(t *testing.T, vs *unstructured.Unstructured, rule string) string {
	t.Helper()
	return weightsBy(vs, rule, []string{"headers", "request", "set", "Host"}, []string{"destination", "host"})
}

func wantByHost(t *testing.T, w *faults.World, route, rule, want string) {
	t.Helper()
	if got := weightsByHost(t, virtualService(t, w, route), rule); got != want {
		t.Errorf("weights %q, want %q", got, want)
	}
}

// TestKnativeSides: both sides are behind one gateway, and get their shares by their Host headers. What makes them
// ready is that Knative routes to them and that pods of their revisions are ready.
func TestKnativeSides(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, rollout(nil), percent(30))
	for _, step := range []struct {
		when string
		do   faults.Step
		want string
	}{
		{"stable is not ready", knativeService("v1", 0), "no VirtualService"},
		{"the canary is ready first", knativeService("v2", 1), "no VirtualService"},
		{"both are ready", knativeService("v1", 2), "v1=70 v2=30 "},
		{"Knative changes the ways", all(routeReady("v1", "Unknown"), routeReady("v2", "Unknown")), "v1=70 v2=30 "},
		{"Knative has lost the way to the canary", routeReady("v2", "False"), "v1=100 v2=0 "},
		{"the ways are back", all(routeReady("v1", "True"), routeReady("v2", "True")), "v1=70 v2=30 "},
		{"the canary's pods die", revisionPods("v2", "00001", 0), "v1=100 v2=0 "},
		{"the canary's pods are of a revision without requests", revisionPods("v2", "00002", 1), "v1=100 v2=0 "},
		{"the canary is back", revisionPods("v2", "00001", 1), "v1=70 v2=30 "},
		{"stable's pods die", revisionPods("v1", "00001", 0), "v1=0 v2=100 "},
		{"stable may be without pods", changeService("v1", `{"spec":{"predictor":{"minReplicas":0}}}`), "v1=70 v2=30 "},
		{"a canary that may be without pods keeps what it has", changeService("v2", `{"spec":{"predictor":{"minReplicas":0}}}`), "v1=70 v2=30 "},
		{"even when it has none", revisionPods("v2", "00001", 0), "v1=70 v2=30 "},
		{"and gets no more", percent(60), "v1=70 v2=30 "},
		{"but less", percent(20), "v1=80 v2=20 "},
		{"until it keeps one", all(
			percent(60), changeService("v2", `{"spec":{"predictor":{"minReplicas":1}}}`), revisionPods("v2", "00001", 1)), "v1=40 v2=60 "},
		{"another canary that may be without pods", all(
			knativeService("v3", 1), changeService("v3", `{"spec":{"predictor":{"minReplicas":0}}}`),
			edit(`{"spec":{"canary":{"inferenceService":"v3"}}}`)), "v1=100 v3=0 "},
		{"a canary in Standard mode", all(
			inferenceService("v4", 1), edit(`{"spec":{"canary":{"inferenceService":"v4"}}}`)), "v1=40 v4=60 "},
	} {
		do(t, w, step.do)
		settle(t, w, r)
		t.Log("when", step.when)
		wantByHost(t, w, name, routing.SplitRoute, step.want)
	}
	wantReady(t, w)
}

// TestKnativeColdCanaryIsTold: what is asked and not given is never left unsaid.
func TestKnativeColdCanaryIsTold(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, knativeService("v1", 1), knativeService("v2", 1),
		changeService("v2", `{"spec":{"predictor":{"minReplicas":0}}}`), rollout(nil), percent(1))
	settle(t, w, r)
	wantByHost(t, w, name, routing.SplitRoute, "v1=100 v2=0 ")
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonCanaryScalesToZero)
}

// TestKnativeGateway: callers outside the mesh come to Knative's gateway by the rollout's Service, and find its route
// there; both are those that KServe's own route names.
func TestKnativeGateway(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, knativeService("v1", 1), knativeService("v2", 1), rollout(nil), percent(30))
	settle(t, w, r)
	wantGateway := func(host, gateway string) {
		t.Helper()
		var service corev1.Service
		if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, &service); err != nil {
			t.Fatal(err)
		}
		vs := virtualService(t, w, name)
		gateways, _, _ := unstructured.NestedStringSlice(vs.Object, "spec", "gateways")
		if diff := cmp.Diff([]string{"mesh", gateway}, gateways); diff != "" {
			t.Errorf("gateways (-want +got):\n%s", diff)
		}
		if service.Spec.Type != corev1.ServiceTypeExternalName || service.Spec.ExternalName != host {
			t.Errorf("the Service is %s for %q, want an ExternalName for %q", service.Spec.Type, service.Spec.ExternalName, host)
		}
		to := routing.Destination{Host: host, Authority: routing.DefaultDomain.ServiceHost("v1-predictor", w.Namespace)}
		if got := routing.DefaultDomain.SharedGateway(
			vs,
		); got != host ||
			!routing.DefaultDomain.VirtualServices().Mentions(vs, to) {
			t.Errorf("the route leads to %q, want %q", got, host)
		}
	}
	wantGateway("knative-local-gateway.istio-system.svc.cluster.local", "knative-serving/knative-local-gateway")
	do(t, w, kservesRoute("v1", "inner.edge.svc.cluster.local"))
	settle(t, w, r)
	wantGateway("inner.edge.svc.cluster.local", "edge/inner")
	wantReady(t, w)
	// To Standard mode: clients call the same name.
	do(t, w, inferenceService("v5", 1), inferenceService("v6", 1),
		edit(`{"spec":{"stable":{"inferenceService":"v5"},"canary":{"inferenceService":"v6"}}}`))
	settle(t, w, r)
	var service corev1.Service
	if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, &service); err != nil {
		t.Fatal(err)
	}
	if service.Spec.ExternalName != "" || service.Spec.Selector["app"] != "isvc.v5-predictor" {
		t.Errorf("the Service still leads elsewhere: %+v", service.Spec)
	}
	wantByHost(t, w, name, routing.SplitRoute, "v5=70 v6=30 ")
}

// kservesRoute makes the VirtualService of an InferenceService as KServe does.
func kservesRoute(name, gateway string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		var isvc kserve.InferenceService
		if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: name}, &isvc); err != nil {
			return err
		}
		vs := routing.NewRoute(routing.DefaultDomain.VirtualServices())
		vs.SetName(name)
		vs.SetNamespace(w.Namespace)
		vs.SetOwnerReferences([]metav1.OwnerReference{*metav1.NewControllerRef(&isvc, kserve.GroupVersionKind)})
		vs.Object["spec"] = map[string]any{
			"hosts": []any{routing.DefaultDomain.ServiceHost(name, w.Namespace)}, "gateways": []any{"edge/inner", "mesh"},
			"http": []any{map[string]any{"route": []any{map[string]any{
				"destination": map[string]any{"host": gateway, "port": map[string]any{"number": int64(80)}},
			}}}},
		}
		err := w.Client.Create(ctx, vs)
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
}

// TestKnativeRefusals: what Knative mode cannot do is said, with the field to change, and not left out.
func TestKnativeRefusals(t *testing.T) {
	tests := map[string]struct {
		edit       string
		mode       string
		wantReason string
		wantWord   string
	}{
		"copies of requests": {
			edit: `{"spec":{"shadow":{}}}`, wantReason: v1alpha1.ReasonUnsupportedByProvider, wantWord: "remove shadow",
		},
		"a route that cannot set the Host": {
			edit:       `{"spec":{"routing":{"provider":"HTTPRoute"}}}`,
			wantReason: v1alpha1.ReasonUnsupportedByProvider, wantWord: "routing.provider VirtualService",
		},
		"a rule of the user's that cannot": {
			edit:       `{"spec":{"routing":{"mode":"Adopt","httpRouteRef":{"name":"a","rule":"b"}}}}`,
			wantReason: v1alpha1.ReasonUnsupportedByProvider, wantWord: "routing.provider VirtualService",
		},
		"another mode of KServe's": {
			mode: "ModelMesh", wantReason: v1alpha1.ReasonUnsupportedDeploymentMode, wantWord: "serving.kserve.io/deploymentMode",
		},
	}
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, knativeService("v1", 1), knativeService("v2", 1))
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			do(t, w, rollout(nil), percent(30))
			if tc.edit != "" {
				do(t, w, edit(tc.edit))
			}
			if tc.mode != "" {
				do(t, w, func(ctx context.Context, w *faults.World) error {
					isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "v2"}}
					patch := fmt.Sprintf(`{"status":{"deploymentMode":%q}}`, tc.mode)
					return w.Client.Status().Patch(ctx, isvc, client.RawPatch(types.MergePatchType, []byte(patch)))
				})
				defer do(t, w, knativeService("v2", 1))
			}
			settle(t, w, r)
			wantStalled(t, w, name, tc.wantReason)
			for _, condition := range get(t, w, name).Status.Conditions {
				if condition.Type == v1alpha1.ConditionStalled && !strings.Contains(condition.Message, tc.wantWord) {
					t.Errorf("the message %q lacks %q", condition.Message, tc.wantWord)
				}
			}
			wantByHost(t, w, name, routing.SplitRoute, "no VirtualService")
			do(t, w, remove)
		})
	}
}

// gatewayShop is a route of a user's to two sides behind Knative's gateway.
const gatewayShop = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, labels: {team: web}}
spec:
  hosts: [shop.example.com]
  gateways: [edge/public]
  http:
  - {name: static, match: [{uri: {prefix: /static}}], route: [{destination: {host: static}}]}
  - name: predict
    timeout: 5s
    route:
    - {destination: {host: knative-local-gateway.istio-system.svc.cluster.local, port: {number: 80}}, headers: {request: {set: {Host: v1-predictor.NAMESPACE.svc.cluster.local}, remove: [x-b]}}, weight: 100}
    - {destination: {host: knative-local-gateway.istio-system.svc.cluster.local, port: {number: 80}}, headers: {request: {set: {Host: v2-predictor.NAMESPACE.svc.cluster.local, x-a: b}}}}
`

func shopByHost(ctx context.Context, w *faults.World) error {
	return applyYAML(strings.ReplaceAll(gatewayShop, "NAMESPACE", w.Namespace))(ctx, w)
}

// TestKnativeAdopt: two weights change and nothing else, and the sides are known by their Host headers even after they
// have changed places unseen.
func TestKnativeAdopt(t *testing.T) {
	w := soleWorld(t)
	do(t, w, knativeService("v1", 1), knativeService("v2", 1), shopByHost, rollout(adopts("shop", "predict")), percent(30))
	before := virtualService(t, w, "shop")
	settle(t, w, newReconciler(w.Client, w))
	wantByHost(t, w, "shop", "predict", "v1=70 v2=30 ")
	after := virtualService(t, w, "shop")
	for _, vs := range []*unstructured.Unstructured{before, after} {
		list, _, _ := unstructured.NestedSlice(vs.Object, "spec", "http")
		for _, entry := range list[1].(map[string]any)["route"].([]any) {
			delete(entry.(map[string]any), "weight")
		}
		_ = unstructured.SetNestedSlice(vs.Object, list, "spec", "http")
	}
	if diff := cmp.Diff(before.Object["spec"], after.Object["spec"]); diff != "" {
		t.Errorf("more than weights changed (-before +after):\n%s", diff)
	}
	// What the controller reads is as it was; what is stored has the sides the other way round.
	stale := virtualService(t, w, "shop")
	swapped := stale.DeepCopy()
	list, _, _ := unstructured.NestedSlice(swapped.Object, "spec", "http")
	route := list[1].(map[string]any)["route"].([]any)
	route[0], route[1] = route[1], route[0]
	if err := unstructured.SetNestedSlice(swapped.Object, list, "spec", "http"); err != nil {
		t.Fatal(err)
	}
	if err := w.Client.Update(t.Context(), swapped); err != nil {
		t.Fatal(err)
	}
	do(t, w, percent(60))
	settle(t, w, newReconciler(readsOld(w.Client, stale), w))
	wantByHost(t, w, "shop", "predict", "v2=60 v1=40 ")
	do(t, w, remove)
	settle(t, w, newReconciler(w.Client, w))
	wantGone(t, w)
	wantByHost(t, w, "shop", "predict", "v2=0 v1=100 ")
}

func TestKnativeDelegate(t *testing.T) {
	w := soleWorld(t)
	do(t, w, knativeService("v1", 1), knativeService("v2", 1), rollout(func(r *v1alpha1.CanaryRollout) {
		r.Spec.Routing.Mode = v1alpha1.RoutingDelegate
	}), percent(30))
	settle(t, w, newReconciler(w.Client, w))
	wantByHost(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")
	spec := virtualService(t, w, name).Object["spec"].(map[string]any)
	if spec["hosts"] != nil || spec["gateways"] != nil {
		t.Errorf("the delegate has hosts or gateways: %v", spec)
	}
}

// TestKnativeCanaryThatIsDeleted keeps the route's last word on the side that is gone.
func TestKnativeCanaryThatIsDeleted(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, knativeService("v1", 1), knativeService("v2", 1), rollout(nil), percent(30))
	settle(t, w, r)
	do(t, w, revisionPods("v2", "00001", 0), func(ctx context.Context, w *faults.World) error {
		return w.Client.Delete(ctx, &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "v2"}})
	})
	settle(t, w, r)
	wantByHost(t, w, name, routing.SplitRoute, "v1=100 v2=0 ")
	to := routing.Destination{Authority: routing.DefaultDomain.ServiceHost("v2-predictor", w.Namespace)}
	if !routing.DefaultDomain.VirtualServices().Mentions(virtualService(t, w, name), to) {
		t.Error("the side that is gone is not known by its Host any more")
	}
}

func TestFaultsOfKnativeSides(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, New: anew, Environment: collectGarbage, Check: splitIsWhole, Forget: addresses,
		Steps: []faults.Step{
			all(knativeService("v1", 1), knativeService("v2", 1), rollout(nil), percent(20)),
			all(revisionPods("v2", "00001", 0), percent(100)),
		},
	})
}

// readsOld returns a client that reads a VirtualService as it was.
func readsOld(c client.WithWatch, old *unstructured.Unstructured) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
			if vs, ok := into.(*unstructured.Unstructured); ok && key.Name == old.GetName() && vs.GetKind() == old.GetKind() {
				old.DeepCopyInto(vs)
				return nil
			}
			return c.Get(ctx, key, into, opts...)
		},
	})
}

// TestKnativeUpdateInPlace: while a new revision starts, Knative leads all requests to the one before, which may be what
// was just turned back.
func TestKnativeUpdateInPlace(t *testing.T) {
	w := soleWorld(t)
	do(t, w, knativeService("v1", 1), knativeService("v2", 1), rollout(steps))
	settleSteps(t, w, w.Client)
	wantByHost(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	do(t, w, say(v1alpha1.AnnotationAbort))
	settleSteps(t, w, w.Client)
	update := func(ready string) faults.Step {
		return knativeStatus("v2", fmt.Sprintf(
			`{"predictor":{"latestCreatedRevision":"v2-predictor-00002","latestReadyRevision":%[1]q,`+
				`"traffic":[{"revisionName":%[1]q,"latestRevision":true,"percent":100}]}}`, "v2-predictor-"+ready))
	}
	do(t, w, changeService("v2", `{"spec":{"predictor":{"timeout":7}}}`), update("00001"))
	settleSteps(t, w, w.Client)
	do(t, w, pass(time.Hour))
	settleSteps(t, w, w.Client)
	wantByHost(t, w, name, routing.SplitRoute, "v1=100 v2=0 ")
	do(t, w, revisionPods("v2", "00002", 1), update("00002"))
	settleSteps(t, w, w.Client)
	wantByHost(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
}
