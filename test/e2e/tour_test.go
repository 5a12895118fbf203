// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"math"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/samples/predictor/model"
	"serverless.xyz/outrigger/test/cluster"
)

// TestModelByPreloader: the unchanged InferenceService gets its model by the preloader and its features by the cache,
// and what it says is right.
func TestModelByPreloader(t *testing.T) {
	ns := namespace(t, "preload", "memcached.yaml", "sidecarpolicy.yaml")
	pod := serveTorchMNIST(t, ns)

	images := map[string]string{}
	for _, c := range pod.Spec.InitContainers {
		images[c.Name] = c.Image
	}
	for name, image := range map[string]string{
		"storage-initializer": "ghcr.io/outrigger/preloader:v0.1.0", v1alpha1.ContainerFeatureCache: "ghcr.io/outrigger/outrigger:v0.1.0",
	} {
		if images[name] != image {
			t.Errorf("init container %s has image %q, want %q", name, images[name], image)
		}
	}

	wantPredictions(t, pod)
	policy := &v1alpha1.SidecarPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "default"}}
	must(t, shared.Await(t.Context(), policy, within, func() bool {
		return policy.Status.Matched == 1 && policy.Status.Injected == 1 && policy.Status.Outdated == 0
	}))
}

// TestTrafficFollowsTheField: the share of requests that each side gets follows one field, and no request fails; nor
// does one while the operator is away, and what was edited meanwhile comes into force when it is back.
func TestTrafficFollowsTheField(t *testing.T) {
	ns := twoVersions(t, "canary", "canaryrollout.yaml")
	rollout := &v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "mnist"}}
	awaitWeight(t, rollout, 0)
	traffic, err := shared.NewTraffic(ns, rollout.Status.Host+":80", "mnist")
	must(t, err)
	t.Cleanup(func() { _ = traffic.Close() })
	must(t, traffic.Await(t.Context()))

	for _, percent := range []int32{0, 10, 50, 100, 20} {
		patch(t, rollout, fmt.Sprintf(`{"spec":{"canaryPercent":%d}}`, percent))
		awaitWeight(t, rollout, percent)
		wantShare(t, traffic, percent)
	}

	before := podUIDs(t, ns)
	scaleManager(t, 0)
	patch(t, rollout, `{"spec":{"canaryPercent":80}}`)
	wantShare(t, traffic, 20)
	scaleManager(t, 2)
	awaitWeight(t, rollout, 80)
	wantShare(t, traffic, 80)
	for uid := range before {
		if !podUIDs(t, ns)[uid] {
			t.Error("a pod was replaced when the manager was restarted")
		}
	}
}

// TestAdoptedRouteFollowsTheField: the weights of a user's VirtualService follow, and the rest of it stays.
func TestAdoptedRouteFollowsTheField(t *testing.T) {
	ns := twoVersions(t, "adopt", "canaryrollout-adopt.yaml")
	var rollouts v1alpha1.CanaryRolloutList
	must(t, shared.Client.List(t.Context(), &rollouts))
	for i := range rollouts.Items {
		rollout := &rollouts.Items[i]
		if rollout.Namespace != ns {
			continue
		}
		patch(t, rollout, `{"spec":{"canaryPercent":37}}`)
		awaitWeight(t, rollout, 37)
		out, err := shared.KubectlRun(t.Context(), "-n", ns, "get", "virtualservice", rollout.Spec.Routing.VirtualServiceRef.Name,
			"-o", "jsonpath={.spec.http[?(@.name==\""+rollout.Spec.Routing.VirtualServiceRef.Route+"\")].route[*].weight}")
		must(t, err)
		if out != "63 37" {
			t.Errorf("weights %q, want 63 37", out)
		}
		return
	}
	t.Fatal("the sample has no CanaryRollout")
}

// TestCacheScales: from one instance to three and back, with activeConnections from the servers themselves.
func TestCacheScales(t *testing.T) {
	ns := namespace(t, "scale", "memcached.yaml")
	m := awaitMemcached(t, ns, 1)
	patch(t, m, `{"spec":{"size":3,"scalingWindow":"5s"}}`)
	m = awaitMemcached(t, ns, 3)
	if m.Status.ReadyInstances != 3 || m.Status.StandbyInstances != 1 {
		t.Errorf("%d ready, %d standing by; want 3, 1", m.Status.ReadyInstances, m.Status.StandbyInstances)
	}
	grown := m.Status.LastScaleTime.Time
	_, err := shared.KubectlRun(t.Context(), "-n", ns, "scale", "memcached", "features", "--replicas", "0")
	must(t, err)
	m = awaitMemcached(t, ns, 0)
	if window := m.Status.LastScaleTime.Sub(grown); window < 5*time.Second {
		t.Errorf("shrank %s after it had grown, want 5s at least", window)
	}
}

// serveTorchMNIST has the first sample served in a namespace with a cache and a policy, and returns its pod.
func serveTorchMNIST(t *testing.T, ns string) *corev1.Pod {
	t.Helper()
	awaitMemcached(t, ns, 1)
	must(t, shared.ApplySample(t.Context(), ns, "torch-mnist.yaml", nil))
	must(t, shared.AwaitInferenceService(t.Context(), ns, "torch-mnist"))
	return onlyPod(t, ns, "torch-mnist")
}

// wantPredictions wants the pod of torch-mnist to find all features in its cache, and to say what the training script said.
func wantPredictions(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	digits, err := model.HeldOut()
	must(t, err)
	var answer cluster.Answer
	// A busy machine may miss the 20 ms of a look-up, and then asks no more for a while.
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		answer, err = shared.Predict(t.Context(), pod, "torch-mnist", digits)
		must(t, err)
		if answer.Hits == len(digits) {
			break
		}
	}
	if answer.Hits != len(digits) {
		t.Errorf("%d of %d features in the cache", answer.Hits, len(digits))
	}
	for i, digit := range digits {
		if answer.Predictions[i] != digit.V2 {
			t.Errorf("%s: predicted %d, the training script %d", digit.ID, answer.Predictions[i], digit.V2)
		}
	}
}

// twoVersions makes a namespace where both versions of the model serve, with a rollout from one to the other.
func twoVersions(t *testing.T, name, rollout string) string {
	t.Helper()
	ns := namespace(t, name, "memcached.yaml", "sidecarpolicy.yaml", "mnist-v1.yaml", "mnist-v2.yaml", rollout)
	for _, version := range []string{"mnist-v1", "mnist-v2"} {
		must(t, shared.AwaitInferenceService(t.Context(), ns, version))
	}
	return ns
}

func awaitWeight(t *testing.T, rollout *v1alpha1.CanaryRollout, percent int32) {
	t.Helper()
	must(t, shared.Await(t.Context(), rollout, within, func() bool {
		applied := rollout.Status.Weights.Applied
		return applied != nil && applied.Canary == percent && rollout.Status.ObservedGeneration == rollout.Generation
	}))
}

// wantShare waits until clients have heard of a weight, and then measures it. No request may fail, at any time.
func wantShare(t *testing.T, traffic *cluster.Traffic, percent int32) {
	t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		probe := traffic.Send(t.Context(), 200)
		if probe.Failed > 0 {
			t.Fatalf("%d of %d requests failed: %v", probe.Failed, probe.Requests, probe.FirstError)
		}
		if math.Abs(probe.Percent("v2")-float64(percent)) < 8 {
			break
		}
	}
	// Five points are three standard deviations at 1,000 requests, and seven at the 5,000 that decide in the end.
	for _, requests := range []int{1000, 5000} {
		shares := traffic.Send(t.Context(), requests)
		if shares.Failed > 0 {
			t.Errorf("%d of %d requests failed: %v", shares.Failed, shares.Requests, shares.FirstError)
		}
		got := shares.Percent("v2")
		if math.Abs(got-float64(percent)) <= 5 {
			return
		}
		if requests == 5000 {
			t.Errorf("canaryPercent %d: measured %.1f", percent, got)
		}
	}
}

func scaleManager(t *testing.T, replicas int32) {
	t.Helper()
	_, err := shared.KubectlRun(t.Context(), "-n", "outrigger-system", "scale", "deployment", "outrigger-manager",
		fmt.Sprintf("--replicas=%d", replicas))
	must(t, err)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "outrigger-system", Name: "outrigger-manager"}}
	must(t, shared.Await(t.Context(), deployment, within, func() bool {
		// A pod that is still ending counts no more in the Deployment's status, but may act on one more edit.
		var pods corev1.PodList
		must(t, shared.Client.List(t.Context(), &pods, client.InNamespace(deployment.Namespace),
			client.MatchingLabels(deployment.Spec.Selector.MatchLabels)))
		return deployment.Status.ObservedGeneration == deployment.Generation && len(pods.Items) == int(replicas) &&
			deployment.Status.Replicas == replicas && deployment.Status.AvailableReplicas == replicas
	}))
}

func podUIDs(t *testing.T, ns string) map[string]bool {
	t.Helper()
	uids := map[string]bool{}
	for _, name := range []string{"mnist-v1", "mnist-v2"} {
		pods, err := shared.PredictorPods(t.Context(), ns, name)
		must(t, err)
		for i := range pods {
			uids[string(pods[i].UID)] = true
		}
	}
	return uids
}

func onlyPod(t *testing.T, ns, service string) *corev1.Pod {
	t.Helper()
	pods, err := shared.PredictorPods(t.Context(), ns, service)
	must(t, err)
	if len(pods) != 1 {
		t.Fatalf("%s has %d pods, not one", service, len(pods))
	}
	return &pods[0]
}
