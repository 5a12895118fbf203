// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

// tally counts for one policy.
type tally struct {
	policy *v1alpha1.SidecarPolicy
	// since is when the policy was last changed.
	since time.Time

	// now is when the count is made.
	now time.Time
	// claims are what the policy would decide if there were no other.
	claims map[string]sidecar.Claim

	matched, injected, outdated, missed int32
	behind                              []v1alpha1.PodBehind
	rollout                             rollout
	// conflicts counts InferenceServices by part and policy.
	conflicts map[v1alpha1.PolicyConflict]int32
	// err is why the policy could not be followed for an InferenceService, of several that whose name comes first: lists
	// come in any order, and the status must not change with it.
	err    error
	errFor string
}

// newTally counts all InferenceServices that a policy picks.
func newTally(policy *v1alpha1.SidecarPolicy, seen observed, now time.Time) tally {
	t := tally{
		policy: policy, since: changedAt(policy, now), now: now,
		claims: sidecar.Claims(&policy.Spec), conflicts: map[v1alpha1.PolicyConflict]int32{},
	}
	for i := range seen.services {
		t.add(&seen.services[i], seen)
	}
	t.rollout.limit(t.matched)
	return t
}

// changedAt is when a policy was first seen as it is.
func changedAt(policy *v1alpha1.SidecarPolicy, now time.Time) time.Time {
	if s := &policy.Status; s.ChangedTime != nil && s.ObservedGeneration == policy.Generation {
		return s.ChangedTime.Time
	}
	return now
}

// add counts one InferenceService and its pods.
func (t *tally) add(service *kserve.InferenceService, seen observed) {
	isPicked := false
	overruled := map[v1alpha1.PolicyConflict]bool{}
	for _, component := range t.policy.Spec.Components {
		decision := seen.decide(service, component)
		t.addProblems(service.Name, decision, seen.settings)
		if !slices.ContainsFunc(decision.Picked, func(p v1alpha1.SidecarPolicy) bool { return p.Name == t.policy.Name }) {
			continue
		}
		isPicked = true
		for _, c := range conflictsIn(t.policy.Name, t.claims, decision.Picked, component) {
			overruled[c] = true
		}
		t.addPods(group{service: service, component: component, decision: decision}, seen.pods[service.Name])
	}
	if isPicked {
		t.matched++
	}
	for c := range overruled {
		t.conflicts[c]++
	}
}

// addProblems keeps what is wrong with the policy for an InferenceService.
func (t *tally) addProblems(service string, d sidecar.Decision, settings sidecar.Settings) {
	if t.err != nil && t.errFor <= service {
		return
	}
	for _, p := range d.Problems {
		if p.Policy == t.policy.Name {
			t.err, t.errFor = fmt.Errorf("on InferenceService %q: %s", service, p.Message), service
			return
		}
	}
	for i := range d.Plan.Sidecars {
		s := &d.Plan.Sidecars[i]
		if s.Policy != t.policy.Name {
			continue
		}
		if err := s.CheckImages(settings); err != nil {
			t.err, t.errFor = fmt.Errorf("on InferenceService %q: %w", service, err), service
		}
	}
}

// addPods counts the pods of a component by whether they carry the plan.
func (t *tally) addPods(g group, pods []metav1.ObjectMeta) {
	hash := g.decision.Marks.Hash
	for i := range pods {
		pod := &pods[i]
		if kserve.ComponentOf(pod.Labels) != g.component {
			continue
		}
		g.pods = append(g.pods, *pod)
		mark := pod.Annotations[v1alpha1.AnnotationInjected]
		switch {
		case mark == hash:
			t.injected++
		case mark == "" && pod.CreationTimestamp.After(t.since):
			t.missed++
			g.missed = append(g.missed, *pod)
			t.behind = append(t.behind, v1alpha1.PodBehind{Name: pod.Name, Why: v1alpha1.BehindMissed})
		default:
			t.outdated++
			g.outdated = append(g.outdated, *pod)
			t.behind = append(t.behind, v1alpha1.PodBehind{Name: pod.Name, Why: v1alpha1.BehindOutdated})
		}
	}
	t.rollout.add(t.policy, g, t.now)
}

func (t *tally) listBehind() []v1alpha1.PodBehind {
	slices.SortFunc(t.behind, func(a, b v1alpha1.PodBehind) int { return cmp.Compare(a.Name, b.Name) })
	return bounded(t.behind)
}

func (t *tally) listConflicts() []v1alpha1.PolicyConflict {
	var list []v1alpha1.PolicyConflict
	for c, services := range t.conflicts {
		c.InferenceServices = services
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b v1alpha1.PolicyConflict) int {
		return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.Policy, b.Policy))
	})
	return bounded(list)
}

func bounded[T any](list []T) []T {
	return list[:min(len(list), maxListed):min(len(list), maxListed)]
}

// conflictsIn returns the parts of a policy that one of those that decide before it has, too, and has otherwise. The
// policies are in the order in which they decide.
func conflictsIn(
	policy string, claims map[string]sidecar.Claim, picked []v1alpha1.SidecarPolicy, component v1alpha1.Component,
) []v1alpha1.PolicyConflict {
	if picked[0].Name == policy {
		return nil
	}
	open := maps.Clone(claims)
	var conflicts []v1alpha1.PolicyConflict
	for i := range picked {
		other := &picked[i]
		if other.Name == policy {
			break
		}
		if !slices.Contains(other.Spec.Components, component) {
			continue
		}
		for key, theirs := range sidecar.Claims(&other.Spec) {
			ours, ok := open[key]
			if ok && !reflect.DeepEqual(ours.Value, theirs.Value) {
				conflicts = append(conflicts, v1alpha1.PolicyConflict{Part: ours.Part, Policy: other.Name})
			}
			delete(open, key) // the first that has it decides it
		}
	}
	return conflicts
}
