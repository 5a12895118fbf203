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
