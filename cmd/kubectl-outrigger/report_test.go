// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// noon is when pictures of tests are drawn.
var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// busyRollout has something to tell in every line of a picture.
func busyRollout() *v1alpha1.CanaryRollout {
	now := noon
	return &v1alpha1.CanaryRollout{
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
}

func TestPicture(t *testing.T) {
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
	reportOf(busyRollout()).picture(&got, noon, 0)
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("picture (-want +got):\n%s", diff)
	}

	// One that the operator has not seen yet has next to nothing to show.
	got.Reset()
	fresh := &v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: "new", Generation: 1}}
	reportOf(fresh).picture(&got, noon, 0)
	if !strings.HasPrefix(got.String(), "ml/new  waiting for the operator\n") {
		t.Errorf("picture of a new rollout:\n%s", got.String())
	}
}

// TestPictureFits: a terminal of any usual width shows everything, and no line is wider than it is.
func TestPictureFits(t *testing.T) {
	for width, want := range map[int]string{
		80: `ml/fraud  Progressing, step 2 of 4 for 5m · not ready: DriftHeld · suspended
  stable  fraud-v1  99 % (asked 90 %)  ` + strings.Repeat("█", 39) + `░
  canary  fraud-v2  1 % (asked 10 %)   █` + strings.Repeat("░", 39) + `
  steps    ✓ 1 %  ▶ 10 % (15m left, 120 of 500 samples)  · pause  · 100 %
           · bake 60m
  route    HTTPRoute for fraud.example.com
  colours  qa, vip
  why      Waits for 12 more minutes.
  ready    Left so.
  drift    left as field manager argocd made it, after 6 repairs

  errors  Pass
    measured +0.1 points; truth within -1 points to +0.4 points; bound +0.5
    points; 120 samples
  queue  Error (dry run)
    0 samples; Prometheus cannot be reached
`,
		60: `ml/fraud  Progressing, step 2 of 4 for 5m
  · not ready: DriftHeld · suspended
  stable  fraud-v1  99 % (asked 90 %)  ` + strings.Repeat("█", 20) + `░
  canary  fraud-v2  1 % (asked 10 %)   █` + strings.Repeat("░", 20) + `
  steps    ✓ 1 %  ▶ 10 % (15m left, 120 of 500 samples)
           · pause  · 100 %  · bake 60m
  route    HTTPRoute for fraud.example.com
  colours  qa, vip
  why      Waits for 12 more minutes.
  ready    Left so.
  drift    left as field manager argocd made it, after 6
           repairs

  errors  Pass
    measured +0.1 points; truth within -1 points to +0.4
    points; bound +0.5 points; 120 samples
  queue  Error (dry run)
    0 samples; Prometheus cannot be reached
`,
	} {
		var got strings.Builder
		reportOf(busyRollout()).picture(&got, noon, width)
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("picture of %d characters (-want +got):\n%s", width, diff)
		}
	}
	var wide strings.Builder
	reportOf(busyRollout()).picture(&wide, noon, 120)
	if !strings.Contains(wide.String(), "WHY NOT") {
		t.Errorf("120 characters have room for the table of verdicts:\n%s", wide.String())
	}
	for width := 48; width <= 130; width++ {
		var got strings.Builder
		reportOf(busyRollout()).picture(&got, noon, width)
		for line := range strings.Lines(got.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("a line of %d characters in a terminal of %d: %q", n, width, line)
			}
		}
	}
}

// frame is what a screen was drawn last, line by line.
func frame(t *testing.T, drawn string) []string {
	t.Helper()
	at := strings.LastIndex(drawn, goHome)
	if at < 0 || !strings.HasSuffix(drawn, clearBelow) {
		t.Fatalf("nothing was drawn: %q", drawn)
	}
	lines := strings.Split(strings.TrimSuffix(drawn[at+len(goHome):], clearBelow), "\r\n")
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], clearLine)
	}
	return lines
}

// TestScreen: a picture stays within the terminal whatever its size becomes, what was there before comes back, and so
// does the cursor.
func TestScreen(t *testing.T) {
	var out strings.Builder
	width, height := 80, 24
	s := &screen{out: &out, size: func() (int, int) { return width, height }}
	r := reportOf(busyRollout())
	s.enter()
	if !strings.Contains(out.String(), "\x1b[?25l") {
		t.Error("the cursor is not hidden")
	}
	s.show(news{report: &r}, noon)
	if lines := frame(t, out.String()); len(lines) != 16 || !strings.HasPrefix(lines[0], "ml/fraud") {
		t.Errorf("the picture is\n%s", strings.Join(lines, "\n"))
	}

	// Nothing is drawn for nothing.
	before := out.Len()
	s.refresh(noon.Add(glance))
	if out.Len() != before {
		t.Error("it was drawn again although neither time nor size had changed")
	}
	s.refresh(noon.Add(redraw))
	if out.Len() == before {
		t.Error("it was not drawn again although time had passed")
	}

	// A smaller terminal gets a picture that fits, at once.
	width, height = 30, 6
	s.refresh(noon.Add(redraw + glance))
	lines := frame(t, out.String())
	if len(lines) != 6 || !strings.HasPrefix(lines[5], "… and ") {
		t.Errorf("in a terminal of 6 lines the picture is\n%s", strings.Join(lines, "\n"))
	}
	for _, line := range lines {
		if n := utf8.RuneCountInString(line); n > 30 {
			t.Errorf("a line of %d characters in a terminal of 30: %q", n, line)
		}
	}

	drawn := out.Len()
	width = 80
	s.leave()
	if left := out.String()[drawn:]; !strings.HasPrefix(left, "\x1b[?25h\x1b[?1049lml/fraud") {
		t.Errorf("what stays is %q", left)
	}
}

// TestScreenWithoutAnswers: while the API server is away the last picture stays, and says so.
func TestScreenWithoutAnswers(t *testing.T) {
	var out strings.Builder
	s := &screen{out: &out, size: func() (int, int) { return 60, 8 }}
	r := reportOf(busyRollout())
	s.show(news{report: &r}, noon)
	s.show(news{lost: errors.New("connection refused")}, noon)
	lines := frame(t, out.String())
	if want := "The API server does not answer: connection refused"; len(lines) != 8 || lines[7] != want ||
		!strings.HasPrefix(lines[0], "ml/fraud") {
		t.Errorf("the picture is\n%s", strings.Join(lines, "\n"))
	}
	s.show(news{report: &r}, noon)
	if got := strings.Join(frame(t, out.String()), "\n"); strings.Contains(got, "does not answer") {
		t.Errorf("it answers again, and the picture is\n%s", got)
	}
}
