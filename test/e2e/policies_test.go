// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// TestAPolicyIsRolledOut: a policy that runs is changed to a feature cache on the node, to a sidecar of its author's
// making, and to replace pods; KServe replaces the pod once, and what the model serves finds its features as before.
func TestAPolicyIsRolledOut(t *testing.T) {
	ns := namespace(t, "rollout", "memcached.yaml", "sidecarpolicy.yaml")
	before := serveTorchMNIST(t, ns)
	policy := &v1alpha1.SidecarPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "default"}}
	patch(t, policy, `{"spec": {"rollout": "Always", "featureCache": {"mode": "Shared"}, "containers": [`+
		`{"name": "beside", "image": "ghcr.io/outrigger/outrigger:v0.1.0", "command": ["/featurecache"], `+
		`"args": ["--listen=127.0.0.1:11300", "--metrics-address=:9300"], "env": [{"name": "OF", "value": "${isvc.metadata.name}"}]}]}}`)
	must(t, shared.Await(t.Context(), policy, within, func() bool {
		return policy.Status.ObservedGeneration == policy.Generation && policy.Status.Injected == 1 &&
			meta.IsStatusConditionTrue(policy.Status.Conditions, v1alpha1.ConditionRolledOut) &&
			meta.IsStatusConditionTrue(policy.Status.Conditions, v1alpha1.ConditionReady)
	}))
	pod := onlyPod(t, ns, "torch-mnist")
	if pod.UID == before.UID {
		t.Fatal("the pod was not replaced")
	}
	names := make([]string, 0, 4)
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		names = append(names, c.Name)
	}
	if want := []string{"storage-initializer", "kserve-container", "beside"}; !slices.Equal(names, want) {
		t.Errorf("containers %q, want %q", names, want)
	}
	at := slices.IndexFunc(
		pod.Spec.Containers[0].Env,
		func(e corev1.EnvVar) bool { return e.Name == v1alpha1.EnvFeatureCacheAddr },
	)
	if at < 0 || !strings.HasPrefix(pod.Spec.Containers[0].Env[at].Value, v1alpha1.NodeCacheName("features")+".") {
		t.Errorf("the model looks for its features at %v", pod.Spec.Containers[0].Env)
	}
	wantPredictions(t, pod)
}
