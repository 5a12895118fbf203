// SPDX-License-Identifier: Apache-2.0

package podwebhook_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/sidecarpolicy"
)

// TestKServe is what needs the real KServe in Standard mode, in one cluster.
func TestKServe(t *testing.T) {
	w := startKServe(t)
	t.Run("a changed policy is rolled out", w.testRollout)
	if err := w.client.DeleteAllOf(t.Context(), &v1alpha1.SidecarPolicy{}, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	if err := w.tb.Apply(t.Context(), everything); err != nil {
		t.Fatal(err)
	}
	t.Run("all its pods are equipped", w.testPods)
}

// testRollout: a changed policy has the real KServe and the real Deployment controller replace the pods of predictor and
// transformer, each once, and a change that nobody asked to roll out replaces none.
func (w *kserveWorld) testRollout(t *testing.T) {
	service := inferenceService("roll", nil, nil)
	if err := yaml.Unmarshal([]byte(`{predictor: {sklearn: {storageUri: "s3://b/m"}}, `+
		`transformer: {containers: [{name: kserve-container, image: own}]}}`), &service.Spec); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	w.await(t, "KServe to make both Deployments", func(ctx context.Context) bool {
		return len(w.replicaSets(ctx)) == 2
	})
	w.awaitPods(t) // any that comes later will have been equipped
	defer w.register(t, "outrigger-pod-webhook", w.deployment(t, "roll-predictor"))()
	w.restartPods(t) // those that came before the webhook
	w.startReconciler(t)
	w.makeReady(t)

	policy := &v1alpha1.SidecarPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "everything"}}
	isRolledOut := func(generation int64) func(context.Context) bool {
		return func(ctx context.Context) bool {
			if w.client.Get(ctx, client.ObjectKeyFromObject(policy), policy) != nil {
				return false
			}
			c := meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.ConditionRolledOut)
			return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == generation &&
				policy.Status.Injected == 2
		}
	}
	w.await(t, "both pods to be equipped", isRolledOut(1))
	edit := func(change func(*v1alpha1.SidecarPolicySpec)) {
		t.Helper()
		before := policy.DeepCopy()
		change(&policy.Spec)
		if err := w.client.Patch(t.Context(), policy, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}

	edit(func(s *v1alpha1.SidecarPolicySpec) { s.Preload.Verify = v1alpha1.VerifyAuto })
	w.await(t, "the pods to be outdated", func(ctx context.Context) bool {
		return w.client.Get(ctx, client.ObjectKeyFromObject(policy), policy) == nil && policy.Status.Outdated == 2
	})
	if got := len(w.replicaSets(t.Context())); got != 2 {
		t.Errorf("%d ReplicaSets, want 2: nobody asked for a restart", got)
	}

	edit(func(s *v1alpha1.SidecarPolicySpec) { s.Rollout = v1alpha1.RolloutAlways })
	w.await(t, "the pods to be replaced", isRolledOut(3))
	edit(func(s *v1alpha1.SidecarPolicySpec) { s.FeatureCache.MemcachedRef.Name = "more" })
	w.await(t, "the pods to be replaced again", isRolledOut(4))
	// Two Deployments, made once and replaced twice.
	if got := len(w.replicaSets(t.Context())); got != 6 {
		t.Errorf("%d ReplicaSets, want 6", got)
	}
}

func (w *kserveWorld) await(t *testing.T, what string, ready func(context.Context) bool) {
	t.Helper()
	w.awaitOr(t, what, ready, func(ctx context.Context) string {
		var policies v1alpha1.SidecarPolicyList
		_ = w.client.List(ctx, &policies)
		status, _ := yaml.Marshal(policies.Items[0].Status)
		return "the policy says:\n" + string(status)
	})
}

// awaitOr waits, or fails with what explain finds.
func (w *kserveWorld) awaitOr(
	t *testing.T, what string, ready func(context.Context) bool, explain func(context.Context) string,
) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, true,
		func(ctx context.Context) (bool, error) { return ready(ctx), nil })
	if err != nil {
		t.Fatalf("waited too long for %s; %s", what, explain(t.Context()))
	}
}

func (w *kserveWorld) replicaSets(ctx context.Context) []appsv1.ReplicaSet {
	var list appsv1.ReplicaSetList
	if err := w.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil
	}
	return list.Items
}

// awaitPods waits until every ReplicaSet has made its pods.
func (w *kserveWorld) awaitPods(t *testing.T) {
	t.Helper()
	w.await(t, "the pods of all ReplicaSets", func(ctx context.Context) bool {
		return !slices.ContainsFunc(w.replicaSets(ctx), func(set appsv1.ReplicaSet) bool {
			return set.Status.ObservedGeneration != set.Generation || set.Status.Replicas != *set.Spec.Replicas
		})
	})
}

func (w *kserveWorld) deployment(t *testing.T, name string) *appsv1.Deployment {
	t.Helper()
	d := &appsv1.Deployment{}
	if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *kserveWorld) restartPods(t *testing.T) {
	t.Helper()
	if err := w.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
}

// startReconciler runs the controllers of policies, and of the word to authors, as the manager does.
func (w *kserveWorld) startReconciler(t *testing.T) {
	t.Helper()
	mgr, err := ctrl.NewManager(w.tb.Config(), ctrl.Options{
		Scheme: scheme(t), Metrics: metricsserver.Options{BindAddress: "0"},
		// Another test of this process may have run controllers of these names.
		Controller: config.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, clk, recorder, memo := mgr.GetClient(), clock.RealClock{}, mgr.GetEventRecorderFor("test"), &sidecarpolicy.Memo{}
	if err := errors.Join(
		sidecarpolicy.New(c, mgr.GetAPIReader(), clk, recorder, images, memo).SetupWithManager(mgr),
		sidecarpolicy.NewServiceReconciler(c, clk, recorder, memo).SetupWithManager(mgr),
	); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// makeReady stands for the kubelet, which this cluster does not have: it calls every pod ready.
func (w *kserveWorld) makeReady(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			var pods corev1.PodList
			_ = w.client.List(ctx, &pods, client.InNamespace(namespace), client.HasLabels{kserve.LabelInferenceService})
			for i := range pods.Items {
				w.callReady(ctx, &pods.Items[i])
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func (w *kserveWorld) callReady(ctx context.Context, pod *corev1.Pod) {
	if pod.DeletionTimestamp != nil || slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}) {
		return
	}
	before := pod.DeepCopy()
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
		Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
	})
	_ = w.client.Status().Patch(ctx, pod, client.MergeFrom(before)) // tried again
}
