// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// statusFor returns the status that tells what was planned and, if err is not nil, why it did not come about.
func statusFor(rollout *v1alpha1.CanaryRollout, p plan, now time.Time, err error) v1alpha1.CanaryRolloutStatus {
	s := *rollout.Status.DeepCopy()
	s.ObservedGeneration = rollout.Generation
	s.Host, s.Plan = p.host, ""
	s.Weights.Desired = &p.desired
	written := err == nil && p.routes()
	taken := written && p.acceptance.Accepted
	if written {
		s.Colours, s.Provider = colourNames(p.colours), p.provider
	}
	if taken && (s.Weights.Applied == nil || *s.Weights.Applied != p.weights) {
		s.Weights.Applied = &p.weights
		// The API server keeps whole seconds; anything finer would differ at every look.
		s.Weights.LastAppliedTime = &metav1.Time{Time: now.Truncate(time.Second)}
	}
	if p.stalled != nil && len(p.pruneRoutes) > 0 {
		s.Provider, s.Weights.Applied, s.Weights.LastAppliedTime = "", nil, nil
	}
	if taken {
		s.RolloutProgress = settled(&s, p, now)
		s.ShadowPercent = p.shadow
	}
	if s.Step != nil && (!p.routes() || p.unbound != "") {
		s.Step.Since = nil // whatever becomes of requests now, the step's weights do not decide it
	}
	setProgressing(&s, rollout.Generation)
	setAnalysisHealthy(&s, rollout.Spec.Analysis, rollout.Generation)
	setCapacity(&s, rollout, p)
	stalled := status.StalledCondition(err)
	ready, applied := readyCondition(rollout, p), appliedCondition(p)
	switch {
	case stalled.Status == metav1.ConditionTrue:
		ready = failed(v1alpha1.ConditionReady, stalled.Reason, stalled.Message)
		applied = failed(v1alpha1.ConditionRouteApplied, stalled.Reason, stalled.Message)
	case err != nil:
		message := "The route could not be written and is tried again: " + err.Error()
		ready = failed(v1alpha1.ConditionReady, v1alpha1.ReasonRouteNotWritten, message)
		applied = failed(v1alpha1.ConditionRouteApplied, v1alpha1.ReasonRouteNotWritten, message)
	}
	status.Set(&s.Conditions, rollout.Generation, ready, applied, stalled)
	setDrift(&s, rollout, p, err)
	return s
}

// setDrift reports foreign changes of the route. One whose repair failed is told of when it has succeeded.
func setDrift(s *v1alpha1.CanaryRolloutStatus, rollout *v1alpha1.CanaryRollout, p plan, err error) {
	if err != nil {
		return
	}
	told, condition := driftOf(rollout, p)
	s.Drift = told
	if condition == nil {
		meta.RemoveStatusCondition(&s.Conditions, v1alpha1.ConditionDriftDetected)
		return
	}
	status.Set(&s.Conditions, rollout.Generation, *condition)
}

func colourNames(colours []routing.Colour) []string {
	var names []string
	for _, colour := range colours {
		names = append(names, colour.Name)
	}
	return names
}

func failed(kind, reason, message string) status.Condition {
	return status.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message}
}

// readyCondition says whether the traffic flows as asked.
func readyCondition(rollout *v1alpha1.CanaryRollout, p plan) status.Condition {
	const notReady = v1alpha1.ReasonInferenceServiceNotReady
	stable, canary := titlesOf(rollout)
	switch {
	case p.held != "":
		return failed(v1alpha1.ConditionReady, p.heldReason, p.held)
	case p.unbound != "":
		return failed(v1alpha1.ConditionReady, v1alpha1.ReasonRouteNotBound, p.unbound)
	case !p.acceptance.Accepted:
		reason, message := pending(p)
		return failed(v1alpha1.ConditionReady, reason, message)
	case p.unfit != "" && (p.desired.Canary > 0 || p.outcome == routing.OutcomeNoneReady):
		return failed(v1alpha1.ConditionReady, v1alpha1.ReasonModelNamesDiffer, fmt.Sprintf(
			"%s gets nothing of the %d percent asked: %s", canary.name, p.desired.Canary, p.unfit))
	case p.outcome == routing.OutcomeCanaryNotReady && p.canaryGone:
		return failed(v1alpha1.ConditionReady, v1alpha1.ReasonInferenceServiceNotFound, fmt.Sprintf(
			"%s does not exist, so it gets nothing of the %d percent asked.", canary.title, p.desired.Canary))
	case p.outcome == routing.OutcomeCanaryNotReady:
		return failed(v1alpha1.ConditionReady, notReady, fmt.Sprintf(
			"%s has no ready pod, so it gets nothing of the %d percent asked.", canary.title, p.desired.Canary))
	case p.outcome == routing.OutcomeStableNotReady:
		return failed(v1alpha1.ConditionReady, notReady, fmt.Sprintf(
			"%s has no ready pod, so %q gets everything.", stable.title, canary.name))
	case p.outcome == routing.OutcomeNoneReady:
		return failed(v1alpha1.ConditionReady, notReady,
			stable.title+" has no ready pod, and no other may stand in for it.")
	case p.outcome == routing.OutcomeCanaryFromZero:
		return failed(v1alpha1.ConditionReady, v1alpha1.ReasonCanaryScalesToZero, fmt.Sprintf(
			"%s gets %d of the %d percent asked, because its minReplicas is 0 and its first requests would wait for a pod to "+
				"start; set minReplicas to 1 at least while it takes traffic.",
			canary.title, p.weights.Canary, p.desired.Canary))
	case p.outcome == routing.OutcomeCanaryAtCapacity:
		return failed(v1alpha1.ConditionReady, v1alpha1.ReasonCanaryAtCapacity, fmt.Sprintf(
			"%s gets %d of the %d percent asked, because its ready pods carry no more; "+
				"%d carry all traffic, and capacity asks for %d percent more.",
			canary.title, p.weights.Canary, p.desired.Canary, p.needed, headroom(rollout)))
	case p.outcome == routing.OutcomeCanaryCold:
		return failed(v1alpha1.ConditionReady, v1alpha1.ReasonCanaryCold, fmt.Sprintf(
			"%s gets %d of the %d percent asked, because pods of it are not warm.",
			canary.title, p.weights.Canary, p.desired.Canary))
	default:
		return status.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonWeightsApplied,
			Message: fmt.Sprintf("%s gets %d percent, %s %d.", stable.name, p.weights.Stable, canary.name, p.weights.Canary),
		}
	}
}

// pending says why a route that is written is not in force.
func pending(p plan) (reason, message string) {
	if p.acceptance.Refusal != "" {
		return v1alpha1.ReasonRouteNotAccepted, "The route is written and not obeyed: " + p.acceptance.Refusal
	}
	if p.provider == v1alpha1.ProviderKnative {
		return v1alpha1.ReasonWaitingForGateway, fmt.Sprintf(
			"The InferenceService says %d percent for its newest revision; Knative has not taken it up yet.", p.weights.Canary)
	}
	return v1alpha1.ReasonWaitingForGateway, fmt.Sprintf(
		"The %s carries the weights %d and %d; its gateway controller has not accepted it yet.",
		p.provider, p.weights.Stable, p.weights.Canary)
}

// appliedCondition says whether the route carries what was planned, be it what was asked or not.
func appliedCondition(p plan) status.Condition {
	if p.held != "" {
		return failed(v1alpha1.ConditionRouteApplied, p.heldReason, p.held)
	}
	if !p.acceptance.Accepted {
		reason, message := pending(p)
		return failed(v1alpha1.ConditionRouteApplied, reason, message)
	}
	return status.Condition{
		Type: v1alpha1.ConditionRouteApplied, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonWeightsApplied,
		Message: fmt.Sprintf("The route carries the weights %d and %d.", p.weights.Stable, p.weights.Canary),
	}
}
