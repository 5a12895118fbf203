// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
)

// Pod is one ready endpoint of a canary.
type Pod struct {
	// Name and UID are the pod's own.
	Name string
	UID  types.UID
	// Address and Port are where it takes requests.
	Address string
	Port    int32
}

// Warming is what a canary's pods are to be warmed by.
type Warming struct {
	// Rollout tells whose canary it is.
	Rollout types.NamespacedName
	// Matter changes with everything that makes earlier answers worthless: the canary's revision and the warm-up.
	Matter string
	// Warmup is that of the rollout.
	Warmup v1alpha1.RolloutWarmup
	// Host is what the requests are addressed to.
	Host string
	// Pods are the canary's ready ones.
	Pods []Pod
	// At is the time.
	At time.Time
}

// Warmth is how far pods are with their warm-up.
type Warmth struct {
	// Warm is how many of the ready pods are warm. Without a warm-up all are.
	Warm int32
	// Asked tells whether there is a warm-up at all now.
	Asked bool
	// Failure says what the first pod by name did that did not answer as it should, "" if none did.
	Failure string
	// Counts tells of each ready pod, by its name, since when requests to it are not those of the warm-up; it is zero while
	// it has had no other.
	Counts map[string]time.Time
	// Again is after how long to ask again, 0 for when the warmer wakes the rollout.
	Again time.Duration
}

// Warmer has pods answer requests, without waiting for them.
type Warmer interface {
	Warm(w *Warming) Warmth
}

// warm has the canary's pods warmed if the canary is to get anything, and returns how far that is.
func (r *Reconciler) warm(rollout *v1alpha1.CanaryRollout, seen observed) Warmth {
	all := Warmth{Warm: seen.canary.ready}
	if rollout.Spec.Warmup == nil || r.warmer == nil || !wantsWarmth(rollout) {
		return all
	}
	request, _ := json.Marshal(rollout.Spec.Warmup) // a spec has nothing that JSON lacks
	return r.warmer.Warm(&Warming{
		Rollout: types.NamespacedName{Namespace: rollout.Namespace, Name: rollout.Name},
		Matter: fmt.Sprintf("%s/%s/%s/%x",
			rollout.UID, seen.canary.revision.UID, seen.canary.revision.Hash, sha256.Sum256(request)),
		Warmup: *rollout.Spec.Warmup,
		Host:   r.domain.ServiceHost(seen.canary.entry.Service, rollout.Namespace),
		Pods:   seen.canary.pods,
		At:     seen.now,
	})
}

// wantsWarmth reports whether the canary is to get traffic, now or soon.
func wantsWarmth(rollout *v1alpha1.CanaryRollout) bool {
	if rollout.Spec.Strategy == nil {
		return rollout.Spec.CanaryPercent > 0
	}
	switch rollout.Status.Phase {
	case v1alpha1.PhaseSucceeded, v1alpha1.PhaseRollingBack, v1alpha1.PhaseRolledBack:
		return false
	default:
		return true
	}
}

// setCapacity tells what bounds the canary's share, and sets the condition Warmed or removes it.
func setCapacity(s *v1alpha1.CanaryRolloutStatus, rollout *v1alpha1.CanaryRollout, p plan) {
	if p.routes() {
		s.MaxSafePercent, s.NeededPods = p.most, p.needed
	}
	if rollout.Spec.Warmup == nil {
		meta.RemoveStatusCondition(&s.Conditions, v1alpha1.ConditionWarmed)
		return
	}
	condition := status.Condition{
		Type: v1alpha1.ConditionWarmed, Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonNoWarmup,
		Message: "The canary has no ready pod, or is asked to take nothing.",
	}
	switch w := p.warmth; {
	case !w.Asked:
	case w.Failure != "":
		condition.Status, condition.Reason = metav1.ConditionFalse, v1alpha1.ReasonWarmupFailed
		condition.Message = w.Failure
	case w.Again == 0 && w.Warm > 0:
		condition.Status, condition.Reason = metav1.ConditionTrue, v1alpha1.ReasonPodsWarm
		condition.Message = "Every ready pod of the canary has answered its warm-up requests."
	default:
		condition.Status, condition.Reason = metav1.ConditionFalse, v1alpha1.ReasonWarmingUp
		condition.Message = "Pods of the canary are being sent their warm-up requests."
	}
	status.Set(&s.Conditions, rollout.Generation, condition)
}

func headroom(rollout *v1alpha1.CanaryRollout) int32 {
	if rollout.Spec.Capacity == nil {
		return 0
	}
	return rollout.Spec.Capacity.HeadroomPercent
}
