// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Outcome says by which rule Split came to its weights.
type Outcome string

// Outcomes.
const (
	// OutcomeAsAsked is when both sides get what is asked.
	OutcomeAsAsked Outcome = "AsAsked"
	// OutcomeCanaryNotReady is when the canary is asked to take traffic and has no ready endpoint: stable has all.
	OutcomeCanaryNotReady Outcome = "CanaryNotReady"
	// OutcomeStableNotReady is when stable has no ready endpoint and a canary that may take traffic has: it has all.
	OutcomeStableNotReady Outcome = "StableNotReady"
	// OutcomeNoneReady is when no side that may take traffic has a ready endpoint: stable has all.
	OutcomeNoneReady Outcome = "NoneReady"
)

// Split decides the weights from the percentage asked for the canary, 0 to 100, and the number of ready endpoints of
// each side. Anything outside 0 to 100 is brought to the nearer end.
//
// Four rules, the first that fits decides:
//   - A canary that is asked to take nothing gets nothing, even while stable is down: it may be down for a reason.
//   - A canary without a ready endpoint gets nothing.
//   - A canary that is asked to take some traffic gets all of it while stable has no ready endpoint: every request to
//     stable would fail.
//   - Otherwise the canary gets what is asked.
func Split(percent, stableReady, canaryReady int32) (v1alpha1.WeightPair, Outcome) {
	percent = min(max(percent, 0), 100)
	switch {
	case percent == 0 && stableReady <= 0:
		return pair(0), OutcomeNoneReady
	case percent == 0:
		return pair(0), OutcomeAsAsked
	case canaryReady <= 0 && stableReady <= 0:
		return pair(0), OutcomeNoneReady
	case canaryReady <= 0:
		return pair(0), OutcomeCanaryNotReady
	case stableReady <= 0 && percent < 100:
		return pair(100), OutcomeStableNotReady
	default:
		return pair(percent), OutcomeAsAsked
	}
}

// pair returns the weights that give the canary a share in percent.
func pair(canary int32) v1alpha1.WeightPair {
	return v1alpha1.WeightPair{Stable: 100 - canary, Canary: canary}
}

// Desired returns the weights that a percentage asks for, whatever the state of the sides.
func Desired(percent int32) v1alpha1.WeightPair {
	return pair(min(max(percent, 0), 100))
}
