// SPDX-License-Identifier: Apache-2.0

// Package podwebhook equips the pods of InferenceServices as they are created.
//
// It answers from caches, changes nothing but the pod in hand, and gives the same answer when asked again. When it
// cannot tell, it lets the pod pass unchanged: a sidecar is never a reason for a pod not to start.
package podwebhook

import (
	"context"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

// Path is where the webhook is served.
const Path = "/mutate-pods"

// Handler answers the admission of pods.
type Handler struct {
	reader  client.Reader
	live    client.Reader
	decoder admission.Decoder
	// settings are the administrator's.
	settings sidecar.Settings
	memo     sidecar.Memo
}

// New returns a Handler that reads InferenceServices and SidecarPolicies from a cache, and an InferenceService that is
// not there from the API server.
func New(cache, live client.Reader, decoder admission.Decoder, settings sidecar.Settings) *Handler {
	return &Handler{reader: cache, live: live, decoder: decoder, settings: settings}
}

// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=sidecarpolicies,verbs=get;list;watch
// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=get;list;watch

// Handle returns the patch that equips a pod, or none.
func (h *Handler) Handle(ctx context.Context, request admission.Request) admission.Response {
	var pod corev1.Pod
	if err := h.decoder.Decode(request, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	var policies v1alpha1.SidecarPolicyList
	err := h.reader.List(ctx, &policies, client.InNamespace(request.Namespace), client.UnsafeDisableDeepCopy)
	if err != nil {
		log.FromContext(ctx).Error(err, "Passing a pod unchanged, because policies cannot be read")
		return admission.Allowed("").WithWarnings("outrigger: policies cannot be read; the pod gets no sidecars")
	}
	decision := h.decide(ctx, request.Namespace, &pod, policies.Items)
	equipped := pod.DeepCopy()
	problems := slices.Concat(decision.Problems, sidecar.Inject(equipped, decision.Plan, h.settings))
	mutated, err := overlay(request.Object.Raw, &pod, equipped)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, mutated).WithWarnings(warnings(problems)...)
}

// decide tells what is decided about the pod's InferenceService. The cache may not have seen it yet; then it is read from
// the API server. KServe copies labels and annotations from there to the pod, so that the pod speaks for it if it cannot
// be read at all. Policies are the cache's own: nothing may be changed in them.
func (h *Handler) decide(
	ctx context.Context, namespace string, pod *corev1.Pod, policies []v1alpha1.SidecarPolicy,
) sidecar.Decision {
	component := kserve.ComponentOf(pod.Labels)
	service := &kserve.InferenceService{}
	key := client.ObjectKey{Namespace: namespace, Name: pod.Labels[kserve.LabelInferenceService]}
	err := h.reader.Get(ctx, key, service)
	if err != nil {
		err = h.live.Get(ctx, key, service)
	}
	if err != nil {
		log.FromContext(ctx).V(1).Info("Deciding by the pod alone", "InferenceService", key, "reason", err.Error())
		subject := sidecar.Subject{Labels: pod.Labels, Annotations: pod.Annotations, Component: component}
		return sidecar.Resolve(subject, policies)
	}
	return h.memo.Resolve(service, component, sidecar.PoliciesOf(policies))
}

func warnings(problems []sidecar.Problem) []string {
	list := make([]string, len(problems))
	for i, p := range problems {
		list[i] = "outrigger: " + p.Message
	}
	return list
}
