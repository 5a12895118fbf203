// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
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

// ServicesName is the name of the controller that speaks to the authors of InferenceServices.
const ServicesName = "sidecarpolicy-services"

// ServiceReconciler tells the author of an InferenceService, by a condition and an event there, what of that which was
// asked for its pods do not get. It writes nothing else.
type ServiceReconciler struct {
	client   client.Client
	clock    clock.PassiveClock
	recorder record.EventRecorder
	memo     *Memo
}

// NewServiceReconciler returns a ServiceReconciler.
func NewServiceReconciler(
	c client.Client, clk clock.PassiveClock, recorder record.EventRecorder, memo *Memo,
) *ServiceReconciler {
	return &ServiceReconciler{client: c, clock: clk, recorder: recorder, memo: memo}
}

// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=get;list;watch
// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch

// Reconcile brings the warning of an InferenceService up to date.
func (r *ServiceReconciler) Reconcile(ctx context.Context, isvc *kserve.InferenceService) (reconcile.Result, error) {
	if isvc.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	seen, err := r.observe(ctx, isvc)
	if err != nil {
		return reconcile.Result{}, err
	}
	return status.Result(0, r.report(ctx, isvc, warningFor(isvc, seen)))
}

// observe reads lists that it shares with the cache: nothing may be changed in them.
func (r *ServiceReconciler) observe(ctx context.Context, isvc *kserve.InferenceService) (around, error) {
	here := client.InNamespace(isvc.Namespace)
	var seen around
	var policies v1alpha1.SidecarPolicyList
	if err := r.client.List(ctx, &policies, here, client.UnsafeDisableDeepCopy); err != nil {
		return seen, fmt.Errorf("listing SidecarPolicies: %w", err)
	}
	seen.decisions = map[v1alpha1.Component]sidecar.Decision{}
	decide := r.memo.under(policies.Items)
	for _, component := range components {
		if kserve.Has(isvc, component) {
			seen.decisions[component] = decide(isvc, component)
		}
	}
	pods := podMetadataList()
	ofService := client.MatchingLabels{kserve.LabelInferenceService: isvc.Name}
	if err := r.client.List(ctx, pods, here, ofService, client.UnsafeDisableDeepCopy); err != nil {
		return seen, fmt.Errorf("listing pods: %w", err)
	}
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp == nil {
			seen.pods = append(seen.pods, pods.Items[i].ObjectMeta)
		}
	}
	seen.memcacheds = map[string]bool{}
	for _, name := range seen.caches() {
		err := r.client.Get(ctx, client.ObjectKey{Namespace: isvc.Namespace, Name: name}, &v1alpha1.Memcached{})
		if client.IgnoreNotFound(err) != nil {
			return seen, fmt.Errorf("reading Memcached %q: %w", name, err)
		}
		seen.memcacheds[name] = !apierrors.IsNotFound(err)
	}
	return seen, nil
}

// report writes the warning if it is not there yet, and sends an event when it is new or gone.
func (r *ServiceReconciler) report(ctx context.Context, isvc *kserve.InferenceService, want *kserve.Warning) error {
	const kind = v1alpha1.ConditionSidecarsIncomplete
	have := kserve.WarningOf(isvc, kind)
	if have == want || have != nil && want != nil && *have == *want {
		return nil
	}
	patch, err := kserve.WarningPatch(isvc, kind, want, r.clock.Now())
	if err != nil {
		return err
	}
	target := isvc.DeepCopy()
	err = r.client.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(fieldManager))
	if err != nil {
		return fmt.Errorf("writing a condition of the InferenceService: %w", err)
	}
	if want == nil {
		r.recorder.Event(isvc, corev1.EventTypeNormal, v1alpha1.ReasonSidecarsComplete, "New pods get all that is asked for.")
		return nil
	}
	r.recorder.Event(isvc, corev1.EventTypeWarning, want.Reason, want.Message)
	return nil
}

// SetupWithManager registers the controller and its watches.
func (r *ServiceReconciler) SetupWithManager(mgr ctrl.Manager) error {
	beside := handler.EnqueueRequestsFromMapFunc(r.servicesBeside)
	return builder.ControllerManagedBy(mgr).
		Named(ServicesName).
		For(&kserve.InferenceService{}, builder.WithPredicates(predicate.Or[client.Object](
			serviceChanged(), refusalChanged(), predicate.NewPredicateFuncs(hasWarning),
		))).
		Watches(&v1alpha1.SidecarPolicy{}, beside, builder.WithPredicates(policyChanged())).
		Watches(&v1alpha1.Memcached{}, beside, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(podMetadata(), handler.EnqueueRequestsFromMapFunc(serviceOf), builder.WithPredicates(podChanged())).
		Complete(reconcile.AsReconciler(mgr.GetClient(), r))
}

// refusalChanged passes updates that tell something new about what Knative refuses.
func refusalChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*kserve.InferenceService)
		after, alsoOK := e.ObjectNew.(*kserve.InferenceService)
		return ok && alsoOK && slices.ContainsFunc(components, func(c v1alpha1.Component) bool {
			return kserve.RefusalByKnative(before, c) != kserve.RefusalByKnative(after, c)
		})
	}}
}

// hasWarning passes InferenceServices that carry the warning, since somebody else may have edited it.
func hasWarning(o client.Object) bool {
	isvc, ok := o.(*kserve.InferenceService)
	return ok && kserve.WarningOf(isvc, v1alpha1.ConditionSidecarsIncomplete) != nil
}

func (r *ServiceReconciler) servicesBeside(ctx context.Context, object client.Object) []reconcile.Request {
	var services kserve.InferenceServiceList
	err := r.client.List(ctx, &services, client.InNamespace(object.GetNamespace()), client.UnsafeDisableDeepCopy)
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Listing InferenceServices", "namespace", object.GetNamespace())
		return nil
	}
	requests := make([]reconcile.Request, 0, len(services.Items))
	for i := range services.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&services.Items[i])})
	}
	return requests
}

func serviceOf(_ context.Context, pod client.Object) []reconcile.Request {
	name := pod.GetLabels()[kserve.LabelInferenceService]
	return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: pod.GetNamespace(), Name: name}}}
}

// podProblems returns what the webhook has written on pods, each once.
func podProblems(pods []metav1.ObjectMeta) []string {
	var list []string
	for i := range pods {
		if text := pods[i].Annotations[v1alpha1.AnnotationProblems]; text != "" &&
			pods[i].Annotations[v1alpha1.AnnotationInjected] != "" {
			list = append(list, text)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
