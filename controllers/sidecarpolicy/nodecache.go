// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/apply"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/status"
)

// NodeCacheName is the name of the controller of feature caches that run one a node.
const NodeCacheName = "sidecarpolicy-nodecache"

const nodeCacheManager = "outrigger-nodecache"

// NodeCacheReconciler runs a feature cache on every node for each Memcached that a policy shares. They belong to the
// Memcached, and stay until no policy and no pod uses them.
type NodeCacheReconciler struct {
	client   client.Client
	applier  *apply.Applier
	recorder record.EventRecorder
	image    string
	memo     *Memo
}

// NewNodeCacheReconciler returns a NodeCacheReconciler that runs image, and asks live whether a name is taken.
func NewNodeCacheReconciler(
	c client.Client, live client.Reader, recorder record.EventRecorder, image string, memo *Memo,
) *NodeCacheReconciler {
	return &NodeCacheReconciler{
		client: c, applier: apply.New(c, live, nodeCacheManager), recorder: recorder, image: image, memo: memo,
	}
}

// nodeCacheSeen is what the feature caches of a Memcached depend on.
type nodeCacheSeen struct {
	// services, policies and pods are all of the namespace.
	services []kserve.InferenceService
	policies []v1alpha1.SidecarPolicy
	pods     []metav1.PartialObjectMetadata
	// decide returns what the policies together decide for a component of an InferenceService.
	decide func(*kserve.InferenceService, v1alpha1.Component) sidecar.Decision
	// daemonSet and service are those that are there and belong to the Memcached; nil if there are none.
	daemonSet, service client.Object
}

// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=memcacheds;sidecarpolicies,verbs=get;list;watch
// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=memcacheds/finalizers,verbs=update
// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=apps,resources=daemonsets,verbs=get;list;watch;create;patch;delete

// Reconcile makes the feature caches of a Memcached, or takes them away.
func (r *NodeCacheReconciler) Reconcile(ctx context.Context, m *v1alpha1.Memcached) (reconcile.Result, error) {
	if m.DeletionTimestamp != nil {
		return reconcile.Result{}, nil // owner references take the rest
	}
	seen, err := r.observe(ctx, m)
	if err != nil {
		return reconcile.Result{}, err
	}
	err = r.apply(ctx, m, seen)
	if stalled, ok := status.AsStalled(err); ok {
		r.recorder.Event(m, corev1.EventTypeWarning, stalled.Reason, stalled.Message)
	}
	return status.Result(0, err)
}

func (r *NodeCacheReconciler) observe(ctx context.Context, m *v1alpha1.Memcached) (nodeCacheSeen, error) {
	var seen nodeCacheSeen
	here := client.InNamespace(m.Namespace)
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
	seen.services, seen.policies, seen.pods = services.Items, policies.Items, pods.Items
	seen.decide = r.memo.under(policies.Items)
	for into, o := range map[*client.Object]client.Object{&seen.daemonSet: &appsv1.DaemonSet{}, &seen.service: &corev1.Service{}} {
		err := r.client.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: v1alpha1.NodeCacheName(m.Name)}, o)
		if client.IgnoreNotFound(err) != nil {
			return seen, fmt.Errorf("reading the feature caches: %w", err)
		}
		if err == nil && metav1.IsControlledBy(o, m) {
			*into = o
		}
	}
	return seen, nil
}

// isWanted reports whether a policy shares the feature caches of a Memcached, or anybody uses them.
func (s *nodeCacheSeen) isWanted(memcached string) bool {
	cache := sidecar.FeatureCache{Memcached: memcached, Shared: true}
	for i := range s.policies {
		if f := s.policies[i].Spec.FeatureCache; f != nil && f.Mode == v1alpha1.FeatureCacheShared &&
			f.MemcachedRef.Name == memcached {
			return true
		}
	}
	for i := range s.services {
		for _, component := range components {
			if f := s.decide(&s.services[i], component).Plan.FeatureCache; f != nil && *f == cache {
				return true
			}
		}
	}
	for i := range s.pods {
		if cache.Carries(s.pods[i].Annotations) {
			return true
		}
	}
	return false
}

// apply makes the Service last and takes it away first, so that no connection finds a Service without a cache.
func (r *NodeCacheReconciler) apply(ctx context.Context, m *v1alpha1.Memcached, seen nodeCacheSeen) error {
	if seen.isWanted(m.Name) {
		for _, desired := range []any{nodeCaches(m, r.image), nodeCacheService(m)} {
			if _, err := r.applier.Apply(ctx, m, desired); err != nil {
				return err
			}
		}
		return nil
	}
	var errs []error
	for _, o := range []client.Object{seen.service, seen.daemonSet} {
		if o != nil {
			errs = append(errs, r.applier.Delete(ctx, o))
		}
	}
	return errors.Join(errs...)
}

// SetupWithManager registers the controller and its watches.
func (r *NodeCacheReconciler) SetupWithManager(mgr ctrl.Manager) error {
	beside := collected(r.memcachedsBeside)
	return builder.ControllerManagedBy(mgr).
		Named(NodeCacheName).
		For(&v1alpha1.Memcached{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&appsv1.DaemonSet{}).
		Owns(&corev1.Service{}).
		Watches(&v1alpha1.SidecarPolicy{}, beside, builder.WithPredicates(policyChanged())).
		Watches(&kserve.InferenceService{}, beside, builder.WithPredicates(serviceChanged())).
		WatchesMetadata(podMetadata(), beside, builder.WithPredicates(podChanged())).
		Complete(reconcile.AsReconciler(mgr.GetClient(), r))
}

func (r *NodeCacheReconciler) memcachedsBeside(ctx context.Context, object client.Object) []reconcile.Request {
	var memcacheds v1alpha1.MemcachedList
	if err := r.client.List(ctx, &memcacheds, client.InNamespace(object.GetNamespace())); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing Memcacheds", "namespace", object.GetNamespace())
		return nil
	}
	requests := make([]reconcile.Request, 0, len(memcacheds.Items))
	for i := range memcacheds.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&memcacheds.Items[i])})
	}
	return requests
}
