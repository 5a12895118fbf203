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
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
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
	settings sidecar.Settings
	memo     *Memo
}

// Memo keeps decisions for the controllers of this package, which ask for the same ones. The zero value is ready for use.
type Memo struct{ sidecar.Memo }

// under returns a function that decides by policies.
func (m *Memo) under(
	policies []v1alpha1.SidecarPolicy,
) func(*kserve.InferenceService, v1alpha1.Component) sidecar.Decision {
	named := sidecar.PoliciesOf(policies)
	return func(isvc *kserve.InferenceService, component v1alpha1.Component) sidecar.Decision {
		return m.Resolve(isvc, component, named)
	}
}

// New returns a Reconciler that holds policies to the administrator's settings, and reads from the API server what it needs
// but once.
func New(
	c client.Client, live client.Reader, clk clock.PassiveClock, recorder record.EventRecorder, settings sidecar.Settings,
	memo *Memo,
) *Reconciler {
	return &Reconciler{
		client:   c,
		live:     live,
		clock:    clk,
		reporter: status.NewReporter(c, recorder, fieldManager),
		settings: settings,
		memo:     memo,
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
	accepted, err := r.accept(ctx, policy)
	if err != nil {
		return reconcile.Result{}, err
	}
	after := policy.DeepCopy()
	isNews := setAccepted(after, accepted)
	seen.decide = r.memo.under(with(seen.policies, after))
	t := newTally(after, seen, r.clock.Now())
	if isNews {
		t.rollout.postpone() // until the webhook knows
	}
	v, err := r.roll(ctx, t.rollout.due)
	after.Status = statusFor(after, seen, t, v)
	reported := r.reporter.Report(ctx, policy, after, func(o client.Object) []metav1.Condition {
		return o.(*v1alpha1.SidecarPolicy).Status.Conditions //nolint:forcetypeassert // Report passes what it was given.
	})
	// One that was deleted meanwhile has nothing to be told of.
	return status.Result(wake(t, v, accepted), errors.Join(err, client.IgnoreNotFound(reported)))
}

// observe reads lists that it shares with the cache: nothing may be changed in them.
func (r *Reconciler) observe(ctx context.Context, policy *v1alpha1.SidecarPolicy) (observed, error) {
	here := client.InNamespace(policy.Namespace)
	seen := observed{memcachedExists: true, settings: r.settings, pods: map[string][]metav1.ObjectMeta{}}
	var services kserve.InferenceServiceList
	if err := r.client.List(ctx, &services, here, client.UnsafeDisableDeepCopy); err != nil {
		return seen, fmt.Errorf("listing InferenceServices: %w", err)
	}
	var policies v1alpha1.SidecarPolicyList
	if err := r.client.List(ctx, &policies, here, client.UnsafeDisableDeepCopy); err != nil {
		return seen, fmt.Errorf("listing SidecarPolicies: %w", err)
	}
	pods := podMetadataList()
	err := r.client.List(ctx, pods, here, client.HasLabels{kserve.LabelInferenceService}, client.UnsafeDisableDeepCopy)
	if err != nil {
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
	if isShared(policy) {
		set := &appsv1.DaemonSet{}
		key := client.ObjectKey{Namespace: policy.Namespace, Name: v1alpha1.NodeCacheName(memcachedName(policy))}
		if err := client.IgnoreNotFound(r.client.Get(ctx, key, set)); err != nil {
			return seen, fmt.Errorf("reading the feature caches: %w", err)
		}
		seen.nodeCaches = nodeCacheCount{ready: set.Status.NumberReady, wanted: set.Status.DesiredNumberScheduled}
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
	neighbours := collected(r.policiesBeside)
	return builder.ControllerManagedBy(mgr).
		Named(Name).
		For(&v1alpha1.SidecarPolicy{}, builder.WithPredicates(policyChanged())).
		Watches(&v1alpha1.SidecarPolicy{}, neighbours, builder.WithPredicates(policyChanged())).
		Watches(&kserve.InferenceService{}, neighbours, builder.WithPredicates(serviceChanged())).
		Watches(&v1alpha1.Memcached{}, neighbours, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&appsv1.DaemonSet{}, neighbours, builder.WithPredicates(nodeCachesChanged())).
		WatchesMetadata(podMetadata(), neighbours, builder.WithPredicates(podChanged())).
		Complete(reconcile.AsReconciler(mgr.GetClient(), r))
}

// crowdDelay is how long events are collected: a policy speaks of all InferenceServices and pods of its namespace, and they
// come in crowds.
const crowdDelay = 500 * time.Millisecond

// collected enqueues what events stand for a little later, once for all that come in between.
func collected(requests handler.MapFunc) handler.EventHandler {
	add := func(ctx context.Context, o client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		for _, one := range requests(ctx, o) {
			q.AddAfter(one, crowdDelay)
		}
	}
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { add(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) { add(ctx, e.ObjectNew, q) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { add(ctx, e.Object, q) },
	}
}

// policyChanged passes events of policies that can change what is decided by them.
func policyChanged() predicate.Predicate {
	accepted := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*v1alpha1.SidecarPolicy)
		after, alsoOK := e.ObjectNew.(*v1alpha1.SidecarPolicy)
		return ok && alsoOK && acceptedFor(before) != acceptedFor(after)
	}}
	return predicate.Or[client.Object](predicate.GenerationChangedPredicate{}, accepted)
}

// nodeCachesChanged passes events of feature caches that can change how many nodes have one.
func nodeCachesChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*appsv1.DaemonSet)
		after, alsoOK := e.ObjectNew.(*appsv1.DaemonSet)
		return ok && alsoOK && (before.Status.NumberReady != after.Status.NumberReady ||
			before.Status.DesiredNumberScheduled != after.Status.DesiredNumberScheduled)
	}}
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
	err := r.client.List(ctx, &policies, client.InNamespace(object.GetNamespace()), client.UnsafeDisableDeepCopy)
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing SidecarPolicies", "namespace", object.GetNamespace())
		return nil
	}
	requests := make([]reconcile.Request, 0, len(policies.Items))
	for i := range policies.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&policies.Items[i])})
	}
	return requests
}
