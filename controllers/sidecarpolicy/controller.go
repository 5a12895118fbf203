// SPDX-License-Identifier: Apache-2.0

// Package sidecarpolicy reports on SidecarPolicy objects: what they pick, and which pods carry what they ask for.
//
// New pods are equipped by the pod webhook. Where a policy says so, KServe is asked to replace those that run, by one
// annotation of the InferenceService's component; nothing else of an InferenceService is written but one condition, and
// no pod is.
package sidecarpolicy

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/status"
)

// Name is the controller's name.
const Name = "sidecarpolicy"

const fieldManager = "outrigger-sidecarpolicy"

// Reconciler keeps the status of SidecarPolicies true.
type Reconciler struct {
	client client.Client
	// live reads the one ReplicaSet that a trial needs: a cache would keep all of the cluster's.
	live     client.Reader
	clock    clock.PassiveClock
	reporter *status.Reporter
	images   sidecar.Images
}

// New returns a Reconciler that holds policies to the images that are allowed, and reads from the API server what it
// needs but once.
func New(
	c client.Client, live client.Reader, clk clock.PassiveClock, recorder record.EventRecorder, images sidecar.Images,
) *Reconciler {
	return &Reconciler{
		client: c, live: live, clock: clk, reporter: status.NewReporter(c, recorder, fieldManager), images: images,
	}
}

// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=sidecarpolicies,verbs=get;list;watch
// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=sidecarpolicies/status,verbs=patch
// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=memcacheds,verbs=get;list;watch
// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch

// Reconcile has pods replaced that a SidecarPolicy wants replaced, and brings its status up to date.
func (r *Reconciler) Reconcile(ctx context.Context, policy *v1alpha1.SidecarPolicy) (reconcile.Result, error) {
	if policy.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	seen, err := r.observe(ctx, policy)
	if err != nil {
		return reconcile.Result{}, err
	}
	t := newTally(policy, seen, r.clock.Now())
	v, err := r.roll(ctx, t.rollout.due)
	after := policy.DeepCopy()
	after.Status = statusFor(policy, seen, t, v)
	reported := r.reporter.Report(ctx, policy, after, func(o client.Object) []metav1.Condition {
		return o.(*v1alpha1.SidecarPolicy).Status.Conditions //nolint:forcetypeassert // Report passes what it was given.
	})
	return status.Result(wake(t, v), errors.Join(err, reported))
}

func (r *Reconciler) observe(ctx context.Context, policy *v1alpha1.SidecarPolicy) (observed, error) {
	here := client.InNamespace(policy.Namespace)
	seen := observed{memcachedExists: true, images: r.images, pods: map[string][]metav1.ObjectMeta{}}
	var services kserve.InferenceServiceList
	if err := r.client.List(ctx, &services, here); err != nil {
		return seen, fmt.Errorf("listing InferenceServices: %w", err)
	}
	var policies v1alpha1.SidecarPolicyList
	if err := r.client.List(ctx, &policies, here); err != nil {
		return seen, fmt.Errorf("listing SidecarPolicies: %w", err)
	}
	pods := podMetadataList()
	if err := r.client.List(ctx, pods, here, client.HasLabels{kserve.LabelInferenceService}); err != nil {
		return seen, fmt.Errorf("listing pods: %w", err)
	}
	seen.services, seen.policies = services.Items, policies.Items
	for i := range pods.Items {
		meta := pods.Items[i].ObjectMeta
		if name := meta.Labels[kserve.LabelInferenceService]; meta.DeletionTimestamp == nil {
			seen.pods[name] = append(seen.pods[name], meta)
		}
	}
	if name := memcachedName(policy); name != "" {
		err := r.client.Get(ctx, client.ObjectKey{Namespace: policy.Namespace, Name: name}, &v1alpha1.Memcached{})
		if err != nil && !apierrors.IsNotFound(err) {
			return seen, fmt.Errorf("reading Memcached %q: %w", name, err)
		}
		seen.memcachedExists = err == nil
	}
	return seen, nil
}

// podMetadataList asks for metadata only: whole pods of all InferenceServices would fill the manager's memory.
func podMetadataList() *metav1.PartialObjectMetadataList {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(podKind.GroupVersion().WithKind("PodList"))
	return list
}

// SetupWithManager registers the controller and its watches.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	// What a policy has come to depends on all others of its namespace, so one change wakes them all.
	neighbours := handler.EnqueueRequestsFromMapFunc(r.policiesBeside)
	return builder.ControllerManagedBy(mgr).
		Named(Name).
		For(&v1alpha1.SidecarPolicy{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.SidecarPolicy{}, neighbours, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&kserve.InferenceService{}, neighbours, builder.WithPredicates(serviceChanged())).
		Watches(&v1alpha1.Memcached{}, neighbours, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(podMetadata(), neighbours, builder.WithPredicates(podChanged())).
		Complete(reconcile.AsReconciler(mgr.GetClient(), r))
}

// serviceChanged passes events of InferenceServices that can change what is decided about them; KServe writes their
// status often.
func serviceChanged() predicate.Predicate {
	return predicate.Or[client.Object](
		predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{},
	)
}

func (r *Reconciler) policiesBeside(ctx context.Context, object client.Object) []reconcile.Request {
	var policies v1alpha1.SidecarPolicyList
	if err := r.client.List(ctx, &policies, client.InNamespace(object.GetNamespace())); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing SidecarPolicies", "namespace", object.GetNamespace())
		return nil
	}
	requests := make([]reconcile.Request, 0, len(policies.Items))
	for i := range policies.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&policies.Items[i])})
	}
	return requests
}
