// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func TestPicture(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	r := &v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: "fraud", Generation: 3},
		Spec: v1alpha1.CanaryRolloutSpec{
			Stable: v1alpha1.RolloutSide{
				InferenceService: "fraud-v1",
			},
			Canary: v1alpha1.RolloutSide{InferenceService: "fraud-v2"},
			Strategy: &v1alpha1.RolloutStrategy{
				Steps: []v1alpha1.RolloutStep{
					{SetPercent: new(int32(1))},
					{SetPercent: new(int32(10)), Hold: &v1alpha1.StepHold{
						Duration: &metav1.Duration{Duration: 20 * time.Minute}, MinSamples: new(int64(500)),
					}},
					{Pause: &v1alpha1.StepPause{}},
					{SetPercent: new(int32(100))},
				},
				Bake: &metav1.Duration{Duration: time.Hour},
			},
			Suspend: true,
		},
		Status: v1alpha1.CanaryRolloutStatus{
			ObservedGeneration: 3,
			Provider:           v1alpha1.ProviderHTTPRoute,
			Host:               "fraud.example.com",
			Colours:            []string{"qa", "vip"},
			Weights: v1alpha1.RolloutWeights{
				Desired: &v1alpha1.WeightPair{Stable: 90, Canary: 10}, Applied: &v1alpha1.WeightPair{Stable: 99, Canary: 1},
			},
			Conditions: []metav1.Condition{
				{Type: "Ready", Status: "False", Reason: "DriftHeld", Message: "Left so."},
				{Type: "DriftDetected", Status: "True", Reason: "DriftHeld"},
			},
			Drift: &v1alpha1.RolloutDrift{Manager: "argocd", Repairs: make([]metav1.Time, 6)},
			RolloutProgress: v1alpha1.RolloutProgress{
				Phase: v1alpha1.PhaseProgressing, PhaseMessage: "Waits for 12 more minutes.",
				Step: &v1alpha1.RolloutStepStatus{
					Index: 1, Since: &metav1.Time{Time: now.Add(-5 * time.Minute)}, Samples: 120,
				},
				Verdicts: []v1alpha1.MetricVerdict{
					{
						Metric:   "errors",
						Result:   v1alpha1.VerdictPass,
						Estimate: "+0.1 points",
						Interval: "-1 points to +0.4 points",
						Bound:    "+0.5 points",
						Samples:  120,
					},
					{Metric: "queue", Result: v1alpha1.VerdictError, DryRun: true, Message: "Prometheus cannot be reached"},
				},
			},
		},
	}
	want := `ml/fraud  Progressing, step 2 of 4 for 5m · not ready: DriftHeld · suspended
  stable  fraud-v1  99 % (asked 90 %)  ` + strings.Repeat("█", 39) + `░
  canary  fraud-v2  1 % (asked 10 %)   █` + strings.Repeat("░", 39) + `
  steps    ✓ 1 %  ▶ 10 % (15m left, 120 of 500 samples)  · pause  · 100 %  · bake 60m
  route    HTTPRoute for fraud.example.com
  colours  qa, vip
  why      Waits for 12 more minutes.
  ready    Left so.
  drift    left as field manager argocd made it, after 6 repairs

  METRIC  VERDICT          MEASURED     TRUTH WITHIN              BOUND        SAMPLES  WHY NOT
  errors  Pass             +0.1 points  -1 points to +0.4 points  +0.5 points  120
  queue   Error (dry run)  -            -                         -            0        Prometheus cannot be reached
`
	var got strings.Builder
	reportOf(r).picture(&got, now)
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("picture (-want +got):\n%s", diff)
	}

	// One that the operator has not seen yet has next to nothing to show.
	got.Reset()
	fresh := &v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: "new", Generation: 1}}
	reportOf(fresh).picture(&got, now)
	if !strings.HasPrefix(got.String(), "ml/new  waiting for the operator\n") {
		t.Errorf("picture of a new rollout:\n%s", got.String())
	}
}

// TestScreen: a picture stays within the terminal, and what was there before comes back.
func TestScreen(t *testing.T) {
	var out strings.Builder
	s := &screen{out: &out, size: func() (int, int) { return 30, 3 }}
	r := report{Namespace: "ml", Name: strings.Repeat("ö", 40), Message: "m", Reason: "r", Current: true}
	s.enter()
	s.draw(r, time.Now())
	drawn := out.String()
	s.leave(&r)
	for line := range strings.SplitSeq(strings.TrimPrefix(drawn, enterScreen+goHome), "\r\n") {
		line = strings.TrimSuffix(strings.TrimSuffix(line, clearBelow), clearLine)
		if n := len([]rune(line)); n > 30 {
			t.Errorf("a line of %d characters in a terminal of 30: %q", n, line)
		}
	}
	if lines := strings.Count(drawn, "\n") + 1; lines != 3 {
		t.Errorf("%d lines in a terminal of 3", lines)
	}
	if left := strings.TrimPrefix(out.String(), drawn); !strings.HasPrefix(left, leaveScreen+"ml/ö") {
		t.Errorf("what stays is %q", left)
	}
}
