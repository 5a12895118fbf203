// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Facts are what a rollout's next state of affairs follows from, besides its strategy and its last one.
type Facts struct {
	// Now is the time.
	Now time.Time
	// Rollout is the UID of the rollout.
	Rollout types.UID
	// Suspended tells whether the user wants no step to be taken.
	Suspended bool
	// Annotations are those of the rollout; verbs are among them.
	Annotations map[string]string
	// Canary is the canary as it is now; it has no UID while it does not exist.
	Canary v1alpha1.CanaryRevision
	// Stable is the stable side as it is now, in the same way.
	Stable v1alpha1.CanaryRevision
	// Templates tell the templates that the canary's pods are made from, sorted.
	Templates []string
	// StableReady and CanaryReady are the numbers of ready endpoints.
	StableReady, CanaryReady int32
	// CanaryCold is how many of the canary's ready endpoints are not warm yet, 0 without a warm-up.
	CanaryCold int32
	// Capacity is that of the rollout, nil for none.
	Capacity *v1alpha1.RolloutCapacity
	// Applied are the weights that the API server acknowledged last, nil if none were.
	Applied *v1alpha1.WeightPair
	// Analysis is that of the rollout, nil for none.
	Analysis *v1alpha1.RolloutAnalysis
	// Evidence is what the analysis says of the weights in force.
	Evidence Evidence
}

// Evidence is what the analysis says of the weights in force.
type Evidence struct {
	// Result is that of all metrics together, Pass if there are none, and empty while no answer has come.
	Result Result
	// Why tells in one sentence which metric made the result, unless it is Pass.
	Why string
	// Verdicts are those of the metrics.
	Verdicts []v1alpha1.MetricVerdict
	// Samples is the least number of the canary's requests that a metric counted.
	Samples int64
}

// Next returns the state of affairs that follows. It takes one step at most, so that each is on record before anything
// is done about it, and it returns what it was given if nothing follows. Rules, the first that fits decides:
//
//   - Another canary, or another revision of it, begins anew without traffic. Only a rollout that has succeeded does not
//     mind what becomes of its canary, as long as it is the same InferenceService: that is in production.
//   - A verb of a person is obeyed.
//   - A canary that failed is turned back, or held, in every phase that gives it traffic; so is one that comes up and goes
//     down again and again, a rollout that is late, and, if the user wants it so, one whose metrics have been out of reach
//     for too long.
//   - A suspended rollout takes no step.
//   - Each phase ends by its own rule.
func Next(strategy v1alpha1.RolloutStrategy, was v1alpha1.RolloutProgress, facts Facts) v1alpha1.RolloutProgress {
	m := machine{strategy: strategy, facts: facts, RolloutProgress: *was.DeepCopy()}
	switch {
	case m.Attempt == nil:
		m.begin(v1alpha1.ReasonWaitingForSides)
	case m.superseded():
		m.begin(v1alpha1.ReasonSuperseded)
	default:
		m.remember()
		m.note()
		if !m.obey() {
			m.proceed()
		}
	}
	return m.RolloutProgress
}

// machine works out one step.
type machine struct {
	v1alpha1.RolloutProgress

	strategy v1alpha1.RolloutStrategy
	facts    Facts
}

// superseded reports whether the canary is not that of the attempt any more.
func (m *machine) superseded() bool {
	was, is := m.Attempt.Canary, m.facts.Canary
	switch {
	case was.InferenceService != is.InferenceService, was.Variant != is.Variant:
		return true
	case m.Phase == v1alpha1.PhaseSucceeded, was.UID == "", is.UID == "":
		return false
	default:
		return changed(was, is)
	}
}

// changed reports whether two revisions of one name differ. A hash of a release that computes it differently does not
// count: the object would have to be another one, too.
func changed(was, is v1alpha1.CanaryRevision) bool {
	return was.UID != is.UID || was.Generation != is.Generation && was.Hash != is.Hash
}

// remember keeps the revisions and the templates of the canary's pods as they were seen last, if there is none now. Another
// stable side is another measure: what was counted by the one before proves nothing, and the step's time begins anew.
func (m *machine) remember() {
	if m.facts.Canary.UID != "" {
		m.Attempt.Canary = m.facts.Canary
	}
	if was, is := m.Attempt.Stable, m.facts.Stable; is.UID != "" {
		if was.UID != "" && changed(was, is) && m.Step != nil {
			m.recount()
			m.Step.Since, m.Step.Samples = nil, 0
		}
		m.Attempt.Stable = is
	}
	if own := without(m.facts.Templates, m.Attempt.Outdated); len(own) > 0 {
		m.Attempt.Templates = own
	}
}

// recount has requests count from now on only: what was counted before proves nothing any more.
func (m *machine) recount() {
	m.Attempt.RecountTime = &metav1.Time{Time: m.facts.Now.Truncate(time.Second)}
	m.Verdicts, m.facts.Evidence = nil, Evidence{}
}

// maxTemplates is how many templates are remembered.
const maxTemplates = 8

// without returns the strings of one list that are not in the other, so many as are remembered.
func without(list, other []string) []string {
	rest := slices.DeleteFunc(slices.Clone(list), func(one string) bool { return slices.Contains(other, one) })
	return rest[:min(len(rest), maxTemplates)]
}

// outdated are the templates of the pods that the present attempt leaves behind, if the next one is another revision of
// the same object: those pods go on for a while.
func (m *machine) outdated() []string {
	if m.Attempt == nil || m.Attempt.Canary.UID != m.facts.Canary.UID || m.Attempt.Canary.Variant != m.facts.Canary.Variant {
		return nil
	}
	return append(without(m.Attempt.Templates, m.Attempt.Outdated), m.Attempt.Outdated...)
}

// note records what the analysis said last.
func (m *machine) note() {
	e := m.facts.Evidence
	if e.Result == "" || m.Step == nil {
		return
	}
	m.Verdicts, m.Step.Samples = e.Verdicts, e.Samples
	switch {
	case e.Result != ResultError:
		m.Step.ErrorSince = nil
	case m.Step.ErrorSince == nil:
		m.Step.ErrorSince = &metav1.Time{Time: m.facts.Now.Truncate(time.Second)}
	}
}

// begin starts an attempt, without traffic.
func (m *machine) begin(reason string) {
	number, outdated := int32(1), []string(nil)
	if m.Attempt != nil {
		number = m.Attempt.Number + 1
	}
	if reason == v1alpha1.ReasonSuperseded {
		outdated = m.outdated()
	}
	m.RolloutProgress = v1alpha1.RolloutProgress{
		Attempt: &v1alpha1.RolloutAttempt{
			Number: number, Canary: m.facts.Canary, Stable: m.facts.Stable,
			Outdated: outdated[:min(len(outdated), maxTemplates)],
		},
		Step:    &v1alpha1.RolloutStepStatus{},
		Turn:    fmt.Sprintf("%.8s-%d.0", m.facts.Rollout, number),
		History: m.History,
	}
	m.enter(v1alpha1.PhasePending, reason, waitsForSides)
}

const (
	waitsForSides  = "The first step waits until both sides have a ready pod."
	waitsForUpdate = "The first step waits until all pods of the canary are of its newest revision."
	waitsForWarmth = "The first step waits until a pod of the canary is warm."
)

// waits are what the first step may wait for.
var waits = []string{waitsForSides, waitsForUpdate, waitsForWarmth}

// updatePause is how long pods of a former revision are waited for that nothing replaces: not every change of an
// InferenceService makes other pods.
const updatePause = time.Minute

// updating reports whether the canary has pods that an update is to replace: requests to them would prove nothing of the
// revision that the attempt is about, and it may be the one that was just turned back.
func (m *machine) updating() bool {
	switch templates := m.facts.Templates; len(templates) {
	case 0:
		return false
	case 1:
		return slices.Contains(m.Attempt.Outdated, templates[0]) && m.since(m.PhaseTime) < updatePause
	default:
		return true
	}
}

// explain changes what the rollout tells of its phase. Unlike enter it makes no other turn: nothing has been done.
func (m *machine) explain(reason, message string) {
	m.PhaseReason, m.PhaseMessage = reason, message
}

// enter changes the phase or the step, which makes it another turn.
func (m *machine) enter(phase v1alpha1.RolloutPhase, reason, message string) {
	m.leavePause()
	attempt, number, _ := strings.Cut(m.Turn, ".")
	n, _ := strconv.Atoi(number)
	m.Turn = fmt.Sprintf("%s.%d", attempt, n+1)
	m.PhaseTime = &metav1.Time{Time: m.facts.Now.Truncate(time.Second)}
	m.Phase, m.PhaseReason, m.PhaseMessage = phase, reason, message
}

// leavePause takes the time of a pause off the deadline.
func (m *machine) leavePause() {
	if m.Phase == v1alpha1.PhasePaused && m.Attempt.StartTime != nil {
		m.Attempt.WaitedSeconds += int64(m.since(m.PhaseTime) / time.Second)
	}
}

// since is how long ago a moment was, 0 if it has not been.
func (m *machine) since(moment *metav1.Time) time.Duration {
	if moment == nil {
		return 0
	}
	return max(0, m.facts.Now.Sub(moment.Time))
}

// proceed does what time, the sides and the analysis ask for.
func (m *machine) proceed() {
	switch m.Phase {
	case v1alpha1.PhasePending:
		m.start()
	case v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding, v1alpha1.PhaseBaking:
		if !m.fails() {
			m.goOn()
		}
	default:
	}
}

// start begins the first step, once the route is in place without traffic to the canary.
func (m *machine) start() {
	f, why := m.facts, waitsForSides
	switch {
	case f.CanaryReady <= 0:
	case m.updating():
		why = waitsForUpdate
	case f.CanaryCold >= f.CanaryReady:
		why = waitsForWarmth
	}
	if m.PhaseMessage != why && slices.Contains(waits, m.PhaseMessage) {
		m.explain(m.PhaseReason, why)
	}
	if f.Suspended || why != waitsForSides || f.StableReady <= 0 || f.CanaryReady <= 0 ||
		f.Applied == nil || f.Applied.Canary != 0 {
		return
	}
	m.Attempt.StartTime = &metav1.Time{Time: f.Now.Truncate(time.Second)}
	m.Attempt.StableReady = f.StableReady
	m.Attempt.Outdated = nil
	m.goTo(0, v1alpha1.ReasonHolding)
}

// fails turns back, or holds, a canary that failed and a rollout that is late. It reports whether it did.
func (m *machine) fails() bool {
	switch {
	case m.facts.Evidence.Result == ResultFail:
		return m.fail(v1alpha1.ReasonAnalysisFailed, m.facts.Evidence.Why)
	case m.blind():
		return m.fail(v1alpha1.ReasonMetricsUnavailable, m.facts.Evidence.Why)
	case m.flaps():
		return m.fail(v1alpha1.ReasonCanaryUnstable, fmt.Sprintf(
			"The canary lost its share %d times within %s because no pod of it was ready.", maxLosses, lossWindow))
	case m.late():
		return m.fail(v1alpha1.ReasonDeadlineExceeded, fmt.Sprintf(
			"The rollout has taken longer than its progressDeadline of %s.", m.strategy.ProgressDeadline.Duration))
	default:
		return false
	}
}

func (m *machine) fail(reason, message string) bool {
	if m.strategy.OnFailure != v1alpha1.OnFailureHold {
		m.enter(v1alpha1.PhaseRollingBack, reason, message)
		return true
	}
	if m.Phase == v1alpha1.PhaseHolding && m.PhaseReason == reason {
		return true
	}
	m.enter(v1alpha1.PhaseHolding, reason, message)
	return true
}

// blind reports whether the metrics have been out of reach for longer than the user puts up with.
func (m *machine) blind() bool {
	until := m.patience()
	return until != nil && m.facts.Evidence.Result == ResultError && !m.facts.Now.Before(*until)
}

// patience is until when metrics may be out of reach, nil for ever.
func (m *machine) patience() *time.Time {
	a := m.facts.Analysis
	if a == nil || a.OnProviderError.Action != v1alpha1.OnFailureRollback || a.OnProviderError.After == nil ||
		m.Step == nil || m.Step.ErrorSince == nil {
		return nil
	}
	return new(m.Step.ErrorSince.Add(a.OnProviderError.After.Duration))
}

// Bounds of what a canary may do to its callers that comes up and goes down again, deadline or not.
const (
	maxLosses  = 5
	lossWindow = time.Hour
)

// flaps reports whether the canary has lost its share too often lately because no pod of it was ready. Each time some
// requests fail, and no time is ever long enough to prove anything.
func (m *machine) flaps() bool {
	if m.Attempt.StartTime == nil {
		return false
	}
	losses := 0
	for i, period := range m.History {
		lost := i > 0 && m.History[i-1].Percent > 0 && period.Reason == string(OutcomeCanaryNotReady)
		if lost && !period.From.Before(m.Attempt.StartTime) && m.since(period.From) < lossWindow {
			losses++
		}
	}
	return losses >= maxLosses
}

// late reports whether the deadline has passed. It does not run during a pause.
func (m *machine) late() bool {
	deadline := m.deadline()
	return deadline != nil && m.Phase != v1alpha1.PhasePaused && m.facts.Now.After(*deadline)
}

// deadline is when the rollout will be late, nil for never.
func (m *machine) deadline() *time.Time {
	if m.strategy.ProgressDeadline == nil || m.Attempt == nil || m.Attempt.StartTime == nil {
		return nil
	}
	return new(m.Attempt.StartTime.Add(
		m.strategy.ProgressDeadline.Duration + time.Duration(m.Attempt.WaitedSeconds)*time.Second))
}

// goOn ends the step or the bake if nothing keeps it.
func (m *machine) goOn() {
	step := m.current()
	switch {
	case m.Phase == v1alpha1.PhaseHolding && m.PhaseReason != v1alpha1.ReasonInconclusive:
		return
	case m.facts.Suspended:
		if m.Phase != v1alpha1.PhasePaused {
			m.enter(v1alpha1.PhasePaused, v1alpha1.ReasonSuspended, "spec.suspend is set; no step is taken until it is false.")
		}
	case m.Phase == v1alpha1.PhasePaused:
		if step == nil || step.Pause == nil || m.PhaseReason == v1alpha1.ReasonSuspended {
			m.arrive(v1alpha1.ReasonHolding)
		}
	case m.Phase == v1alpha1.PhaseBaking:
		m.endBake()
	case step != nil && step.Pause != nil: // the step has been edited
		m.arrive(v1alpha1.ReasonHolding)
	default:
		m.endStep(step)
	}
}

// endStep ends a step that sets a weight, if nothing keeps it.
func (m *machine) endStep(step *v1alpha1.RolloutStep) {
	switch {
	case m.held() && m.tooSmall() && m.Phase == v1alpha1.PhaseHolding: // which says why already
	case m.held() && m.tooSmall():
		m.explain(v1alpha1.ReasonStableTooSmall, fmt.Sprintf(
			"The next step waits until stable has %d ready pods again, with which it can take everything back; it has %d.",
			m.Attempt.StableReady, m.facts.StableReady))
	case m.held():
		m.advance(v1alpha1.ReasonHolding)
	case step != nil && m.PhaseReason == v1alpha1.ReasonStableTooSmall && !m.tooSmall():
		m.explain(v1alpha1.ReasonHolding, m.about(step))
	case m.Phase == v1alpha1.PhaseProgressing && m.expired():
		m.enter(v1alpha1.PhaseHolding, v1alpha1.ReasonInconclusive, fmt.Sprintf(
			"Step %d has not been proved in %s; a proof or the verb promote goes on.",
			m.Step.Index+1, step.Hold.MaxDuration.Duration))
	}
}

// tooSmall reports whether the next step would give the canary more while stable could not take everything back.
func (m *machine) tooSmall() bool {
	return int(m.Step.Index)+1 < len(m.strategy.Steps) &&
		TooSmall(m.facts.Capacity, m.Attempt.StableReady, m.facts.StableReady)
}

// about tells what a step that sets a weight does.
func (m *machine) about(step *v1alpha1.RolloutStep) string {
	return fmt.Sprintf("Step %d of %d gives the canary %d percent.", m.Step.Index+1, len(m.strategy.Steps), *step.SetPercent)
}

// endBake ends a bake that is over, unless the metrics cannot be read: it may have failed then.
func (m *machine) endBake() {
	known := m.facts.Evidence.Result == ResultPass || m.facts.Evidence.Result == ResultInconclusive
	if m.Step.Since != nil && m.since(m.Step.Since) >= m.bake() && known {
		m.enter(v1alpha1.PhaseSucceeded, v1alpha1.ReasonStepsDone, "All steps are done.")
	}
}

// held reports whether what the step asks for has come about.
func (m *machine) held() bool {
	step := m.current()
	if m.Step.Since == nil || !m.proved() {
		return false
	}
	if step == nil || step.Hold == nil {
		return true
	}
	return (step.Hold.Duration == nil || m.since(m.Step.Since) >= step.Hold.Duration.Duration) &&
		(step.Hold.MinSamples == nil || m.Step.Samples >= *step.Hold.MinSamples)
}

// proved reports whether the analysis lets the step end.
func (m *machine) proved() bool {
	switch m.facts.Evidence.Result {
	case ResultPass:
		return true
	case ResultInconclusive:
		a := m.facts.Analysis
		return a != nil && a.OnInconclusive == v1alpha1.InconclusiveAdvance && m.Step.Samples >= a.MinSamples && m.expired()
	default:
		return false
	}
}

// expired reports whether the step has waited for its proof for as long as it may.
func (m *machine) expired() bool {
	step := m.current()
	return step != nil && step.Hold != nil && step.Hold.MaxDuration != nil && m.Step.Since != nil &&
		m.since(m.Step.Since) >= step.Hold.MaxDuration.Duration
}

// current is the step that the rollout is at, nil once all are done.
func (m *machine) current() *v1alpha1.RolloutStep {
	if m.Step == nil || int(m.Step.Index) >= len(m.strategy.Steps) {
		return nil
	}
	return &m.strategy.Steps[m.Step.Index]
}

func (m *machine) bake() time.Duration {
	if m.strategy.Bake == nil {
		return 0
	}
	return m.strategy.Bake.Duration
}

// advance goes to the next step.
func (m *machine) advance(reason string) {
	m.goTo(m.Step.Index+1, reason)
}

func (m *machine) goTo(index int32, reason string) {
	m.Step = &v1alpha1.RolloutStepStatus{Index: index}
	m.Verdicts = nil
	m.arrive(reason)
}

// arrive enters the phase of the step that the rollout is at.
func (m *machine) arrive(reason string) {
	switch step := m.current(); {
	case step == nil && m.bake() == 0:
		m.enter(v1alpha1.PhaseSucceeded, v1alpha1.ReasonStepsDone, "All steps are done.")
	case step == nil:
		m.enter(v1alpha1.PhaseBaking, v1alpha1.ReasonBaking, fmt.Sprintf("The canary is watched for %s more.", m.bake()))
	case step.Pause != nil:
		m.enter(v1alpha1.PhasePaused, v1alpha1.ReasonWaitingForPromotion, fmt.Sprintf(
			"Step %d of %d is a pause; the verb promote goes on.", m.Step.Index+1, len(m.strategy.Steps)))
	default:
		m.enter(v1alpha1.PhaseProgressing, reason, m.about(step))
	}
}

// Percent returns the share that a rollout asks for its canary. While it is turned back, that follows from the share
// that was applied last and from stable's ready endpoints.
func Percent(
	strategy v1alpha1.RolloutStrategy, p v1alpha1.RolloutProgress, applied *v1alpha1.WeightPair, stableReady int32, now time.Time,
) int32 {
	switch p.Phase {
	case "", v1alpha1.PhasePending, v1alpha1.PhaseRolledBack:
		return 0
	case v1alpha1.PhaseRollingBack:
		return abortPercent(strategy.Abort, p, applied, stableReady, now)
	default:
	}
	percent := int32(0)
	for i, step := range strategy.Steps {
		if p.Step != nil && i <= int(p.Step.Index) && step.SetPercent != nil {
			percent = *step.SetPercent
		}
	}
	return percent
}

// maxPeriods is how many periods of weights are remembered.
const maxPeriods = 20

// Settle records that the API server has acknowledged weights: the step's time begins when they are what the step asks
// for, and a rollout whose canary has nothing any more is rolled back.
func Settle(
	p v1alpha1.RolloutProgress,
	applied, desired v1alpha1.WeightPair,
	reason string,
	now time.Time,
) v1alpha1.RolloutProgress {
	if p.Phase == "" {
		return p
	}
	after := *p.DeepCopy()
	at := &metav1.Time{Time: now.Truncate(time.Second)}
	last := len(after.History) - 1
	if last < 0 || after.History[last].Percent != applied.Canary {
		if last >= 0 {
			after.History[last].To = at
		}
		after.History = append(after.History, v1alpha1.WeightPeriod{Percent: applied.Canary, From: at, Reason: reason})
		after.History = after.History[max(0, len(after.History)-maxPeriods):]
	}
	if after.Step != nil {
		switch {
		case applied != desired:
			after.Step.Since = nil
		case after.Step.Since == nil:
			after.Step.Since = at
		}
	}
	if after.Phase == v1alpha1.PhaseRollingBack && applied.Canary == 0 {
		after.Phase, after.PhaseTime = v1alpha1.PhaseRolledBack, at
	}
	return after
}

// Wake returns after how long a rollout must be looked at again if nothing else happens, 0 for never.
func Wake(strategy v1alpha1.RolloutStrategy, p v1alpha1.RolloutProgress, now time.Time) time.Duration {
	m := machine{strategy: strategy, facts: Facts{Now: now}, RolloutProgress: p}
	wake := time.Duration(0)
	at := func(moment time.Time) {
		if wait := moment.Sub(now); wait > 0 && (wake == 0 || wait < wake) {
			wake = wait
		}
	}
	switch p.Phase {
	case v1alpha1.PhasePending:
		at(p.PhaseTime.Add(updatePause))
	case v1alpha1.PhaseProgressing, v1alpha1.PhaseHolding, v1alpha1.PhaseBaking:
		if deadline := m.deadline(); deadline != nil {
			at(deadline.Add(time.Millisecond))
		}
	case v1alpha1.PhaseRollingBack:
		at(p.PhaseTime.Add(abortLimit))
	default:
	}
	if p.Step == nil || p.Step.Since == nil {
		return wake
	}
	switch step := m.current(); {
	case p.Phase == v1alpha1.PhaseBaking:
		at(p.Step.Since.Add(m.bake()))
	case p.Phase == v1alpha1.PhaseProgressing && step != nil && step.Hold != nil:
		for _, d := range []*metav1.Duration{step.Hold.Duration, step.Hold.MaxDuration} {
			if d != nil {
				at(p.Step.Since.Add(d.Duration))
			}
		}
	}
	return wake
}
