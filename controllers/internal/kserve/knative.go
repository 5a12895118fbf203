// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"strings"

	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"knative.dev/pkg/apis"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// knativeWebhook ends the names of Knative's webhooks, and so stands in what the API server says of an object that one of
// them will not have.
const knativeWebhook = "webhook.serving.knative.dev"

// RefusalByKnative returns why Knative will not have what KServe makes of a component, in Knative's words, or "".
// There is no pod of the component then, or none of its newest spec.
func RefusalByKnative(isvc *InferenceService, component v1alpha1.Component) string {
	kinds := map[v1alpha1.Component]apis.ConditionType{
		v1alpha1.ComponentPredictor: v1beta1.PredictorReady, v1alpha1.ComponentTransformer: v1beta1.TransformerReady,
	}
	c := isvc.Status.GetCondition(kinds[component])
	if c == nil || c.Status != corev1.ConditionFalse || !strings.Contains(c.Message, knativeWebhook) {
		return ""
	}
	_, words, found := strings.Cut(c.Message, "denied the request: ")
	if !found {
		words = c.Message
	}
	return strings.TrimRight(strings.Join(strings.Fields(words), " "), ":.")
}
