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

// TestValidation goes beyond the rules that the API's own tests know, and asks the API server itself: what it takes and what it refuses, and in which words.
func TestValidation(t *testing.T) {
	c := testcluster.New(t).Client
	namespace := testcluster.New(t).Namespace(t)
	const sides = "stable: {inferenceService: v1}, canary: {inferenceService: v2}, "
	tests := map[string]struct {
		spec string
		// want is a part of the message, empty if the object is to be taken.
		want string
	}{
		"Delegate":            {spec: "routing: {mode: Delegate}"},
		"Delegate with hosts": {spec: "routing: {mode: Delegate, hosts: [x]}", want: "remove them here"},
		"Delegate with a reference": {
			spec: "routing: {mode: Delegate, virtualServiceRef: {name: a, route: b}}",
			want: "in the other modes",
		},
		"Restore of an adopted route": {
			spec: "routing: {mode: Adopt, onDelete: Restore, virtualServiceRef: {name: a, route: b}}",
		},
		"Restore of our own route": {spec: "routing: {onDelete: Restore}", want: "onDelete Restore needs mode Adopt"},
		"an unknown mode":          {spec: "routing: {mode: Borrow}", want: "Unsupported value"},
		"Adopt without the route":  {spec: "routing: {mode: Adopt, virtualServiceRef: {name: a}}", want: "route"},
		"a host twice":             {spec: "routing: {hosts: [x, x]}", want: "Duplicate value"},
		"no host in hosts":         {spec: "routing: {hosts: []}", want: "at least 1 items"},
		"a colour by header": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{header: {name: x-a, exact: b}}]}}]",
		},
		"a colour by cookie": {spec: "colours: [{name: qa, to: Stable, match: {any: [{cookie: {name: a, value: b}}]}}]"},
		"a colour by both": {
			spec: "colours: [{name: qa, to: Stable, match: {any: [{header: {name: a, regex: b}, cookie: {name: a, value: b}}]}}]",
		},
		"a colour by nothing": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{}]}}]",
			want: "give a header or a cookie",
		},
		"a colour of two values": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{header: {name: a, exact: b, prefix: c}}]}}]",
			want: "exactly one of",
		},
		"a header without a value": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{header: {name: a}}]}}]",
			want: "exactly one of",
		},
		"a cookie as a header": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{header: {name: cookie, exact: b}}]}}]",
			want: "use cookie for cookies",
		},
		"a header in capitals": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{header: {name: X-A, exact: b}}]}}]",
			want: "should match",
		},
		"a cookie of two": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{cookie: {name: a, value: 'b; c=d'}}]}}]",
			want: "should match",
		},
		"two colours of one name": {
			spec: "colours: [{name: qa, to: Canary, match: {any: [{cookie: {name: a, value: b}}]}}, {name: qa, to: Stable, match: {any: [{cookie: {name: c, value: d}}]}}]",
			want: "Duplicate value",
		},
		"a colour to nowhere": {
			spec: "colours: [{name: qa, to: Both, match: {any: [{cookie: {name: a, value: b}}]}}]",
			want: "Unsupported value",
		},
		"any model names":       {spec: "modelNames: Any"},
		"other model names":     {spec: "modelNames: Equal", want: "Unsupported value"},
		"sessions by a cookie":  {spec: "stickiness: {cookie: {name: fraud}}"},
		"sessions by a header":  {spec: "stickiness: {header: {name: x-session-id}}"},
		"sessions by both":      {spec: "stickiness: {cookie: {name: a}, header: {name: b}}", want: "one of the two"},
		"sessions by nothing":   {spec: "stickiness: {}", want: "one of the two"},
		"sessions without end":  {spec: "stickiness: {cookie: {name: a, ttl: 1000h}}", want: "between 1s and 720h"},
		"sessions of no length": {spec: "stickiness: {cookie: {name: a, ttl: 0s}}", want: "between 1s and 720h"},
		"sessions by the host":  {spec: "stickiness: {header: {name: host}}", want: "a header of its own"},
		"sessions of an adopted route": {
			spec: "routing: {mode: Adopt, virtualServiceRef: {name: a, route: b}}, stickiness: {header: {name: a}}",
			want: "use mode Owned or Delegate",
		},
		"a shadow":                  {spec: "shadow: {}"},
		"a shadow of more than all": {spec: "shadow: {percent: 101}", want: "less than or equal to 100"},
		"a shadow of an adopted one": {
			spec: "routing: {mode: Adopt, virtualServiceRef: {name: a, route: b}}, shadow: {}",
			want: "shadow needs",
		},
		"colours of an adopted route": {
			spec: "routing: {mode: Adopt, virtualServiceRef: {name: a, route: b}}, colours: [{name: qa, to: Canary, match: {any: [{cookie: {name: a, value: b}}]}}]",
			want: "use mode Owned or Delegate",
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			object := &unstructured.Unstructured{Object: map[string]any{}}
			if err := yaml.Unmarshal([]byte("spec: {"+sides+tc.spec+"}"), &object.Object); err != nil {
				t.Fatal(err)
			}
			object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("CanaryRollout"))
			object.SetNamespace(namespace)
			object.SetName("subject")
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
