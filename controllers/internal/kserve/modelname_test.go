// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"testing"

	"sigs.k8s.io/yaml"
)

func TestModelName(t *testing.T) {
	for what, tc := range map[string]struct{ spec, variant, want string }{
		"an argument":                 {"predictor: {model: {args: [--model_name=mnist]}}", "", "mnist"},
		"another spelling":            {"predictor: {model: {args: [--model-name, mnist]}}", "", "mnist"},
		"vLLM's":                      {"predictor: {model: {args: [--served-model-name=llama]}}", "", "llama"},
		"the last one counts":         {"predictor: {model: {args: [--model_name=a, --model_name=b]}}", "", "b"},
		"a variable":                  {"predictor: {model: {env: [{name: MLSERVER_MODEL_NAME, value: m}]}}", "", "m"},
		"a container of one's own":    {"predictor: {containers: [{name: kserve-container, args: [--model_name=m]}]}", "", "m"},
		"another container":           {"predictor: {containers: [{name: proxy, args: [--model_name=m]}]}", "", ""},
		"nothing":                     {"predictor: {model: {args: [--workers=2]}}", "", ""},
		"an argument without a value": {"predictor: {model: {args: [--model_name]}}", "", ""},
		"a template":                  {"predictor: {model: {args: ['--model_name={{.Name}}']}}", "", ""},
		"a variable in an argument":   {"predictor: {model: {args: ['--model_name=$(NAME)']}}", "", ""},
		"that of a variant": {
			"{predictor: {model: {args: [--model_name=a]}}, canary: [{predictor: {name: v2, model: {args: [--model_name=b]}}}]}", "v2", "b",
		},
		"a variant that says nothing has the predictor's": {
			"{predictor: {model: {args: [--model_name=a]}}, canary: [{predictor: {name: v2, model: {}}}]}", "v2", "a",
		},
		"the predictor beside a variant": {
			"{predictor: {model: {args: [--model_name=a]}}, canary: [{predictor: {name: v2, model: {args: [--model_name=b]}}}]}", "", "a",
		},
	} {
		var isvc InferenceService
		if err := yaml.Unmarshal([]byte(tc.spec), &isvc.Spec); err != nil {
			t.Fatal(err)
		}
		if got := ModelName(&isvc, tc.variant); got != tc.want {
			t.Errorf("%s: %q, want %q", what, got, tc.want)
		}
	}
}

func TestVariants(t *testing.T) {
	isvc := InferenceService{}
	isvc.Name = "fraud"
	if err := yaml.Unmarshal([]byte("{predictor: {name: v1}, canary: [{predictor: {name: v2}}]}"), &isvc.Spec); err != nil {
		t.Fatal(err)
	}
	for variant, want := range map[string]struct {
		has     bool
		service string
	}{
		"":   {true, "fraud-v1-predictor"},
		"v1": {true, "fraud-v1-predictor"},
		"v2": {true, "fraud-v2-predictor"},
		"v3": {false, "fraud-v3-predictor"},
	} {
		if has, service := HasVariant(
			&isvc,
			variant,
		), EntryOf(
			&isvc,
			variant,
		).Service; has != want.has ||
			service != want.service {
			t.Errorf("variant %q: %v, %s; want %v, %s", variant, has, service, want.has, want.service)
		}
	}
	hash := func(variant string) string {
		revision, err := RevisionOf(&isvc, variant)
		if err != nil {
			t.Fatal(err)
		}
		return revision.Hash
	}
	stable, canary := hash(""), hash("v2")
	if stable == canary {
		t.Error("two variants have one revision")
	}
	isvc.Spec.Canary[0].TrafficPercent, isvc.Spec.Canary[0].Predictor.MinReplicas = 5, new(int32(3))
	if hash("") != stable || hash("v2") != canary {
		t.Error("a share or a number of pods makes another revision")
	}
	isvc.Spec.Canary[0].Predictor.ServiceAccountName = "other"
	if hash("") != stable || hash("v2") == canary {
		t.Error("an edit of the canary is not one of the canary alone")
	}
}
