// SPDX-License-Identifier: Apache-2.0

package podwebhook_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/test/testbed"
)

// TestKnativeMode: in KServe's Knative mode, with Knative as it ships, pods of revisions are equipped like any others,
// queue-proxy stays as it is, and a policy that says so has one new revision made for a change.
func TestKnativeMode(t *testing.T) {
	w := startKServe(t, testbed.Istio, testbed.Knative)
	knative := map[string]string{"serving.kserve.io/deploymentMode": "Knative"}
	services := map[string]struct {
		spec string
		want map[string]equipment
	}{
		"kn-uri": {spec: `predictor: {sklearn: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
		"kn-key": {spec: `predictor: {sklearn: {storage: {key: mine, path: m}}}`, want: of(preloadAndCache)},
		"kn-hf":  {spec: `predictor: {huggingface: {storageUri: "hf://org/m"}}`, want: of(cacheOnly)},
		"kn-logger": {
			spec: `predictor: {logger: {mode: all, url: "http://log"}, sklearn: {storageUri: "s3://b/m"}}`,
			want: of(preloadAndCache),
		},
		// KServe gives it an init container, which Knative does not allow as it ships.
		"kn-list": {
			spec: `predictor: {storageUris: [{uri: "s3://b/m", mountPath: /mnt/models/a}], model: {modelFormat: {name: sklearn}}}`,
		},
		"kn-transformer": {
			spec: `{predictor: {sklearn: {storageUri: "s3://b/m"}}, transformer: {containers: [{name: kserve-container, image: own}]}}`,
			want: map[string]equipment{"predictor": preloadAndCache, "transformer": cacheOnly},
		},
	}
	for name, s := range services {
		service := inferenceService(name, nil, knative)
		if err := yaml.Unmarshal([]byte(s.spec), &service.Spec); err != nil {
			t.Fatal(err)
		}
		if err := w.client.Create(t.Context(), service); err != nil {
			t.Fatal(err)
		}
	}
	deployments := map[string]*appsv1.Deployment{}
	w.awaitOr(t, "Knative to make a Deployment of every component", func(ctx context.Context) bool {
		deployments = w.revisions(ctx)
		return len(deployments) == 6
	}, w.conditionsOfAll)
	w.awaitOr(t, "a ReplicaSet of every Deployment", func(ctx context.Context) bool {
		return len(w.replicaSets(ctx)) == len(deployments)
	}, w.conditionsOfAll)
	w.awaitPods(t)
	plain := w.pods(t, deployments)
	defer w.register(t, "outrigger-pod-webhook", deployments["kn-uri-predictor-00001"])()
	equipped := w.pods(t, deployments)
	for name, s := range services {
		for component, want := range s.want {
			key := name + "-" + component + "-00001"
			checkPod(t, key, plain[key], equipped[key], want)
			if equipped[key].Spec.Containers[1].Name != "queue-proxy" && equipped[key].Spec.Containers[0].Name != "queue-proxy" {
				t.Errorf("%s has no queue-proxy", key)
			}
		}
	}

	w.restartPods(t) // those that came before the webhook
	w.startReconciler(t)
	w.makeReady(t)
	policy := &v1alpha1.SidecarPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "everything"}}
	status := func(ctx context.Context) *v1alpha1.SidecarPolicyStatus {
		if w.client.Get(ctx, client.ObjectKeyFromObject(policy), policy) != nil {
			return &v1alpha1.SidecarPolicyStatus{}
		}
		return &policy.Status
	}
	w.await(t, "all pods to be equipped", func(ctx context.Context) bool { return status(ctx).Injected == 6 })
	w.awaitOr(t, "a word on what Knative forbids", func(ctx context.Context) bool {
		list := &kserve.InferenceService{}
		warning := (*kserve.Warning)(nil)
		if w.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "kn-list"}, list) == nil {
			warning = kserve.WarningOf(list, v1alpha1.ConditionSidecarsIncomplete)
		}
		return warning != nil && warning.Reason == v1alpha1.ReasonForbiddenByKnative &&
			strings.Contains(warning.Message, "kubernetes.podspec-init-containers")
	}, w.conditionsOfAll)
	before := policy.DeepCopy()
	policy.Spec.Rollout, policy.Spec.Preload.Verify = v1alpha1.RolloutAlways, v1alpha1.VerifyAuto
	if err := w.client.Patch(t.Context(), policy, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	// Those with a preloader carry it in another way; the transformer and the model from elsewhere do, too: they are
	// under the same plan. Nothing scales here, so that the pods of the first revisions stay.
	w.await(t, "a second revision of every component", func(ctx context.Context) bool {
		return len(w.revisions(ctx)) == 12 && status(ctx).Injected == 6 && status(ctx).Rolling == 0
	})
	time.Sleep(5 * time.Second) // nothing must happen any more
	for name := range w.revisions(t.Context()) {
		if !strings.HasSuffix(name, "-00001") && !strings.HasSuffix(name, "-00002") {
			t.Errorf("there is a revision %s", name)
		}
	}
}

// conditionsOfAll tells what KServe says of every InferenceService.
func (w *kserveWorld) conditionsOfAll(ctx context.Context) string {
	var list kserve.InferenceServiceList
	if err := w.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return err.Error()
	}
	var text strings.Builder
	for i := range list.Items {
		status := &list.Items[i].Status
		fmt.Fprintf(&text, "%s: %s %+v\n", list.Items[i].Name, status.DeploymentMode, status.Conditions)
	}
	return text.String()
}

// revisions returns the Deployments of Knative's revisions, by the names of these.
func (w *kserveWorld) revisions(ctx context.Context) map[string]*appsv1.Deployment {
	var list appsv1.DeploymentList
	if err := w.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil
	}
	found := map[string]*appsv1.Deployment{}
	for i := range list.Items {
		if name, ok := strings.CutSuffix(list.Items[i].Name, "-deployment"); ok {
			found[name] = &list.Items[i]
		}
	}
	return found
}
