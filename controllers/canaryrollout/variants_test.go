// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
	"serverless.xyz/outrigger/test/testbed"
)

const withVariant = `
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: fraud
  annotations: {serving.kserve.io/deploymentMode: Standard}
spec:
  predictor:
    minReplicas: 1
    model: {modelFormat: {name: pytorch}, args: [--model_name=fraud], storageUri: "s3://models/fraud/1"}
  canary:
  - predictor:
      name: v2
      minReplicas: 1
      model: {modelFormat: {name: pytorch}, args: [--model_name=fraud], storageUri: "s3://models/fraud/2"}
    trafficPercent: 0
`

func ofVariants(r *v1alpha1.CanaryRollout) {
	r.Spec.Stable = v1alpha1.RolloutSide{InferenceService: "fraud"}
	r.Spec.Canary = v1alpha1.RolloutSide{InferenceService: "fraud", Variant: "v2"}
}

// TestVariantsOfOneInferenceService: KServe's own manager runs the variant, and the rollout gives it the traffic that
// KServe does not; also while the variant is promoted to be the predictor.
func TestVariantsOfOneInferenceService(t *testing.T) {
	bed, err := testbed.Start(t.Context(), testbed.Options{
		Size: testbed.Control, Without: []testbed.Part{testbed.Istio, testbed.S3, testbed.Scheduler},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Stop(); err != nil {
			t.Error(err)
		}
	})
	istio, err := testbed.ModuleDir(
		t.Context(), filepath.Join(testcluster.Root(), "test/testbed/modules/istio"), "istio.io/istio")
	if err != nil {
		t.Fatal(err)
	}
	if err := bed.ApplyFiles(t.Context(), filepath.Join(istio, "manifests/charts/base/files/crd-all.gen.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := bed.InstallCRDs(t.Context(), filepath.Join(testcluster.Root(), "config/crd/bases")); err != nil {
		t.Fatal(err)
	}
	w := faults.NewWorld(t, clusterOf(t, bed))
	runtimes, err := os.ReadFile(filepath.Join(testcluster.Root(), "samples/runtime.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	do(t, w, createYAML(string(runtimes)), createYAML(withVariant), rollout(ofVariants), percent(30))
	startManager(t, w, bed.Config())
	awaitReason(t, w, name, v1alpha1.ReasonInferenceServiceNotReady)
	await := func(want, reason string, app ...string) {
		t.Helper()
		deadline := time.Now().Add(within)
		for {
			do(t, w, podsRun(app...)) // all the time: Kubernetes has no good of a node that says nothing
			got, why := weights(t, virtualService(t, w, name), routing.SplitRoute), readyReason(get(t, w, name))
			if got == want && why == reason {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("weights are %q after %s (%s), want %q (%s)", got, within, why, want, reason)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	await("fraud=100 fraud-v2=0 ", v1alpha1.ReasonInferenceServiceNotReady, "isvc.fraud-predictor")
	await("fraud=70 fraud-v2=30 ", v1alpha1.ReasonWeightsApplied, "isvc.fraud-predictor", "isvc.fraud-v2-predictor")

	// As KServe documents it: the predictor takes the variant's name and model, and the entry goes.
	promoted := `{"spec":{"canary":null,"predictor":{"name":"v2","model":{"storageUri":"s3://models/fraud/2"}}}}`
	isvc := &kserve.InferenceService{}
	isvc.Namespace, isvc.Name = w.Namespace, "fraud"
	if err := w.Client.Patch(t.Context(), isvc, client.RawPatch(types.MergePatchType, []byte(promoted))); err != nil {
		t.Fatal(err)
	}
	await("fraud-v2=70 fraud-v2=30 ", v1alpha1.ReasonWeightsApplied, "isvc.fraud-v2-predictor")
}

// podsRun does what a scheduler and a kubelet would do for the pods with these values of the label app: nothing runs
// them here.
func podsRun(apps ...string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "desk"}}
		if err := createOnce(ctx, w, node); err != nil {
			return err
		}
		for i, app := range apps {
			var pods corev1.PodList
			if err := w.Client.List(ctx, &pods, client.InNamespace(w.Namespace), client.MatchingLabels{"app": app}); err != nil {
				return err
			}
			for j := range pods.Items {
				pod := &pods.Items[j]
				if slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
					return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
				}) {
					continue
				}
				if pod.Spec.NodeName == "" {
					binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node.Name}}
					err := w.Client.SubResource("binding").Create(ctx, pod, binding)
					if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
						continue // it goes, or has just been bound
					}
					if err != nil {
						return err
					}
				}
				ip := fmt.Sprintf("10.7.%d.%d", i, j+1)
				was := pod.DeepCopy()
				pod.Status = corev1.PodStatus{
					Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
					Conditions: []corev1.PodCondition{
						{
							Type:   corev1.ContainersReady,
							Status: corev1.ConditionTrue,
						},
						{Type: corev1.PodReady, Status: corev1.ConditionTrue},
					},
				}
				if err := client.IgnoreNotFound(w.Client.Status().Patch(ctx, pod, client.MergeFrom(was))); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// TestAVariantThatIsNotThere: traffic waits for one that is still to come, and one behind a transformer cannot be told
// from the predictor.
func TestAVariantThatIsNotThere(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("fraud", 1), rollout(ofVariants), percent(30))
	settle(t, w, r)
	wantWeights(t, w, "fraud=100 fraud-v2=0 ")
	change := func(patch string) faults.Step {
		return func(ctx context.Context, w *faults.World) error {
			isvc := &kserve.InferenceService{}
			isvc.Namespace, isvc.Name = w.Namespace, "fraud"
			return w.Client.Patch(ctx, isvc, client.RawPatch(types.MergePatchType, []byte(patch)))
		}
	}
	do(t, w, endpoints("fraud-v2-predictor", "fraud", 1))
	settle(t, w, r)
	wantWeights(t, w, "fraud=100 fraud-v2=0 ")
	do(t, w, change(`{"spec":{"canary":[{"predictor":{"name":"v2"},"trafficPercent":0}]}}`))
	settle(t, w, r)
	wantWeights(t, w, "fraud=70 fraud-v2=30 ")
	before := virtualService(t, w, name)
	do(t, w, change(`{"spec":{"transformer":{"containers":[{"name":"kserve-container","image":"t"}]}}}`))
	settle(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonUnsupportedVariant)
	if after := virtualService(t, w, name); after.GetResourceVersion() != before.GetResourceVersion() {
		t.Error("the route was written for a rollout that is stalled")
	}
}
