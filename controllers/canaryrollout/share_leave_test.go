// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"testing"

	"serverless.xyz/outrigger/routing"
)

// TestSharesThatARolloutLeaves: a rollout that goes on with two InferenceServices leaves the field of the one as its
// deletion would.
func TestSharesThatARolloutLeaves(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, fraud("a", ""), fraudPods("a", 1), kserveShares)
	do(t, w, fraud("b", `,"canaryTrafficPercent":0`), fraudPods("b", 1), shares(), percent(40))
	settleShares(t, w, r)
	wantShares(t, w, "a=60 b=40 ", "40")
	do(
		t,
		w,
		knativeService("v1", 1),
		knativeService("v2", 1),
		edit(
			`{"spec":{"stable":{"inferenceService":"v1"},"canary":{"inferenceService":"v2"},"routing":{"provider":"VirtualService"}}}`,
		),
	)
	settleShares(t, w, r)
	wantByHost(t, w, name, routing.SplitRoute, "v1=60 v2=40 ")
	wantShares(t, w, "a=100 ", "0")
	if got := get(t, w, name).Status.Revisions; got != nil {
		t.Errorf("the status tells of revisions %+v", got)
	}
}
