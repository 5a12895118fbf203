// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// obey does what a person asks for by an annotation that names this turn. It reports whether there was anything to do.
// Doing it makes it another turn, so that nothing is done twice; what cannot be done now stays asked until it can, or
// until the turn has passed.
func (m *machine) obey() bool {
	switch {
	case m.asked(v1alpha1.AnnotationAbort, true) && m.abort():
		return true
	case m.asked(v1alpha1.AnnotationRetry, false) && m.retry():
		return true
	case m.asked(v1alpha1.AnnotationPromote, false) && m.promote():
		return true
	case m.asked(v1alpha1.AnnotationSkip, false):
		return m.skip()
	default:
		return false
	}
}

// asked reports whether an annotation names this turn or, if that will do, this attempt.
func (m *machine) asked(annotation string, attemptWillDo bool) bool {
	asked := m.facts.Annotations[annotation]
	if asked == "" || asked == m.Turn {
		return asked != ""
	}
	attempt, _, _ := strings.Cut(m.Turn, ".")
	askedFor, _, _ := strings.Cut(asked, ".")
	return attemptWillDo && askedFor == attempt
}

func (m *machine) abort() bool {
	switch m.Phase {
	case v1alpha1.PhaseRollingBack, v1alpha1.PhaseRolledBack:
		return false
	default:
		m.enter(v1alpha1.PhaseRollingBack, v1alpha1.ReasonAborted, "A person aborted the rollout.")
		return true
	}
}

func (m *machine) retry() bool {
	switch m.Phase {
	case v1alpha1.PhaseRolledBack, v1alpha1.PhaseHolding:
		m.begin(v1alpha1.ReasonRetried)
		return true
	default:
		return false
	}
}

func (m *machine) promote() bool {
	switch m.Phase {
	case v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding, v1alpha1.PhaseBaking:
		m.overrule()
		if m.Step.Index >= m.end() {
			m.enter(v1alpha1.PhaseSucceeded, v1alpha1.ReasonPromoted, "A person ended the bake.")
			return true
		}
		m.advance(v1alpha1.ReasonPromoted)
		return true
	default:
		return false
	}
}

// overrule forgets what a rollout was held for: who goes on in spite of it has seen it, and it would hold the rollout again
// at once where the next step has the same weights.
func (m *machine) overrule() {
	if m.Phase != v1alpha1.PhaseHolding {
		return
	}
	m.Attempt.StartTime, m.Attempt.WaitedSeconds = &metav1.Time{Time: m.facts.Now.Truncate(time.Second)}, 0
	if m.PhaseReason == v1alpha1.ReasonAnalysisFailed || m.facts.Evidence.Result == ResultFail {
		m.recount()
	}
}

func (m *machine) skip() bool {
	switch m.Phase {
	case v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding:
		m.overrule()
		m.goTo(m.end(), v1alpha1.ReasonPromoted)
		return true
	default:
		return false
	}
}

// end is the index that stands for all steps being done.
func (m *machine) end() int32 { return int32(len(m.strategy.Steps)) } //nolint:gosec // a strategy has 20 steps at most.
