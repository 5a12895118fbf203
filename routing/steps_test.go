// SPDX-License-Identifier: Apache-2.0

package routing_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/routing"
)

var midnight = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// life plays a rollout as a controller does: what follows is recorded, routed, acknowledged and recorded again.
type life struct {
	strategy v1alpha1.RolloutStrategy
	progress v1alpha1.RolloutProgress
	facts    routing.Facts
	percents []int32 // all shares of the canary that the route ever had
}

func newLife(strategy v1alpha1.RolloutStrategy) *life {
	return &life{strategy: strategy, facts: routing.Facts{
		Now: midnight, Rollout: "0123456789", StableReady: 4, CanaryReady: 2,
		Canary:      v1alpha1.CanaryRevision{InferenceService: "v2", UID: "a", Generation: 1, Hash: "x"},
		Annotations: map[string]string{},
		Evidence:    routing.Evidence{Result: routing.ResultPass},
	}}
}

// live goes on until nothing follows, and returns the phase, its reason, and the canary's share.
func (l *life) live() string {
	for range 100 {
		before := l.progress
		l.progress = routing.Next(l.strategy, l.progress, l.facts)
		l.route()
		if cmp.Equal(before, l.progress) {
			return l.String()
		}
	}
	return "no rest"
}

func (l *life) route() {
	percent := routing.Percent(l.strategy, l.progress, l.facts.Applied, l.facts.StableReady, l.facts.Now)
	weights, outcome := routing.Split(percent, l.facts.StableReady, l.facts.CanaryReady)
	if l.facts.Applied == nil || l.facts.Applied.Canary != weights.Canary {
		l.percents = append(l.percents, weights.Canary)
	}
	l.facts.Applied = &weights
	l.progress = routing.Settle(l.progress, weights, routing.Desired(percent), string(outcome), l.facts.Now)
}

func (l *life) String() string {
	return fmt.Sprintf("%s %s %d", l.progress.Phase, l.progress.PhaseReason, l.facts.Applied.Canary)
}

func (l *life) after(d time.Duration) string {
	l.facts.Now = l.facts.Now.Add(d)
	return l.live()
}

func (l *life) say(annotation, turn string) string {
	l.facts.Annotations[annotation] = turn
	return l.live()
}

func (l *life) judged(result routing.Result) string {
	l.facts.Evidence = routing.Evidence{Result: result, Why: "errors rose."}
	return l.live()
}

func duration(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }

func weight(percent int32, hold time.Duration) v1alpha1.RolloutStep {
	step := v1alpha1.RolloutStep{SetPercent: &percent}
	if hold > 0 {
		step.Hold = &v1alpha1.StepHold{Duration: duration(hold)}
	}
	return step
}

var pause = v1alpha1.RolloutStep{Pause: &v1alpha1.StepPause{}}

// steady is a strategy with one of everything: 10 percent for ten minutes, a pause, 50 percent for ten minutes, 100
// percent, and a bake of an hour.
func steady() v1alpha1.RolloutStrategy {
	return v1alpha1.RolloutStrategy{
		Steps: []v1alpha1.RolloutStep{weight(10, 10*time.Minute), pause, weight(50, 10*time.Minute), weight(100, 0)},
		Bake:  duration(time.Hour),
	}
}

func want(t *testing.T, when, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", when, got, want)
	}
}

func TestStepsToTheEnd(t *testing.T) {
	l := newLife(steady())
	want(t, "at the begin", l.live(), "Progressing StepHolding 10")
	want(t, "before the hold is over", l.after(9*time.Minute), "Progressing StepHolding 10")
	if got := routing.Wake(l.strategy, l.progress, l.facts.Now); got != time.Minute {
		t.Errorf("it wakes in %s, want a minute", got)
	}
	want(t, "at the pause", l.after(time.Minute), "Paused WaitingForPromotion 10")
	want(t, "long after", l.after(48*time.Hour), "Paused WaitingForPromotion 10")
	want(t, "promoted", l.say(v1alpha1.AnnotationPromote, l.progress.Turn), "Progressing Promoted 50")
	want(t, "at the bake", l.after(10*time.Minute), "Baking Baking 100")
	want(t, "in the oven", l.after(59*time.Minute), "Baking Baking 100")
	want(t, "done", l.after(time.Minute), "Succeeded StepsDone 100")
	want(t, "a year later", l.after(365*24*time.Hour), "Succeeded StepsDone 100")
	if got := routing.Wake(l.strategy, l.progress, l.facts.Now); got != 0 {
		t.Errorf("one that has succeeded wakes in %s, want never", got)
	}
	if diff := cmp.Diff([]int32{0, 10, 50, 100}, l.percents); diff != "" {
		t.Errorf("weights (-want +got):\n%s", diff)
	}
	var percents []int32
	for i, period := range l.progress.History {
		percents = append(percents, period.Percent)
		if last := i == len(l.progress.History)-1; last != (period.To == nil) || period.From == nil {
			t.Errorf("period %d is from %v to %v", i, period.From, period.To)
		}
	}
	if diff := cmp.Diff([]int32{0, 10, 50, 100}, percents); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// TestFailureInEveryPhase: whatever a rollout waits for, one write takes the traffic back.
func TestFailureInEveryPhase(t *testing.T) {
	phases := map[string]struct {
		reach func(*life)
		held  string
	}{
		"Progressing": {func(l *life) { l.live() }, "Holding AnalysisFailed 10"},
		"Paused":      {func(l *life) { l.live(); l.after(10 * time.Minute) }, "Holding AnalysisFailed 10"},
		"suspended": {func(l *life) {
			l.live()
			l.facts.Suspended = true
			l.live()
		}, "Holding AnalysisFailed 10"},
		"Baking": {func(l *life) { l.live(); l.say(v1alpha1.AnnotationSkip, l.progress.Turn) }, "Holding AnalysisFailed 100"},
	}
	for name, phase := range phases {
		l := newLife(steady())
		phase.reach(l)
		want(t, name+", rollback", l.judged(routing.ResultFail), "RolledBack AnalysisFailed 0")
		want(t, name+", evidence is gone", l.judged(routing.ResultPass), "RolledBack AnalysisFailed 0")
		want(t, name+", time passes", l.after(1000*time.Hour), "RolledBack AnalysisFailed 0")

		l = newLife(steady())
		l.strategy.OnFailure = v1alpha1.OnFailureHold
		phase.reach(l)
		want(t, name+", hold", l.judged(routing.ResultFail), phase.held)
		want(t, name+", held although evidence is gone", l.judged(routing.ResultPass), phase.held)
		want(t, name+", held for ever", l.after(1000*time.Hour), phase.held)
		want(t, name+", aborted", l.say(v1alpha1.AnnotationAbort, l.progress.Turn), "RolledBack Aborted 0")
	}
}

// TestNothingIsProved: neither a lack of evidence nor a broken source of it promotes or turns back.
func TestNothingIsProved(t *testing.T) {
	for _, result := range []routing.Result{routing.ResultInconclusive, routing.ResultError} {
		l := newLife(steady())
		l.facts.Evidence.Result = result
		want(t, string(result), l.live(), "Progressing StepHolding 10")
		want(t, string(result), l.after(1000*time.Hour), "Progressing StepHolding 10")
	}
	l := newLife(steady())
	l.live()
	l.say(v1alpha1.AnnotationSkip, l.progress.Turn)
	l.judged(routing.ResultError)
	want(t, "Error at the end of the bake", l.after(1000*time.Hour), "Baking Baking 100")
	want(t, "the source is back", l.judged(routing.ResultInconclusive), "Succeeded StepsDone 100")
}

func TestVerbs(t *testing.T) {
	l := newLife(steady())
	l.live()
	first := l.progress.Turn
	want(t, "promoted from a hold", l.say(v1alpha1.AnnotationPromote, first), "Paused WaitingForPromotion 10")
	want(t, "the same verb once more", l.after(time.Hour), "Paused WaitingForPromotion 10")
	want(t, "a verb for another rollout", l.say(v1alpha1.AnnotationSkip, "ffffffff-1.2"), "Paused WaitingForPromotion 10")
	want(t, "a verb for everything", l.say(v1alpha1.AnnotationSkip, "true"), "Paused WaitingForPromotion 10")
	want(t, "a retry of what goes well", l.say(v1alpha1.AnnotationRetry, l.progress.Turn), "Paused WaitingForPromotion 10")
	want(t, "skipped to the end", l.say(v1alpha1.AnnotationSkip, l.progress.Turn), "Baking Baking 100")
	want(t, "the bake ended", l.say(v1alpha1.AnnotationPromote, l.progress.Turn), "Succeeded Promoted 100")
	want(t, "aborted by one who saw the first turn", l.say(v1alpha1.AnnotationAbort, first), "RolledBack Aborted 0")
	want(t, "retried by one who saw the first turn", l.say(v1alpha1.AnnotationRetry, first), "RolledBack Aborted 0")
	want(t, "retried", l.say(v1alpha1.AnnotationRetry, l.progress.Turn), "Progressing StepHolding 10")
	if l.progress.Attempt.Number != 2 {
		t.Errorf("attempt %d, want 2", l.progress.Attempt.Number)
	}
	want(t, "the old verbs are still there", l.after(time.Minute), "Progressing StepHolding 10")
}

// TestAbortAndRetryAtOnce: a person who asks for both gets both, in that order.
func TestAbortAndRetryAtOnce(t *testing.T) {
	l := newLife(steady())
	l.live()
	l.after(10 * time.Minute)
	l.facts.Annotations[v1alpha1.AnnotationRetry] = l.progress.Turn
	want(t, "a retry waits", l.live(), "Paused WaitingForPromotion 10")
	want(t, "aborted", l.say(v1alpha1.AnnotationAbort, l.progress.Turn), "RolledBack Aborted 0")
}

func TestSuspension(t *testing.T) {
	l := newLife(steady())
	l.facts.Suspended = true
	want(t, "suspended before it begins", l.live(), "Pending WaitingForSides 0")
	l.facts.Suspended = false
	want(t, "begun", l.live(), "Progressing StepHolding 10")
	l.facts.Suspended = true
	want(t, "suspended", l.after(time.Hour), "Paused Suspended 10")
	l.facts.Suspended = false
	want(t, "resumed: the hold is over by now", l.live(), "Paused WaitingForPromotion 10")
	l.facts.Suspended = true
	want(t, "suspended at a pause", l.live(), "Paused WaitingForPromotion 10")
	want(t, "promoted all the same", l.say(v1alpha1.AnnotationPromote, l.progress.Turn), "Paused Suspended 50")
	l.facts.Suspended = false
	want(t, "resumed", l.live(), "Progressing StepHolding 50")
}

func TestDeadline(t *testing.T) {
	strategy := steady()
	strategy.ProgressDeadline = duration(2 * time.Hour)
	l := newLife(strategy)
	l.live()
	l.after(10 * time.Minute)
	want(t, "a pause is not counted", l.after(100*time.Hour), "Paused WaitingForPromotion 10")
	l.say(v1alpha1.AnnotationPromote, l.progress.Turn)
	want(t, "at the bake", l.after(100*time.Minute), "Baking Baking 100")
	want(t, "late in the bake", l.after(11*time.Minute), "RolledBack DeadlineExceeded 0")

	strategy.OnFailure = v1alpha1.OnFailureHold
	l = newLife(strategy)
	l.live()
	l.judged(routing.ResultInconclusive)
	want(t, "late and held", l.after(3*time.Hour), "Holding DeadlineExceeded 10")
	l.judged(routing.ResultPass)
	want(t, "promoted in spite of it", l.say(v1alpha1.AnnotationPromote, l.progress.Turn), "Paused WaitingForPromotion 10")
	want(t, "not late any more", l.after(time.Hour), "Paused WaitingForPromotion 10")
}

// TestOtherCanary: another canary begins without traffic, whatever the one before had come to.
func TestOtherCanary(t *testing.T) {
	for name, tc := range map[string]struct {
		change         func(*v1alpha1.CanaryRevision)
		wantUnderWay   string
		wantRolledBack string
		wantSucceeded  string
	}{
		"another InferenceService": {
			func(c *v1alpha1.CanaryRevision) { c.InferenceService, c.UID = "v3", "b" },
			"Progressing StepHolding 10", "Progressing StepHolding 10", "Progressing StepHolding 10",
		},
		"one that does not exist yet": {
			func(c *v1alpha1.CanaryRevision) { *c = v1alpha1.CanaryRevision{InferenceService: "v3"} },
			"Progressing StepHolding 10", "Progressing StepHolding 10", "Progressing StepHolding 10",
		},
		"the same made anew": {
			func(c *v1alpha1.CanaryRevision) { c.UID = "b" },
			"Progressing StepHolding 10", "Progressing StepHolding 10", "Succeeded StepsDone 100",
		},
		"another model in it": {
			func(c *v1alpha1.CanaryRevision) { c.Generation, c.Hash = 2, "y" },
			"Progressing StepHolding 10", "Progressing StepHolding 10", "Succeeded StepsDone 100",
		},
		"another number of replicas": {
			func(c *v1alpha1.CanaryRevision) { c.Generation = 2 },
			"Progressing StepHolding 50", "RolledBack AnalysisFailed 0", "Succeeded StepsDone 100",
		},
		"another way to compute the hash": {
			func(c *v1alpha1.CanaryRevision) { c.Hash = "y" },
			"Progressing StepHolding 50", "RolledBack AnalysisFailed 0", "Succeeded StepsDone 100",
		},
		"none for now": {
			func(c *v1alpha1.CanaryRevision) { *c = v1alpha1.CanaryRevision{InferenceService: "v2"} },
			"Progressing StepHolding 50", "RolledBack AnalysisFailed 0", "Succeeded StepsDone 100",
		},
	} {
		strategy := v1alpha1.RolloutStrategy{
			Steps: []v1alpha1.RolloutStep{weight(10, time.Hour), weight(50, time.Hour), weight(100, 0)},
		}
		l := newLife(strategy)
		l.live()
		l.after(time.Hour)
		tc.change(&l.facts.Canary)
		want(t, name+" under way", l.live(), tc.wantUnderWay)
		if tc.wantUnderWay == "Progressing StepHolding 10" {
			if got := fmt.Sprint(l.percents); got != "[0 10 50 0 10]" {
				t.Errorf("%s: weights %s; want none for the other canary before its first step", name, got)
			}
		}

		l = newLife(strategy)
		l.live()
		l.judged(routing.ResultFail)
		l.judged(routing.ResultPass)
		tc.change(&l.facts.Canary)
		want(t, name+" after a rollback", l.live(), tc.wantRolledBack)

		l = newLife(strategy)
		l.live()
		l.after(time.Hour)
		l.after(time.Hour)
		tc.change(&l.facts.Canary)
		want(t, name+" after success", l.live(), tc.wantSucceeded)
	}
}

// TestWhoGoesOnHasSeenTheFailure: one verb is enough, also where the next step has the weights that the proof is about.
func TestWhoGoesOnHasSeenTheFailure(t *testing.T) {
	for verb, tc := range map[string]struct {
		reach func(*life)
		want  string
	}{
		v1alpha1.AnnotationPromote: {func(l *life) { l.live() }, "Paused WaitingForPromotion 10"},
		v1alpha1.AnnotationSkip: {func(l *life) {
			l.strategy.Steps = l.strategy.Steps[:1]
			l.live()
		}, "Baking Baking 10"},
	} {
		l := newLife(steady())
		l.strategy.OnFailure = v1alpha1.OnFailureHold
		tc.reach(l)
		want(t, verb+", held", l.judged(routing.ResultFail), "Holding AnalysisFailed 10")
		l.facts.Now = l.facts.Now.Add(time.Hour)
		l.facts.Annotations[verb] = l.progress.Turn
		l.progress = routing.Next(l.strategy, l.progress, l.facts)
		if from := l.progress.Attempt.RecountTime; from == nil || !from.Time.Equal(l.facts.Now) {
			t.Errorf("%s: requests count from %v, want from %s", verb, from, l.facts.Now)
		}
		l.facts.Evidence = routing.Evidence{} // what is known of requests from then on
		want(t, verb, l.live(), tc.want)
		want(t, verb+", and a second proof", l.judged(routing.ResultFail), "Holding AnalysisFailed 10")
	}
}

// TestCanaryThatFlapsIsTurnedBack: without any deadline, too. One that was away now and then is not.
func TestCanaryThatFlapsIsTurnedBack(t *testing.T) {
	for name, tc := range map[string]struct {
		between time.Duration
		policy  v1alpha1.OnFailure
		promote bool
		want    string
	}{
		"every minute":                 {between: time.Minute, want: "RolledBack CanaryUnstable 0"},
		"every quarter of an hour":     {between: 15 * time.Minute, want: "Progressing StepHolding 0"},
		"every minute, to be held":     {between: time.Minute, policy: v1alpha1.OnFailureHold, want: "Holding CanaryUnstable 0"},
		"and a person says that it is": {between: time.Minute, policy: v1alpha1.OnFailureHold, promote: true, want: "Progressing Promoted 50"},
	} {
		strategy := v1alpha1.RolloutStrategy{Steps: []v1alpha1.RolloutStep{weight(10, time.Hour), weight(50, time.Hour)}}
		l := newLife(strategy)
		l.strategy.OnFailure = tc.policy
		l.live()
		for n := range 5 {
			want(t, fmt.Sprintf("%s, %d losses", name, n), l.after(tc.between/2), "Progressing StepHolding 10")
			l.facts.CanaryReady = 0
			l.after(tc.between / 2)
			if n < 4 {
				l.facts.CanaryReady = 2
				l.live()
			}
		}
		want(t, name, func() string {
			if tc.promote {
				l.facts.CanaryReady = 2
				l.say(v1alpha1.AnnotationPromote, l.progress.Turn)
			}
			return l.String()
		}(), tc.want)
	}
}

func TestSidesThatAreNotReady(t *testing.T) {
	l := newLife(steady())
	l.facts.CanaryReady = 0
	want(t, "the canary is not ready", l.after(time.Hour), "Pending WaitingForSides 0")
	l.facts.CanaryReady, l.facts.StableReady = 1, 0
	want(t, "stable is not ready", l.after(time.Hour), "Pending WaitingForSides 0")
	l.facts.StableReady = 1
	want(t, "both are", l.live(), "Progressing StepHolding 10")
	l.facts.CanaryReady = 0
	want(t, "the canary dies", l.after(9*time.Minute), "Progressing StepHolding 0")
	l.facts.CanaryReady = 1
	want(t, "it is back", l.after(time.Hour), "Progressing StepHolding 10")
	want(t, "its time begins anew", l.after(9*time.Minute), "Progressing StepHolding 10")
	want(t, "its time is over", l.after(time.Minute), "Paused WaitingForPromotion 10")
}

func TestColdCanary(t *testing.T) {
	l := newLife(steady())
	l.facts.CanaryCold = 2
	want(t, "no pod is warm", l.after(time.Hour), "Pending WaitingForSides 0")
	if got := l.progress.PhaseMessage; !strings.Contains(got, "is warm") {
		t.Errorf("the rollout says %q", got)
	}
	turn := l.progress.Turn
	l.facts.CanaryReady = 0
	l.facts.CanaryCold = 0
	want(t, "the pods go", l.live(), "Pending WaitingForSides 0")
	if got := l.progress.PhaseMessage; !strings.Contains(got, "a ready pod") || l.progress.Turn != turn {
		t.Errorf("the rollout says %q in turn %s, before %s", got, l.progress.Turn, turn)
	}
	l.facts.CanaryReady, l.facts.CanaryCold = 2, 1
	want(t, "one is warm", l.live(), "Progressing StepHolding 10")
}

// TestUpdateInPlace: while pods of the revision before are there, which may be the one that was just turned back, the new
// one is not judged by them and they get no traffic.
func TestUpdateInPlace(t *testing.T) {
	l := newLife(steady())
	l.facts.Templates = []string{"bad"}
	l.live()
	want(t, "a bad model", l.judged(routing.ResultFail), "RolledBack AnalysisFailed 0")
	l.facts.Canary.Generation, l.facts.Canary.Hash = 2, "mended"
	l.facts.Evidence.Result = routing.ResultPass
	want(t, "it is mended, and its pods are not yet", l.live(), "Pending Superseded 0")
	if wait := routing.Wake(l.strategy, l.progress, l.facts.Now); wait != time.Minute {
		t.Errorf("it wakes in %s, want a minute", wait)
	}
	l.facts.Templates = []string{"bad", "mended"}
	want(t, "the update goes on, for however long", l.after(time.Hour), "Pending Superseded 0")
	if got := l.progress.PhaseMessage; !strings.Contains(got, "newest revision") {
		t.Errorf("the rollout says %q", got)
	}
	l.facts.Canary.Generation, l.facts.Canary.Hash = 3, "mended again"
	want(t, "it is changed once more", l.live(), "Pending Superseded 0")
	l.facts.Templates = []string{"mended"}
	want(t, "the first update is over, the second has not begun", l.live(), "Pending Superseded 0")
	l.facts.Templates = []string{"mended again"}
	want(t, "the second is over", l.live(), "Progressing StepHolding 10")
	if a := l.progress.Attempt; a.Outdated != nil || fmt.Sprint(a.Templates) != "[mended again]" {
		t.Errorf("the attempt remembers %v and %v", a.Templates, a.Outdated)
	}
	l.facts.Templates = []string{"a runtime of another version", "mended again"}
	want(t, "pods are replaced in the midst of it", l.after(time.Minute), "Progressing StepHolding 10")

	l = newLife(steady())
	l.facts.Templates = []string{"one"}
	l.live()
	l.facts.Canary.Generation, l.facts.Canary.Hash = 2, "a change that makes no other pods"
	want(t, "nothing replaces the pods", l.after(59*time.Second), "Pending Superseded 0")
	want(t, "nothing has for a minute", l.after(time.Minute), "Progressing StepHolding 10")
}

// TestAnotherStable: what was measured by another stable side proves nothing, and its time does not count.
func TestAnotherStable(t *testing.T) {
	const anew, goesOn = "Progressing StepHolding 10", "Paused WaitingForPromotion 10"
	one := v1alpha1.CanaryRevision{InferenceService: "v1", UID: "s", Generation: 1, Hash: "x"}
	for what, tc := range map[string]struct {
		change func(*v1alpha1.CanaryRevision)
		want   string
	}{
		"another model":               {func(r *v1alpha1.CanaryRevision) { r.Generation, r.Hash = 2, "y" }, anew},
		"the same made anew":          {func(r *v1alpha1.CanaryRevision) { r.UID = "t" }, anew},
		"another number of replicas":  {func(r *v1alpha1.CanaryRevision) { r.Generation = 2 }, goesOn},
		"none for now":                {func(r *v1alpha1.CanaryRevision) { r.UID = "" }, goesOn},
		"another way to compute hash": {func(r *v1alpha1.CanaryRevision) { r.Hash = "y" }, goesOn},
	} {
		l := newLife(steady())
		l.facts.Stable = one
		l.live()
		l.after(9 * time.Minute)
		tc.change(&l.facts.Stable)
		want(t, what, l.after(time.Minute), tc.want)
		changed := l.progress.Attempt.RecountTime != nil
		if changed != (tc.want == anew) {
			t.Errorf("%s: the attempt says that stable changed at %v", what, l.progress.Attempt.RecountTime)
		}
		l.after(8 * time.Minute)
		want(t, what+", later", l.String(), tc.want)
		want(t, what+", when the time is over", l.after(2*time.Minute), goesOn)
	}
}

// TestStableThatHasBecomeTooSmall: no step gives the canary more while stable could not take it back; everything else goes
// on.
func TestStableThatHasBecomeTooSmall(t *testing.T) {
	strategy := v1alpha1.RolloutStrategy{
		Steps: []v1alpha1.RolloutStep{weight(10, 10*time.Minute), weight(100, 10*time.Minute)}, Bake: duration(time.Hour),
	}
	l := newLife(strategy)
	l.facts.Capacity = &v1alpha1.RolloutCapacity{}
	want(t, "it begins", l.live(), "Progressing StepHolding 10")
	l.facts.StableReady = 3
	want(t, "stable has lost a pod", l.after(time.Hour), "Progressing StableTooSmall 10")
	if got := l.progress.PhaseMessage; !strings.Contains(got, "has 4 ready pods again") {
		t.Errorf("the rollout says %q", got)
	}
	want(t, "a person promotes all the same", l.say(v1alpha1.AnnotationPromote, l.progress.Turn), "Progressing Promoted 100")
	want(t, "the last step is over", l.after(10*time.Minute), "Baking Baking 100")

	l = newLife(strategy)
	l.facts.Capacity = &v1alpha1.RolloutCapacity{}
	l.live()
	l.facts.StableReady = 3
	l.after(time.Hour)
	l.facts.StableReady = 4
	want(t, "stable has its pods again", l.live(), "Progressing StepHolding 100")

	strategy.Steps[0].Hold.MaxDuration = duration(20 * time.Minute)
	l = newLife(strategy)
	l.facts.Capacity = &v1alpha1.RolloutCapacity{}
	l.judged(routing.ResultInconclusive)
	want(t, "nothing is proved", l.after(20*time.Minute), "Holding Inconclusive 10")
	l.facts.StableReady = 3
	want(t, "the proof comes while stable is too small", l.judged(routing.ResultPass), "Holding Inconclusive 10")
	l.facts.StableReady = 4
	want(t, "and holds when it is not any more", l.live(), "Progressing StepHolding 100")

	strategy.Steps[0].Hold.MaxDuration = nil
	l = newLife(strategy)
	l.facts.Capacity = &v1alpha1.RolloutCapacity{Stable: v1alpha1.StableCapacityIgnore}
	l.live()
	l.facts.StableReady = 1
	want(t, "nobody minds", l.after(10*time.Minute), "Progressing StepHolding 100")
}

func TestGradualAbort(t *testing.T) {
	strategy := v1alpha1.RolloutStrategy{
		Steps: []v1alpha1.RolloutStep{
			weight(100, 0),
		},
		Bake:  duration(time.Hour),
		Abort: v1alpha1.AbortPolicy{Mode: v1alpha1.AbortGradual},
	}
	l := newLife(strategy) // stable has four pods
	want(t, "at the bake", l.live(), "Baking Baking 100")
	l.facts.StableReady = 1
	want(t, "one pod of stable is left", l.judged(routing.ResultFail), "RollingBack AnalysisFailed 75")
	l.facts.StableReady = 3
	want(t, "three are", l.live(), "RollingBack AnalysisFailed 25")
	l.facts.StableReady = 2
	want(t, "never more again", l.live(), "RollingBack AnalysisFailed 25")
	if wait := routing.Wake(l.strategy, l.progress, l.facts.Now); wait != 10*time.Minute {
		t.Errorf("it wakes in %s, want ten minutes", wait)
	}
	want(t, "after ten minutes", l.after(10*time.Minute), "RolledBack AnalysisFailed 0")

	l = newLife(strategy)
	l.live()
	l.facts.StableReady = 5
	want(t, "stable has all its pods", l.judged(routing.ResultFail), "RolledBack AnalysisFailed 0")
	if got := fmt.Sprint(l.percents); got != "[0 100 0]" {
		t.Errorf("weights %s, want one write back", got)
	}
}

// TestNoAbortToADeadStable: a canary that fails some requests is better than a side that fails all.
func TestNoAbortToADeadStable(t *testing.T) {
	for _, mode := range []v1alpha1.AbortMode{v1alpha1.AbortImmediate, v1alpha1.AbortGradual} {
		l := newLife(steady())
		l.strategy.Abort.Mode = mode
		l.live()
		l.facts.StableReady = 0
		want(t, "stable dies", l.live(), "Progressing StepHolding 100")
		want(t, "the canary fails", l.judged(routing.ResultFail), "RollingBack AnalysisFailed 100")
		want(t, "stable stays dead", l.after(time.Hour), "RollingBack AnalysisFailed 100")
		l.facts.StableReady = 4
		want(t, "stable is back", l.live(), "RolledBack AnalysisFailed 0")
		l.facts.StableReady = 0
		want(t, "stable dies again", l.live(), "RolledBack AnalysisFailed 0")
	}
	l := newLife(steady())
	l.live()
	l.facts.StableReady, l.facts.CanaryReady = 0, 0
	want(t, "both are dead", l.judged(routing.ResultFail), "RolledBack AnalysisFailed 0")
}

func TestEditedSteps(t *testing.T) {
	l := newLife(steady())
	l.live()
	l.strategy.Steps[0] = weight(30, 10*time.Minute)
	want(t, "another weight", l.live(), "Progressing StepHolding 30")
	l.strategy.Steps[0] = pause
	want(t, "a pause instead", l.live(), "Paused WaitingForPromotion 0")
	l.strategy.Steps[0] = weight(20, 10*time.Minute)
	want(t, "a weight again", l.live(), "Progressing StepHolding 20")
	l.say(v1alpha1.AnnotationPromote, l.progress.Turn)
	l.say(v1alpha1.AnnotationPromote, l.progress.Turn)
	want(t, "further on", l.live(), "Progressing Promoted 50")
	l.strategy.Steps = l.strategy.Steps[:1]
	want(t, "fewer steps than were taken", l.live(), "Baking Baking 20")
}

// TestProgressKeepsItsPromises plays rollouts in which anything may happen at any time.
func TestProgressKeepsItsPromises(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		l := newLife(steady())
		if seed%3 == 0 {
			l.strategy.ProgressDeadline = duration(90 * time.Minute)
		}
		if seed%2 == 0 {
			l.strategy.OnFailure = v1alpha1.OnFailureHold
		}
		if seed%5 == 0 {
			l.strategy.Abort.Mode = v1alpha1.AbortGradual
		}
		seen := map[string]string{}
		for range 60 {
			anything(random, l)
			before, share := l.progress, l.facts.Applied
			next := routing.Next(l.strategy, l.progress, l.facts)
			l.progress = next
			l.route()
			checkPromises(t, l, before, share)
			// A turn is one state of affairs.
			state := fmt.Sprint(
				l.progress.Step.Index,
				strings.ReplaceAll(string(l.progress.Phase), "RolledBack", "RollingBack"),
				l.progress.PhaseReason,
			)
			if was, again := seen[l.progress.Turn]; again && was != state {
				t.Fatalf("seed %d: turn %s was %s and is %s", seed, l.progress.Turn, was, state)
			}
			seen[l.progress.Turn] = state
		}
	}
}

func anything(random *rand.Rand, l *life) {
	l.facts.Now = l.facts.Now.Add(time.Duration(random.IntN(1000)) * time.Second)
	turns := []string{l.progress.Turn, l.progress.Turn, "", "01234567-1.2", "true"}
	switch verbs := []string{
		v1alpha1.AnnotationPromote, v1alpha1.AnnotationSkip, v1alpha1.AnnotationRetry, v1alpha1.AnnotationAbort,
	}; random.IntN(12) {
	case 0, 1, 2:
		l.facts.Annotations[verbs[random.IntN(len(verbs))]] = turns[random.IntN(len(turns))]
	case 3:
		l.facts.StableReady = int32(random.IntN(5))
	case 4:
		l.facts.CanaryReady = int32(random.IntN(3))
	case 5:
		l.facts.Evidence.Result = []routing.Result{
			routing.ResultFail, routing.ResultError, routing.ResultInconclusive,
		}[random.IntN(3)]
	case 6:
		l.facts.Canary.UID = types.UID(strconv.Itoa(random.IntN(9)))
	case 7:
		l.facts.Suspended = !l.facts.Suspended
	default:
		l.facts.Evidence.Result = routing.ResultPass
		l.facts.StableReady, l.facts.CanaryReady = 4, 2
	}
}

func checkPromises(t *testing.T, l *life, before v1alpha1.RolloutProgress, was *v1alpha1.WeightPair) {
	t.Helper()
	is, p := *l.facts.Applied, l.progress
	if is.Stable+is.Canary != 100 || is.Canary < 0 || is.Canary > 100 {
		t.Fatalf("weights %+v", is)
	}
	turnedBack := p.Phase == v1alpha1.PhaseRolledBack || p.Phase == v1alpha1.PhaseRollingBack
	sameAttempt := before.Attempt != nil && before.Attempt.Number == p.Attempt.Number
	if was != nil && sameAttempt && is.Canary < was.Canary && !turnedBack && l.facts.CanaryReady > 0 && l.facts.StableReady > 0 &&
		was.Canary < 100 {
		t.Fatalf("the canary's share fell from %d to %d in phase %s", was.Canary, is.Canary, p.Phase)
	}
	if was != nil && turnedBack && is.Canary > was.Canary && l.facts.StableReady > 0 {
		t.Fatalf("the canary's share rose from %d to %d while it was turned back", was.Canary, is.Canary)
	}
	if sameAttempt && before.Phase == v1alpha1.PhaseRolledBack && p.Phase != v1alpha1.PhaseRolledBack {
		t.Fatalf("a rollout that was rolled back became %s", p.Phase)
	}
	if sameAttempt && p.Step.Index > before.Step.Index && l.facts.Evidence.Result == routing.ResultFail &&
		p.PhaseReason != v1alpha1.ReasonPromoted && !strings.HasPrefix(string(p.Phase), "Pau") &&
		p.Phase != v1alpha1.PhaseBaking && p.Phase != v1alpha1.PhaseSucceeded {
		t.Fatalf("a failed canary went on to step %d by itself", p.Step.Index)
	}
	if p.Phase == v1alpha1.PhasePending && is.Canary != 0 {
		t.Fatalf("a canary that has not begun has %d percent", is.Canary)
	}
	if len(p.History) > 20 {
		t.Fatalf("%d periods are remembered", len(p.History))
	}
}
