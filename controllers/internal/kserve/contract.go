// SPDX-License-Identifier: Apache-2.0

// Package kserve is the only one that knows KServe's kinds, labels, container names and conditions.
//
// InferenceServices are read and patched, never updated: a typed object of one version would drop fields of another.
package kserve

import (
	"fmt"
	"maps"

	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	"github.com/kserve/kserve/pkg/constants"
	"k8s.io/apimachinery/pkg/runtime"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Names of the containers that KServe makes.
const (
	// ContainerPredictor runs the model.
	ContainerPredictor = constants.InferenceServiceContainerName
	// ContainerTransformer prepares requests, in a pod of its own or in the predictor's.
	ContainerTransformer = constants.TransformerContainerName
	// ContainerWorker runs a part of a model that spans nodes.
	ContainerWorker = constants.WorkerContainerName
	// ContainerStorageInitializer is the init container that fetches the model.
	ContainerStorageInitializer = constants.StorageInitializerContainerName
)

// ReservedContainers are those that KServe or Knative put into pods beside the ones above.
var ReservedContainers = []string{
	ContainerStorageInitializer, constants.QueueProxyContainerName, constants.AgentContainerName,
	constants.ModelcarContainerName, constants.ModelcarInitContainerName,
}

// LabelInferenceService is on every pod of an InferenceService and holds its name.
var LabelInferenceService = constants.InferenceServicePodLabelKey

// labelComponent is on every pod of an InferenceService and tells its component.
const labelComponent = constants.KServiceComponentLabel

// InferenceService and InferenceServiceList are KServe's kinds.
type (
	// InferenceService is KServe's kind.
	InferenceService = v1beta1.InferenceService
	// InferenceServiceList is a list of InferenceServices.
	InferenceServiceList = v1beta1.InferenceServiceList
)

// GroupVersionKind is that of an InferenceService.
var GroupVersionKind = v1beta1.SchemeGroupVersion.WithKind("InferenceService")

// AddToScheme registers KServe's kinds.
func AddToScheme(scheme *runtime.Scheme) error {
	return v1beta1.AddToScheme(scheme)
}

// ComponentOf tells from its labels which component a pod belongs to; "" is none that a SidecarPolicy can name.
func ComponentOf(labels map[string]string) v1alpha1.Component {
	switch labels[labelComponent] {
	case string(v1beta1.PredictorComponent):
		return v1alpha1.ComponentPredictor
	case string(v1beta1.TransformerComponent):
		return v1alpha1.ComponentTransformer
	default:
		return ""
	}
}

// AnnotationsOf returns the annotations that hold for a component: those of the InferenceService, and over them those
// of the component itself.
func AnnotationsOf(isvc *InferenceService, component v1alpha1.Component) map[string]string {
	merged := maps.Clone(isvc.Annotations)
	if merged == nil {
		merged = map[string]string{}
	}
	switch component {
	case v1alpha1.ComponentPredictor:
		maps.Copy(merged, isvc.Spec.Predictor.Annotations)
	case v1alpha1.ComponentTransformer:
		if isvc.Spec.Transformer != nil {
			maps.Copy(merged, isvc.Spec.Transformer.Annotations)
		}
	}
	return merged
}

// Content returns an InferenceService as JSON without its status: names, labels, annotations and spec.
func Content(isvc *InferenceService) (map[string]any, error) {
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&isvc.Spec)
	if err != nil {
		return nil, fmt.Errorf("converting InferenceService %s: %w", isvc.Name, err)
	}
	metadata := map[string]any{"name": isvc.Name, "namespace": isvc.Namespace}
	for key, values := range map[string]map[string]string{"labels": isvc.Labels, "annotations": isvc.Annotations} {
		if len(values) == 0 {
			continue
		}
		content := make(map[string]any, len(values))
		for k, v := range values {
			content[k] = v
		}
		metadata[key] = content
	}
	return map[string]any{
		"apiVersion": GroupVersionKind.GroupVersion().String(), "kind": GroupVersionKind.Kind,
		"metadata": metadata, "spec": spec,
	}, nil
}

// Has reports whether an InferenceService has a component.
func Has(isvc *InferenceService, component v1alpha1.Component) bool {
	return component == v1alpha1.ComponentPredictor || component == v1alpha1.ComponentTransformer && isvc.Spec.Transformer != nil
}

// StorageURIs returns the addresses that a component's models come from, as far as the InferenceService itself gives
// them: none for those whose address is in a storage secret.
func StorageURIs(isvc *InferenceService, component v1alpha1.Component) []string {
	var list []v1beta1.StorageUri
	var implementation *v1beta1.ComponentImplementation
	switch component {
	case v1alpha1.ComponentPredictor:
		list = isvc.Spec.Predictor.StorageUris
		implementation = first(isvc.Spec.Predictor.GetImplementations())
	case v1alpha1.ComponentTransformer:
		if isvc.Spec.Transformer != nil {
			list = isvc.Spec.Transformer.StorageUris
			implementation = first(isvc.Spec.Transformer.GetImplementations())
		}
	}
	var uris []string
	for i := range list {
		uris = append(uris, list[i].Uri)
	}
	if implementation != nil {
		if uri := (*implementation).GetStorageUri(); uri != nil && *uri != "" {
			uris = append(uris, *uri)
		}
	}
	return uris
}

// FetchesModel reports whether a component has a model to be fetched, by an address or by a storage secret.
func FetchesModel(isvc *InferenceService, component v1alpha1.Component) bool {
	if len(StorageURIs(isvc, component)) > 0 {
		return true
	}
	implementation := first(isvc.Spec.Predictor.GetImplementations())
	if component == v1alpha1.ComponentTransformer {
		implementation = nil
		if isvc.Spec.Transformer != nil {
			implementation = first(isvc.Spec.Transformer.GetImplementations())
		}
	}
	return implementation != nil && (*implementation).GetStorageSpec() != nil
}

// LocalModel returns the name of the LocalModelCache that KServe mounts in place of fetching the predictor's model, or "".
func LocalModel(isvc *InferenceService) string { return isvc.Labels[constants.LocalModelLabel] }

func first(list []v1beta1.ComponentImplementation) *v1beta1.ComponentImplementation {
	if len(list) == 0 {
		return nil
	}
	return &list[0]
}

// PredictorReady reports whether the predictor can take requests, by KServe's own condition.
func PredictorReady(isvc *InferenceService) bool {
	return isvc.Status.IsConditionReady(v1beta1.PredictorReady)
}

// PredictorService returns the name of the Service in front of the predictor's pods, in KServe's Standard mode.
func PredictorService(isvc *InferenceService) string {
	return constants.PredictorServiceName(isvc.Name, isvc.Spec.Predictor.Name)
}

// PredictorSelector returns the labels that pick the predictor's pods, in KServe's Standard mode. It is not the pair of
// labels by which KServe finds, and deletes, what it takes for its own.
func PredictorSelector(isvc *InferenceService) map[string]string {
	return map[string]string{"app": constants.GetRawServiceLabel(PredictorService(isvc))}
}
