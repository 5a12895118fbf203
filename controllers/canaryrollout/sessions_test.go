// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/routing"
)

const sessions = `{"spec":{"stickiness":{"header":{"name":"x-session-id"}},"shadow":{"percent":50}}}`

// TestConformanceSessionsAndShadow: rules of sessions are there only while both sides have traffic, copies only until
// the canary has, and what the API server stores is what was rendered, so that nothing is written at rest.
func TestConformanceSessionsAndShadow(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		writes := 0
		r := newReconciler(countWrites(w.Client, &writes), w)
		do(t, w, inferenceService("v1", 4), inferenceService("v2", 1), p.owned(), edit(sessions))
		sticky := []string{"sticky-canary", "sticky-stable", routing.SplitRoute}
		for _, step := range []struct {
			when       string
			do         func()
			want       []string
			wantShadow int32
		}{
			{"nothing is asked yet", func() { do(t, w, percent(0)) }, []string{routing.SplitRoute}, 25},
			{"the canary dies", func() { do(t, w, inferenceService("v2", 0)) }, []string{routing.SplitRoute}, 0},
			{"it is back, with more pods", func() { do(t, w, inferenceService("v2", 3)) }, []string{routing.SplitRoute}, 50},
			{"a share is asked", func() { do(t, w, percent(30)) }, sticky, 0},
			{"stable dies", func() { do(t, w, inferenceService("v1", 0)) }, []string{routing.SplitRoute}, 0},
			{"stable is back", func() { do(t, w, inferenceService("v1", 4)) }, sticky, 0},
			{"the canary has all", func() { do(t, w, percent(100)) }, []string{routing.SplitRoute}, 0},
		} {
			step.do()
			settleAll(t, w, r)
			if diff := cmp.Diff(step.want, p.ruleNames(t, w)); diff != "" {
				t.Errorf("when %s: rules (-want +got):\n%s", step.when, diff)
			}
			if got := get(t, w, name).Status.ShadowPercent; got != step.wantShadow {
				t.Errorf("when %s: status.shadowPercent is %d, want %d", step.when, got, step.wantShadow)
			}
			writes = 0
			settleAll(t, w, r)
			if writes > 0 {
				t.Errorf("when %s: %d writes at rest", step.when, writes)
			}
		}
	})
}

func TestAnHTTPRouteRefusesCookiesOfSessions(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), providers[1].owned(), percent(30))
	settleAll(t, w, r)
	do(t, w, edit(`{"spec":{"stickiness":{"cookie":{"name":"digits"}}}}`))
	settleAll(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonUnsupportedByProvider)
	providers[1].want(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")
}
