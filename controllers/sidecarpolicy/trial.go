// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/status"
)

// accept finds out, once for each generation of a policy, whether the API server accepts pods as the policy has them.
// What it refuses is tried again at every look.
func (r *Reconciler) accept(ctx context.Context, policy *v1alpha1.SidecarPolicy) (status.Condition, error) {
	c := status.Condition{
		Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAccepted,
		Message: "The API server accepts pods as the policy has them.",
	}
	have := meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.ConditionAccepted)
	isKnown := have != nil && have.ObservedGeneration == policy.Generation && have.Status == metav1.ConditionTrue
	if isKnown || !sidecar.CanBreakPods(&policy.Spec) {
		return c, nil
	}
	plain, equipped, invalid := sidecar.Trial(policy, r.settings)
	if invalid != nil {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonRefused, invalid.Error()+"."
		return c, nil //nolint:nilerr // what is wrong with the policy is no failure of ours.
	}
	refused, err := r.refused(ctx, equipped)
	if err != nil || refused == "" || isQuota(refused) { // quotas are asked last, when all others have accepted it
		return c, err
	}
	if other, err := r.refused(ctx, plain); err != nil || other != "" {
		return c, err // it is not the policy that is refused
	}
	c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonTrialRefused, refused+"."
	return c, nil
}

// refused makes a pod, dry, and returns the API server's words if it will not have it.
func (r *Reconciler) refused(ctx context.Context, pod *corev1.Pod) (string, error) {
	err := r.client.Create(ctx, pod, client.DryRunAll, client.FieldOwner(fieldManager))
	if refusal(err) {
		return err.Error(), nil
	}
	if err != nil {
		return "", fmt.Errorf("trying a pod: %w", err)
	}
	return "", nil
}

// verdict is what came of the restarts that were due.
type verdict struct {
	// started counts the restarts that were begun.
	started int32
	// service names the InferenceService whose trial pod put an end to it; "" if none did.
	service string
	// reason and message tell why.
	reason, message string
}

// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=patch
// +kubebuilder:rbac:groups=apps,resources=replicasets,verbs=get
// +kubebuilder:rbac:groups="",resources=pods,verbs=create

// roll begins the restarts that are due, each after a trial. The first trial that fails ends it.
func (r *Reconciler) roll(ctx context.Context, due []roll) (verdict, error) {
	var v verdict
	for i := range due {
		one := &due[i]
		reason, message, err := r.try(ctx, one)
		if err != nil {
			return v, err
		}
		if reason != "" {
			v.service, v.reason, v.message = one.service.Name, reason, message
			return v, nil
		}
		patch, err := kserve.RolloutPatch(one.service, one.component, one.value)
		if err != nil {
			return v, err
		}
		target := one.service.DeepCopy()
		err = r.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(fieldManager))
		if refusal(err) {
			v.service, v.reason, v.message = one.service.Name, v1alpha1.ReasonTrialRefused, err.Error()
			return v, nil
		}
		if err != nil {
			return v, fmt.Errorf("asking KServe to replace pods of InferenceService %q: %w", one.service.Name, err)
		}
		// A second component of the same InferenceService is patched over this version.
		for j := i + 1; j < len(due); j++ {
			if due[j].service.Name == target.Name {
				due[j].service = target
			}
		}
		v.started++
	}
	return v, nil
}

// try has the API server make a pod as the restart would, dry: with all defaults, admission and validation, and through
// the pod webhooks, ours among them. It returns a reason and a message if the restart must not be.
func (r *Reconciler) try(ctx context.Context, one *roll) (reason, message string, err error) {
	owner := metav1.GetControllerOf(&one.model)
	if owner == nil || owner.Kind != "ReplicaSet" {
		message = fmt.Sprintf("pod %s has no ReplicaSet: KServe would not replace it", one.model.Name)
		return v1alpha1.ReasonTrialRefused, message, nil
	}
	var replicas appsv1.ReplicaSet
	err = r.live.Get(ctx, client.ObjectKey{Namespace: one.model.Namespace, Name: owner.Name}, &replicas)
	if apierrors.IsNotFound(err) {
		// The pod goes with it, and the next look finds others.
		return v1alpha1.ReasonWaitingForWebhook, fmt.Sprintf("ReplicaSet %s is gone", owner.Name), nil
	}
	if err != nil {
		return "", "", fmt.Errorf("reading ReplicaSet %q: %w", owner.Name, err)
	}
	pod := trialPod(&replicas, one.value)
	message, err = r.refused(ctx, pod)
	switch {
	case err != nil:
		return "", "", err
	case message != "":
		return v1alpha1.ReasonTrialRefused, message, nil
	case pod.Annotations[v1alpha1.AnnotationInjected] != one.decision.Marks.Hash:
		return v1alpha1.ReasonWaitingForWebhook, "a trial pod came back without what it is to carry: " +
			"the webhook does not answer yet, or does not know the policy yet", nil
	}
	if text := newProblem(pod, one.pods); text != "" {
		return v1alpha1.ReasonTrialRefused, text, nil
	}
	return "", "", nil
}

// trialPod returns a pod of a ReplicaSet as it would be made once AnnotationRollout has a value.
func trialPod(replicas *appsv1.ReplicaSet, value string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: *replicas.Spec.Template.ObjectMeta.DeepCopy(), Spec: *replicas.Spec.Template.Spec.DeepCopy(),
	}
	// A name that stays the same, because the words of a refusal hold it.
	pod.Namespace, pod.Name = replicas.Namespace, replicas.Name+"-trial"
	pod.Annotations = maps.Clone(pod.Annotations)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[v1alpha1.AnnotationRollout] = value
	pod.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "ReplicaSet",
		Name: replicas.Name, UID: replicas.UID, Controller: new(true),
	}}
	return pod
}

// newProblem returns what a trial pod lacks and those that run do not lack, or "": pods are not replaced by worse ones.
func newProblem(trial *corev1.Pod, running []metav1.ObjectMeta) string {
	text := trial.Annotations[v1alpha1.AnnotationProblems]
	if slices.ContainsFunc(
		running,
		func(p metav1.ObjectMeta) bool { return p.Annotations[v1alpha1.AnnotationProblems] == text },
	) {
		return ""
	}
	return text
}

// refusal reports whether the API server will not have an object, as opposed to not answering or to a conflict.
func refusal(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err)
}

// isQuota reports whether a refusal speaks of a quota that is used up, which says nothing about the policy.
func isQuota(message string) bool { return strings.Contains(message, "exceeded quota") }
