// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

const (
	// againAfter is the least time between two restarts of a component for the same plan.
	againAfter = 10 * time.Minute
	// trialAgain is when a trial that was refused is repeated if nothing happens before: what stood in its way, such as a
	// quota, may not be ours to watch.
	trialAgain = 10 * time.Minute
	// webhookAgain is when a trial that came back without its sidecars is repeated.
	webhookAgain = 10 * time.Second
)

// group is the pods of one component of one InferenceService, and what they are to carry.
type group struct {
	service   *kserve.InferenceService
	component v1alpha1.Component
	decision  sidecar.Decision
	// pods are all pods of the component, of which outdated and missed do not carry the plan.
	pods, outdated, missed []metav1.ObjectMeta
}

// roll is a restart of the pods of a group.
type roll struct {
	group
	// value is what AnnotationRollout becomes.
	value string
	// model is one of the pods that would be replaced: a trial pod is made as that one was.
	model metav1.ObjectMeta
}

// rollout is what a policy's pods that are behind wait for. Pods are replaced when a policy that says so decides something
// that they lack; of several such policies, the one that decides first acts for all.
type rollout struct {
	// rolling names the InferenceServices whose pods are being replaced.
	rolling []string
	// due are the restarts to make, in the order of names.
	due []roll
	// waiting counts the groups whose turn has not come.
	waiting int
	// again is when a restart that is not due yet will be, zero if there is none.
	again time.Time
	// held is why no pod is replaced although the policy wants it, "" if nothing is in the way.
	held string
}

// add finds out what the pods of a group that are behind wait for.
func (r *rollout) add(policy *v1alpha1.SidecarPolicy, g group, now time.Time) {
	if g.service.DeletionTimestamp != nil {
		return
	}
	if replaces := policy.Spec.Rollout == v1alpha1.RolloutAlways && len(g.outdated) > 0 ||
		policy.Spec.OnMissedInjection == v1alpha1.MissedRestart && len(g.missed) > 0; replaces {
		// What a policy that cannot be understood asks for is not known; without it the plan may be nobody's wish.
		for _, p := range g.decision.Problems {
			if p.Reason != v1alpha1.ReasonInvalidPolicy {
				continue
			}
			if r.held == "" || p.Message < r.held { // lists come in any order
				r.held = p.Message
			}
			return
		}
	}
	behind := toReplace(policy, g)
	if len(behind) == 0 {
		return
	}
	value, at := nextRollout(kserve.RolloutOf(g.service, g.component), g.decision.Marks.Hash, behind)
	switch {
	case value == "":
		if !settled(g, behind) {
			r.rolling = append(r.rolling, g.service.Name)
		}
	case !actsFor(policy, g):
		r.waiting++
	case at.After(now):
		r.waiting++
		r.again = earlier(r.again, at)
	default:
		r.due = append(r.due, roll{group: g, value: value, model: slices.MaxFunc(behind, byAge)})
	}
}

// toReplace returns the pods of a group that a policy wants replaced.
func toReplace(policy *v1alpha1.SidecarPolicy, g group) []metav1.ObjectMeta {
	var list []metav1.ObjectMeta
	if policy.Spec.Rollout == v1alpha1.RolloutAlways {
		list = appendLacking(list, g.outdated, policy, g.decision)
	}
	if policy.Spec.OnMissedInjection == v1alpha1.MissedRestart {
		list = appendLacking(list, g.missed, policy, g.decision)
	}
	return list
}

// appendLacking appends those of the pods that lack something that a policy decides.
func appendLacking(
	list, pods []metav1.ObjectMeta, policy *v1alpha1.SidecarPolicy, d sidecar.Decision,
) []metav1.ObjectMeta {
	for i := range pods {
		if slices.ContainsFunc(d.Marks.Lacking(pods[i].Annotations), func(part sidecar.Part) bool {
			return d.By[part] == policy.Name
		}) {
			list = append(list, pods[i])
		}
	}
	return list
}

// actsFor reports whether a policy is the first of those that want pods of a group replaced.
func actsFor(policy *v1alpha1.SidecarPolicy, g group) bool {
	for i := range g.decision.Picked {
		if first := &g.decision.Picked[i]; len(toReplace(first, g)) > 0 {
			return first.Name == policy.Name
		}
	}
	return false
}

// nextRollout returns the value of AnnotationRollout that has pods that are behind replaced, and when it may be set; ""
// if the value that is there does so already. Pods made under that value that do not carry its plan would not be
// replaced by it, so that a plan can take more than one restart; but not one after the other.
func nextRollout(have, hash string, behind []metav1.ObjectMeta) (value string, at time.Time) {
	plan, stamp, _ := strings.Cut(have, ".")
	if plan != hash {
		return hash, time.Time{}
	}
	escaped := slices.DeleteFunc(slices.Clone(behind), func(p metav1.ObjectMeta) bool {
		return p.Annotations[v1alpha1.AnnotationRollout] != have
	})
	if len(escaped) == 0 {
		return "", time.Time{}
	}
	next := slices.MaxFunc(escaped, byAge).CreationTimestamp.Unix()
	if last, err := strconv.ParseInt(stamp, 10, 64); err == nil {
		at = time.Unix(last, 0).Add(againAfter)
		// Pods that escaped twice within a second: the value that is there already would replace none.
		next = max(next, last+1)
	}
	return fmt.Sprintf("%s.%d", hash, next), at
}

// settled reports whether pods that are behind stay although a restart was asked for: revisions of Knative's are kept
// beside newer ones as long as traffic is sent to them.
func settled(g group, behind []metav1.ObjectMeta) bool {
	current := len(g.pods) - len(g.outdated) - len(g.missed)
	return current > 0 && !slices.ContainsFunc(behind, func(p metav1.ObjectMeta) bool { return !kserve.IsOfRevision(p.Labels) })
}

// limit leaves as many restarts due as may be under way at once: a tenth of the InferenceServices that the policy picks,
// and one. A restart that hangs so keeps the change from the rest.
func (r *rollout) limit(matched int32) {
	slices.SortFunc(r.due, func(a, b roll) int {
		return cmp.Or(cmp.Compare(a.service.Name, b.service.Name), cmp.Compare(a.component, b.component))
	})
	slices.Sort(r.rolling)
	r.rolling = slices.Compact(r.rolling)
	room := min(len(r.due), max(0, 1+int(matched)/10-len(r.rolling)))
	r.waiting += len(r.due) - room
	r.due = r.due[:room]
}

// postpone has the restarts that are due wait for the next look.
func (r *rollout) postpone() {
	r.waiting += len(r.due)
	r.due = nil
}

func byAge(a, b metav1.ObjectMeta) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
