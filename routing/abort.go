// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"time"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// abortLimit is how long a gradual abort may wait for stable's pods.
const abortLimit = 10 * time.Minute

// abortPercent returns the canary's share while a rollout is turned back. It never rises from what was applied, and it
// falls as far as stable's ready endpoints can carry the rest: all traffic by as many as stable had at the first step.
// While stable has none, it stays, in every mode and for as long as that takes: a canary that fails some requests is
// better than a side that fails all.
func abortPercent(
	policy v1alpha1.AbortPolicy, p v1alpha1.RolloutProgress, applied *v1alpha1.WeightPair, stableReady int32, now time.Time,
) int32 {
	if applied != nil && stableReady <= 0 {
		return applied.Canary
	}
	if policy.Mode != v1alpha1.AbortGradual || applied == nil || p.Attempt == nil || p.Attempt.StableReady <= 0 {
		return 0
	}
	if p.PhaseTime == nil || now.Sub(p.PhaseTime.Time) >= abortLimit {
		return 0
	}
	carried := int64(100) * int64(max(stableReady, 0)) / int64(p.Attempt.StableReady)
	return min(applied.Canary, int32(max(0, 100-carried))) //nolint:gosec // 0 to 100.
}
