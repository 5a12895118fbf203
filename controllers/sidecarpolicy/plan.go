// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"slices"

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
}

// statusFor counts what a policy picks, and of the pods picked, which carry what all policies together now ask for.
func statusFor(policy *v1alpha1.SidecarPolicy, seen observed) v1alpha1.SidecarPolicyStatus {
	s := *policy.Status.DeepCopy()
	s.ObservedGeneration = policy.Generation
	s.Matched, s.Injected, s.Outdated = 0, 0, 0
	for i := range seen.services {
		service := &seen.services[i]
		picked := false
		for _, component := range policy.Spec.Components {
			subject := subjectOf(service, component)
			if !picks(policy, subject, seen.policies) {
				continue
			}
			picked = true
			plan, _ := sidecar.Resolve(subject, seen.policies)
			current, other := count(seen.pods[service.Name], component, plan.Hash())
			s.Injected, s.Outdated = s.Injected+current, s.Outdated+other
		}
		if picked {
			s.Matched++
		}
	}
	status.Set(&s.Conditions, policy.Generation, conditions(policy, seen)...)
	return s
}

// count tells how many pods of a component carry the plan with the given hash, and how many do not.
func count(pods []metav1.ObjectMeta, component v1alpha1.Component, hash string) (current, other int32) {
	for i := range pods {
		switch {
		case kserve.ComponentOf(pods[i].Labels) != component:
		case pods[i].Annotations[v1alpha1.AnnotationInjected] == hash:
			current++
		default:
			other++
		}
	}
	return current, other
}

func picks(policy *v1alpha1.SidecarPolicy, subject sidecar.Subject, policies []v1alpha1.SidecarPolicy) bool {
	picked, _ := sidecar.Picked(subject, policies)
	return slices.ContainsFunc(picked, func(p v1alpha1.SidecarPolicy) bool { return p.Name == policy.Name })
}

func conditions(policy *v1alpha1.SidecarPolicy, seen observed) []status.Condition {
	var err error
	if !seen.memcachedExists {
		err = status.Stalledf(v1alpha1.ReasonMemcachedNotFound,
			"spec.featureCache.memcachedRef.name: there is no Memcached %q in this namespace; create it, or correct the name.",
			policy.Spec.FeatureCache.MemcachedRef.Name)
	} else if _, invalid := metav1.LabelSelectorAsSelector(&policy.Spec.Selector); invalid != nil {
		err = status.Stalledf(v1alpha1.ReasonRefused, "spec.selector: %v.", invalid)
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

// memcachedName returns the name of the Memcached that a policy refers to, or "".
func memcachedName(policy *v1alpha1.SidecarPolicy) string {
	if policy.Spec.FeatureCache == nil {
		return ""
	}
	return policy.Spec.FeatureCache.MemcachedRef.Name
}
