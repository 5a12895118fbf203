// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// report is a rollout as it is shown. Its JSON form is stable: fields are added, never renamed or removed.
type report struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Stable    sideReport   `json:"stable"`
	Canary    sideReport   `json:"canary"`
	Provider  string       `json:"provider,omitempty"`
	Host      string       `json:"host,omitempty"`
	Colours   []string     `json:"colours,omitempty"`
	Ready     bool         `json:"ready"`
	Reason    string       `json:"reason,omitempty"`
	Message   string       `json:"message,omitempty"`
	Stalled   bool         `json:"stalled"`
	Suspended bool         `json:"suspended,omitempty"`
	DryRun    bool         `json:"dryRun,omitempty"`
	Phase     *phaseReport `json:"phase,omitempty"`
	Drift     *driftReport `json:"drift,omitempty"`
	// Verdicts are what the metrics of an analysis say of the weights in force.
	Verdicts []v1alpha1.MetricVerdict `json:"verdicts,omitempty"`
	// MaxSafe is the most that the canary can get now, by its capacity and its warm-up; nil if nothing bounds it.
	MaxSafe *int32 `json:"maxSafePercent,omitempty"`
	// Notes are what conditions other than Ready have to say against the rollout.
	Notes []string `json:"notes,omitempty"`
	// Current is false while the operator has not looked at the last edit.
	Current bool `json:"current"`
}

type sideReport struct {
	InferenceService string `json:"inferenceService"`
	Variant          string `json:"variant,omitempty"`
	// Desired and Applied are in percent; nil while there is none.
	Desired *int32 `json:"desired,omitempty"`
	Applied *int32 `json:"applied,omitempty"`
}

// name is what the side is called in pictures.
func (s sideReport) name() string {
	if s.Variant == "" {
		return s.InferenceService
	}
	return s.InferenceService + "/" + s.Variant
}

type phaseReport struct {
	Name    string     `json:"name"`
	Reason  string     `json:"reason,omitempty"`
	Message string     `json:"message,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Turn    string     `json:"turn,omitempty"`
	// Step counts from 1; it is larger than Steps once all are done.
	Step      int32      `json:"step"`
	Steps     int32      `json:"steps"`
	StepSince *time.Time `json:"stepSince,omitempty"`
	// Samples is the number of the canary's requests that the analysis has counted in this step.
	Samples int64 `json:"samples,omitempty"`
	// Plan are the steps, and Bake is how long the canary is watched after them.
	Plan []stepReport `json:"plan,omitempty"`
	Bake string       `json:"bake,omitempty"`
}

// stepReport is one step: a share with what it waits for, or a pause.
type stepReport struct {
	Percent     *int32 `json:"percent,omitempty"`
	Hold        string `json:"hold,omitempty"`
	MaxDuration string `json:"maxDuration,omitempty"`
	MinSamples  int64  `json:"minSamples,omitempty"`
}

type driftReport struct {
	Manager string `json:"manager,omitempty"`
	Repairs int    `json:"repairs"`
	Held    bool   `json:"held"`
}

func reportOf(r *v1alpha1.CanaryRollout) report {
	s := &r.Status
	out := report{
		Namespace: r.Namespace, Name: r.Name,
		Stable:   sideReport{InferenceService: r.Spec.Stable.InferenceService, Variant: r.Spec.Stable.Variant},
		Canary:   sideReport{InferenceService: r.Spec.Canary.InferenceService, Variant: r.Spec.Canary.Variant},
		Provider: string(s.Provider), Host: s.Host, Colours: s.Colours,
		Ready:     meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady),
		Stalled:   meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionStalled),
		Suspended: r.Spec.Suspend, DryRun: r.Spec.DryRun,
		Current: s.ObservedGeneration == r.Generation,
	}
	if c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady); c != nil {
		out.Reason, out.Message = c.Reason, c.Message
	}
	if w := s.Weights.Desired; w != nil {
		out.Stable.Desired, out.Canary.Desired = &w.Stable, &w.Canary
	}
	if w := s.Weights.Applied; w != nil {
		out.Stable.Applied, out.Canary.Applied = &w.Stable, &w.Canary
	}
	out.Phase, out.Drift, out.Verdicts, out.MaxSafe = phaseOf(r), driftOf(r), s.Verdicts, s.MaxSafePercent
	for _, kind := range []string{v1alpha1.ConditionWarmed, v1alpha1.ConditionAnalysisHealthy} {
		if meta.IsStatusConditionFalse(s.Conditions, kind) {
			out.Notes = append(out.Notes, meta.FindStatusCondition(s.Conditions, kind).Message)
		}
	}
	return out
}

func phaseOf(r *v1alpha1.CanaryRollout) *phaseReport {
	s := &r.Status
	if s.Phase == "" || r.Spec.Strategy == nil {
		return nil
	}
	p := &phaseReport{
		Name: string(s.Phase), Reason: s.PhaseReason, Message: s.PhaseMessage, Turn: s.Turn,
		Steps: int32(len(r.Spec.Strategy.Steps)), //nolint:gosec // a strategy has 20 steps at most.
	}
	if s.PhaseTime != nil {
		p.Since = &s.PhaseTime.Time
	}
	for i := range r.Spec.Strategy.Steps {
		p.Plan = append(p.Plan, stepOf(&r.Spec.Strategy.Steps[i]))
	}
	if bake := r.Spec.Strategy.Bake; bake != nil {
		p.Bake = bake.Duration.String()
	}
	if s.Step != nil {
		p.Step, p.Samples = s.Step.Index+1, s.Step.Samples
		if s.Step.Since != nil {
			p.StepSince = &s.Step.Since.Time
		}
	}
	return p
}

func stepOf(step *v1alpha1.RolloutStep) stepReport {
	out := stepReport{Percent: step.SetPercent}
	if hold := step.Hold; hold != nil {
		if hold.Duration != nil {
			out.Hold = hold.Duration.Duration.String()
		}
		if hold.MaxDuration != nil {
			out.MaxDuration = hold.MaxDuration.Duration.String()
		}
		if hold.MinSamples != nil {
			out.MinSamples = *hold.MinSamples
		}
	}
	return out
}

func driftOf(r *v1alpha1.CanaryRollout) *driftReport {
	c := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.ConditionDriftDetected)
	if c == nil || r.Status.Drift == nil {
		return nil
	}
	return &driftReport{
		Manager: r.Status.Drift.Manager, Repairs: len(r.Status.Drift.Repairs), Held: c.Reason == v1alpha1.ReasonDriftHeld,
	}
}
