// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"slices"
	"strings"

	"github.com/kserve/kserve/pkg/constants"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Entry is the Service at which requests for an InferenceService enter it, in KServe's Standard mode: that of the
// transformer if there is one, of the predictor otherwise.
type Entry struct {
	// Service is its name.
	Service string
	// Port is its first port.
	Port int32
	// Selector picks the pods behind it. It is not the pair of labels by which KServe finds, and deletes, what it takes
	// for its own.
	Selector map[string]string
}

// EntryOf returns the entry of an InferenceService.
func EntryOf(isvc *InferenceService) Entry {
	if isvc.Spec.Transformer != nil {
		return entry(constants.TransformerServiceName(isvc.Name))
	}
	return entry(PredictorService(isvc))
}

// GuessEntries returns the entries that an InferenceService of a name may have had that does not exist, the likeliest
// first.
func GuessEntries(name string) []Entry {
	return []Entry{entry(constants.PredictorServiceName(name)), entry(constants.TransformerServiceName(name))}
}

func entry(service string) Entry {
	return Entry{
		Service: service, Port: constants.CommonDefaultHttpPort,
		Selector: map[string]string{"app": constants.GetRawServiceLabel(service)},
	}
}

// Controls reports whether an object was made, and is kept, for an InferenceService.
func Controls(object metav1.Object) bool {
	owner := metav1.GetControllerOf(object)
	return owner != nil && owner.Kind == GroupVersionKind.Kind && strings.HasPrefix(owner.APIVersion, GroupVersionKind.Group+"/")
}

// UsesServices reports whether requests for an InferenceService enter it by a Service in front of its pods: true in
// KServe's Standard mode, and before KServe has recorded a mode.
func UsesServices(isvc *InferenceService) bool {
	standard := []string{"", string(constants.Standard), string(constants.LegacyRawDeployment)}
	return slices.Contains(standard, isvc.Status.DeploymentMode)
}
