// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"encoding/json"
	"fmt"
	"strings"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// RolloutOf returns the value of AnnotationRollout that a component of an InferenceService has, or "". What the
// InferenceService itself carries under that key does not count: KServe puts the component's over it.
func RolloutOf(isvc *InferenceService, component v1alpha1.Component) string {
	switch {
	case component == v1alpha1.ComponentPredictor:
		return isvc.Spec.Predictor.Annotations[v1alpha1.AnnotationRollout]
	case component == v1alpha1.ComponentTransformer && isvc.Spec.Transformer != nil:
		return isvc.Spec.Transformer.Annotations[v1alpha1.AnnotationRollout]
	default:
		return ""
	}
}

// RolloutPatch returns a JSON merge patch that sets AnnotationRollout on a component of an InferenceService, which KServe
// copies to the template of its pods. It fails with a conflict if the InferenceService has changed since it was read.
func RolloutPatch(isvc *InferenceService, component v1alpha1.Component, value string) ([]byte, error) {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": isvc.ResourceVersion},
		"spec": map[string]any{strings.ToLower(string(component)): map[string]any{
			"annotations": map[string]any{v1alpha1.AnnotationRollout: value},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding an annotation: %w", err)
	}
	return patch, nil
}

// IsOfRevision reports whether a pod with these labels belongs to a revision of Knative's, which may be kept beside
// newer ones for as long as its user likes.
func IsOfRevision(labels map[string]string) bool { return RevisionOfPod(labels) != "" }
