// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
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
	// decide returns what the policies together decide for a component of an InferenceService.
	decide func(*kserve.InferenceService, v1alpha1.Component) sidecar.Decision
	// pods are the pods of all InferenceServices that are not being deleted, by the name of the InferenceService.
	pods map[string][]metav1.ObjectMeta
	// memcachedExists tells whether the Memcached that the policy names exists; true if it names none.
	memcachedExists bool
	// nodeCaches counts the feature caches, one a node, that the policy shares; zero if it shares none, or there are none.
	nodeCaches nodeCacheCount
	// settings tell which images policies may name.
	settings sidecar.Settings
}

// with returns policies with one in the place of that of its name.
func with(policies []v1alpha1.SidecarPolicy, policy *v1alpha1.SidecarPolicy) []v1alpha1.SidecarPolicy {
	policies = slices.Clone(policies)
	for i := range policies {
		if policies[i].Name == policy.Name {
			policies[i] = *policy
		}
	}
	return policies
}

// acceptance is what is known about whether the API server accepts pods as a policy has them.
type acceptance struct {
	generation int64
	status     metav1.ConditionStatus
}

func acceptedFor(policy *v1alpha1.SidecarPolicy) acceptance {
	c := meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.ConditionAccepted)
	if c == nil {
		return acceptance{}
	}
	return acceptance{generation: c.ObservedGeneration, status: c.Status}
}

// setAccepted writes the condition into a policy, and reports whether it tells the webhook anything new.
func setAccepted(policy *v1alpha1.SidecarPolicy, c status.Condition) bool {
	before := acceptedFor(policy)
	status.Set(&policy.Status.Conditions, policy.Generation, c)
	return acceptedFor(policy) != before && sidecar.CanBreakPods(&policy.Spec)
}

// maxListed bounds the lists in a status.
const maxListed = 10

// statusFor tells what a policy picks, which of the pods picked carry what all policies together now ask for, and what
// the others wait for.
func statusFor(policy *v1alpha1.SidecarPolicy, seen observed, t tally, v verdict) v1alpha1.SidecarPolicyStatus {
	s := *policy.Status.DeepCopy()
	if s.ChangedTime == nil || s.ObservedGeneration != policy.Generation {
		s.ChangedTime = new(metav1.NewTime(t.now))
	}
	s.ObservedGeneration = policy.Generation
	s.Matched, s.Injected, s.Outdated, s.Missed = t.matched, t.injected, t.outdated, t.missed
	s.Rolling = int32(len(t.rollout.rolling)) + v.started //nolint:gosec // a count of InferenceServices.
	s.Behind, s.Conflicts = t.listBehind(), t.listConflicts()
	err := defect(policy, seen, t.err)
	if err == nil && v.reason == v1alpha1.ReasonTrialRefused && !isQuota(v.message) {
		err = status.Stalledf(v.reason, "%s", trialMessage(v))
	}
	status.Set(&s.Conditions, policy.Generation, append(conditions(policy, seen, t.matched, err), rolledOut(t, v))...)
	return s
}

// rolledOut tells what pods that are behind wait for.
func rolledOut(t tally, v verdict) status.Condition {
	c := status.Condition{Type: v1alpha1.ConditionRolledOut, Status: metav1.ConditionFalse}
	behind := t.outdated + t.missed
	rolling := len(t.rollout.rolling) + int(v.started)
	switch {
	case behind == 0:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonRolledOut
		c.Message = "Every running pod carries what the policies ask for."
	case v.reason != "":
		c.Reason, c.Message = v.reason, trialMessage(v)
	case rolling > 0 || t.rollout.waiting > 0:
		c.Reason = v1alpha1.ReasonRollingOut
		c.Message = fmt.Sprintf("KServe is replacing the pods of %d InferenceServices; those of %d wait for their turn.",
			rolling, t.rollout.waiting)
		if len(t.rollout.rolling) > 0 {
			c.Message += " The first is " + t.rollout.rolling[0] + "."
		}
	case t.rollout.held != "":
		c.Reason, c.Message = v1alpha1.ReasonHeldByPolicy, "No pod is replaced: "+t.rollout.held+"."
	default:
		c.Reason = v1alpha1.ReasonWaitingForRestart
		c.Message = fmt.Sprintf("%d pods change when they are next restarted; spec.rollout and spec.onMissedInjection "+
			"have them replaced.", behind)
	}
	return c
}

func trialMessage(v verdict) string {
	return fmt.Sprintf("No pod is replaced, because of a trial for InferenceService %q: %s.", v.service, v.message)
}

// defect returns what only a change by the user can mend, or nil.
func defect(policy *v1alpha1.SidecarPolicy, seen observed, evaluation error) error {
	if !seen.memcachedExists {
		return status.Stalledf(v1alpha1.ReasonMemcachedNotFound,
			"spec.featureCache.memcachedRef.name: there is no Memcached %q in this namespace; create it, or correct the name.",
			policy.Spec.FeatureCache.MemcachedRef.Name)
	}
	if _, invalid := metav1.LabelSelectorAsSelector(&policy.Spec.Selector); invalid != nil {
		return status.Stalledf(v1alpha1.ReasonRefused, "spec.selector: %v.", invalid)
	}
	if invalid := checkCondition(policy); invalid != nil {
		return status.Stalledf(v1alpha1.ReasonRefused, "spec.condition: %v.", invalid)
	}
	if c := meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.ConditionAccepted); c != nil &&
		c.Status == metav1.ConditionFalse {
		return status.Stalledf(c.Reason, "The policy is not in force: %s", c.Message)
	}
	if evaluation != nil {
		return status.Stalledf(v1alpha1.ReasonRefused, "%v.", evaluation)
	}
	if p := policy.Spec.Preload; p != nil {
		if refused := seen.settings.CheckAllowed(p.Image); refused != nil {
			return status.Stalledf(v1alpha1.ReasonRefused, "spec.preload.image: %v; the manager's own is used.", refused)
		}
		if p.NodeCache != nil && p.NodeCache.ClaimName == "" && seen.settings.NodeCachePath == "" {
			return status.Stalledf(v1alpha1.ReasonRefused, "spec.preload.nodeCache: the administrator allows no directory of "+
				"nodes (--node-cache-path), so that every pod fetches for itself; set claimName, or leave nodeCache out.")
		}
	}
	return nil
}

func conditions(policy *v1alpha1.SidecarPolicy, seen observed, matched int32, err error) []status.Condition {
	ready := status.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady,
		Message: "New pods of the picked InferenceServices are equipped.",
	}
	stalled := status.StalledCondition(err)
	switch c := seen.nodeCaches; {
	case err != nil:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, stalled.Reason, stalled.Message
	case isShared(policy) && (c.ready < c.wanted || c.wanted == 0):
		ready.Status, ready.Reason = metav1.ConditionFalse, v1alpha1.ReasonWaitingForNodeCaches
		ready.Message = fmt.Sprintf("%d of %d nodes have the feature cache that their pods share; "+
			"`kubectl get daemonset %s` tells more.", c.ready, c.wanted, v1alpha1.NodeCacheName(memcachedName(policy)))
	case matched == 0:
		ready.Reason = v1alpha1.ReasonNothingPicked
		ready.Message = "spec.selector and spec.condition pick no InferenceService of this namespace."
		if policy.Spec.Condition != "" {
			ready.Message += " A field that an InferenceService does not have makes the condition false."
		}
	}
	return []status.Condition{ready, stalled}
}

// nodeCacheCount counts nodes that have a feature cache.
type nodeCacheCount struct{ ready, wanted int32 }

// isShared reports whether a policy has the pods of a node share a feature cache.
func isShared(policy *v1alpha1.SidecarPolicy) bool {
	return policy.Spec.FeatureCache != nil && policy.Spec.FeatureCache.Mode == v1alpha1.FeatureCacheShared
}

// wake returns when to look again if nothing happens before, 0 for never.
func wake(t tally, v verdict, accepted status.Condition) time.Duration {
	var d time.Duration
	if accepted.Reason == v1alpha1.ReasonTrialRefused {
		d = trialAgain
	}
	switch v.reason {
	case v1alpha1.ReasonTrialRefused:
		d = trialAgain
	case v1alpha1.ReasonWaitingForWebhook:
		d = webhookAgain
	}
	if at := t.rollout.again; !at.IsZero() && (d == 0 || at.Sub(t.now) < d) {
		d = max(at.Sub(t.now), time.Second)
	}
	return d
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
