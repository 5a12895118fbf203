// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"cmp"
	"slices"

	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	"github.com/kserve/kserve/pkg/constants"
	corev1 "k8s.io/api/core/v1"
	"knative.dev/pkg/kmeta"
)

// Names that KServe and Knative have as they ship.
const (
	// KnativeGatewayService is the Service, in KnativeGatewayNamespace, of Knative's gateway for callers inside the cluster,
	// which knows the InferenceServices of Knative mode by the Host header of their requests.
	KnativeGatewayService   = "knative-local-gateway"
	KnativeGatewayNamespace = "istio-system"
	// KnativeGateway is Istio's Gateway at that Service, as namespace/name.
	KnativeGateway = "knative-serving/knative-local-gateway"

	queuePortName = "queue-port"
	queuePort     = 8012
)

// UsesKnative reports whether an InferenceService runs in KServe's Knative mode.
func UsesKnative(isvc *InferenceService) bool {
	knative := []string{string(constants.Knative), string(constants.LegacyServerless)}
	return slices.Contains(knative, isvc.Status.DeploymentMode)
}

// Serving is how the entry of an InferenceService in Knative mode is served.
type Serving struct {
	// Routed tells whether Knative's gateway leads requests to it.
	Routed bool
	// Revisions are the names of those that get requests, the one with the most first.
	Revisions []string
	// Latest is the newest one, which gets none before it is ready.
	Latest string
	// FromZero tells whether Knative may take its last pod away, and makes one when a request comes.
	FromZero bool
}

// ServingOf returns how the entry of an InferenceService in Knative mode is served. KServe's Ready will not do: it turns
// False when a new revision fails to start, while the one before serves. Nor will that of its route, which is Unknown
// whenever Knative changes a way that goes on to lead requests: what has had an address has been reached once.
func ServingOf(isvc *InferenceService) Serving {
	component, route := v1beta1.PredictorComponent, v1beta1.PredictorRouteReady
	extension := isvc.Spec.Predictor.ComponentExtensionSpec
	if isvc.Spec.Transformer != nil {
		component, route = v1beta1.TransformerComponent, v1beta1.TransformerRouteReady
		extension = isvc.Spec.Transformer.ComponentExtensionSpec
	}
	shares := map[string]int64{}
	for _, target := range isvc.Status.Components[component].Traffic {
		if target.Percent != nil && *target.Percent > 0 && target.RevisionName != "" {
			shares[target.RevisionName] += *target.Percent
		}
	}
	s := Serving{
		Routed: isvc.Status.Components[component].Address != nil && !isvc.Status.GetCondition(route).IsFalse() &&
			!isvc.Status.GetCondition(v1beta1.Stopped).IsTrue() && len(shares) > 0,
		Latest:   isvc.Status.Components[component].LatestCreatedRevision,
		FromZero: extension.MinReplicas != nil && *extension.MinReplicas == 0,
	}
	for revision := range shares {
		s.Revisions = append(s.Revisions, revision)
	}
	slices.SortFunc(s.Revisions, func(a, b string) int {
		return cmp.Or(cmp.Compare(shares[b], shares[a]), cmp.Compare(a, b))
	})
	return s
}

// Share is what decides how revisions of an InferenceService share its traffic, as far as KServe reports it.
type Share struct {
	// Predictor is the status of the predictor, RouteReady and RouteMessage those of the way to it.
	Predictor  v1beta1.ComponentStatusSpec
	RouteReady corev1.ConditionStatus
	// RouteMessage is Knative's word on the way.
	RouteMessage string
}

// ShareOf returns what KServe reports of the traffic of an InferenceService in Knative mode.
func ShareOf(isvc *InferenceService) Share {
	s := Share{Predictor: isvc.Status.Components[v1beta1.PredictorComponent]}
	if condition := isvc.Status.GetCondition(v1beta1.PredictorRouteReady); condition != nil {
		s.RouteReady, s.RouteMessage = condition.Status, condition.Message
	}
	return s
}

// ReadyRevision returns the newest revision of the predictor that is ready, "" if none is.
func ReadyRevision(isvc *InferenceService) string {
	return isvc.Status.Components[v1beta1.PredictorComponent].LatestReadyRevision
}

// ScalesToZero reports whether Knative may take the last pod of the predictor away.
func ScalesToZero(isvc *InferenceService) bool {
	least := isvc.Spec.Predictor.MinReplicas
	return least != nil && *least == 0
}

// PredictorEntry returns the entry of the predictor of an InferenceService in Knative mode, be there a transformer in
// front of it or not.
func PredictorEntry(isvc *InferenceService) Entry {
	return knativeEntry(isvc.Name, PredictorService(isvc), v1beta1.PredictorComponent)
}

// PredictorHash identifies what the spec of an InferenceService makes the pods of its predictor from.
func PredictorHash(isvc *InferenceService) (string, error) {
	alone := isvc.DeepCopy()
	alone.Spec.Transformer, alone.Spec.Explainer = nil, nil
	revision, err := RevisionOf(alone, "")
	return revision.Hash, err
}

// RevisionOfPod returns the revision of Knative's that a pod with these labels belongs to, "" if none.
func RevisionOfPod(labels map[string]string) string { return labels[constants.RevisionLabel] }

// WorkloadOf returns the name of the Deployment of a revision of Knative's.
func WorkloadOf(revision string) string { return kmeta.ChildName(revision, "-deployment") }

// QueuePort returns the port at which a pod of a revision takes requests.
func QueuePort(pod *corev1.Pod) int32 {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name != constants.QueueProxyContainerName {
			continue
		}
		for _, port := range pod.Spec.Containers[i].Ports {
			if port.Name == queuePortName {
				return port.ContainerPort
			}
		}
	}
	return queuePort
}

// knativeEntry returns the entry of an InferenceService in Knative mode.
func knativeEntry(name, service string, component v1beta1.ComponentType) Entry {
	return Entry{
		Service: service, Port: constants.CommonDefaultHttpPort, Knative: true,
		Selector: map[string]string{LabelInferenceService: name, labelComponent: string(component)},
	}
}
