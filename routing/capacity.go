// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Outcomes of Limit.
const (
	// OutcomeCanaryAtCapacity is when the canary's ready pods carry less than is asked.
	OutcomeCanaryAtCapacity Outcome = "CanaryAtCapacity"
	// OutcomeCanaryCold is when the canary gets less than is asked because pods of it are not warm.
	OutcomeCanaryCold Outcome = "CanaryCold"
	// OutcomeCanaryFromZero is when the canary gets less than is asked because it may have no pod when a request comes.
	OutcomeCanaryFromZero Outcome = "CanaryFromZero"
)

// Pods are those of a canary.
type Pods struct {
	// Ready is how many are ready, and Ill how many are there to stay and are not.
	Ready, Ill int32
	// Warm is how many of the ready ones are warm; all of them without a warm-up.
	Warm int32
}

// NeededPods returns how many ready pods are taken for enough for all traffic: those that stable has while it has
// everything, and never fewer while it shares. was is the last result, 0 for none, and applied are the weights in force,
// nil for none.
func NeededPods(policy v1alpha1.RolloutCapacity, was int32, applied *v1alpha1.WeightPair, stableReady int32) int32 {
	switch {
	case policy.PodsForAllTraffic != nil:
		return *policy.PodsForAllTraffic
	case stableReady > 0 && (applied == nil || applied.Canary == 0):
		return stableReady
	default:
		return max(was, stableReady)
	}
}

// MaxSafe returns the most that a canary can get, 0 to 100, and what bounds it; OutcomeAsAsked if nothing does. needed
// is what NeededPods says, 0 for no bound. inForce is the canary's share now.
//
// Pods that failed take their share with them at once. Pods that were scaled away do not: whoever did that, such as an
// autoscaler, has found that fewer carry the share, and to lower it for that would have it scale down again and again.
// So a share in force stays as long as no pod is ill, and only its growth is bounded. Growth takes warm pods.
func MaxSafe(policy v1alpha1.RolloutCapacity, needed int32, pods Pods, inForce int32) (int32, Outcome) {
	carried, warm := int32(100), int32(100)
	if needed > 0 {
		carried, warm = share(pods.Ready, needed, policy), share(pods.Warm, needed, policy)
	} else if pods.Warm < pods.Ready {
		warm = 0
	}
	most, why := carried, OutcomeCanaryAtCapacity
	if warm < carried {
		most, why = max(warm, min(inForce, carried)), OutcomeCanaryCold
	}
	if pods.Ill == 0 && pods.Ready > 0 {
		most = max(most, inForce)
	}
	if most >= 100 {
		return 100, OutcomeAsAsked
	}
	return most, why
}

// share is what some pods carry of all traffic, in percent.
func share(pods, needed int32, policy v1alpha1.RolloutCapacity) int32 {
	const whole = 100
	carried := int64(pods) * whole * whole / (int64(needed) * int64(whole+policy.HeadroomPercent))
	return int32(min(max(carried, 0), whole))
}

// Limit bounds the canary's share by what MaxSafe says. A canary that stands in for a stable side without a ready
// endpoint is not bounded: too much is better than an error for every request.
func Limit(weights v1alpha1.WeightPair, outcome Outcome, most int32, why Outcome) (v1alpha1.WeightPair, Outcome) {
	if outcome != OutcomeAsAsked || weights.Canary <= most {
		return weights, outcome
	}
	return pair(most), why
}

// TooSmall reports whether stable has too few ready endpoints to take everything back.
func TooSmall(policy *v1alpha1.RolloutCapacity, needed, stableReady int32) bool {
	return policy != nil && policy.Stable != v1alpha1.StableCapacityIgnore && stableReady < needed
}
