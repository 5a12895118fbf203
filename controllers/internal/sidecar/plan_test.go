// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

type change func(*v1alpha1.SidecarPolicy)

func policy(name string, changes ...change) v1alpha1.SidecarPolicy {
	p := v1alpha1.SidecarPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 1}}
	p.Spec.Priority = 100
	p.Spec.Components = []v1alpha1.Component{v1alpha1.ComponentPredictor}
	for _, c := range changes {
		c(&p)
	}
	return p
}

func preload(image string, verify v1alpha1.VerifyMode) change {
	return func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload = &v1alpha1.Preload{Image: image, Verify: verify} }
}

func cache(name string) change {
	return func(p *v1alpha1.SidecarPolicy) {
		p.Spec.FeatureCache = &v1alpha1.FeatureCache{MemcachedRef: v1alpha1.LocalObjectReference{Name: name}}
	}
}

func priority(n int32) change { return func(p *v1alpha1.SidecarPolicy) { p.Spec.Priority = n } }

func components(list ...v1alpha1.Component) change {
	return func(p *v1alpha1.SidecarPolicy) { p.Spec.Components = list }
}

func selects(key, value string) change {
	return func(p *v1alpha1.SidecarPolicy) { p.Spec.Selector.MatchLabels = map[string]string{key: value} }
}

func brokenSelector(p *v1alpha1.SidecarPolicy) {
	p.Spec.Selector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}
}

func TestResolve(t *testing.T) {
	const (
		preloadKey  = v1alpha1.AnnotationPreload
		cacheKey    = v1alpha1.AnnotationFeatureCache
		policyKey   = v1alpha1.AnnotationSidecarPolicy
		noComponent = "none"
	)
	auto := &sidecar.Preload{Verify: v1alpha1.VerifyAuto}
	for name, tc := range map[string]struct {
		labels, annotations map[string]string
		component           v1alpha1.Component
		policies            []v1alpha1.SidecarPolicy
		want                sidecar.Plan
		wantProblems        []string
	}{
		"nothing is asked: nothing is given": {},
		"an annotation alone asks for the preloader": {
			annotations: map[string]string{preloadKey: "true"},
			want:        sidecar.Plan{Preload: auto},
		},
		"an annotation alone asks for a cache": {
			annotations: map[string]string{cacheKey: "features"},
			want:        sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features"}},
		},
		"a misspelt value is reported and changes nothing": {
			annotations:  map[string]string{preloadKey: "yes"},
			policies:     []v1alpha1.SidecarPolicy{policy("a", preload("", v1alpha1.VerifyAuto))},
			want:         sidecar.Plan{Preload: auto},
			wantProblems: []string{`annotation ` + preloadKey + `: "yes" is neither true nor false nor a digest (sha256:...); it is ignored`},
		},
		"a digest asks for the preloader and that content": {
			annotations: map[string]string{preloadKey: "sha256:0a"},
			want:        sidecar.Plan{Preload: &sidecar.Preload{Verify: v1alpha1.VerifyAuto, Pin: "sha256:0a"}},
		},
		"a digest keeps the details of a policy": {
			annotations: map[string]string{preloadKey: "sha256:0a,sha256:0b"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", preload("x:1", v1alpha1.VerifyRequire))},
			want: sidecar.Plan{
				Preload: &sidecar.Preload{Image: "x:1", Verify: v1alpha1.VerifyRequire, Pin: "sha256:0a,sha256:0b"},
			},
		},
		"false forbids what a policy asks for": {
			annotations: map[string]string{preloadKey: "false"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", preload("", v1alpha1.VerifyAuto))},
		},
		"true keeps the details of a policy": {
			annotations: map[string]string{preloadKey: "true"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", preload("x:1", v1alpha1.VerifyRequire))},
			want:        sidecar.Plan{Preload: &sidecar.Preload{Image: "x:1", Verify: v1alpha1.VerifyRequire}},
		},
		"none forbids a policy's cache": {
			annotations: map[string]string{cacheKey: "none"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", cache("features"))},
		},
		"the annotation's cache keeps the mode of the policy": {
			annotations: map[string]string{cacheKey: "own"},
			policies: []v1alpha1.SidecarPolicy{policy("a", cache("features"), func(p *v1alpha1.SidecarPolicy) {
				p.Spec.FeatureCache.Mode = v1alpha1.FeatureCacheShared
			})},
			want: sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "own", Shared: true}},
		},
		"the annotation's cache wins over a policy's": {
			annotations: map[string]string{cacheKey: "own"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", cache("features"))},
			want:        sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "own"}},
		},
		"the higher priority decides, each part by itself": {
			policies: []v1alpha1.SidecarPolicy{
				policy("a", priority(1), preload("low:1", v1alpha1.VerifyOff), cache("low")),
				policy("b", priority(2), preload("high:1", v1alpha1.VerifyAuto)),
			},
			want: sidecar.Plan{
				Preload:      &sidecar.Preload{Image: "high:1", Verify: v1alpha1.VerifyAuto},
				FeatureCache: &sidecar.FeatureCache{Memcached: "low"},
			},
		},
		"of equal priorities the first name decides": {
			policies: []v1alpha1.SidecarPolicy{policy("b", cache("second")), policy("a", cache("first"))},
			want:     sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "first"}},
		},
		"a misspelt annotation is reported": {
			annotations: map[string]string{v1alpha1.GroupName + "/preloads": "true"},
			wantProblems: []string{"annotation outrigger.serverless.xyz/preloads is unknown; there are " +
				preloadKey + ", " + v1alpha1.AnnotationWarmGPU + ", " + cacheKey + " and " + policyKey},
		},
		"a value that can be no name is reported, and the policy's stays": {
			annotations:  map[string]string{cacheKey: "My Cache"},
			policies:     []v1alpha1.SidecarPolicy{policy("a", cache("features"))},
			want:         sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features"}},
			wantProblems: []string{`annotation ` + cacheKey + `: "My Cache" is not the name of a Memcached; it is ignored`},
		},
		"labels that do not match": {
			labels:   map[string]string{"team": "red"},
			policies: []v1alpha1.SidecarPolicy{policy("a", selects("team", "blue"), cache("features"))},
		},
		"labels that match": {
			labels:   map[string]string{"team": "blue"},
			policies: []v1alpha1.SidecarPolicy{policy("a", selects("team", "blue"), cache("features"))},
			want:     sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features"}},
		},
		"a selector that cannot be read is reported, others count": {
			policies: []v1alpha1.SidecarPolicy{policy("a", brokenSelector, cache("x")), policy("b", cache("features"))},
			want:     sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features"}},
			wantProblems: []string{
				`SidecarPolicy a: spec.selector: "Near" is not a valid label selector operator`,
			},
		},
		"the named policy replaces all selectors": {
			annotations: map[string]string{policyKey: "b"},
			policies: []v1alpha1.SidecarPolicy{
				policy("a", priority(900), cache("first")), policy("b", selects("team", "blue"), cache("second")),
			},
			want: sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "second"}},
		},
		"the named policy does not exist": {
			annotations:  map[string]string{policyKey: "gone"},
			policies:     []v1alpha1.SidecarPolicy{policy("a", cache("first"))},
			wantProblems: []string{`annotation ` + policyKey + `: there is no SidecarPolicy "gone" in this namespace`},
		},
		"none takes it out of all policies, its own annotations count": {
			annotations: map[string]string{policyKey: "none", preloadKey: "true"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", cache("first"))},
			want:        sidecar.Plan{Preload: auto},
		},
		"a transformer gets what names it": {
			component: v1alpha1.ComponentTransformer,
			policies: []v1alpha1.SidecarPolicy{
				policy("a", preload("", v1alpha1.VerifyAuto)),
				policy("b", components(v1alpha1.ComponentTransformer), cache("features")),
			},
			want: sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features"}},
		},
		"an explainer gets nothing, whatever its annotations say": {
			component:   noComponent,
			annotations: map[string]string{preloadKey: "true", policyKey: "gone"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			subject := sidecar.Subject{Labels: tc.labels, Annotations: tc.annotations, Component: tc.component}
			subject.Component = v1alpha1.ComponentPredictor
			if tc.component != "" {
				subject.Component = tc.component
			}
			if tc.component == noComponent {
				subject.Component = ""
			}
			for range 4 { // in any order of the policies
				got := sidecar.Resolve(subject, tc.policies)
				if diff := cmp.Diff(tc.want, got.Plan); diff != "" {
					t.Errorf("plan (-want +got):\n%s", diff)
				}
				var messages []string
				for _, p := range got.Problems {
					messages = append(messages, p.Message)
				}
				if diff := cmp.Diff(tc.wantProblems, messages); diff != "" {
					t.Errorf("problems (-want +got):\n%s", diff)
				}
				rand.Shuffle(len(tc.policies), func(i, j int) {
					tc.policies[i], tc.policies[j] = tc.policies[j], tc.policies[i]
				})
			}
		})
	}
}

func TestPickedComesInTheOrderThatDecides(t *testing.T) {
	policies := []v1alpha1.SidecarPolicy{
		policy("b", priority(5)), policy("d", priority(1)), policy("a", priority(5)), policy("c", priority(9)),
	}
	picked, problems := sidecar.Picked(sidecar.Subject{Component: v1alpha1.ComponentPredictor}, policies)
	var names []string
	for i := range picked {
		names = append(names, picked[i].Name)
	}
	if diff := cmp.Diff([]string{"c", "a", "b", "d"}, names); diff != "" || problems != nil {
		t.Errorf("problems %v, order (-want +got):\n%s", problems, diff)
	}
}

func TestHashTellsPlansApart(t *testing.T) {
	plans := []sidecar.Plan{
		{},
		{Preload: &sidecar.Preload{Verify: v1alpha1.VerifyAuto}},
		{Preload: &sidecar.Preload{Verify: v1alpha1.VerifyOff}},
		{Preload: &sidecar.Preload{Verify: v1alpha1.VerifyAuto, Image: "x:1"}},
		{FeatureCache: &sidecar.FeatureCache{Memcached: "a"}},
		{FeatureCache: &sidecar.FeatureCache{Memcached: "b"}},
	}
	seen := map[string]int{}
	for i, p := range plans {
		if other, ok := seen[p.Hash()]; ok {
			t.Errorf("plans %d and %d have one hash %q", other, i, p.Hash())
		}
		seen[p.Hash()] = i
	}
	if (sidecar.Plan{}).Hash() != "" {
		t.Error("the empty plan has a hash, and would leave pods without sidecars outdated")
	}
}

// TestHashStaysTheSame holds hashes that pods carry in clusters now: with another, an upgrade would call them outdated,
// and policies that restart outdated pods would restart all of them.
func TestHashStaysTheSame(t *testing.T) {
	for want, plan := range map[string]sidecar.Plan{
		"8097daa1b7ac": {Preload: &sidecar.Preload{Verify: v1alpha1.VerifyAuto}},
		"3b33833ddde1": {FeatureCache: &sidecar.FeatureCache{Memcached: "features"}},
	} {
		if got := plan.Hash(); got != want {
			t.Errorf("hash of %+v is %s, was %s", plan, got, want)
		}
	}
}
