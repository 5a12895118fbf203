// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ConditionWarmed is True while every ready pod of the canary has answered its warm-up requests; its message says which
// has not, and why.
const ConditionWarmed = "Warmed"

// Reasons of capacity and warm-up.
const (
	// ReasonCanaryAtCapacity says that the canary gets less than is asked because its ready pods carry no more.
	ReasonCanaryAtCapacity = "CanaryAtCapacity"
	// ReasonCanaryCold says that the canary gets less than is asked because pods of it are not warm yet.
	ReasonCanaryCold = "CanaryCold"
	// ReasonStableTooSmall says that no step is taken because stable could not take everything back.
	ReasonStableTooSmall = "StableTooSmall"
	// ReasonPodsWarm says that every ready pod of the canary is warm.
	ReasonPodsWarm = "PodsWarm"
	// ReasonWarmingUp says that pods of the canary are being sent their warm-up requests.
	ReasonWarmingUp = "WarmingUp"
	// ReasonWarmupFailed says that a pod of the canary did not answer a warm-up request as it should; it is sent again.
	ReasonWarmupFailed = "WarmupFailed"
	// ReasonNoWarmup says that the canary has no ready pod, or is asked to take nothing.
	ReasonNoWarmup = "NoWarmup"
)

// RolloutCapacity bounds the canary's share by what its ready pods carry.
//
// So many ready pods as stable had when it last had all traffic are taken for enough for all traffic, and one pod of the
// canary for as good as one of stable.
type RolloutCapacity struct {
	// podsForAllTraffic is how many ready pods of the canary carry all traffic, 1 to 10000. When unset, as many as stable
	// had when it last had everything.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	PodsForAllTraffic *int32 `json:"podsForAllTraffic,omitempty"`

	// headroomPercent is how much more capacity than needed the canary must have, 0 to 200.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=200
	HeadroomPercent int32 `json:"headroomPercent,omitempty"`

	// stable is Hold or Ignore. Hold takes no step of a strategy while stable has too few ready pods to take everything
	// back: keep them by minReplicas of its InferenceService until the rollout has succeeded. Ignore does not mind.
	// +optional
	// +kubebuilder:default=Hold
	Stable StableCapacityPolicy `json:"stable,omitempty"`
}

// StableCapacityPolicy says what becomes of a rollout whose stable side has become too small.
//
// +enum
// +kubebuilder:validation:Enum=Hold;Ignore
type StableCapacityPolicy string

// What becomes of a rollout whose stable side has become too small.
const (
	// StableCapacityHold takes no step.
	StableCapacityHold StableCapacityPolicy = "Hold"
	// StableCapacityIgnore does not mind.
	StableCapacityIgnore StableCapacityPolicy = "Ignore"
)

// RolloutWarmup has every ready pod of the canary answer requests of its own before the canary gets more traffic.
//
// +kubebuilder:validation:XValidation:rule="!has(self.timeout) || (duration(self.timeout) >= duration('1s') && duration(self.timeout) <= duration('10m'))",message="timeout must be between 1s and 10m"
// +kubebuilder:validation:XValidation:rule="!has(self.maxLatency) || (duration(self.maxLatency) >= duration('1ms') && duration(self.maxLatency) <= duration('10m'))",message="maxLatency must be between 1ms and 10m"
type RolloutWarmup struct {
	// request is what each pod is sent, by the manager and to the pod's own address.
	// +required
	Request WarmupRequest `json:"request"`

	// count is how many answers in a row make a pod warm, 1 to 100.
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Count int32 `json:"count,omitempty"`

	// timeout is how long one answer may take, 1s to 10m; the first one may load or compile much.
	// +optional
	// +kubebuilder:default="1m"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	Timeout *metav1.Duration `json:"timeout,omitempty"`

	// maxLatency is how long the last of the answers may take for the pod to be warm, 1ms to 10m. When unset, as long as
	// any.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	MaxLatency *metav1.Duration `json:"maxLatency,omitempty"`
}

// WarmupRequest is an inference request, in the open inference protocol or any other that is POSTed. Answers from 200 to
// 299 are good.
type WarmupRequest struct {
	// path is where it is sent, such as /v2/models/fraud/infer or /v1/models/fraud:predict.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:Pattern=`^/[^\s#]*$`
	Path string `json:"path"`

	// body is what is sent.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32768
	Body string `json:"body"`

	// contentType is the body's.
	// +optional
	// +kubebuilder:default="application/json"
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9.+/;= -]+$`
	ContentType string `json:"contentType,omitempty"`
}
