// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Shadow returns the share of requests of which the canary gets a copy, in percent, when a share is asked: none without
// a ready canary and none once the canary answers requests itself, which would then get them twice; and never more than
// its ready pods take when each gets as much as one of stable's.
func Shadow(asked int32, weights v1alpha1.WeightPair, stableReady, canaryReady int32) int32 {
	if weights.Canary > 0 || canaryReady <= 0 || stableReady <= 0 {
		return 0
	}
	return int32(min(int64(asked), 100*int64(canaryReady)/int64(stableReady))) //nolint:gosec // at most 100.
}
