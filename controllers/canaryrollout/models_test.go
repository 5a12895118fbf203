// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// pod makes a predictor pod as KServe's Deployment makes it, whose server is started with arguments.
func pod(inferenceService, suffix string, args ...string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		return w.Client.Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: w.Namespace, Name: inferenceService + "-" + suffix, Labels: map[string]string{
					kserve.LabelInferenceService: inferenceService, "component": "predictor",
					"app": "isvc." + inferenceService + "-predictor",
				},
			},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: kserve.ContainerPredictor, Image: "server:test", Args: args,
			}}},
		})
	}
}

// templated makes a predictor pod from a template of its Deployment's.
func templated(inferenceService, template string) faults.Step {
	return all(pod(inferenceService, template), func(ctx context.Context, w *faults.World) error {
		made := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: inferenceService + "-" + template}}
		return w.Client.Patch(ctx, made, client.RawPatch(types.MergePatchType, []byte(
			`{"metadata":{"labels":{"pod-template-hash":"`+template+`"}}}`)))
	})
}

func removePod(name string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		return w.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))
	}
}

// TestACanaryOfAnotherModelNameGetsNothing: what clients ask of one name is an error at the other, be it by weight, by
// colour or as a copy.
func TestACanaryOfAnotherModelNameGetsNothing(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), edit(coloured), percent(30),
		pod("v1", "a", "--model_name=v1", "--model_name=fraud"))
	for _, step := range []struct {
		when        string
		do          faults.Step
		wantWeights string
		wantReason  string
	}{
		{"the canary tells no name", pod("v2", "a"), "v1=70 v2=30 ", v1alpha1.ReasonWeightsApplied},
		{"it tells another", pod("v2", "b", "--model_name=v2"), "v1=100 v2=0 ", v1alpha1.ReasonModelNamesDiffer},
		{"an update goes on to the same", pod("v2", "c", "--model_name=fraud"), "v1=70 v2=30 ", v1alpha1.ReasonWeightsApplied},
		{"the old one is gone", removePod("v2-b"), "v1=70 v2=30 ", v1alpha1.ReasonWeightsApplied},
		{"stable is given another", pod("v1", "b", "--model_name=risk"), "v1=70 v2=30 ", v1alpha1.ReasonWeightsApplied},
		{"stable has another", removePod("v1-a"), "v1=100 v2=0 ", v1alpha1.ReasonModelNamesDiffer},
		{"no names are compared", edit(`{"spec":{"modelNames":"Any"}}`), "v1=70 v2=30 ", v1alpha1.ReasonWeightsApplied},
		{"they are again", edit(`{"spec":{"modelNames":"Same"}}`), "v1=100 v2=0 ", v1alpha1.ReasonModelNamesDiffer},
		{"stable dies", inferenceService("v1", 0), "v1=100 v2=0 ", v1alpha1.ReasonModelNamesDiffer},
	} {
		do(t, w, step.do)
		settle(t, w, r)
		wantWeights(t, w, step.wantWeights)
		got := get(t, w, name)
		if reason := readyReason(got); reason != step.wantReason {
			t.Errorf("when %s: reason %s, want %s", step.when, reason, step.wantReason)
		}
		qa := len(got.Status.Colours) > 0 && got.Status.Colours[0] == "qa"
		if qa != (step.wantReason == v1alpha1.ReasonWeightsApplied) {
			t.Errorf("when %s: the colours %q are in force", step.when, got.Status.Colours)
		}
	}
}

func TestModelNamesAreHeardOf(t *testing.T) {
	w := newWorld(t)
	startManager(t, w, testcluster.New(t).Config)
	do(
		t,
		w,
		inferenceService("v1", 1),
		inferenceService("v2", 1),
		rollout(nil),
		percent(30),
		pod("v1", "a", "--model_name=fraud"),
	)
	awaitWeights(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")
	do(t, w, pod("v2", "a", "--model_name=v2"))
	awaitWeights(t, w, name, routing.SplitRoute, "v1=100 v2=0 ")
	do(t, w, removePod("v2-a"))
	awaitWeights(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")
}
