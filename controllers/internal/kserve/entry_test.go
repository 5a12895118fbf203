// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"testing"

	"sigs.k8s.io/yaml"
)

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
