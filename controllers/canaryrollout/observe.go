// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/routing"
)

// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=get;list;watch
// +kubebuilder:rbac:groups=networking.istio.io,resources=virtualservices,verbs=get;list;watch
// +kubebuilder:rbac:groups=gateway.networking.k8s.io,resources=httproutes,verbs=get;list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=services;pods,verbs=get;list;watch

func (r *Reconciler) observe(ctx context.Context, rollout *v1alpha1.CanaryRollout) (observed, error) {
	seen := observed{domain: r.domain, now: r.clock.Now()}
	if err := r.observeRoutes(ctx, rollout, &seen); err != nil {
		return seen, err
	}
	err := r.observeSides(ctx, rollout, &seen)
	if err != nil {
		return seen, err
	}
	if seen.service, err = service(ctx, r.client, rollout.Namespace, rollout.Name); err != nil {
		return seen, err
	}
	if seen.share == nil && !seen.stable.entry.Knative {
		entry, err := service(ctx, r.sides, rollout.Namespace, seen.stable.entry.Service)
		if err != nil {
			return seen, err
		}
		if entry != nil && len(entry.Spec.Ports) > 0 {
			seen.targetPort = &entry.Spec.Ports[0].TargetPort
		}
	}
	if err := r.observeOthers(ctx, rollout, &seen); err != nil {
		return seen, err
	}
	err = r.observeDrift(ctx, rollout, &seen)
	return seen, err
}

// observeSides reads the two sides, be they InferenceServices or revisions of one.
func (r *Reconciler) observeSides(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) error {
	if seen.provider.Name() == v1alpha1.ProviderKnative {
		err := r.observeShare(ctx, r.client, rollout, seen)
		if err == nil && !equality.Semantic.DeepEqual(seen.share.known(), rollout.Status.Revisions) {
			err = r.observeShare(ctx, r.live, rollout, seen) // which revisions there were is not known from anywhere else
		}
		return err
	}
	err := r.observeGateway(ctx, rollout, seen)
	if err != nil {
		return err
	}
	if seen.stable, err = r.side(ctx, rollout, rollout.Spec.Stable, *seen); err != nil {
		return err
	}
	seen.canary, err = r.side(ctx, rollout, rollout.Spec.Canary, *seen)
	return err
}

// observeRoutes reads the rollout's own routes and the one that it adopts, and settles the provider.
func (r *Reconciler) observeRoutes(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) error {
	around := surroundings{domain: r.domain, served: routesFor[bool]{}, owned: routesFor[bool]{}}
	named := routesFor[*unstructured.Unstructured]{}
	for _, p := range r.domain.Providers() {
		var err error
		if around.served[p.Name()], err = r.kinds.has(p.Kind()); err != nil {
			return err
		}
		if named[p.Name()], err = r.route(ctx, p, rollout.Namespace, rollout.Name); err != nil {
			return err
		}
		around.owned[p.Name()] = owns(rollout, named[p.Name()]) || orphaned(rollout, named[p.Name()])
	}
	kserves, err := r.route(ctx, r.domain.HTTPRoutes(), rollout.Namespace, rollout.Spec.Stable.InferenceService)
	if err != nil {
		return err
	}
	around.kserveUsesHTTPRoutes = kserves != nil && kserve.Controls(kserves)
	seen.provider = providerFor(rollout, around)
	seen.served = around.served[seen.provider.Name()] || seen.provider.Name() == v1alpha1.ProviderKnative
	seen.route = named[seen.provider.Name()]
	for _, p := range r.domain.Providers() {
		if p != seen.provider && owns(rollout, named[p.Name()]) {
			seen.former = named[p.Name()]
		}
	}
	if ref, ok := routing.Adopted(rollout); ok && ref.Provider != v1alpha1.ProviderKnative {
		seen.adopted, err = r.route(ctx, r.domain.ProviderNamed(ref.Provider), rollout.Namespace, ref.Name)
	}
	return err
}

// side observes one side. One that does not exist, or is being deleted, has no ready endpoint; its entry is then the one
// that the live route has for it.
func (r *Reconciler) side(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, of v1alpha1.RolloutSide, seen observed,
) (side, error) {
	var isvc kserve.InferenceService
	served, err := r.kinds.has(kserve.GroupVersionKind)
	if err != nil {
		return side{}, err
	}
	if served {
		err = r.client.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: of.InferenceService}, &isvc)
	}
	if !served || apierrors.IsNotFound(err) {
		return side{
			of: of, entry: guessEntry(rollout, of, seen), gateway: seen.gateway.host,
			revision: v1alpha1.CanaryRevision{InferenceService: of.InferenceService, Variant: of.Variant},
		}, nil
	}
	if err != nil {
		return side{}, fmt.Errorf("reading InferenceService %q: %w", of.InferenceService, err)
	}
	one := side{
		of: of, exists: isvc.DeletionTimestamp == nil && kserve.HasVariant(&isvc, of.Variant),
		supported: kserve.UsesServices(&isvc) || kserve.UsesKnative(&isvc), mode: isvc.Status.DeploymentMode,
		entry: kserve.EntryOf(&isvc, of.Variant), gateway: seen.gateway.host,
		transformed: kserve.Has(&isvc, v1alpha1.ComponentTransformer),
	}
	one.workload = one.entry.Service
	if one.revision, err = kserve.RevisionOf(&isvc, of.Variant); err != nil {
		return side{}, err
	}
	if one.exists && one.supported {
		if one.entry.Knative {
			err = r.observeRevisions(ctx, rollout.Namespace, kserve.ServingOf(&isvc), &one)
			return one, err
		}
		if err = r.observeEndpoints(ctx, rollout.Namespace, &one); err == nil {
			err = r.observePods(ctx, rollout.Namespace, &one)
		}
	}
	return one, err
}

func guessEntry(rollout *v1alpha1.CanaryRollout, of v1alpha1.RolloutSide, seen observed) kserve.Entry {
	entries := kserve.GuessEntries(of.InferenceService, of.Variant)
	for _, entry := range entries {
		if mentions(seen, seen.destination(rollout, side{entry: entry, gateway: seen.gateway.host})) {
			return entry
		}
	}
	return entries[0]
}

// observeEndpoints counts the endpoints of a side. KServe's own condition will not do: it turns False when a Deployment
// has fewer pods than a scale-out has just asked for, while all of the old ones serve.
func (r *Reconciler) observeEndpoints(ctx context.Context, namespace string, one *side) error {
	var found discoveryv1.EndpointSliceList
	err := r.sides.List(ctx, &found, client.InNamespace(namespace),
		client.MatchingLabels{discoveryv1.LabelServiceName: one.entry.Service}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return fmt.Errorf("listing endpoints of Service %q: %w", one.entry.Service, err)
	}
	one.pods, one.ill = podsOf(found.Items)
	one.ready = int32(len(one.pods)) //nolint:gosec // no Service has that many.
	return nil
}

// observePods finds out what the pods of a side tell of it.
func (r *Reconciler) observePods(ctx context.Context, namespace string, one *side) error {
	pods, err := r.podsBehind(ctx, namespace, one.entry)
	if err != nil {
		return err
	}
	one.learn(pods)
	return nil
}

// learn finds out by which names the pods of a side know their models, and from which templates they are made: from
// those of all pods that are to stay, which are of both kinds while an update goes on.
func (s *side) learn(pods []corev1.Pod) {
	for i := range pods {
		pod := &pods[i]
		if pod.DeletionTimestamp != nil {
			continue
		}
		s.models = append(s.models, kserve.ModelNames(pod)...)
		template := pod.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
		if ended := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded; template != "" && !ended {
			s.templates = append(s.templates, template)
		}
	}
	slices.Sort(s.models)
	slices.Sort(s.templates)
	s.models, s.templates = slices.Compact(s.models), slices.Compact(s.templates)
}

// podsOf returns the ready endpoints of a Service's slices by their addresses, and how many are to stay and are not
// ready. A Service of two address families has each pod twice; the family with more ready ones counts.
func podsOf(list []discoveryv1.EndpointSlice) (ready []Pod, ill int32) {
	type family struct {
		ready map[string]Pod
		ill   map[string]bool
	}
	families := map[discoveryv1.AddressType]family{}
	for i := range list {
		slice := &list[i]
		of, known := families[slice.AddressType]
		if !known {
			of = family{map[string]Pod{}, map[string]bool{}}
			families[slice.AddressType] = of
		}
		for _, endpoint := range slice.Endpoints {
			switch {
			case len(endpoint.Addresses) == 0:
			case endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready:
				of.ready[endpoint.Addresses[0]] = podOf(endpoint, slice.Ports)
			case endpoint.Conditions.Terminating == nil || !*endpoint.Conditions.Terminating:
				of.ill[endpoint.Addresses[0]] = true
			}
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(families)) {
		of := families[kind]
		if ready == nil || len(of.ready) > len(ready) {
			ready, ill = make([]Pod, 0, len(of.ready)), 0
			for _, address := range slices.Sorted(maps.Keys(of.ready)) {
				ready = append(ready, of.ready[address])
			}
			for address := range of.ill {
				if _, both := of.ready[address]; !both { // while it moves from one slice to another
					ill++
				}
			}
		}
	}
	return ready, ill
}

func podOf(endpoint discoveryv1.Endpoint, ports []discoveryv1.EndpointPort) Pod {
	pod := Pod{Name: endpoint.Addresses[0], Address: endpoint.Addresses[0]}
	if target := endpoint.TargetRef; target != nil {
		pod.Name, pod.UID = target.Name, target.UID
	}
	if len(ports) > 0 && ports[0].Port != nil {
		pod.Port = *ports[0].Port
	}
	return pod
}

// observeOthers finds out who has a better right to the route, and who delegates to it.
func (r *Reconciler) observeOthers(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) error {
	var rollouts v1alpha1.CanaryRolloutList
	if err := r.client.List(ctx, &rollouts, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing CanaryRollouts: %w", err)
	}
	routes, err := r.routes(ctx)
	if err != nil {
		return err
	}
	seen.rival = r.domain.FindRival(rollout, rollouts.Items, routes)
	if rollout.Spec.Routing.Mode == v1alpha1.RoutingDelegate {
		seen.root = routing.FindRoot(routes, rollout.Namespace, rollout.Name)
	}
	return nil
}

// routes lists the routes of all providers that are served.
func (r *Reconciler) routes(ctx context.Context) ([]unstructured.Unstructured, error) {
	var all []unstructured.Unstructured
	for _, p := range r.domain.Providers() {
		served, err := r.kinds.has(p.Kind())
		if err != nil {
			return nil, err
		}
		if !served {
			continue
		}
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(p.Kind().GroupVersion().WithKind(p.Kind().Kind + "List"))
		if err := r.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("listing %ss: %w", p.Kind().Kind, err)
		}
		all = append(all, list.Items...)
	}
	return all, nil
}

// route reads a route, nil if there is none.
func (r *Reconciler) route(
	ctx context.Context, p routing.Provider, namespace, name string,
) (*unstructured.Unstructured, error) {
	served, err := r.kinds.has(p.Kind())
	if !served || err != nil {
		return nil, err
	}
	route := routing.NewRoute(p)
	err = r.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, route)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %q: %w", p.Kind().Kind, name, err)
	}
	return route, nil
}

// service reads a Service, nil if there is none.
func service(ctx context.Context, reader client.Reader, namespace, name string) (*corev1.Service, error) {
	var service corev1.Service
	err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &service)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Service %q: %w", name, err)
	}
	return &service, nil
}
