// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Decision is what policies and annotations together come to for one subject.
type Decision struct {
	// Plan is what the pods get.
	Plan Plan
	// Marks are those of the plan.
	Marks Marks
	// Problems are values that make no sense; they are treated as absent.
	Problems []Problem
	// Picked are the policies that pick the subject, those that decide first coming first.
	Picked []v1alpha1.SidecarPolicy
	// By names the policy that decided a part of the plan, by the part; parts that an annotation decided are not in it.
	By map[Part]string
}

// Resolve merges policies and annotations into a plan. Of the policies that pick the subject, the one with the highest
// priority decides each part, and of equals the one whose name comes first; the order of the list does not matter. An
// annotation of the InferenceService wins over all policies.
func Resolve(subject Subject, policies []v1alpha1.SidecarPolicy) Decision {
	d := Decision{By: map[Part]string{}}
	if subject.Component == "" {
		return d
	}
	d.Picked, d.Problems = Picked(subject, policies)
	for i := range d.Picked {
		if slices.Contains(d.Picked[i].Spec.Components, subject.Component) {
			d.follow(&d.Picked[i], subject)
		}
	}
	d.override(subject.Annotations)
	d.Marks = d.Plan.Marks()
	return d
}

// follow adds to the plan what no policy before this one has decided. One that the API server has refused is not
// followed at all; what its author made up himself, only when the API server has accepted it.
func (d *Decision) follow(policy *v1alpha1.SidecarPolicy, subject Subject) {
	spec := &policy.Spec
	accepted := meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.ConditionAccepted)
	if accepted != nil && accepted.ObservedGeneration != policy.Generation {
		accepted = nil
	}
	if accepted != nil && accepted.Status == metav1.ConditionFalse {
		d.Problems = append(d.Problems, invalidPolicy(policy, errors.New("the API server refuses pods as it has them")))
		return
	}
	if d.Plan.Preload == nil && spec.Preload != nil {
		d.Plan.Preload, d.By[PartPreload] = preloadOf(spec.Preload), policy.Name
	}
	if d.Plan.FeatureCache == nil && spec.FeatureCache != nil {
		d.Plan.FeatureCache = featureCacheOf(spec.FeatureCache)
		d.By[PartFeatureCache] = policy.Name
	}
	if !HasSidecars(spec) {
		return
	}
	if accepted == nil {
		d.Problems = append(d.Problems, invalidPolicy(policy,
			errors.New("its containers, volumes and variables wait until the API server has accepted a pod with them")))
		return
	}
	s, err := sidecarsOf(policy, subject)
	if err != nil {
		d.Problems = append(d.Problems, invalidPolicy(policy, err))
		return
	}
	if s.without(d.Plan.Sidecars) {
		d.Plan.Sidecars = append(d.Plan.Sidecars, *s)
		d.By[partSidecars(policy.Name)] = policy.Name
	}
}

func invalidPolicy(policy *v1alpha1.SidecarPolicy, err error) Problem {
	return Problem{
		Reason: v1alpha1.ReasonInvalidPolicy, Policy: policy.Name,
		Message: fmt.Sprintf("SidecarPolicy %s: %v", policy.Name, err),
	}
}

func preloadOf(spec *v1alpha1.Preload) *Preload {
	p := &Preload{
		Image: spec.Image, Verify: spec.Verify, Resources: spec.Resources, Volume: spec.Volume, NodeCache: spec.NodeCache,
		JITCache: spec.JITCache,
	}
	if spec.IO != v1alpha1.PreloadAuto {
		p.IO = spec.IO
	}
	if spec.GPU != v1alpha1.PreloadGPUOff {
		p.GPU = spec.GPU
	}
	return p
}

func featureCacheOf(spec *v1alpha1.FeatureCache) *FeatureCache {
	return &FeatureCache{Memcached: spec.MemcachedRef.Name, Shared: spec.Mode == v1alpha1.FeatureCacheShared}
}

// override applies the annotations that speak of single features.
func (d *Decision) override(annotations map[string]string) {
	switch value := annotations[v1alpha1.AnnotationPreload]; {
	case value == "":
	case AsksForPreloader(value):
		if d.Plan.Preload == nil {
			d.Plan.Preload = &Preload{Verify: v1alpha1.VerifyAuto}
		}
		if value != "true" {
			d.Plan.Preload.Pin = value
		}
	case value == "false":
		d.Plan.Preload = nil
		delete(d.By, PartPreload)
	default:
		d.Problems = append(d.Problems,
			invalidAnnotation(v1alpha1.AnnotationPreload, value, "neither true nor false nor a digest (sha256:...)"))
	}
	d.overrideGPU(annotations)
	switch value := annotations[v1alpha1.AnnotationFeatureCache]; {
	case value == "":
	case value == v1alpha1.AnnotationNone:
		d.Plan.FeatureCache = nil
		delete(d.By, PartFeatureCache)
	case !isName(value):
		d.Problems = append(d.Problems,
			invalidAnnotation(v1alpha1.AnnotationFeatureCache, value, "not the name of a Memcached"))
	default:
		d.Plan.FeatureCache = &FeatureCache{
			Memcached: value, Shared: d.Plan.FeatureCache != nil && d.Plan.FeatureCache.Shared,
		}
		delete(d.By, PartFeatureCache)
	}
	d.Problems = append(d.Problems, unknownAnnotations(annotations)...)
}

// AsksForPreloader reports whether a value of AnnotationPreload has the model fetched by the preloader. What is meant for a
// digest and is none is one here: the preloader refuses it, and the pod does not start with any other content.
func AsksForPreloader(value string) bool {
	return value == "true" || strings.HasPrefix(value, digestPrefix)
}

const digestPrefix = "sha256:"

// overrideGPU applies the annotation that has GPUs checked. The check comes with the preloader.
func (d *Decision) overrideGPU(annotations map[string]string) {
	value := annotations[v1alpha1.AnnotationWarmGPU]
	mode, ok := map[string]v1alpha1.PreloadGPU{
		"": "", "false": "", "true": v1alpha1.PreloadGPUPreflight,
		"preflight": v1alpha1.PreloadGPUPreflight, "load": v1alpha1.PreloadGPULoad,
	}[value]
	switch {
	case !ok:
		d.Problems = append(d.Problems,
			invalidAnnotation(v1alpha1.AnnotationWarmGPU, value, "none of true, preflight, load and false"))
	case value == "":
	case value == "false":
		if d.Plan.Preload != nil {
			d.Plan.Preload.GPU = ""
		}
	case annotations[v1alpha1.AnnotationPreload] == "false":
		d.Problems = append(d.Problems, invalidAnnotation(v1alpha1.AnnotationWarmGPU, value,
			"impossible without the preloader, which annotation "+v1alpha1.AnnotationPreload+" forbids"))
	default:
		if d.Plan.Preload == nil {
			d.Plan.Preload = &Preload{Verify: v1alpha1.VerifyAuto}
		}
		p := d.Plan.Preload
		p.GPUAsked = true
		if p.GPU == "" || value != "true" {
			p.GPU = mode
		}
	}
}

// known are all annotations of Outrigger that an InferenceService may carry.
var known = []string{
	v1alpha1.AnnotationFeatureCache, v1alpha1.AnnotationPreload, v1alpha1.AnnotationSidecarPolicy,
	v1alpha1.AnnotationWarmGPU,
	v1alpha1.AnnotationInjected, v1alpha1.AnnotationInjectedParts, v1alpha1.AnnotationProblems,
	v1alpha1.AnnotationRollout,
}

// unknownAnnotations reports annotations of Outrigger's that it does not know: most are misspelt.
func unknownAnnotations(annotations map[string]string) []Problem {
	var unknown []string
	for key := range annotations {
		if strings.HasPrefix(key, v1alpha1.GroupName+"/") && !slices.Contains(known, key) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	problems := make([]Problem, 0, len(unknown))
	for _, key := range unknown {
		problems = append(problems, Problem{
			Reason: v1alpha1.ReasonInvalidAnnotation,
			Message: fmt.Sprintf("annotation %s is unknown; there are %s, %s, %s and %s", key, v1alpha1.AnnotationPreload,
				v1alpha1.AnnotationWarmGPU, v1alpha1.AnnotationFeatureCache, v1alpha1.AnnotationSidecarPolicy),
		})
	}
	return problems
}

func invalidAnnotation(key, value, what string) Problem {
	const longest = 64
	if len(value) > longest {
		value = strings.ToValidUTF8(value[:longest], "") + "..."
	}
	return Problem{
		Reason:  v1alpha1.ReasonInvalidAnnotation,
		Message: fmt.Sprintf("annotation %s: %q is %s; it is ignored", key, value, what),
	}
}

func isName(value string) bool { return len(validation.IsDNS1123Subdomain(value)) == 0 }

// Picked returns the policies that pick an InferenceService, those that decide first coming first. The annotation that
// names a policy replaces their selectors and conditions.
func Picked(subject Subject, policies []v1alpha1.SidecarPolicy) ([]v1alpha1.SidecarPolicy, []Problem) {
	name := subject.Annotations[v1alpha1.AnnotationSidecarPolicy]
	if name == v1alpha1.AnnotationNone {
		return nil, nil
	}
	if name != "" {
		return pickedByName(name, policies)
	}
	var picked []v1alpha1.SidecarPolicy
	var problems []Problem
	for i := range policies {
		ok, err := selects(&policies[i], subject)
		if err != nil {
			problems = append(problems, invalidPolicy(&policies[i], err))
		}
		if ok {
			picked = append(picked, policies[i])
		}
	}
	slices.SortFunc(picked, func(a, b v1alpha1.SidecarPolicy) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(problems, func(a, b Problem) int { return cmp.Compare(a.Message, b.Message) })
	return picked, problems
}

func pickedByName(name string, policies []v1alpha1.SidecarPolicy) ([]v1alpha1.SidecarPolicy, []Problem) {
	at := slices.IndexFunc(policies, func(p v1alpha1.SidecarPolicy) bool { return p.Name == name })
	if at >= 0 {
		return policies[at : at+1 : at+1], nil
	}
	if !isName(name) {
		return nil, []Problem{invalidAnnotation(v1alpha1.AnnotationSidecarPolicy, name, "not the name of a SidecarPolicy")}
	}
	return nil, []Problem{{
		Reason: v1alpha1.ReasonPolicyNotFound,
		Message: fmt.Sprintf("annotation %s: there is no SidecarPolicy %q in this namespace",
			v1alpha1.AnnotationSidecarPolicy, name),
	}}
}

// selects reports whether a policy, by itself, picks a subject.
func selects(policy *v1alpha1.SidecarPolicy, subject Subject) (bool, error) {
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.Selector)
	if err != nil {
		return false, fmt.Errorf("spec.selector: %w", err)
	}
	if policy.Spec.Condition == "" || !selector.Matches(labels.Set(subject.Labels)) {
		return selector.Matches(labels.Set(subject.Labels)), nil
	}
	if subject.Object == nil {
		return false, nil
	}
	object, err := subject.Object()
	if err != nil {
		return false, err
	}
	ok, err := holds(policy.Spec.Condition, object, subject.ModelURI)
	if err != nil {
		return false, fmt.Errorf("spec.condition: %w", err)
	}
	return ok, nil
}
