// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Mirrors returns a *RefusedError if no copies of requests can be sent to a destination. A mirror sets no headers, so
// that a gateway which knows its destinations by their Host header would take the copies for requests of its caller's.
func Mirrors(to Destination) error {
	if to.Authority == "" {
		return nil
	}
	return refuse(v1alpha1.ReasonUnsupportedByProvider,
		"shadow: copies of requests cannot be given the Host header %q, by which Knative's gateway knows the canary; "+
			"remove shadow, or run the canary in KServe's Standard mode", to.Authority)
}

// Shadow returns the share of requests of which the canary gets a copy, in percent, when a share is asked: none without
// a ready canary and none once the canary answers requests itself, which would then get them twice; and never more than
// its ready pods take when each gets as much as one of stable's.
func Shadow(asked int32, weights v1alpha1.WeightPair, stableReady, canaryReady int32) int32 {
	if weights.Canary > 0 || canaryReady <= 0 || stableReady <= 0 {
		return 0
	}
	return int32(min(int64(asked), 100*int64(canaryReady)/int64(stableReady))) //nolint:gosec // at most 100.
}
