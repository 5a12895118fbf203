// SPDX-License-Identifier: Apache-2.0

// Package sidecar decides what the pods of an InferenceService are equipped with, and writes it into a pod.
//
// Both are pure. The pod webhook uses them to equip new pods, the SidecarPolicy controller to tell which pods carry
// what is asked for now.
package sidecar

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Subject is what a decision is made about: the pods of one component of one InferenceService.
type Subject struct {
	// Labels and Annotations are those of the InferenceService.
	Labels, Annotations map[string]string
	// Component is the component; pods of one that no policy can name get nothing.
	Component v1alpha1.Component
}

// Plan says what a pod gets. The zero Plan is nothing.
type Plan struct {
	// Preload is how the model is fetched; nil leaves it to KServe.
	Preload *Preload `json:"preload,omitempty"`
	// FeatureCache is the cache to connect; nil connects none.
	FeatureCache *FeatureCache `json:"featureCache,omitempty"`
}

// Preload says how the model is fetched.
type Preload struct {
	// Image is empty for the manager's default.
	Image string `json:"image,omitempty"`
	// Verify is how much proof of integrity is needed.
	Verify v1alpha1.VerifyMode `json:"verify"`
}

// FeatureCache says which cache to connect.
type FeatureCache struct {
	// Memcached is the name of the Memcached in the pod's namespace.
	Memcached string `json:"memcached"`
}

// IsZero reports whether the plan asks for nothing.
func (p Plan) IsZero() bool { return p.Preload == nil && p.FeatureCache == nil }

// Hash identifies the plan. It does not cover the manager's default images, so that an upgrade of the manager leaves no
// pod outdated.
func (p Plan) Hash() string {
	if p.IsZero() {
		return ""
	}
	raw, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("encoding a plan of strings: %v", err)) // cannot happen
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:6])
}

// Resolve merges policies and annotations into a plan. Of the policies that pick the subject, the one with the highest
// priority decides each part, and of equals the one whose name comes first; the order of the list does not matter. An
// annotation of the InferenceService wins over all policies. Values that make no sense are reported, one sentence each,
// and otherwise treated as absent.
func Resolve(subject Subject, policies []v1alpha1.SidecarPolicy) (Plan, []string) {
	var plan Plan
	if subject.Component == "" {
		return plan, nil
	}
	picked, problems := Picked(subject, policies)
	for i := range picked {
		spec := &picked[i].Spec
		if !slices.Contains(spec.Components, subject.Component) {
			continue
		}
		if plan.Preload == nil && spec.Preload != nil {
			plan.Preload = &Preload{Image: spec.Preload.Image, Verify: spec.Preload.Verify}
		}
		if plan.FeatureCache == nil && spec.FeatureCache != nil {
			plan.FeatureCache = &FeatureCache{Memcached: spec.FeatureCache.MemcachedRef.Name}
		}
	}
	problems = append(problems, plan.override(subject.Annotations)...)
	return plan, problems
}

// override applies the annotations that speak of single features.
func (p *Plan) override(annotations map[string]string) []string {
	var problems []string
	switch value := annotations[v1alpha1.AnnotationPreload]; value {
	case "":
	case "true":
		if p.Preload == nil {
			p.Preload = &Preload{Verify: v1alpha1.VerifyAuto}
		}
	case "false":
		p.Preload = nil
	default:
		problems = append(problems, fmt.Sprintf(
			"annotation %s: %q is neither true nor false; it is ignored", v1alpha1.AnnotationPreload, value))
	}
	switch value := annotations[v1alpha1.AnnotationFeatureCache]; value {
	case "":
	case v1alpha1.AnnotationNone:
		p.FeatureCache = nil
	default:
		p.FeatureCache = &FeatureCache{Memcached: value}
	}
	return problems
}

// Picked returns the policies that pick an InferenceService, those that decide first coming first. The annotation that
// names a policy replaces their selectors.
func Picked(subject Subject, policies []v1alpha1.SidecarPolicy) ([]v1alpha1.SidecarPolicy, []string) {
	named := subject.Annotations[v1alpha1.AnnotationSidecarPolicy]
	if named == v1alpha1.AnnotationNone {
		return nil, nil
	}
	var picked []v1alpha1.SidecarPolicy
	var problems []string
	for i := range policies {
		policy := &policies[i]
		if named != "" {
			if policy.Name == named {
				picked = append(picked, *policy)
			}
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.Selector)
		if err != nil {
			problems = append(problems, fmt.Sprintf("SidecarPolicy %s: spec.selector: %v", policy.Name, err))
			continue
		}
		if selector.Matches(labels.Set(subject.Labels)) {
			picked = append(picked, *policy)
		}
	}
	if named != "" && len(picked) == 0 {
		problems = append(problems, fmt.Sprintf(
			"annotation %s: there is no SidecarPolicy %q in this namespace", v1alpha1.AnnotationSidecarPolicy, named))
	}
	slices.SortFunc(picked, func(a, b v1alpha1.SidecarPolicy) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	return picked, problems
}
