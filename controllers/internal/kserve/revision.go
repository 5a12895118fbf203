// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// scaling are the fields of a component that say how many pods it has and what share of requests they get. They make no
// other revision.
var scaling = []string{
	"minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "canaryTrafficPercent",
}

// RevisionOf returns what tells an InferenceService, or a variant of its predictor, and what its pods are made from, from
// others.
func RevisionOf(isvc *InferenceService, variant string) (v1alpha1.CanaryRevision, error) {
	revision := v1alpha1.CanaryRevision{
		InferenceService: isvc.Name, Variant: variant, UID: isvc.UID, Generation: isvc.Generation,
	}
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&isvc.Spec)
	if err != nil {
		return revision, fmt.Errorf("converting InferenceService %s: %w", isvc.Name, err)
	}
	delete(spec, "canary")
	if canary := canaryNamed(isvc, variant); canary != nil {
		if spec["variant"], err = runtime.DefaultUnstructuredConverter.ToUnstructured(&canary.Predictor); err != nil {
			return revision, fmt.Errorf("converting variant %s of InferenceService %s: %w", variant, isvc.Name, err)
		}
	}
	for _, component := range []string{"predictor", "transformer", "explainer", "variant"} {
		fields, _ := spec[component].(map[string]any)
		for _, field := range scaling {
			delete(fields, field)
		}
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return revision, fmt.Errorf("encoding InferenceService %s: %w", isvc.Name, err)
	}
	sum := sha256.Sum256(raw)
	revision.Hash = hex.EncodeToString(sum[:8])
	return revision, nil
}
