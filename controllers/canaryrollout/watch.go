// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/routing"
)

// workers is how many rollouts are reconciled at once, so that many edits at one time do not queue behind each other.
const workers = 8

// echoDelay is how long a change of a route waits before it wakes a rollout. Most are echoes of the controller's
// own writes, and those would otherwise be looked at with a status in the cache that is about to be outdated. What is
// certain to be no echo does not wait.
const echoDelay = 25 * time.Millisecond

// SetupWithManager registers the controller and its watches. KServe's kinds and those of routes may come later, and may
// have gone: rollouts that are left must be able to end.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	sides, err := sidesOf(mgr)
	if err != nil {
		return err
	}
	r.sides = sides.GetClient()
	urgent := newUrgency()
	b := builder.ControllerManagedBy(mgr)
	if analyst, ok := r.asker.(*Analyst); ok {
		if err := mgr.Add(analyst); err != nil {
			return fmt.Errorf("adding the analyst: %w", err)
		}
		b = b.WatchesRawSource(source.Channel(
			analyst.answered, urgent.first(&handler.EnqueueRequestForObject{}, disproved)))
	}
	if stove, ok := r.warmer.(*Stove); ok {
		if err := mgr.Add(stove); err != nil {
			return fmt.Errorf("adding the stove: %w", err)
		}
		b = b.WatchesRawSource(source.Channel(stove.warmed, &handler.EnqueueRequestForObject{}))
	}
	c, err := b.
		Named(Name).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: workers, NewQueue: urgent.queue,
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](retryFirst, retryMost),
		}).
		// For and Owns know no urgency; these are the same with it.
		Watches(&v1alpha1.CanaryRollout{}, urgent.first(&handler.EnqueueRequestForObject{}, lowered), builder.WithPredicates(
			predicate.Or(predicate.GenerationChangedPredicate{}, changed(readOfVerbs)))).
		Watches(&corev1.Service{}, handler.EnqueueRequestForOwner(
			mgr.GetScheme(), mgr.GetRESTMapper(), &v1alpha1.CanaryRollout{}, handler.OnlyControllerOwner())).
		Watches(&v1alpha1.CanaryRollout{}, r.waking(r.byClaim), builder.WithPredicates(changed(r.readOfClaims))).
		Watches(&corev1.Pod{}, r.waking(byLabel), builder.WithPredicates(changed(readOfPod))).
		WatchesRawSource(source.Kind[client.Object](
			sides.GetCache(), &corev1.Service{}, r.waking(byLabel), changed(readOfService))).
		WatchesRawSource(source.Kind[client.Object](
			sides.GetCache(), &discoveryv1.EndpointSlice{}, urgent.first(r.waking(byLabel), fewer), changed(readOfEndpoints))).
		Build(r.measured(mgr.GetClient()))
	if err != nil {
		return err
	}
	err = r.watch(mgr, kserve.GroupVersionKind, func() error {
		return c.Watch(source.Kind[client.Object](mgr.GetCache(), &kserve.InferenceService{},
			urgent.first(r.waking(byInferenceService), leaving), changed(readOfInferenceService)))
	})
	if err != nil {
		return err
	}
	for _, p := range r.domain.Providers() {
		err := r.watch(mgr, p.Kind(), func() error {
			return c.Watch(source.Kind[client.Object](
				mgr.GetCache(), routing.NewRoute(p), r.wakingLate(r.byRoute), changed(r.readOfRoute)))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// watch begins a watch as soon as the API server serves its kind.
func (r *Reconciler) watch(mgr ctrl.Manager, kind schema.GroupVersionKind, begin func() error) error {
	served, err := r.kinds.has(kind)
	if err != nil {
		return err
	}
	if served {
		return begin()
	}
	return mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		return wait.PollUntilContextCancel(ctx, kindsInterval, false, func(context.Context) (bool, error) {
			if served, err := r.kinds.has(kind); err != nil || !served {
				return false, nil //nolint:nilerr // an API server that is away now is asked again.
			}
			return true, begin()
		})
	}))
}

// sidesOf adds a second cache to the manager, of the Services and EndpointSlices of InferenceServices. Those in the
// manager's own cache are Outrigger's, and no one selector picks both.
func sidesOf(mgr ctrl.Manager) (cluster.Cluster, error) {
	ofInferenceServices, err := labels.NewRequirement(kserve.LabelInferenceService, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("selecting by label: %w", err)
	}
	only := cache.ByObject{Label: labels.NewSelector().Add(*ofInferenceServices)}
	sides, err := cluster.New(mgr.GetConfig(), func(o *cluster.Options) {
		o.Scheme = mgr.GetScheme()
		o.Logger = mgr.GetLogger()
		o.MapperProvider = func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return mgr.GetRESTMapper(), nil }
		o.Cache = cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         map[client.Object]cache.ByObject{&corev1.Service{}: only, &discoveryv1.EndpointSlice{}: only},
		}
	})
	if err != nil {
		return nil, fmt.Errorf("making a cache of InferenceServices' Services: %w", err)
	}
	if err := mgr.Add(sides); err != nil {
		return nil, fmt.Errorf("adding a cache of InferenceServices' Services: %w", err)
	}
	return sides, nil
}

// concerns returns what tells which rollouts a change of an object concerns. There are many rollouts, so all that does not
// depend on them is worked out before.
type concerns func(object client.Object) func(rollout *v1alpha1.CanaryRollout) bool

// waking returns a handler that wakes every rollout that a change concerns.
func (r *Reconciler) waking(concerned concerns) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(r.concerned(concerned))
}

// wakingLate is waking after echoDelay.
func (r *Reconciler) wakingLate(concerned concerns) handler.EventHandler {
	wake := func(ctx context.Context, object client.Object, after time.Duration, q workQueue) {
		for _, request := range r.concerned(concerned)(ctx, object) {
			q.AddAfter(request, after)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q workQueue) { wake(ctx, e.Object, echoDelay, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q workQueue) {
			after := echoDelay
			if meddled(e.ObjectNew) {
				after = 0
			}
			wake(ctx, e.ObjectOld, after, q)
			wake(ctx, e.ObjectNew, after, q)
		},
		DeleteFunc:  func(ctx context.Context, e event.DeleteEvent, q workQueue) { wake(ctx, e.Object, echoDelay, q) },
		GenericFunc: func(ctx context.Context, e event.GenericEvent, q workQueue) { wake(ctx, e.Object, echoDelay, q) },
	}
}

// meddled reports whether a route of Outrigger's own is not as Outrigger wrote it.
func meddled(object client.Object) bool {
	route, ok := object.(*unstructured.Unstructured)
	mark := object.GetAnnotations()[v1alpha1.AnnotationAppliedHash]
	if !ok || mark == "" {
		return false
	}
	fingerprint, err := routing.Fingerprint(route)
	return err == nil && fingerprint != mark
}

func (r *Reconciler) concerned(concerned concerns) handler.MapFunc {
	return func(ctx context.Context, object client.Object) []reconcile.Request {
		var rollouts v1alpha1.CanaryRolloutList
		if err := r.client.List(ctx, &rollouts, client.UnsafeDisableDeepCopy); err != nil {
			ctrl.LoggerFrom(ctx).Error(err, "Listing CanaryRollouts")
			return nil
		}
		var requests []reconcile.Request
		is := concerned(object)
		for i := range rollouts.Items {
			if rollout := &rollouts.Items[i]; is(rollout) {
				requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(rollout)})
			}
		}
		return requests
	}
}

// byClaim: when one of two rollouts for the same route goes or changes, the other may have it.
func (r *Reconciler) byClaim(object client.Object) func(*v1alpha1.CanaryRollout) bool {
	other, ok := object.(*v1alpha1.CanaryRollout)
	if !ok {
		return none
	}
	claims := r.domain.Claims(other)
	return func(rollout *v1alpha1.CanaryRollout) bool {
		return other.UID != rollout.UID && routing.Overlap(r.domain.Claims(rollout), claims)
	}
}

// byRoute: a route concerns the rollout that owns or adopts it, or to whose it delegates, those that want its hosts, and
// those whose InferenceServices KServe made it for.
func (r *Reconciler) byRoute(object client.Object) func(*v1alpha1.CanaryRollout) bool {
	route, ok := object.(*unstructured.Unstructured)
	if !ok {
		return none
	}
	namespace, name := route.GetNamespace(), route.GetName()
	claims := map[string][]routing.Claim{} // as a namespace sees them
	return func(rollout *v1alpha1.CanaryRollout) bool {
		ref, _ := routing.Adopted(rollout)
		if namespace == rollout.Namespace && (name == rollout.Name || name == ref.Name ||
			name == rollout.Spec.Stable.InferenceService || name == rollout.Spec.Canary.InferenceService) {
			return true
		}
		seen, known := claims[rollout.Namespace]
		if !known {
			seen = r.domain.ClaimsOf(route, rollout.Namespace)
			claims[rollout.Namespace] = seen
		}
		return routing.DelegatesTo(route, rollout.Namespace, rollout.Name) || routing.Overlap(r.domain.Claims(rollout), seen)
	}
}

func byInferenceService(object client.Object) func(*v1alpha1.CanaryRollout) bool {
	return naming(object.GetNamespace(), object.GetName())
}

// byLabel: KServe labels a Service with its InferenceService, and Kubernetes copies a Service's labels to its slices.
func byLabel(object client.Object) func(*v1alpha1.CanaryRollout) bool {
	return naming(object.GetNamespace(), object.GetLabels()[kserve.LabelInferenceService])
}

// naming tells which rollouts name an InferenceService.
func naming(namespace, inferenceService string) func(*v1alpha1.CanaryRollout) bool {
	if inferenceService == "" {
		return none
	}
	return func(rollout *v1alpha1.CanaryRollout) bool {
		return rollout.Namespace == namespace && (rollout.Spec.Stable.InferenceService == inferenceService ||
			rollout.Spec.Canary.InferenceService == inferenceService)
	}
}

func none(*v1alpha1.CanaryRollout) bool { return false }

// changed returns a predicate that lets an update pass only if it changed what the controller reads of the object.
func changed(read func(client.Object) any) predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !reflect.DeepEqual(read(e.ObjectOld), read(e.ObjectNew))
	}}
}

func (r *Reconciler) readOfRoute(object client.Object) any {
	route, ok := object.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	return []any{
		route.Object["spec"], route.GetOwnerReferences(), route.GetLabels()[v1alpha1.LabelManagedBy], route.GetUID(),
		r.domain.ProviderOf(route).Acceptance(route),
	}
}

// readOfClaims is what other rollouts may want too.
func (r *Reconciler) readOfClaims(object client.Object) any {
	rollout, ok := object.(*v1alpha1.CanaryRollout)
	if !ok {
		return nil
	}
	return []any{r.domain.Claims(rollout), rollout.DeletionTimestamp == nil}
}

func readOfVerbs(object client.Object) any {
	annotations := object.GetAnnotations()
	return []any{
		annotations[v1alpha1.AnnotationPromote], annotations[v1alpha1.AnnotationSkip],
		annotations[v1alpha1.AnnotationAbort], annotations[v1alpha1.AnnotationRetry],
	}
}

func readOfInferenceService(object client.Object) any {
	isvc, ok := object.(*kserve.InferenceService)
	if !ok {
		return nil
	}
	return []any{
		kserve.EntryOf(isvc, ""), isvc.Status.DeploymentMode, kserve.ServingOf(isvc), kserve.ShareOf(isvc),
		isvc.DeletionTimestamp == nil, isvc.UID, isvc.Generation,
	}
}

func readOfPod(object client.Object) any {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return nil
	}
	read := []any{kserve.ModelNames(pod), pod.DeletionTimestamp == nil}
	if kserve.IsOfRevision(pod.Labels) { // the others are counted by their endpoints
		read = append(read, isReady(pod), pod.Status.PodIP, pod.Status.Phase)
	}
	return read
}

func readOfService(object client.Object) any {
	service, ok := object.(*corev1.Service)
	if !ok || len(service.Spec.Ports) == 0 {
		return nil
	}
	return service.Spec.Ports[0].TargetPort
}

func readOfEndpoints(object client.Object) any {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil
	}
	ready, ill := podsOf([]discoveryv1.EndpointSlice{*slice})
	return []any{ready, ill}
}
