// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ConditionProgressing is True while a CanaryRollout with a strategy goes on by itself, and False once it has ended or
// waits for a person; its message says for what.
const ConditionProgressing = "Progressing"

// Reasons of phases, of the condition Progressing, and of events about steps.
const (
	// ReasonWaitingForSides says that the first step waits until both sides have a ready pod and the route is in place.
	ReasonWaitingForSides = "WaitingForSides"
	// ReasonHolding says that the weights of a step are in force and are held as it asks.
	ReasonHolding = "StepHolding"
	// ReasonWaitingForPromotion says that the rollout is at a pause of its steps: the verb promote goes on.
	ReasonWaitingForPromotion = "WaitingForPromotion"
	// ReasonSuspended says that spec.suspend is set.
	ReasonSuspended = "Suspended"
	// ReasonBaking says that the last step's weights are in force and the canary is watched for as long as bake says.
	ReasonBaking = "Baking"
	// ReasonStepsDone says that all steps are done.
	ReasonStepsDone = "StepsDone"
	// ReasonSuperseded says that the canary is another one, or another revision, than the steps were begun with.
	ReasonSuperseded = "Superseded"
	// ReasonAborted says that a person turned the rollout back.
	ReasonAborted = "Aborted"
	// ReasonRetried says that a person had the rollout begin anew.
	ReasonRetried = "Retried"
	// ReasonPromoted says that a person had the rollout go on.
	ReasonPromoted = "Promoted"
	// ReasonDeadlineExceeded says that the rollout took longer than progressDeadline.
	ReasonDeadlineExceeded = "DeadlineExceeded"
	// ReasonCanaryUnstable says that the canary lost its share again and again because no pod of it was ready.
	ReasonCanaryUnstable = "CanaryUnstable"
)

// Annotations by which a person, or `kubectl outrigger canary`, tells a rollout with a strategy what to do. The value of
// each must be the rollout's status.turn: it changes with everything that the rollout does, so a verb is obeyed once,
// and one that was meant for another state of affairs never. Abort and retry ask for less: that the part of the turn
// before its dot is right, so that no step which the rollout takes meanwhile can make an abort miss.
const (
	// AnnotationPromote ends the current step, whatever it waits for, and goes on with the next one.
	AnnotationPromote = GroupName + "/promote"
	// AnnotationSkip skips all steps that are left: the last step's weight is set at once, and the bake begins.
	AnnotationSkip = GroupName + "/skip"
	// AnnotationAbort turns the rollout back, in every phase, also after it has succeeded.
	AnnotationAbort = GroupName + "/abort"
	// AnnotationRetry begins anew with the first step, once the rollout has been turned back or is held.
	AnnotationRetry = GroupName + "/retry"
)

// RolloutStrategy moves traffic to the canary step by step.
//
// +kubebuilder:validation:XValidation:rule="self.steps.filter(s, has(s.setPercent)).map(s, s.setPercent).isSorted()",message="steps must not lower setPercent: traffic only ever moves towards the canary, and abort moves it back"
// +kubebuilder:validation:XValidation:rule="self.steps.exists(s, has(s.setPercent))",message="steps need at least one setPercent"
// +kubebuilder:validation:XValidation:rule="!has(self.bake) || (duration(self.bake) >= duration('0s') && duration(self.bake) <= duration('168h'))",message="bake must be between 0s and 168h"
// +kubebuilder:validation:XValidation:rule="!has(self.progressDeadline) || (duration(self.progressDeadline) >= duration('1s') && duration(self.progressDeadline) <= duration('720h'))",message="progressDeadline must be between 1s and 720h"
type RolloutStrategy struct {
	// steps are gone through in their order.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	Steps []RolloutStep `json:"steps"`

	// bake is how long the canary is watched after the last step before the rollout has succeeded, 0s to 168h. It is
	// turned back as in every step if it fails. When unset, not at all.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	Bake *metav1.Duration `json:"bake,omitempty"`

	// progressDeadline is the most that the steps and the bake may take together, 1s to 720h, counted from the first
	// step; time at a pause, or suspended, is not counted. A rollout that takes longer has failed. When unset, it may
	// take for ever.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	ProgressDeadline *metav1.Duration `json:"progressDeadline,omitempty"`

	// onFailure says what becomes of a canary that has failed. Rollback gives all traffic to stable. Hold leaves the
	// weights as they are, for a person to decide.
	// +optional
	// +kubebuilder:default=Rollback
	OnFailure OnFailure `json:"onFailure,omitempty"`

	// abort says how traffic goes back to stable.
	// +optional
	// +kubebuilder:default={mode: Immediate}
	Abort AbortPolicy `json:"abort,omitzero"`
}

// RolloutStep is one step: a weight to set and hold, or a pause.
//
// +kubebuilder:validation:XValidation:rule="has(self.setPercent) != has(self.pause)",message="give either setPercent or pause"
// +kubebuilder:validation:XValidation:rule="!has(self.hold) || has(self.setPercent)",message="hold belongs to setPercent; a pause ends when a person says so"
type RolloutStep struct {
	// setPercent is the canary's share of the requests from now on, 1 to 100.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	SetPercent *int32 `json:"setPercent,omitempty"`

	// hold says what must have come about before the next step. When unset, nothing: the next step follows as soon as
	// the route carries this one.
	// +optional
	Hold *StepHold `json:"hold,omitempty"`

	// pause waits for a person: for the verb promote.
	// +optional
	Pause *StepPause `json:"pause,omitempty"`
}

// StepHold says what must have come about before the next step.
//
// +kubebuilder:validation:XValidation:rule="!has(self.duration) || (duration(self.duration) >= duration('0s') && duration(self.duration) <= duration('168h'))",message="duration must be between 0s and 168h"
// +kubebuilder:validation:XValidation:rule="!has(self.maxDuration) || (duration(self.maxDuration) >= duration('1s') && duration(self.maxDuration) <= duration('168h'))",message="maxDuration must be between 1s and 168h"
// +kubebuilder:validation:XValidation:rule="!has(self.maxDuration) || !has(self.duration) || duration(self.maxDuration) >= duration(self.duration)",message="maxDuration must not be shorter than duration"
type StepHold struct {
	// duration is how long the weights must have been in force, 0s to 168h. While a side is not ready, and the weights
	// are therefore others, time begins anew.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	Duration *metav1.Duration `json:"duration,omitempty"`

	// minSamples is how many requests the canary must have had that the analysis counted, 1 to 1000000000.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	MinSamples *int64 `json:"minSamples,omitempty"`

	// maxDuration is how long the step waits for its samples and for all metrics to pass, 1s to 168h. After that the
	// rollout is Holding: a proof or a person may still let it go on. When unset, it waits in the step.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	MaxDuration *metav1.Duration `json:"maxDuration,omitempty"`
}

// StepPause waits for a person.
type StepPause struct{}

// OnFailure says what becomes of a canary that has failed.
//
// +enum
// +kubebuilder:validation:Enum=Rollback;Hold
type OnFailure string

// What becomes of a canary that has failed.
const (
	// OnFailureRollback gives all traffic to stable.
	OnFailureRollback OnFailure = "Rollback"
	// OnFailureHold leaves the weights as they are.
	OnFailureHold OnFailure = "Hold"
)

// AbortPolicy says how traffic goes back to stable.
type AbortPolicy struct {
	// mode is Immediate or Gradual. Immediate gives stable all traffic in one write. Gradual gives it only what its
	// ready pods can carry, measured by those that it had at the first step, and the rest as more become ready; after
	// ten minutes, everything. In both modes nothing is given to a stable side without a ready pod.
	// +optional
	// +kubebuilder:default=Immediate
	Mode AbortMode `json:"mode,omitempty"`
}

// AbortMode says how traffic goes back to stable.
//
// +enum
// +kubebuilder:validation:Enum=Immediate;Gradual
type AbortMode string

// How traffic goes back to stable.
const (
	// AbortImmediate gives stable all traffic in one write.
	AbortImmediate AbortMode = "Immediate"
	// AbortGradual gives stable what its ready pods can carry.
	AbortGradual AbortMode = "Gradual"
)

// RolloutPhase tells how far a rollout with a strategy is.
type RolloutPhase string

// Phases of a rollout.
const (
	// PhasePending waits for both sides, with no traffic to the canary.
	PhasePending RolloutPhase = "Pending"
	// PhaseProgressing goes through the steps.
	PhaseProgressing RolloutPhase = "Progressing"
	// PhasePaused waits at a pause, or is suspended. A canary that fails is turned back all the same.
	PhasePaused RolloutPhase = "Paused"
	// PhaseHolding keeps the weights and waits for a person.
	PhaseHolding RolloutPhase = "Holding"
	// PhaseBaking watches the canary after the last step.
	PhaseBaking RolloutPhase = "Baking"
	// PhaseSucceeded is the good end.
	PhaseSucceeded RolloutPhase = "Succeeded"
	// PhaseRollingBack gives stable its traffic back.
	PhaseRollingBack RolloutPhase = "RollingBack"
	// PhaseRolledBack is the bad end: stable has all traffic until the canary is another one, or a person says retry.
	PhaseRolledBack RolloutPhase = "RolledBack"
)

// RolloutProgress is how far a rollout with a strategy is. It is all that the operator remembers of it.
type RolloutProgress struct {
	// phase tells how far the rollout is; empty without a strategy.
	// +optional
	Phase RolloutPhase `json:"phase,omitempty"`

	// phaseReason is why the rollout is in its phase, in one word.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	PhaseReason string `json:"phaseReason,omitempty"`

	// phaseMessage is why the rollout is in its phase, and what it waits for, in one sentence.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	PhaseMessage string `json:"phaseMessage,omitempty"`

	// phaseTime is when the phase began.
	// +optional
	PhaseTime *metav1.Time `json:"phaseTime,omitempty"`

	// turn names this state of affairs: <attempt>.<number>. It is the value that the annotations promote, skip, abort
	// and retry must have to be obeyed.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Turn string `json:"turn,omitempty"`

	// attempt is what the steps are gone through with.
	// +optional
	Attempt *RolloutAttempt `json:"attempt,omitempty"`

	// step is where among the steps the rollout is.
	// +optional
	Step *RolloutStepStatus `json:"step,omitempty"`

	// verdicts are what the metrics say of the weights in force.
	// +optional
	// +listType=map
	// +listMapKey=metric
	// +kubebuilder:validation:MaxItems=12
	Verdicts []MetricVerdict `json:"verdicts,omitempty"`

	// history tells the weights that were in force, the newest last, 20 at most.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=20
	History []WeightPeriod `json:"history,omitempty"`
}

// RolloutAttempt is one revision of a canary on its way through the steps.
type RolloutAttempt struct {
	// number counts the attempts of this rollout, from 1.
	// +optional
	Number int32 `json:"number,omitempty"`

	// canary is the revision of the canary.
	// +optional
	Canary CanaryRevision `json:"canary,omitzero"`

	// stable is the revision of the stable side when it was looked at last. A step begins anew when it changes, because
	// the canary is then measured by another.
	// +optional
	Stable CanaryRevision `json:"stable,omitzero"`

	// recountTime is since when requests count at the earliest: when the stable side last became another revision, or a
	// person went on in spite of a failed analysis; unset if neither has happened since the attempt began.
	// +optional
	RecountTime *metav1.Time `json:"recountTime,omitempty"`

	// templates tell the templates that the canary's pods are made from, by the hashes that their Deployment gives them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	Templates []string `json:"templates,omitempty"`

	// outdated are those of the revision before, until the first step: it waits for the update to end that replaces their
	// pods.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	Outdated []string `json:"outdated,omitempty"`

	// startTime is when the first step began.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// waitedSeconds is how long the rollout has been paused since then.
	// +optional
	WaitedSeconds int64 `json:"waitedSeconds,omitempty"`

	// stableReady is how many ready pods stable had at the first step, which are taken for enough for all traffic.
	// +optional
	StableReady int32 `json:"stableReady,omitempty"`
}

// CanaryRevision tells one revision of a side from others. Numbers of replicas do not count.
type CanaryRevision struct {
	// inferenceService is its name.
	// +optional
	InferenceService string `json:"inferenceService,omitempty"`

	// variant is the name of the variant of its predictor, empty if it is the predictor.
	// +optional
	Variant string `json:"variant,omitempty"`

	// uid is that of the InferenceService.
	// +optional
	UID types.UID `json:"uid,omitempty"`

	// generation is that of the InferenceService when it was looked at last.
	// +optional
	Generation int64 `json:"generation,omitempty"`

	// hash identifies what its pods are made from.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Hash string `json:"hash,omitempty"`
}

// RolloutStepStatus is where among the steps a rollout is.
type RolloutStepStatus struct {
	// index counts the steps from 0; it is the number of steps once all are done.
	// +optional
	Index int32 `json:"index"`

	// since is when the step's weights came into force; unset while they are not.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`

	// samples is the number of the canary's requests that the analysis has counted since the weights are in force: the
	// least of all metrics that count requests.
	// +optional
	Samples int64 `json:"samples,omitempty"`

	// errorSince is since when metrics could not be read; unset while they can.
	// +optional
	ErrorSince *metav1.Time `json:"errorSince,omitempty"`
}

// WeightPeriod is a time during which the weights did not change.
type WeightPeriod struct {
	// percent is what the canary had.
	// +optional
	Percent int32 `json:"percent"`

	// from is when the API server acknowledged it.
	// +optional
	From *metav1.Time `json:"from,omitempty"`

	// to is when other weights followed; unset for the newest.
	// +optional
	To *metav1.Time `json:"to,omitempty"`

	// reason is why the weights were set.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Reason string `json:"reason,omitempty"`
}
