// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// steps is a strategy of 10 percent for ten minutes, a pause, 50 percent for ten minutes, 100 percent, a bake of an hour.
func steps(r *v1alpha1.CanaryRollout) { stepsOf(10*time.Minute, time.Hour)(r) }

func stepsOf(hold, bake time.Duration) func(*v1alpha1.CanaryRollout) {
	return func(r *v1alpha1.CanaryRollout) { r.Spec.Strategy = strategyOf(hold, bake) }
}

func strategyOf(hold, bake time.Duration) *v1alpha1.RolloutStrategy {
	percent := func(n int32, hold time.Duration) v1alpha1.RolloutStep {
		step := v1alpha1.RolloutStep{SetPercent: &n}
		if hold > 0 {
			step.Hold = &v1alpha1.StepHold{Duration: &metav1.Duration{Duration: hold}}
		}
		return step
	}
	return &v1alpha1.RolloutStrategy{
		Steps: []v1alpha1.RolloutStep{
			percent(10, hold), {Pause: &v1alpha1.StepPause{}}, percent(50, hold), percent(100, 0),
		},
		Bake: &metav1.Duration{Duration: bake},
	}
}

func pass(d time.Duration) faults.Step {
	return func(_ context.Context, w *faults.World) error {
		w.Clock.SetTime(w.Clock.Now().Add(d))
		return nil
	}
}

// say annotates the rollout with a verb for its turn.
func say(annotation string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		var r v1alpha1.CanaryRollout
		if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: name}, &r); err != nil {
			return err
		}
		return edit(fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, annotation, r.Status.Turn))(ctx, w)
	}
}

func wantPhase(t *testing.T, w *faults.World, phase v1alpha1.RolloutPhase, reason string) {
	t.Helper()
	s := get(t, w, name).Status
	if s.Phase != phase || s.PhaseReason != reason {
		t.Errorf("phase %s, %s; want %s, %s", s.Phase, s.PhaseReason, phase, reason)
	}
	status := metav1.ConditionTrue
	switch phase {
	case v1alpha1.PhasePaused, v1alpha1.PhaseHolding, v1alpha1.PhaseSucceeded, v1alpha1.PhaseRolledBack:
		status = metav1.ConditionFalse
	default:
	}
	wantCondition(t, w, name, v1alpha1.ConditionProgressing, status, reason)
}

// settleSteps reconciles until the steps that can be taken are taken.
func settleSteps(t *testing.T, w *faults.World, c client.Client) {
	t.Helper()
	r := newReconciler(c, w)
	for range 4 {
		settle(t, w, r)
	}
}

func TestStepsMoveTheTraffic(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 2), inferenceService("v2", 1), rollout(steps))
	for _, step := range []struct {
		when        string
		do          faults.Step
		wantWeights string
		wantPhase   v1alpha1.RolloutPhase
		wantReason  string
	}{
		{"it begins", pass(0), "v1=90 v2=10 ", v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding},
		{"the hold is not over", pass(9 * time.Minute), "v1=90 v2=10 ", v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding},
		{"the hold is over", pass(time.Minute), "v1=90 v2=10 ", v1alpha1.PhasePaused, v1alpha1.ReasonWaitingForPromotion},
		{"nobody says anything", pass(99 * time.Hour), "v1=90 v2=10 ", v1alpha1.PhasePaused, v1alpha1.ReasonWaitingForPromotion},
		{"somebody says promote", say(v1alpha1.AnnotationPromote), "v1=50 v2=50 ", v1alpha1.PhaseProgressing, v1alpha1.ReasonPromoted},
		{"the second hold is over", pass(10 * time.Minute), "v1=0 v2=100 ", v1alpha1.PhaseBaking, v1alpha1.ReasonBaking},
		{"the bake is over", pass(time.Hour), "v1=0 v2=100 ", v1alpha1.PhaseSucceeded, v1alpha1.ReasonStepsDone},
		{"somebody says abort", say(v1alpha1.AnnotationAbort), "v1=100 v2=0 ", v1alpha1.PhaseRolledBack, v1alpha1.ReasonAborted},
		{"somebody says retry", say(v1alpha1.AnnotationRetry), "v1=90 v2=10 ", v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding},
		{"canaryPercent again", edit(`{"spec":{"strategy":null,"canaryPercent":30}}`), "v1=70 v2=30 ", "", ""},
	} {
		do(t, w, step.do)
		settleSteps(t, w, w.Client)
		t.Log("when", step.when)
		wantWeights(t, w, step.wantWeights)
		if step.wantPhase != "" {
			wantPhase(t, w, step.wantPhase, step.wantReason)
		}
		wantReady(t, w)
	}
	if s := get(t, w, name).Status; s.Phase != "" || s.Attempt != nil || len(s.Conditions) != 3 {
		t.Errorf("a rollout without a strategy still has progress: %+v", s)
	}
}

// TestAnotherCanaryBeginsWithoutTraffic: one that is ready from the first moment gets its first step, not the place of
// the one before.
func TestAnotherCanaryBeginsWithoutTraffic(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), inferenceService("v3", 1), rollout(steps))
	settleSteps(t, w, w.Client)
	do(t, w, say(v1alpha1.AnnotationSkip))
	settleSteps(t, w, w.Client)
	wantWeights(t, w, "v1=0 v2=100 ")
	do(t, w, edit(`{"spec":{"canary":{"inferenceService":"v3"}}}`))
	reconcileOnce(t, w, newReconciler(w.Client, w))
	wantWeights(t, w, "v1=100 v3=0 ")
	settleSteps(t, w, w.Client)
	wantWeights(t, w, "v1=90 v3=10 ")

	// A new model in the canary is another canary, too; more replicas are not.
	do(t, w, editInferenceService("v3", `{"spec":{"predictor":{"minReplicas":3}}}`))
	settleSteps(t, w, w.Client)
	if got := get(t, w, name).Status.Attempt.Number; got != 2 {
		t.Errorf("attempt %d after more replicas, want 2 as before", got)
	}
	do(
		t,
		w,
		editInferenceService(
			"v3",
			`{"spec":{"predictor":{"model":{"modelFormat":{"name":"onnx"},"storageUri":"s3://models/3"}}}}`,
		),
	)
	reconcileOnce(t, w, newReconciler(w.Client, w))
	wantWeights(t, w, "v1=100 v3=0 ")
	if got := get(t, w, name).Status.Attempt.Number; got != 3 {
		t.Errorf("attempt %d after another model, want 3", got)
	}
}

// TestPodsOfTheFormerRevisionProveNothing: a canary that was turned back and is mended in place gets no traffic before its
// bad pods have gone, although they are ready.
func TestPodsOfTheFormerRevisionProveNothing(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), templated("v2", "bad"), rollout(steps))
	settleSteps(t, w, w.Client)
	do(t, w, say(v1alpha1.AnnotationAbort))
	settleSteps(t, w, w.Client)
	wantPhase(t, w, v1alpha1.PhaseRolledBack, v1alpha1.ReasonAborted)
	mended := `{"spec":{"predictor":{"model":{"modelFormat":{"name":"onnx"},"storageUri":"s3://models/3"}}}}`
	for _, step := range []struct {
		when string
		do   faults.Step
		want string
	}{
		{"KServe has not heard of it", editInferenceService("v2", mended), "v1=100 v2=0 "},
		{"the update goes on", templated("v2", "mended"), "v1=100 v2=0 "},
		{"it takes its time", pass(time.Hour), "v1=100 v2=0 "},
		{"the bad pods have gone", removePod("v2-bad"), "v1=90 v2=10 "},
	} {
		do(t, w, step.do)
		settleSteps(t, w, w.Client)
		t.Log("when", step.when)
		wantWeights(t, w, step.want)
	}
}

func editInferenceService(name, patch string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		return w.Client.Patch(ctx, isvc, client.RawPatch("application/merge-patch+json", []byte(patch)))
	}
}

// TestTrafficComesBackWithoutARecord: a rollback that cannot be recorded is done all the same.
func TestTrafficComesBackWithoutARecord(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(steps))
	settleSteps(t, w, w.Client)
	wantWeights(t, w, "v1=90 v2=10 ")
	do(t, w, say(v1alpha1.AnnotationAbort))
	mute := interceptor.NewClient(w.Client, interceptor.Funcs{SubResourcePatch: func(
		context.Context, client.Client, string, client.Object, client.Patch, ...client.SubResourcePatchOption,
	) error {
		return apierrors.NewInternalError(errors.New("the store is out of order"))
	}})
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	if _, err := newReconciler(mute, w).Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err == nil {
		t.Error("no error, though nothing could be recorded")
	}
	wantWeights(t, w, "v1=100 v2=0 ")
	settleSteps(t, w, w.Client)
	wantPhase(t, w, v1alpha1.PhaseRolledBack, v1alpha1.ReasonAborted)
}

// TestStepsSurviveRefusals: each request is answered once with each of the API server's errors.
func TestStepsSurviveRefusals(t *testing.T) {
	for what, refusal := range map[string]error{
		"conflict":      apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("x").GroupResource(), name, errors.New("changed")),
		"unprocessable": apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind("X").GroupKind(), name, nil),
		"internal":      apierrors.NewInternalError(errors.New("the store is out of order")),
	} {
		t.Run(what, func(t *testing.T) {
			w := soleWorld(t)
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(steps))
			c := refusing(w.Client, refusal)
			last := int64(0)
			for range 60 {
				key := client.ObjectKey{Namespace: w.Namespace, Name: name}
				_, _ = newReconciler(c, w).Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
				do(t, w, pass(time.Minute))
				if get(t, w, name).Status.Phase == v1alpha1.PhasePaused {
					do(t, w, say(v1alpha1.AnnotationPromote))
				}
				share := canaryShare(t, w)
				if share < last {
					t.Fatalf("the canary's share fell from %d to %d", last, share)
				}
				last = share
			}
			do(t, w, pass(2*time.Hour))
			settleSteps(t, w, w.Client)
			wantWeights(t, w, "v1=0 v2=100 ")
			wantPhase(t, w, v1alpha1.PhaseSucceeded, v1alpha1.ReasonStepsDone)
		})
	}
}

func canaryShare(t *testing.T, w *faults.World) int64 {
	t.Helper()
	var stable, canary int64
	text := weights(t, virtualService(t, w, name), routing.SplitRoute)
	if _, err := fmt.Sscanf(text, "v1=%d v2=%d", &stable, &canary); err != nil {
		return 0
	}
	return canary
}

// refusing answers every other write with an error.
func refusing(c client.WithWatch, refusal error) client.Client {
	n := 0
	refuse := func(do func() error) error {
		if n++; n%2 == 1 {
			return refusal
		}
		return do()
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			return refuse(func() error { return c.Apply(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return refuse(func() error { return c.Patch(ctx, o, p, opts...) })
		},
		SubResourcePatch: func(
			ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption,
		) error {
			return refuse(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	})
}

func TestFaultsOfSteps(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, New: anew, Environment: collectGarbage, Check: splitIsWhole, Forget: identities,
		Steps: []faults.Step{
			all(inferenceService("v1", 1), inferenceService("v2", 1), rollout(func(r *v1alpha1.CanaryRollout) {
				r.Spec.Strategy = strategyOf(2*time.Minute, 0)
				r.Spec.Strategy.Steps = r.Spec.Strategy.Steps[:2]
			})),
			all(reachPause(anew), say(v1alpha1.AnnotationAbort)),
		},
	})
}

// reachPause has an undisturbed controller bring the rollout to its pause, as a person waits for it.
func reachPause(made func(client.Client, *faults.World) reconcile.Reconciler) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		for range 60 {
			var r v1alpha1.CanaryRollout
			key := client.ObjectKey{Namespace: w.Namespace, Name: name}
			if err := w.Client.Get(ctx, key, &r); err != nil || r.Status.Phase == v1alpha1.PhasePaused {
				return err
			}
			if err := collectGarbage(ctx, w); err != nil {
				return err
			}
			if _, err := made(w.Client, w).Reconcile(ctx, reconcile.Request{NamespacedName: key}); err != nil {
				return err
			}
			w.Clock.SetTime(w.Clock.Now().Add(time.Minute))
		}
		return errors.New("the rollout does not come to its pause")
	}
}

var identity = regexp.MustCompile(
	`"(uid|turn|waitedSeconds|outrigger.serverless.xyz/(promote|abort))": ?("[^"]*"|\d+)|198\.[0-9.]+`,
)

// identities replaces what is another in every life of a rollout.
func identities(text string) string { return identity.ReplaceAllString(addresses(text), `"$1": "-"`) }
