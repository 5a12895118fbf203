// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/sidecarpolicy"
)

const name = "default"

var (
	kinds = []client.ObjectList{
		&v1alpha1.SidecarPolicyList{}, &v1alpha1.MemcachedList{}, &kserve.InferenceServiceList{}, &corev1.PodList{},
	}
	preloadAuto = sidecar.Plan{Preload: &sidecar.Preload{Verify: v1alpha1.VerifyAuto}}
)

func TestFaults(t *testing.T) {
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name:  name,
		Kinds: kinds,
		New:   newReconciler,
		Steps: []faults.Step{
			all(create(cachePolicy()), create(inferenceService("a", nil)), create(modelPod("a-1", "a", ""))),
			all(create(&v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Name: "features"}}), create(inferenceService("b", nil)),
				create(modelPod("b-1", "b", cachePlan().Hash()))),
			remove(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a-1"}}),
		},
	})
}

func TestStatusCountsWhatThePodsCarry(t *testing.T) {
	w := newWorld(t)
	other := modelPod("c-1", "c", "")
	other.Labels["component"] = "explainer"
	do(t, w,
		create(preloadPolicy()),
		create(inferenceService("a", nil)),
		create(modelPod("a-1", "a", preloadAuto.Hash())), create(modelPod("a-2", "a", preloadAuto.Hash())),
		create(inferenceService("b", nil)),
		create(modelPod("b-1", "b", "0123")), create(modelPod("b-2", "b", "")),
		create(inferenceService("c", nil)), create(other),
		create(inferenceService("out", map[string]string{v1alpha1.AnnotationSidecarPolicy: "none"})),
		create(modelPod("out-1", "out", "")),
	)
	w.Clock.SetTime(time.Now().Add(time.Hour)) // the pods are older than the policy
	reconcileOnce(t, w)
	wantCounts(t, w, 3, 2, 2)
	wantCondition(t, w, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
}

func TestStatusFollowsAnotherPolicyThatDecides(t *testing.T) {
	w := newWorld(t)
	high := preloadPolicy()
	high.Name, high.Spec.Priority, high.Spec.Preload.Verify = "high", 900, v1alpha1.VerifyRequire
	do(t, w, create(preloadPolicy()), create(inferenceService("a", nil)), create(modelPod("a-1", "a", preloadAuto.Hash())))
	reconcileOnce(t, w)
	wantCounts(t, w, 1, 1, 0)
	do(t, w, create(high))
	reconcileOnce(t, w)
	wantCounts(t, w, 1, 0, 1)
}

func TestMissingMemcachedStallsUntilItIsThere(t *testing.T) {
	w := newWorld(t)
	do(t, w, create(cachePolicy()))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonMemcachedNotFound)
	wantCondition(t, w, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonMemcachedNotFound)
	do(t, w, create(&v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Name: "features"}}))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionFalse, v1alpha1.ReasonNotStalled)
	wantCondition(t, w, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonNothingPicked)
	do(t, w, create(inferenceService("a", nil)))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
}

// TestAPolicyThatIsDeletedMeanwhileIsNoError: the cache is behind, and there is nothing left to report to.
func TestAPolicyThatIsDeletedMeanwhileIsNoError(t *testing.T) {
	w := newWorld(t)
	do(t, w, create(preloadPolicy()))
	p := get(t, w)
	do(t, w, remove(&v1alpha1.SidecarPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	r := sidecarpolicy.New(w.Client, w.Client, w.Clock, record.NewFakeRecorder(10), sidecar.Settings{}, &sidecarpolicy.Memo{})
	if _, err := r.Reconcile(t.Context(), p); err != nil {
		t.Errorf("reconciling a policy that is gone: %v", err)
	}
}

// TestAMisspeltFieldOfAConditionIsHintedAt: such a condition is false for every InferenceService, and no error.
func TestAMisspeltFieldOfAConditionIsHintedAt(t *testing.T) {
	w := newWorld(t)
	p := preloadPolicy()
	p.Spec.Condition = "isvc.spec.predictor.model.modelformat.name == 'pytorch'"
	do(t, w, create(p), create(inferenceService("a", nil)))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonNothingPicked)
	c := meta.FindStatusCondition(get(t, w).Status.Conditions, v1alpha1.ConditionReady)
	if !strings.Contains(c.Message, "A field that an InferenceService does not have makes the condition false") {
		t.Errorf("message %q does not hint at a field that does not exist", c.Message)
	}
}

func TestSelectorThatCannotBeReadStalls(t *testing.T) {
	w := newWorld(t)
	p := preloadPolicy()
	p.Spec.Selector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}
	do(t, w, create(p), create(inferenceService("a", nil)), create(modelPod("a-1", "a", "")))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonRefused)
	wantCounts(t, w, 0, 0, 0)
}

func TestPodsThatTheWebhookMissed(t *testing.T) {
	w := newWorld(t)
	w.Clock.SetTime(time.Now().Add(time.Hour))
	do(t, w, create(preloadPolicy()), create(inferenceService("a", nil)), create(modelPod("a-old", "a", "")))
	reconcileOnce(t, w)
	if diff := cmp.Diff(
		[]v1alpha1.PodBehind{{Name: "a-old", Why: v1alpha1.BehindOutdated}},
		get(t, w).Status.Behind,
	); diff != "" {
		t.Errorf("behind (-want +got):\n%s", diff)
	}
	// The next pod comes an hour after the policy was last seen to change.
	p := get(t, w)
	do(t, w, func(ctx context.Context, w *faults.World) error {
		p.Status.ChangedTime = &metav1.Time{Time: time.Now().Add(-time.Hour)}
		return w.Client.Status().Update(ctx, p)
	}, remove(modelPod("a-old", "a", "")), create(modelPod("a-new", "a", "")), create(modelPod("a-other", "a", "0123")))
	reconcileOnce(t, w)
	want := []v1alpha1.PodBehind{
		{Name: "a-new", Why: v1alpha1.BehindMissed}, {Name: "a-other", Why: v1alpha1.BehindOutdated},
	}
	s := get(t, w).Status
	if diff := cmp.Diff(want, s.Behind); diff != "" || s.Missed != 1 || s.Outdated != 1 {
		t.Errorf("missed %d, outdated %d, behind (-want +got):\n%s", s.Missed, s.Outdated, diff)
	}
}

func TestListsInStatusAreBounded(t *testing.T) {
	w := newWorld(t)
	do(t, w, create(preloadPolicy()), create(inferenceService("a", nil)))
	for i := range 12 {
		do(t, w, create(modelPod(fmt.Sprintf("a-%02d", i), "a", "0123")))
	}
	for i := range 12 {
		high := preloadPolicy()
		high.Name, high.Spec.Priority = fmt.Sprintf("high-%02d", i), int32(200+i)
		high.Spec.Preload.Verify = v1alpha1.VerifyRequire
		high.Spec.Selector.MatchLabels = map[string]string{"n": strconv.Itoa(i)}
		isvc := inferenceService(fmt.Sprintf("s-%02d", i), nil)
		isvc.Labels = high.Spec.Selector.MatchLabels
		do(t, w, create(high), create(isvc))
	}
	reconcileOnce(t, w)
	s := get(t, w).Status
	if len(s.Behind) != 10 || s.Behind[9].Name != "a-09" || s.Outdated != 12 {
		t.Errorf("outdated %d, behind %v", s.Outdated, s.Behind)
	}
	if len(s.Conflicts) != 10 || s.Conflicts[9].Policy != "high-09" {
		t.Errorf("conflicts %v", s.Conflicts)
	}
}

func TestConflictsNameThePolicyThatDecides(t *testing.T) {
	w := newWorld(t)
	low, high, same := preloadPolicy(), preloadPolicy(), preloadPolicy()
	low.Spec.FeatureCache = cachePolicy().Spec.FeatureCache
	high.Name, high.Spec.Priority, high.Spec.Preload.Verify = "high", 900, v1alpha1.VerifyRequire
	same.Name, same.Spec.Priority = "same", 800
	same.Spec.Preload, same.Spec.FeatureCache = nil, cachePolicy().Spec.FeatureCache
	out := inferenceService("out", map[string]string{v1alpha1.AnnotationSidecarPolicy: name})
	do(t, w, create(low), create(high), create(same),
		create(inferenceService("a", nil)), create(inferenceService("b", nil)), create(out))
	reconcileOnce(t, w)
	want := []v1alpha1.PolicyConflict{{Part: "preload", Policy: "high", InferenceServices: 2}}
	if diff := cmp.Diff(want, get(t, w).Status.Conflicts); diff != "" {
		t.Errorf("conflicts (-want +got):\n%s", diff)
	}
}

func TestConditionThatCannotBeReadStallsWithItsPosition(t *testing.T) {
	w := newWorld(t)
	p := preloadPolicy()
	p.Spec.Condition = "isvc.metadata.name = 'a'"
	do(t, w, create(p), create(inferenceService("a", nil)))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonRefused)
	c := meta.FindStatusCondition(get(t, w).Status.Conditions, v1alpha1.ConditionStalled)
	if !strings.Contains(c.Message, "spec.condition: line 1, column 20") {
		t.Errorf("message %q does not name the position", c.Message)
	}
	wantCounts(t, w, 0, 0, 0)
}

func TestConditionThatFailsOnAnInferenceServiceNamesIt(t *testing.T) {
	w := newWorld(t)
	p := preloadPolicy()
	p.Spec.Condition = "isvc.metadata.name == 'a' || isvc.metadata.name < 3"
	do(t, w, create(p), create(inferenceService("a", nil)), create(inferenceService("b", nil)))
	reconcileOnce(t, w)
	c := meta.FindStatusCondition(get(t, w).Status.Conditions, v1alpha1.ConditionStalled)
	if c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, `on InferenceService "b"`) {
		t.Errorf("Stalled is %s: %q", c.Status, c.Message)
	}
	wantCounts(t, w, 1, 0, 0)
}

func TestImageThatIsNotAllowedStalls(t *testing.T) {
	w := newWorld(t)
	p := preloadPolicy()
	p.Spec.Preload.Image = "elsewhere.example/preloader:1"
	do(t, w, create(p))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonRefused)
	p = get(t, w)
	do(t, w, func(ctx context.Context, w *faults.World) error {
		p.Spec.Preload.Image = "registry.example/preloader:1"
		return w.Client.Update(ctx, p)
	})
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionFalse, v1alpha1.ReasonNotStalled)
}

func TestADirectoryOfNodesThatIsNotAllowedStalls(t *testing.T) {
	w := newWorld(t)
	p := preloadPolicy()
	p.Spec.Preload.NodeCache = &v1alpha1.PreloadNodeCache{}
	do(t, w, create(p))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonRefused)
	p = get(t, w)
	do(t, w, func(ctx context.Context, w *faults.World) error {
		p.Spec.Preload.NodeCache.ClaimName = "models"
		return w.Client.Update(ctx, p)
	})
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionStalled, metav1.ConditionFalse, v1alpha1.ReasonNotStalled)
}

func newWorld(t *testing.T) *faults.World {
	t.Helper()
	return faults.NewSoleWorld(t, testcluster.New(t))
}

// settings are those of the webhook and, but for the images that it allows, of the reconciler.
var settings = sidecar.Settings{Preloader: "preloader:1", FeatureCache: "outrigger:1"}

func newReconciler(c client.Client, w *faults.World) reconcile.Reconciler {
	limited := settings
	limited.Allowed = []string{"registry.example/"}
	return reconcile.AsReconciler(
		c,
		sidecarpolicy.New(c, c, w.Clock, record.NewFakeRecorder(1000), limited, &sidecarpolicy.Memo{}),
	)
}

func preloadPolicy() *v1alpha1.SidecarPolicy {
	return &v1alpha1.SidecarPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.SidecarPolicySpec{Preload: &v1alpha1.Preload{Verify: v1alpha1.VerifyAuto}},
	}
}

func cachePolicy() *v1alpha1.SidecarPolicy {
	return &v1alpha1.SidecarPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.SidecarPolicySpec{
			FeatureCache: &v1alpha1.FeatureCache{MemcachedRef: v1alpha1.LocalObjectReference{Name: "features"}},
		},
	}
}

func cachePlan() sidecar.Plan {
	return sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features"}}
}

func inferenceService(name string, annotations map[string]string) *kserve.InferenceService {
	return &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}
}

// modelPod is a pod of an InferenceService's predictor that was equipped with the plan of a hash, or with none.
func modelPod(name, service, hash string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{kserve.LabelInferenceService: service, "component": "predictor"},
			Annotations: map[string]string{},
		},
		Spec: corev1.PodSpec{
			Containers:                    []corev1.Container{{Name: kserve.ContainerPredictor, Image: "server"}},
			TerminationGracePeriodSeconds: ptr.To[int64](0),
		},
	}
	if hash != "" {
		p.Annotations[v1alpha1.AnnotationInjected] = hash
	}
	return p
}

func create(o client.Object) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		fresh := o.DeepCopyObject().(client.Object)
		fresh.SetNamespace(w.Namespace)
		return w.Client.Create(ctx, fresh)
	}
}

func remove(o client.Object) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		old := o.DeepCopyObject().(client.Object)
		old.SetNamespace(w.Namespace)
		return client.IgnoreNotFound(w.Client.Delete(ctx, old, client.GracePeriodSeconds(0)))
	}
}

func all(steps ...faults.Step) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		for _, step := range steps {
			if err := step(ctx, w); err != nil {
				return err
			}
		}
		return nil
	}
}

func do(t *testing.T, w *faults.World, steps ...faults.Step) {
	t.Helper()
	if err := all(steps...)(t.Context(), w); err != nil {
		t.Fatal(err)
	}
}

func reconcileOnce(t *testing.T, w *faults.World) {
	t.Helper()
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	if _, err := newReconciler(w.Client, w).Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
		t.Fatalf("reconciling: %v", err)
	}
}

func get(t *testing.T, w *faults.World) *v1alpha1.SidecarPolicy {
	t.Helper()
	var p v1alpha1.SidecarPolicy
	if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, &p); err != nil {
		t.Fatal(err)
	}
	return &p
}

func wantCounts(t *testing.T, w *faults.World, matched, injected, outdated int32) {
	t.Helper()
	s := get(t, w).Status
	if s.Matched != matched || s.Injected != injected || s.Outdated != outdated {
		t.Errorf("matched %d, injected %d, outdated %d; want %d, %d, %d",
			s.Matched, s.Injected, s.Outdated, matched, injected, outdated)
	}
}

func wantCondition(t *testing.T, w *faults.World, kind string, status metav1.ConditionStatus, reason string) {
	t.Helper()
	p := get(t, w)
	c := meta.FindStatusCondition(p.Status.Conditions, kind)
	if c == nil {
		t.Fatalf("no condition %s", kind)
	}
	if c.Status != status || c.Reason != reason || c.ObservedGeneration != p.Generation {
		t.Errorf("condition %s is %s, %s (%s) of generation %d; want %s, %s of %d",
			kind, c.Status, c.Reason, c.Message, c.ObservedGeneration, status, reason, p.Generation)
	}
}
