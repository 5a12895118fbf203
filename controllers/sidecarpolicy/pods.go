// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"serverless.xyz/outrigger/controllers/internal/kserve"
)

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

func podMetadata() *metav1.PartialObjectMetadata {
	pod := &metav1.PartialObjectMetadata{}
	pod.SetGroupVersionKind(podKind)
	return pod
}

// podChanged passes events of pods of InferenceServices that can change a count.
func podChanged() predicate.Predicate {
	ours := predicate.NewPredicateFuncs(func(o client.Object) bool {
		return o.GetLabels()[kserve.LabelInferenceService] != ""
	})
	changed := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !maps.Equal(e.ObjectOld.GetAnnotations(), e.ObjectNew.GetAnnotations()) ||
			!maps.Equal(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels()) ||
			(e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
	}}
	return predicate.And(ours, changed)
}
