// SPDX-License-Identifier: Apache-2.0

package kserve_test

import (
	"testing"

	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/controllers/internal/kserve"
)

const fraud = `
metadata: {name: fraud, uid: a, generation: 3}
spec:
  predictor:
    minReplicas: 2
    model: {modelFormat: {name: pytorch}, storageUri: "s3://models/fraud/2"}
`

func TestRevisionOf(t *testing.T) {
	first := revision(t, fraud)
	if first.InferenceService != "fraud" || first.UID != "a" || first.Generation != 3 || first.Hash == "" {
		t.Errorf("revision %+v", first)
	}
	for name, tc := range map[string]struct {
		spec     string
		wantSame bool
	}{
		"replicas make no other revision": {`{predictor: {minReplicas: 5, maxReplicas: 9, scaleTarget: 3,
			model: {modelFormat: {name: pytorch}, storageUri: "s3://models/fraud/2"}}}`, true},
		"another model does": {`{predictor: {minReplicas: 2,
			model: {modelFormat: {name: pytorch}, storageUri: "s3://models/fraud/3"}}}`, false},
		"a transformer does": {`{predictor: {minReplicas: 2,
			model: {modelFormat: {name: pytorch}, storageUri: "s3://models/fraud/2"}}, transformer: {containers: [{name: t}]}}`, false},
	} {
		other := revision(t, "metadata: {name: fraud, uid: a, generation: 4}\nspec: "+tc.spec)
		if same := other.Hash == first.Hash; same != tc.wantSame {
			t.Errorf("%s: the same hash is %v, want %v", name, same, tc.wantSame)
		}
	}
}

// TestRevisionOfAVariant: a variant is made from the predictor and from what its entry says otherwise, and the predictor
// knows nothing of variants.
func TestRevisionOfAVariant(t *testing.T) {
	of := func(variant, predictor, canary string) string {
		t.Helper()
		var isvc kserve.InferenceService
		if err := yaml.Unmarshal([]byte("spec: {predictor: {"+predictor+"}, canary: ["+canary+"]}"), &isvc); err != nil {
			t.Fatal(err)
		}
		got, err := kserve.RevisionOf(&isvc, variant)
		if err != nil {
			t.Fatal(err)
		}
		if got.Variant != variant {
			t.Errorf("variant %q, want %q", got.Variant, variant)
		}
		return got.Hash
	}
	const model, v2 = `model: {modelFormat: {name: x}, storageUri: "s3://m/1"}`, `predictor: {name: v2, model: {storageUri: "s3://m/2"}}`
	predictor, variant := of("", model, ""), of("v2", model, "{"+v2+", trafficPercent: 0}")
	for what, tc := range map[string]struct{ got, want string }{
		"a variant beside the predictor":    {of("", model, "{"+v2+", trafficPercent: 0}"), predictor},
		"the share that KServe is told":     {of("v2", model, "{"+v2+", trafficPercent: 9}"), variant},
		"replicas of the predictor":         {of("v2", model+", minReplicas: 4", "{"+v2+", trafficPercent: 0}"), variant},
		"a variant beside the variant":      {of("v2", model, "{predictor: {name: v3}, trafficPercent: 0}, {"+v2+", trafficPercent: 0}"), variant},
		"a variant that is not there (yet)": {of("v2", model, ""), predictor},
	} {
		if tc.got != tc.want {
			t.Errorf("%s makes another revision", what)
		}
	}
	for what, other := range map[string]string{
		"another model of the variant":   of("v2", model, `{predictor: {name: v2, model: {storageUri: "s3://m/3"}}, trafficPercent: 0}`),
		"another timeout of both":        of("v2", model+", timeout: 5", "{"+v2+", trafficPercent: 0}"),
		"the predictor, not the variant": predictor,
	} {
		if other == variant {
			t.Errorf("%s makes no other revision", what)
		}
	}
}

func revision(t *testing.T, text string) (r struct {
	InferenceService, UID, Hash string
	Generation                  int64
},
) {
	t.Helper()
	var isvc kserve.InferenceService
	if err := yaml.Unmarshal([]byte(text), &isvc); err != nil {
		t.Fatal(err)
	}
	got, err := kserve.RevisionOf(&isvc, "")
	if err != nil {
		t.Fatal(err)
	}
	r.InferenceService, r.UID, r.Hash, r.Generation = got.InferenceService, string(got.UID), got.Hash, got.Generation
	return r
}
