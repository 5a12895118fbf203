// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
)

// TestCapacityBoundsTheCanary: it gets what its ready pods carry, and the status says what is missing.
func TestCapacityBoundsTheCanary(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 4), inferenceService("v2", 1), rollout(func(r *v1alpha1.CanaryRollout) {
		r.Spec.Capacity = &v1alpha1.RolloutCapacity{}
	}))
	for _, step := range []struct {
		when       string
		do         faults.Step
		want       string
		wantReason string
	}{
		{"nothing is asked", percent(0), "v1=100 v2=0 ", v1alpha1.ReasonWeightsApplied},
		{"as much as one of four pods carries", percent(25), "v1=75 v2=25 ", v1alpha1.ReasonWeightsApplied},
		{"more than that", percent(60), "v1=75 v2=25 ", v1alpha1.ReasonCanaryAtCapacity},
		{"another pod is ready", inferenceService("v2", 2), "v1=50 v2=50 ", v1alpha1.ReasonCanaryAtCapacity},
		{"stable shrinks as it has less to do", inferenceService("v1", 2), "v1=50 v2=50 ", v1alpha1.ReasonCanaryAtCapacity},
		{"the canary has enough", inferenceService("v2", 3), "v1=40 v2=60 ", v1alpha1.ReasonWeightsApplied},
		{"pods of it fail", inferenceService("v2", 1), "v1=75 v2=25 ", v1alpha1.ReasonCanaryAtCapacity},
		{"stable is away", inferenceService("v1", 0), "v1=0 v2=100 ", v1alpha1.ReasonInferenceServiceNotReady},
	} {
		do(t, w, step.do)
		settle(t, w, r)
		t.Log("when", step.when)
		wantWeights(t, w, step.want)
		status := metav1.ConditionFalse
		if step.wantReason == v1alpha1.ReasonWeightsApplied {
			status = metav1.ConditionTrue
		}
		wantCondition(t, w, name, v1alpha1.ConditionReady, status, step.wantReason)
	}
	if s := get(t, w, name).Status; s.NeededPods != 4 || s.MaxSafePercent == nil || *s.MaxSafePercent != 25 {
		t.Errorf("the status says that %d pods are needed, and %v percent safe", s.NeededPods, s.MaxSafePercent)
	}
	do(t, w, inferenceService("v1", 4), edit(`{"spec":{"capacity":null}}`))
	settle(t, w, r)
	wantWeights(t, w, "v1=40 v2=60 ")
	if s := get(t, w, name).Status; s.NeededPods != 0 || s.MaxSafePercent != nil {
		t.Errorf("without capacity the status says %d, %v", s.NeededPods, s.MaxSafePercent)
	}
}

// thermometer says how many pods are warm, and hears what is asked.
type thermometer struct {
	warm    int32
	failure string
	asked   []*canaryrollout.Warming
}

func (th *thermometer) Warm(w *canaryrollout.Warming) canaryrollout.Warmth {
	th.asked = append(th.asked, w)
	told := canaryrollout.Warmth{Asked: true, Warm: min(th.warm, int32(len(w.Pods))), Failure: th.failure}
	if int(told.Warm) < len(w.Pods) {
		told.Again = 1
	}
	return told
}

var warmup = &v1alpha1.RolloutWarmup{Request: v1alpha1.WarmupRequest{Path: "/v2/models/digits/infer", Body: "{}"}}

// TestWarmupComesFirst: a canary gets nothing before its pods are warm, and keeps what it has when nobody knows any more
// which of them are.
func TestWarmupComesFirst(t *testing.T) {
	w, th := soleWorld(t), &thermometer{}
	r := reconcile.AsReconciler(w.Client,
		canaryrollout.New(w.Client, w.Client, w.Clock, record.NewFakeRecorder(1000)).WithWarmer(th))
	do(t, w, inferenceService("v1", 2), inferenceService("v2", 2), rollout(func(r *v1alpha1.CanaryRollout) {
		r.Spec.Warmup = warmup
	}))
	settle(t, w, r)
	wantCondition(t, w, name, v1alpha1.ConditionWarmed, metav1.ConditionUnknown, v1alpha1.ReasonNoWarmup)
	if len(th.asked) > 0 {
		t.Error("pods are warmed although nothing is asked of the canary")
	}
	for _, step := range []struct {
		when       string
		warm       int32
		failure    string
		do         faults.Step
		want       string
		wantWarmed string
	}{
		{"no pod is warm", 0, "", percent(30), "v1=100 v2=0 ", v1alpha1.ReasonWarmingUp},
		{"one is", 1, "", percent(30), "v1=100 v2=0 ", v1alpha1.ReasonWarmingUp},
		{"one fails", 1, "Pod p is not warm: it answered 500.", percent(30), "v1=100 v2=0 ", v1alpha1.ReasonWarmupFailed},
		{"both are", 2, "", percent(30), "v1=70 v2=30 ", v1alpha1.ReasonPodsWarm},
		{"the operator has forgotten", 0, "", percent(30), "v1=70 v2=30 ", v1alpha1.ReasonWarmingUp},
		{"more is asked meanwhile", 0, "", percent(50), "v1=70 v2=30 ", v1alpha1.ReasonWarmingUp},
		{"less is asked meanwhile", 0, "", percent(20), "v1=80 v2=20 ", v1alpha1.ReasonWarmingUp},
		{"they are warm again", 2, "", percent(50), "v1=50 v2=50 ", v1alpha1.ReasonPodsWarm},
	} {
		th.warm, th.failure = step.warm, step.failure
		do(t, w, step.do)
		settle(t, w, r)
		t.Log("when", step.when)
		wantWeights(t, w, step.want)
		status := metav1.ConditionFalse
		if step.wantWarmed == v1alpha1.ReasonPodsWarm {
			status = metav1.ConditionTrue
		}
		wantCondition(t, w, name, v1alpha1.ConditionWarmed, status, step.wantWarmed)
	}
	last := th.asked[len(th.asked)-1]
	if len(last.Pods) != 2 || last.Pods[0].Address != "10.0.0.1" ||
		last.Host != "v2-predictor."+w.Namespace+".svc.cluster.local" {
		t.Errorf("asked to warm %+v for %s", last.Pods, last.Host)
	}
	if last.Matter != th.asked[0].Matter {
		t.Error("an edit of the share makes warm pods cold")
	}
	do(t, w, edit(`{"spec":{"warmup":{"request":{"body":"other"}}}}`))
	settle(t, w, r)
	if again := th.asked[len(th.asked)-1]; again.Matter == last.Matter {
		t.Error("another request does not make pods cold")
	}
}

func TestFaultsOfCapacityAndWarmup(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, Environment: collectGarbage, Check: splitIsWhole, Forget: addresses,
		New: func(c client.Client, w *faults.World) reconcile.Reconciler {
			r := canaryrollout.New(c, w.Client, w.Clock, record.NewFakeRecorder(1000))
			return reconcile.AsReconciler(c, r.WithWarmer(&thermometer{warm: 2}))
		},
		Steps: []faults.Step{
			all(inferenceService("v1", 4), inferenceService("v2", 2), rollout(func(r *v1alpha1.CanaryRollout) {
				r.Spec.Capacity, r.Spec.Warmup, r.Spec.CanaryPercent = &v1alpha1.RolloutCapacity{}, warmup, 80
			})),
			func(ctx context.Context, w *faults.World) error { return inferenceService("v2", 1)(ctx, w) },
		},
	})
}
