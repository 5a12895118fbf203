// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// kserveSpec gives an InferenceService this spec.
func kserveSpec(name, spec string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		raw, err := yaml.YAMLToJSON([]byte(spec))
		if err != nil {
			return err
		}
		patch := fmt.Appendf(nil, `{"spec":%s}`, raw)
		return w.Client.Patch(ctx, isvc, client.RawPatch(types.MergePatchType, patch))
	}
}

// variantPods makes the Service of a variant, as KServe does, with that many ready endpoints.
func variantPods(isvc, service string, ready int) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		labels := map[string]string{kserve.LabelInferenceService: isvc}
		if err := createOnce(ctx, w, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: service, Labels: labels},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": "isvc." + service},
				Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
			},
		}); err != nil {
			return err
		}
		return endpoints(service, isvc, ready)(ctx, w)
	}
}

// TestVariantsAsSides: the two sides are variants of one InferenceService, as KServe makes them and leaves them without
// traffic; a promotion by KServe's own means takes no traffic from anybody.
func TestVariantsAsSides(t *testing.T) {
	w := newWorld(t)
	r := newReconciler(w.Client, w)
	const model = "name: kserve-container, modelFormat: {name: pytorch}, storageUri: s3://m/"
	do(t, w, inferenceService("v1", 2), kserveSpec("v1",
		"{predictor: {model: {"+model+"1}}, canary: [{trafficPercent: 0, predictor: {name: next, model: {"+model+"2}}}]}"),
		variantPods("v1", "v1-next-predictor", 0),
		rollout(func(r *v1alpha1.CanaryRollout) {
			r.Spec.Canary = v1alpha1.RolloutSide{InferenceService: "v1", Variant: "next"}
			r.Spec.CanaryPercent = 30
		}))
	settle(t, w, r)
	wantWeights(t, w, "v1=100 v1=0 ")
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonInferenceServiceNotReady)
	do(t, w, variantPods("v1", "v1-next-predictor", 1))
	settle(t, w, r)
	wantWeights(t, w, "v1=70 v1=30 ")
	wantReady(t, w)

	// What is not there gets nothing.
	do(t, w, edit(`{"spec":{"canary":{"variant":"other"}}}`))
	settle(t, w, r)
	wantWeights(t, w, "v1=100 v1=0 ")
	do(t, w, edit(`{"spec":{"canary":{"variant":"next"},"canaryPercent":100}}`))
	settle(t, w, r)
	wantWeights(t, w, "v1=0 v1=100 ")

	// KServe's promotion: the canary's name becomes the predictor's, and with it its Service.
	do(t, w, kserveSpec("v1", "{predictor: {name: next, model: {"+model+"2}}, canary: null}"), endpoints("v1-predictor", "v1", 0))
	settle(t, w, r)
	wantWeights(t, w, "v1=0 v1=100 ")
	wantStalled(t, w, name, v1alpha1.ReasonSidesAreOne)
}
