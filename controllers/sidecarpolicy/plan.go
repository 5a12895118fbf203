// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/status"
)

// observed is all of the policy's namespace that its status speaks of.
type observed struct {
	// services are all InferenceServices.
	services []kserve.InferenceService
	// policies are all SidecarPolicies, the one in hand among them.
	policies []v1alpha1.SidecarPolicy
	// pods are the pods of all InferenceServices that are not being deleted, by the name of the InferenceService.
	pods map[string][]metav1.ObjectMeta
	// memcachedExists tells whether the Memcached that the policy names exists; true if it names none.
	memcachedExists bool
	// images tells which images policies may name.
	images sidecar.Images
}

// maxListed bounds the lists in a status.
const maxListed = 10

// statusFor counts what a policy picks, and of the pods picked, which carry what all policies together now ask for.
func statusFor(policy *v1alpha1.SidecarPolicy, seen observed, now time.Time) v1alpha1.SidecarPolicyStatus {
	s := *policy.Status.DeepCopy()
	if s.ChangedTime == nil || s.ObservedGeneration != policy.Generation {
		s.ChangedTime = new(metav1.NewTime(now))
	}
	s.ObservedGeneration = policy.Generation
	t := tally{policy: policy, since: s.ChangedTime.Time, conflicts: map[v1alpha1.PolicyConflict]int32{}}
	for i := range seen.services {
		t.add(&seen.services[i], seen)
	}
	s.Matched, s.Injected, s.Outdated, s.Missed = t.matched, t.injected, t.outdated, t.missed
	s.Behind, s.Conflicts = t.listBehind(), t.listConflicts()
	status.Set(&s.Conditions, policy.Generation, conditions(policy, seen, t.err)...)
	return s
}

func conditions(policy *v1alpha1.SidecarPolicy, seen observed, evaluation error) []status.Condition {
	var err error
	if !seen.memcachedExists {
		err = status.Stalledf(v1alpha1.ReasonMemcachedNotFound,
			"spec.featureCache.memcachedRef.name: there is no Memcached %q in this namespace; create it, or correct the name.",
			policy.Spec.FeatureCache.MemcachedRef.Name)
	} else if _, invalid := metav1.LabelSelectorAsSelector(&policy.Spec.Selector); invalid != nil {
		err = status.Stalledf(v1alpha1.ReasonRefused, "spec.selector: %v.", invalid)
	} else if invalid := checkCondition(policy); invalid != nil {
		err = status.Stalledf(v1alpha1.ReasonRefused, "spec.condition: %v.", invalid)
	} else if evaluation != nil {
		err = status.Stalledf(v1alpha1.ReasonRefused, "%v.", evaluation)
	}
	if p := policy.Spec.Preload; err == nil && p != nil {
		if refused := seen.images.CheckAllowed(p.Image); refused != nil {
			err = status.Stalledf(v1alpha1.ReasonRefused, "spec.preload.image: %v; the manager's own is used.", refused)
		}
	}
	ready := status.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady,
		Message: "New pods of the picked InferenceServices are equipped.",
	}
	stalled := status.StalledCondition(err)
	if err != nil {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, stalled.Reason, stalled.Message
	}
	return []status.Condition{ready, stalled}
}

func checkCondition(policy *v1alpha1.SidecarPolicy) error {
	if policy.Spec.Condition == "" {
		return nil
	}
	return sidecar.CheckCondition(policy.Spec.Condition)
}

// memcachedName returns the name of the Memcached that a policy refers to, or "".
func memcachedName(policy *v1alpha1.SidecarPolicy) string {
	if policy.Spec.FeatureCache == nil {
		return ""
	}
	return policy.Spec.FeatureCache.MemcachedRef.Name
}
