// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// routingSpecs are what a CanaryRollout may say of routes, colours, sessions and shadows, and what it may not.
var routingSpecs = map[string]struct {
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
		want: "give exactly one of exact, prefix and regex",
	},
	"a header without a value": {
		spec: "colours: [{name: qa, to: Canary, match: {any: [{header: {name: a}}]}}]",
		want: "give exactly one of exact, prefix and regex",
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
	"any model names":      {spec: "modelNames: Any"},
	"other model names":    {spec: "modelNames: Equal", want: "Unsupported value"},
	"sessions by a cookie": {spec: "stickiness: {cookie: {name: fraud}}"},
	"sessions by a header": {spec: "stickiness: {header: {name: x-session-id}}"},
	"sessions by both": {
		spec: "stickiness: {cookie: {name: a}, header: {name: b}}",
		want: "give a cookie or a header, one of the two",
	},
	"sessions by nothing":   {spec: "stickiness: {}", want: "give a cookie or a header, one of the two"},
	"sessions without end":  {spec: "stickiness: {cookie: {name: a, ttl: 1000h}}", want: "ttl must be between 1s and 720h"},
	"sessions of no length": {spec: "stickiness: {cookie: {name: a, ttl: 0s}}", want: "ttl must be between 1s and 720h"},
	"sessions by the host":  {spec: "stickiness: {header: {name: host}}", want: "a header of its own"},
	"sessions of an adopted route": {
		spec: "routing: {mode: Adopt, virtualServiceRef: {name: a, route: b}}, stickiness: {header: {name: a}}",
		want: "stickiness needs a route of Outrigger's own",
	},
	"a shadow":                  {spec: "shadow: {}"},
	"a shadow of more than all": {spec: "shadow: {percent: 101}", want: "less than or equal to 100"},
	"a shadow of an adopted one": {
		spec: "routing: {mode: Adopt, virtualServiceRef: {name: a, route: b}}, shadow: {}",
		want: "shadow needs a route of Outrigger's own",
	},
	"colours of an adopted route": {
		spec: "routing: {mode: Adopt, virtualServiceRef: {name: a, route: b}}, colours: [{name: qa, to: Canary, match: {any: [{cookie: {name: a, value: b}}]}}]",
		want: "colours need a route of Outrigger's own",
	},
}

// TestRoutingSpecs asks the API server what it takes and what it refuses, and in which words.
func TestRoutingSpecs(t *testing.T) {
	c := startAPI(t)
	for what, tc := range routingSpecs {
		t.Run(what, func(t *testing.T) {
			err := c.Create(t.Context(), object(t, "CanaryRollout", "x", sides+", "+tc.spec+"}"), client.DryRunAll)
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

// TestEveryRuleHasARefusal: no CEL rule of the definitions is without an example here that is refused for it, and for no
// other rule.
func TestEveryRuleHasARefusal(t *testing.T) {
	var wants []string
	for _, tc := range rules {
		wants = append(wants, tc.wants)
	}
	for _, tc := range routingSpecs {
		wants = append(wants, tc.want)
	}
	messages := map[string]bool{}
	files, err := filepath.Glob("../../config/crd/bases/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var definition apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(raw, &definition); err != nil {
			t.Fatal(err)
		}
		for _, version := range definition.Spec.Versions {
			collectMessages(version.Schema.OpenAPIV3Schema, messages)
		}
	}
	if len(messages) < 50 {
		t.Errorf("found %d rules only", len(messages))
	}
	for message := range messages {
		if !slices.ContainsFunc(wants, func(want string) bool { return tells(want, message, messages) }) {
			t.Errorf("no example is refused with the words of this rule alone: %s", message)
		}
	}
}

// tells says whether a text is a part of this message, and of no other.
func tells(text, message string, messages map[string]bool) bool {
	found := 0
	for one := range messages {
		if strings.Contains(one, text) {
			found++
		}
	}
	return found == 1 && strings.Contains(message, text)
}

// collectMessages gathers what the rules of a schema say when they refuse.
func collectMessages(schema *apiextensionsv1.JSONSchemaProps, into map[string]bool) {
	if schema == nil {
		return
	}
	for _, rule := range schema.XValidations {
		into[rule.Message] = true
	}
	for _, property := range schema.Properties {
		collectMessages(&property, into)
	}
	if schema.Items != nil {
		collectMessages(schema.Items.Schema, into)
	}
	if schema.AdditionalProperties != nil {
		collectMessages(schema.AdditionalProperties.Schema, into)
	}
}
