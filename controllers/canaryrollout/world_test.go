// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/record"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// name is that of the rollout in most tests.
const name = "digits"

func newWorld(t *testing.T) *faults.World {
	t.Helper()
	return faults.NewWorld(t, testcluster.New(t))
}

// soleWorld is for tests that run no manager.
func soleWorld(t *testing.T) *faults.World {
	t.Helper()
	return faults.NewSoleWorld(t, testcluster.New(t))
}

func newReconciler(c client.Client, w *faults.World) reconcile.Reconciler {
	return reconcile.AsReconciler(c, canaryrollout.New(c, w.Client, w.Clock, record.NewFakeRecorder(1000)))
}

// inferenceService makes one with a Service and that many ready endpoints, or changes the number of these.
func inferenceService(name string, ready int) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		if err := createOnce(ctx, w, isvc); err != nil {
			return err
		}
		labels := map[string]string{kserve.LabelInferenceService: name, "component": "predictor"}
		service := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name + "-predictor", Labels: labels},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": "isvc." + name + "-predictor"},
				Ports:    []corev1.ServicePort{{Name: name + "-predictor", Port: 80, TargetPort: intstr.FromInt32(8080)}},
			},
		}
		if err := createOnce(ctx, w, service); err != nil {
			return err
		}
		return endpoints(name+"-predictor", name, ready)(ctx, w)
	}
}

// endpoints sets the ready endpoints of a Service, and one more that is not ready.
func endpoints(service, inferenceService string, ready int) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: w.Namespace, Name: service,
				Labels: map[string]string{
					discoveryv1.LabelServiceName: service,
					kserve.LabelInferenceService: inferenceService,
					"component":                  "predictor",
				},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{"10.0.0.250"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)},
			}},
		}
		for i := range ready {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{
					fmt.Sprintf("10.0.0.%d", i+1),
				},
				Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
			})
		}
		err := w.Client.Create(ctx, slice)
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		return w.Client.Update(ctx, slice)
	}
}

func createOnce(ctx context.Context, w *faults.World, object client.Object) error {
	err := w.Client.Create(ctx, object)
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// rollout makes the rollout from v1 to v2.
func rollout(change func(*v1alpha1.CanaryRollout)) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		r := &v1alpha1.CanaryRollout{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name},
			Spec: v1alpha1.CanaryRolloutSpec{
				Stable: v1alpha1.RolloutSide{InferenceService: "v1"}, Canary: v1alpha1.RolloutSide{InferenceService: "v2"},
			},
		}
		if change != nil {
			change(r)
		}
		err := w.Client.Create(ctx, r)
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		// One that is being deleted: somebody takes its finalizer away, so that it can be made again unseen.
		old := r.DeepCopy()
		old.ResourceVersion, old.UID = "", ""
		if err := w.Client.Patch(
			ctx,
			old,
			client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)),
		); err != nil {
			return err
		}
		r.ResourceVersion = ""
		return w.Client.Create(ctx, r)
	}
}

func adopts(vs, route string) func(*v1alpha1.CanaryRollout) {
	return func(r *v1alpha1.CanaryRollout) {
		r.Spec.Routing = v1alpha1.RolloutRouting{
			Mode: v1alpha1.RoutingAdopt, VirtualServiceRef: &v1alpha1.VirtualServiceReference{Name: vs, Route: route},
		}
	}
}

// remove deletes the rollout as a user does.
func remove(ctx context.Context, w *faults.World) error {
	r := &v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
	return client.IgnoreNotFound(w.Client.Delete(ctx, r))
}

func wantGone(t *testing.T, w *faults.World) {
	t.Helper()
	var r v1alpha1.CanaryRollout
	err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, &r)
	if !apierrors.IsNotFound(err) {
		t.Errorf("the rollout is still there, with finalizers %v (%v)", r.Finalizers, err)
	}
}

// edit changes the rollout as a user does.
func edit(mergePatch string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		r := &v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		return w.Client.Patch(ctx, r, client.RawPatch(types.MergePatchType, []byte(mergePatch)))
	}
}

func percent(n int) faults.Step {
	return edit(fmt.Sprintf(`{"spec":{"canaryPercent":%d}}`, n))
}

// createYAML makes an object anew in the world's namespace; fields that the API server does not know are dropped.
func createYAML(text string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
			return err
		}
		object.SetNamespace(w.Namespace)
		object.SetUID("")
		if err := w.Client.Delete(ctx, object); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		return w.Client.Create(ctx, object)
	}
}

// applyYAML applies an object to the world's namespace, as a user.
func applyYAML(text string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
			return err
		}
		object.SetNamespace(w.Namespace)
		return w.Client.Apply(
			ctx,
			client.ApplyConfigurationFromUnstructured(object),
			client.FieldOwner("user"),
			client.ForceOwnership,
		)
	}
}

func do(t *testing.T, w *faults.World, steps ...faults.Step) {
	t.Helper()
	for _, step := range steps {
		if err := step(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
}

// settle reconciles the named rollouts, or the usual one, until nothing can be left to do.
func settle(t *testing.T, w *faults.World, r reconcile.Reconciler, rollouts ...string) {
	t.Helper()
	if len(rollouts) == 0 {
		rollouts = []string{name}
	}
	for range 3 {
		for _, one := range rollouts {
			key := client.ObjectKey{Namespace: w.Namespace, Name: one}
			if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
				t.Fatalf("reconciling %s: %v", one, err)
			}
		}
	}
}

func get(t *testing.T, w *faults.World, name string) *v1alpha1.CanaryRollout {
	t.Helper()
	var r v1alpha1.CanaryRollout
	if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// virtualService returns a VirtualService, nil if there is none.
func virtualService(t *testing.T, w *faults.World, name string) *unstructured.Unstructured {
	t.Helper()
	vs := routing.NewRoute(routing.DefaultDomain.VirtualServices())
	err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, vs)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return vs
}

// weights returns the weights of a route by the Services of their destinations, without KServe's ending.
func weights(t *testing.T, vs *unstructured.Unstructured, route string) string {
	t.Helper()
	return weightsBy(vs, route, []string{"destination", "host"})
}

// weightsBy returns the weights of a route by what its destinations have in the first of some places, without KServe's
// ending.
func weightsBy(vs *unstructured.Unstructured, route string, places ...[]string) string {
	if vs == nil {
		return "no VirtualService"
	}
	list, _, _ := unstructured.NestedSlice(vs.Object, "spec", "http")
	var text strings.Builder
	for _, one := range list {
		if one.(map[string]any)["name"] != route {
			continue
		}
		for _, destination := range one.(map[string]any)["route"].([]any) {
			entry, host := destination.(map[string]any), ""
			for i := 0; i < len(places) && host == ""; i++ {
				host, _, _ = unstructured.NestedString(entry, places[i]...)
			}
			weight, _, _ := unstructured.NestedInt64(entry, "weight")
			service, _, _ := strings.Cut(host, ".")
			_, _ = fmt.Fprintf(&text, "%s=%d ", strings.TrimSuffix(service, "-predictor"), weight)
		}
	}
	return text.String()
}

func wantWeights(t *testing.T, w *faults.World, want string) {
	t.Helper()
	if got := weights(t, virtualService(t, w, name), routing.SplitRoute); got != want {
		t.Errorf("weights %q, want %q", got, want)
	}
}

func wantCondition(t *testing.T, w *faults.World, rollout, kind string, status metav1.ConditionStatus, reason string) {
	t.Helper()
	r := get(t, w, rollout)
	c := meta.FindStatusCondition(r.Status.Conditions, kind)
	if c == nil || c.Status != status || c.Reason != reason {
		t.Errorf("condition %s of %s is %+v; want %s, %s", kind, rollout, c, status, reason)
	}
	if r.Status.ObservedGeneration != r.Generation {
		t.Errorf("observedGeneration of %s is %d, want %d", rollout, r.Status.ObservedGeneration, r.Generation)
	}
}

func wantReady(t *testing.T, w *faults.World) {
	t.Helper()
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonWeightsApplied)
}

func wantStalled(t *testing.T, w *faults.World, rollout, reason string) {
	t.Helper()
	wantCondition(t, w, rollout, v1alpha1.ConditionStalled, metav1.ConditionTrue, reason)
	wantCondition(t, w, rollout, v1alpha1.ConditionReady, metav1.ConditionFalse, reason)
}

func reconcileOnce(t *testing.T, w *faults.World, r reconcile.Reconciler) {
	t.Helper()
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
		t.Fatalf("reconciling: %v", err)
	}
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard()) // managers are given the log of their test
	os.Exit(m.Run())
}
