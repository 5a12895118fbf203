// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// atOnce is how long a rollout waits for its next step if nothing keeps it from taking it.
const atOnce = time.Millisecond

// current returns a rollout whose status decides what is done next as it is stored now: this controller writes it, and a
// step must not be taken twice, or a share be taken for smaller than it is, because the cache has not heard of it.
func (r *Reconciler) current(ctx context.Context, rollout *v1alpha1.CanaryRollout) (*v1alpha1.CanaryRollout, error) {
	s := rollout.Spec
	if s.Strategy == nil && s.Capacity == nil && s.Warmup == nil && rollout.Status.Phase == "" &&
		s.Routing.Provider != v1alpha1.ProviderKnative {
		return rollout, nil
	}
	return r.stored(ctx, rollout)
}

// inForce returns a rollout whose weights in force decide what its canary may get as it is stored now.
func (r *Reconciler) inForce(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed,
) (*v1alpha1.CanaryRollout, error) {
	if !seen.canary.fromZero {
		return rollout, nil
	}
	return r.stored(ctx, rollout)
}

// stored returns a rollout as it is stored now.
func (r *Reconciler) stored(ctx context.Context, rollout *v1alpha1.CanaryRollout) (*v1alpha1.CanaryRollout, error) {
	var stored v1alpha1.CanaryRollout
	if err := r.live.Get(ctx, client.ObjectKeyFromObject(rollout), &stored); err != nil {
		return nil, fmt.Errorf("reading the rollout past the cache: %w", err)
	}
	return &stored, nil
}

// progress takes the next step of a rollout with a strategy, if there is one to take, and puts it on record, before the
// route is written. So it does with the revisions that are the sides: once one of them has everything, nothing else
// tells where the rollout came from. It returns the rollout with the step taken, also when it could not be recorded.
func (r *Reconciler) progress(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, seen observed,
) (*v1alpha1.CanaryRollout, error) {
	after := rollout.DeepCopy()
	after.Status.RolloutProgress = r.next(rollout, seen)
	after.Status.Revisions = seen.share.known()
	if equality.Semantic.DeepEqual(rollout.Status, after.Status) {
		return rollout, nil
	}
	taken := after.DeepCopy()
	if err := r.reporter.Report(ctx, rollout, after, conditionsOf); err != nil {
		return taken, err
	}
	if was, is := rollout.Status, after.Status; is.Turn != was.Turn && is.PhaseReason != "" {
		kind := corev1.EventTypeNormal
		if is.Phase == v1alpha1.PhaseRollingBack || is.Phase == v1alpha1.PhaseHolding {
			kind = corev1.EventTypeWarning
		}
		r.recorder.Event(after, kind, is.PhaseReason, is.PhaseMessage)
	}
	return after, nil
}

// next is the progress that follows from a rollout's status and what was observed.
func (r *Reconciler) next(rollout *v1alpha1.CanaryRollout, seen observed) v1alpha1.RolloutProgress {
	if rollout.Spec.Strategy == nil {
		return v1alpha1.RolloutProgress{}
	}
	evidence, _ := r.evidence(rollout, seen)
	return routing.Next(*rollout.Spec.Strategy, rollout.Status.RolloutProgress, routing.Facts{
		Now:         r.clock.Now(),
		Rollout:     rollout.UID,
		Suspended:   rollout.Spec.Suspend,
		Annotations: rollout.Annotations,
		Canary:      seen.canary.revision,
		Stable:      seen.stable.revision,
		Templates:   seen.canary.templates,
		StableReady: seen.stable.ready,
		CanaryReady: seen.canary.ready,
		CanaryCold:  seen.canary.ready - seen.warmth.Warm,
		Capacity:    rollout.Spec.Capacity,
		Applied:     rollout.Status.Weights.Applied,
		Analysis:    rollout.Spec.Analysis,
		Evidence:    evidence,
	})
}

// Asker answers questions about canaries without waiting: with the last answer to the same matter, nil if there is none
// yet, and after how long it is to be asked again.
type Asker interface {
	Ask(q *Question) (*Answer, time.Duration)
}

// evidence is what is known of the weights in force, and after how long to ask again, 0 for never.
func (r *Reconciler) evidence(rollout *v1alpha1.CanaryRollout, seen observed) (routing.Evidence, time.Duration) {
	if rollout.Spec.Analysis == nil {
		return routing.Evidence{Result: routing.ResultPass}, 0
	}
	q := questionOf(rollout, seen, r.clock.Now())
	if q == nil || r.asker == nil {
		return routing.Evidence{}, 0
	}
	answer, again := r.asker.Ask(q)
	if answer == nil {
		return routing.Evidence{}, again
	}
	return answer.evidence(), again
}

// asked is the share that a rollout asks for its canary.
func (r *Reconciler) asked(rollout *v1alpha1.CanaryRollout, seen observed) int32 {
	if rollout.Spec.Strategy == nil {
		return rollout.Spec.CanaryPercent
	}
	return routing.Percent(*rollout.Spec.Strategy, rollout.Status.RolloutProgress,
		rollout.Status.Weights.Applied, seen.stable.ready, r.clock.Now())
}

// lowers reports whether a plan takes traffic from the canary. That waits for nothing, not even for its record.
func lowers(rollout *v1alpha1.CanaryRollout, p plan) bool {
	applied := rollout.Status.Weights.Applied
	return applied != nil && p.weights.Canary < applied.Canary
}

// wake is after how long a rollout must be looked at again if nothing else happens, 0 for never.
func (r *Reconciler) wake(rollout *v1alpha1.CanaryRollout, seen observed) time.Duration {
	if rollout.Spec.Strategy == nil {
		return 0
	}
	if !equality.Semantic.DeepEqual(rollout.Status.RolloutProgress, r.next(rollout, seen)) {
		return atOnce
	}
	wake := routing.Wake(*rollout.Spec.Strategy, rollout.Status.RolloutProgress, r.clock.Now())
	if _, again := r.evidence(rollout, seen); again > 0 && (wake == 0 || again < wake) {
		wake = again
	}
	return wake
}

// settled is the progress once a plan's weights are in force.
func settled(s *v1alpha1.CanaryRolloutStatus, p plan, now time.Time) v1alpha1.RolloutProgress {
	reason := s.PhaseReason
	if p.outcome != routing.OutcomeAsAsked {
		reason = string(p.outcome)
	}
	return routing.Settle(s.RolloutProgress, p.weights, p.desired, reason, now)
}

// setProgressing sets the condition of that name, or removes it from a rollout without a strategy.
func setProgressing(s *v1alpha1.CanaryRolloutStatus, generation int64) {
	condition := status.Condition{
		Type: v1alpha1.ConditionProgressing, Status: metav1.ConditionTrue, Reason: s.PhaseReason, Message: s.PhaseMessage,
	}
	switch s.Phase {
	case "":
		meta.RemoveStatusCondition(&s.Conditions, v1alpha1.ConditionProgressing)
		return
	case v1alpha1.PhasePaused, v1alpha1.PhaseHolding, v1alpha1.PhaseSucceeded, v1alpha1.PhaseRolledBack:
		condition.Status = metav1.ConditionFalse
	default:
	}
	status.Set(&s.Conditions, generation, condition)
}

// setAnalysisHealthy sets the condition of that name, or removes it from a rollout without an analysis.
func setAnalysisHealthy(s *v1alpha1.CanaryRolloutStatus, analysis *v1alpha1.RolloutAnalysis, generation int64) {
	if analysis == nil {
		meta.RemoveStatusCondition(&s.Conditions, v1alpha1.ConditionAnalysisHealthy)
		return
	}
	condition := status.Condition{
		Type: v1alpha1.ConditionAnalysisHealthy, Status: metav1.ConditionUnknown,
		Reason: v1alpha1.ReasonMetricsUnread, Message: "No metric has been read for the weights in force.",
	}
	for _, verdict := range s.Verdicts {
		if verdict.Result == v1alpha1.VerdictError {
			condition.Status, condition.Reason = metav1.ConditionFalse, v1alpha1.ReasonMetricsUnavailable
			condition.Message = fmt.Sprintf("Metric %s cannot be read: %s.", verdict.Metric, verdict.Message)
			break
		}
		condition.Status, condition.Reason = metav1.ConditionTrue, v1alpha1.ReasonMetricsRead
		condition.Message = "All metrics could be read."
	}
	status.Set(&s.Conditions, generation, condition)
}

func conditionsOf(o client.Object) []metav1.Condition {
	return o.(*v1alpha1.CanaryRollout).Status.Conditions //nolint:forcetypeassert // Report passes what it was given.
}
