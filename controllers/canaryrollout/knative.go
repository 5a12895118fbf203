// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/status"
	"serverless.xyz/outrigger/routing"
)

// knativeGateway is where requests for InferenceServices in Knative mode go.
type knativeGateway struct {
	// host is that of its Service, and gateway Istio's Gateway at it, as namespace/name.
	host, gateway string
}

// observeGateway finds Knative's gateway where KServe has it: in the route that KServe makes for an InferenceService in
// Knative mode, which follows its configuration. Without such a route it is what the rollout's own route leads to
// already, or what Knative ships.
func (r *Reconciler) observeGateway(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) error {
	seen.gateway = knativeGateway{
		host:    r.domain.ServiceHost(kserve.KnativeGatewayService, kserve.KnativeGatewayNamespace),
		gateway: kserve.KnativeGateway,
	}
	for _, of := range []v1alpha1.RolloutSide{rollout.Spec.Stable, rollout.Spec.Canary} {
		kserves, err := r.route(ctx, r.domain.VirtualServices(), rollout.Namespace, of.InferenceService)
		if err != nil {
			return err
		}
		if kserves == nil || !kserve.Controls(kserves) {
			continue
		}
		if host, gateway := r.domain.FirstDestination(kserves); host != "" && gateway != "" {
			seen.gateway = knativeGateway{host: host, gateway: gateway}
			return nil
		}
	}
	for _, route := range ownRoutes(rollout, *seen) {
		if host := r.domain.SharedGateway(route); host != "" {
			seen.gateway.host = host
		}
	}
	return nil
}

// observeRevisions counts the pods of a side in Knative mode, which has no Service whose endpoints they are. A side that
// Knative may take to zero counts as one pod at least: one comes with the first request.
func (r *Reconciler) observeRevisions(
	ctx context.Context, namespace string, serving kserve.Serving, one *side,
) error {
	all, err := r.podsBehind(ctx, namespace, one.entry)
	if err != nil {
		return err
	}
	one.fromZero = serving.FromZero
	if len(serving.Revisions) > 0 {
		one.workload = kserve.WorkloadOf(serving.Revisions[0])
	}
	pods := ofRevisions(all, serving.Revisions) // others may be kept beside them for long
	one.learn(pods)
	one.templates = templatesOf(serving)
	if !serving.Routed {
		return nil
	}
	one.count(pods)
	if serving.FromZero {
		one.ready = max(one.ready, 1)
	}
	return nil
}

// templatesOf tells from what the pods of a side in Knative mode are made: from more than one revision while the newest is
// not the one that gets the requests.
func templatesOf(serving kserve.Serving) []string {
	var templates []string
	if len(serving.Revisions) > 0 {
		templates = append(templates, serving.Revisions[0])
	}
	if serving.Latest != "" {
		templates = append(templates, serving.Latest)
	}
	slices.Sort(templates)
	return slices.Compact(templates)
}

// ofRevisions returns the pods of some revisions.
func ofRevisions(pods []corev1.Pod, revisions []string) []corev1.Pod {
	var of []corev1.Pod
	for i := range pods {
		if slices.Contains(revisions, kserve.RevisionOfPod(pods[i].Labels)) {
			of = append(of, pods[i])
		}
	}
	return of
}

// count takes ready pods for those of a side, and counts those that are to stay and are not ready.
func (s *side) count(pods []corev1.Pod) {
	for i := range pods {
		pod := &pods[i]
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed: // another takes its place
		case isReady(pod):
			s.ready++
			s.pods = append(s.pods, Pod{
				Name: pod.Name, UID: pod.UID, Address: pod.Status.PodIP, Port: kserve.QueuePort(pod),
			})
		default:
			s.ill++
		}
	}
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue && pod.Status.PodIP != ""
		}
	}
	return false
}

// podsBehind lists the pods of an entry by name.
func (r *Reconciler) podsBehind(ctx context.Context, namespace string, entry kserve.Entry) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := r.client.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels(entry.Selector),
		client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("listing pods of Service %q: %w", entry.Service, err)
	}
	return pods.Items, nil
}

// unroutable returns what the user must change before a rollout between these sides can have a route, nil if nothing.
func unroutable(rollout *v1alpha1.CanaryRollout, seen observed) error {
	if seen.share != nil {
		return unshareable(seen.stable)
	}
	for _, one := range []side{seen.stable, seen.canary} {
		switch {
		case one.exists && !one.supported:
			return status.Stalledf(v1alpha1.ReasonUnsupportedDeploymentMode,
				"InferenceService %q is in deployment mode %s; make it Standard or Knative with the annotation "+
					"serving.kserve.io/deploymentMode", one.of.InferenceService, one.mode)
		case one.exists && one.entry.Knative && seen.provider.Name() != v1alpha1.ProviderVirtualService:
			return status.Stalledf(v1alpha1.ReasonUnsupportedByProvider,
				"InferenceService %q is in Knative mode, where the Host header tells the sides apart, which not every gateway "+
					"can set for a destination of an HTTPRoute; use routing.provider VirtualService", one.of.InferenceService)
		case one.of.Variant != "" && one.transformed:
			return status.Stalledf(v1alpha1.ReasonUnsupportedVariant,
				"InferenceService %q has a transformer, through which the requests for all its variants go; remove the "+
					"transformer, or make the variant %q an InferenceService of its own", one.of.InferenceService, one.of.Variant)
		}
	}
	if rollout.Spec.Shadow == nil {
		return nil
	}
	return refused(routing.Mirrors(seen.destination(rollout, seen.canary)))
}

// keepFromCold gives a canary that Knative may take to zero no more than it has: the first requests of a small share
// would wait for a pod each time. What it has stays: whoever lets it go to zero later knows that it takes requests.
func (p *plan) keepFromCold(rollout *v1alpha1.CanaryRollout, seen observed) {
	if !seen.canary.fromZero || p.outcome == routing.OutcomeStableNotReady {
		return
	}
	has := int32(0)
	_, adopts := routing.Adopted(rollout)
	if applied := rollout.Status.Weights.Applied; applied != nil &&
		(adopts || mentions(seen, seen.destination(rollout, seen.canary))) {
		has = applied.Canary
	}
	if p.weights.Canary > has {
		p.weights, p.outcome = routing.Desired(has), routing.OutcomeCanaryFromZero
	}
}
