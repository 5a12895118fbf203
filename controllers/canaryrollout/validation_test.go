// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
)

// TestValidation asks the API server itself: what it takes and what it refuses, and in which words.
func TestValidation(t *testing.T) {
	c := testcluster.New(t).Client
	namespace := testcluster.New(t).Namespace(t)
	const sides = "stable: {inferenceService: v1}, canary: {inferenceService: v2}"
	tests := map[string]struct {
		name string
		spec string
		// want is a part of the message, empty if the object is to be taken.
		want string
	}{
		"the smallest": {spec: sides},
		"two sides that are one": {
			spec: "stable: {inferenceService: v1}, canary: {inferenceService: v1}",
			want: "two different InferenceServices",
		},
		"a side without a name": {
			spec: "stable: {inferenceService: v1}, canary: {inferenceService: ''}",
			want: "at least 1 chars",
		},
		"no canary":         {spec: "stable: {inferenceService: v1}", want: "spec.canary"},
		"all to the canary": {spec: sides + ", canaryPercent: 100"},
		"more than all":     {spec: sides + ", canaryPercent: 101", want: "less than or equal to 100"},
		"less than nothing": {spec: sides + ", canaryPercent: -1", want: "greater than or equal to 0"},
		"an unknown mode":   {spec: sides + ", routing: {mode: Borrow}", want: "Unsupported value"},
		"Adopt with a reference": {
			spec: sides + ", routing: {mode: Adopt, virtualServiceRef: {name: a, route: b}}",
		},
		"Adopt without one": {
			spec: sides + ", routing: {mode: Adopt}",
			want: "virtualServiceRef is needed in mode Adopt",
		},
		"Adopt without the route's name": {
			spec: sides + ", routing: {mode: Adopt, virtualServiceRef: {name: a}}",
			want: "route",
		},
		"Delegate":            {spec: sides + ", routing: {mode: Delegate}"},
		"Delegate with hosts": {spec: sides + ", routing: {mode: Delegate, hosts: [x]}", want: "remove them here"},
		"Delegate with a reference": {
			spec: sides + ", routing: {mode: Delegate, virtualServiceRef: {name: a, route: b}}",
			want: "no meaning in the other modes",
		},
		"Owned with a reference": {
			spec: sides + ", routing: {virtualServiceRef: {name: a, route: b}}",
			want: "no meaning in the other modes",
		},
		"Adopt with hosts": {
			spec: sides + ", routing: {mode: Adopt, hosts: [x], virtualServiceRef: {name: a, route: b}}",
			want: "remove them here",
		},
		"a host at a gateway": {
			spec: sides + ", routing: {hosts: [x.example.com], gateways: [istio-system/edge, mesh]}",
		},
		"a gateway that no host is known at":   {spec: sides + ", routing: {gateways: [istio-system/edge]}", want: "need hosts"},
		"the mesh needs no host":               {spec: sides + ", routing: {gateways: [mesh]}"},
		"a host twice":                         {spec: sides + ", routing: {hosts: [x, x]}", want: "Duplicate value"},
		"no host in hosts":                     {spec: sides + ", routing: {hosts: []}", want: "at least 1 items"},
		"a name that no Service can have":      {name: "1st", spec: sides, want: "DNS label"},
		"a name too long for a Service":        {name: strings.Repeat("a", 64), spec: sides, want: "DNS label"},
		"a name that is just not too long yet": {name: strings.Repeat("a", 63), spec: sides},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			object := &unstructured.Unstructured{Object: map[string]any{}}
			if err := yaml.Unmarshal([]byte("spec: {"+tc.spec+"}"), &object.Object); err != nil {
				t.Fatal(err)
			}
			object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("CanaryRollout"))
			object.SetNamespace(namespace)
			object.SetName("subject")
			if tc.name != "" {
				object.SetName(tc.name)
			}
			err := c.Create(t.Context(), object, &client.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && err == nil:
				t.Errorf("taken, want it refused for %q", tc.want)
			case tc.want != "" && !strings.Contains(err.Error(), tc.want):
				t.Errorf("refused with %q, want a word of %q", err, tc.want)
			}
		})
	}
}
