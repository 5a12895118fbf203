// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"slices"
	"strings"

	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	"github.com/kserve/kserve/pkg/constants"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Entry is where requests for an InferenceService enter it: at its transformer if there is one, at its predictor
// otherwise.
type Entry struct {
	// Service is the name of its Service, which in Knative mode is the name by which Knative's gateway knows it.
	Service string
	// Port is the first port of the Service, or that of the gateway.
	Port int32
	// Knative tells whether requests enter by Knative's gateway and not by a Service in front of the pods.
	Knative bool
	// Selector picks the pods behind it. It is not the pair of labels by which KServe finds, and deletes, what it takes
	// for its own.
	Selector map[string]string
}

// EntryOf returns the entry of an InferenceService or, if variant is not empty, of that variant of its predictor.
func EntryOf(isvc *InferenceService, variant string) Entry {
	predictor := PredictorService(isvc)
	switch {
	case UsesKnative(isvc) && isvc.Spec.Transformer != nil:
		return knativeEntry(isvc.Name, constants.TransformerServiceName(isvc.Name), v1beta1.TransformerComponent)
	case UsesKnative(isvc):
		return knativeEntry(isvc.Name, predictor, v1beta1.PredictorComponent)
	case variant != "":
		return entry(constants.PredictorServiceName(isvc.Name, variant))
	case isvc.Spec.Transformer != nil:
		return entry(constants.TransformerServiceName(isvc.Name))
	default:
		return entry(predictor)
	}
}

// HasVariant reports whether an InferenceService has a variant of its predictor: an entry of spec.canary, or the
// predictor itself, which a variant becomes when it is promoted by giving its name to the predictor. All have the
// variant without a name.
func HasVariant(isvc *InferenceService, variant string) bool {
	return variant == "" || variant == isvc.Spec.Predictor.Name || canaryNamed(isvc, variant) != nil
}

func canaryNamed(isvc *InferenceService, name string) *v1beta1.CanarySpec {
	for i := range isvc.Spec.Canary {
		if isvc.Spec.Canary[i].Predictor.Name == name {
			return &isvc.Spec.Canary[i]
		}
	}
	return nil
}

// GuessEntries returns the entries that an InferenceService of a name, or a variant of it, may have had that does not
// exist, the likeliest first.
func GuessEntries(name, variant string) []Entry {
	if variant != "" {
		return []Entry{entry(constants.PredictorServiceName(name, variant))}
	}
	predictor, transformer := constants.PredictorServiceName(name), constants.TransformerServiceName(name)
	return []Entry{
		entry(predictor), entry(transformer),
		knativeEntry(name, predictor, v1beta1.PredictorComponent),
		knativeEntry(name, transformer, v1beta1.TransformerComponent),
	}
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
