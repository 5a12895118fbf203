// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"sync"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// Subject is what a decision is made about: the pods of one component of one InferenceService.
type Subject struct {
	// Labels and Annotations are those of the InferenceService.
	Labels, Annotations map[string]string
	// ModelURI is the address of the component's first model, "" if the InferenceService itself does not give one.
	ModelURI string
	// Component is the component; pods of one that no policy can name get nothing.
	Component v1alpha1.Component
	// Object returns the InferenceService as JSON for CEL expressions. It is called only if there are any; nil means
	// that the InferenceService is not known, and then no policy with a condition picks it.
	Object func() (map[string]any, error)
}

// SubjectOf returns the pods of a component of an InferenceService, which must not be changed afterwards.
func SubjectOf(isvc *kserve.InferenceService, component v1alpha1.Component) Subject {
	var uri string
	if uris := kserve.StorageURIs(isvc, component); len(uris) > 0 {
		uri = uris[0]
	}
	return Subject{
		ModelURI:    uri,
		Labels:      isvc.Labels,
		Annotations: kserve.AnnotationsOf(isvc, component),
		Component:   component,
		Object:      sync.OnceValues(func() (map[string]any, error) { return kserve.Content(isvc) }),
	}
}
