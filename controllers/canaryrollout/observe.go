// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/routing"
)

// +kubebuilder:rbac:groups=serving.kserve.io,resources=inferenceservices,verbs=get;list;watch
// +kubebuilder:rbac:groups=networking.istio.io,resources=virtualservices,verbs=get;list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch

func (r *Reconciler) observe(ctx context.Context, rollout *v1alpha1.CanaryRollout) (observed, error) {
	var seen observed
	var err error
	if seen.virtualService, err = r.virtualService(ctx, rollout.Namespace, rollout.Name); err != nil {
		return seen, err
	}
	if ref := rollout.Spec.Routing.VirtualServiceRef; ref != nil {
		if seen.adopted, err = r.virtualService(ctx, rollout.Namespace, ref.Name); err != nil {
			return seen, err
		}
	}
	if seen.stable, err = r.side(ctx, rollout, rollout.Spec.Stable.InferenceService, seen.virtualService); err != nil {
		return seen, err
	}
	if seen.canary, err = r.side(ctx, rollout, rollout.Spec.Canary.InferenceService, seen.virtualService); err != nil {
		return seen, err
	}
	if seen.service, err = service(ctx, r.client, rollout.Namespace, rollout.Name); err != nil {
		return seen, err
	}
	entry, err := service(ctx, r.sides, rollout.Namespace, seen.stable.entry.Service)
	if err != nil {
		return seen, err
	}
	if entry != nil && len(entry.Spec.Ports) > 0 {
		seen.targetPort = &entry.Spec.Ports[0].TargetPort
	}
	err = r.observeOthers(ctx, rollout, &seen)
	return seen, err
}

// side observes one InferenceService. One that does not exist, or is being deleted, has no ready endpoint; its entry is
// then the one that the live route has for it.
func (r *Reconciler) side(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, name string, live *unstructured.Unstructured,
) (side, error) {
	var isvc kserve.InferenceService
	err := r.client.Get(ctx, client.ObjectKey{Namespace: rollout.Namespace, Name: name}, &isvc)
	if apierrors.IsNotFound(err) {
		return side{
			name: name, entry: guessEntry(rollout, name, live), revision: v1alpha1.CanaryRevision{InferenceService: name},
		}, nil
	}
	if err != nil {
		return side{}, fmt.Errorf("reading InferenceService %q: %w", name, err)
	}
	one := side{
		name: name, exists: isvc.DeletionTimestamp == nil,
		supported: kserve.UsesServices(&isvc), entry: kserve.EntryOf(&isvc),
	}
	if one.revision, err = kserve.RevisionOf(&isvc); err != nil {
		return side{}, err
	}
	if one.exists && one.supported {
		one.ready, err = r.readyEndpoints(ctx, rollout.Namespace, one.entry.Service)
	}
	return one, err
}

func guessEntry(rollout *v1alpha1.CanaryRollout, name string, live *unstructured.Unstructured) kserve.Entry {
	entries := kserve.GuessEntries(name)
	for _, entry := range entries {
		if live != nil && routing.Mentions(live, routing.ServiceHost(entry.Service, rollout.Namespace)) {
			return entry
		}
	}
	return entries[0]
}

// readyEndpoints counts the endpoints of a Service that are ready. KServe's own condition will not do: it turns False
// when a Deployment has fewer pods than a scale-out has just asked for, while all of the old ones serve.
func (r *Reconciler) readyEndpoints(ctx context.Context, namespace, service string) (int32, error) {
	var slices discoveryv1.EndpointSliceList
	err := r.sides.List(ctx, &slices, client.InNamespace(namespace),
		client.MatchingLabels{discoveryv1.LabelServiceName: service}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return 0, fmt.Errorf("listing endpoints of Service %q: %w", service, err)
	}
	return countReady(slices.Items), nil
}

// countReady counts the ready endpoints of a Service's slices. A Service of two address families has each pod twice.
func countReady(slices []discoveryv1.EndpointSlice) int32 {
	addresses := map[discoveryv1.AddressType]map[string]bool{}
	for i := range slices {
		family := slices[i].AddressType
		if addresses[family] == nil {
			addresses[family] = map[string]bool{}
		}
		for _, endpoint := range slices[i].Endpoints {
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
			if ready && len(endpoint.Addresses) > 0 {
				addresses[family][endpoint.Addresses[0]] = true
			}
		}
	}
	most := 0
	for _, one := range addresses {
		most = max(most, len(one))
	}
	return int32(most)
}

// observeOthers finds out who has a better right to the route, and who delegates to it.
func (r *Reconciler) observeOthers(ctx context.Context, rollout *v1alpha1.CanaryRollout, seen *observed) error {
	var rollouts v1alpha1.CanaryRolloutList
	if err := r.client.List(ctx, &rollouts, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing CanaryRollouts: %w", err)
	}
	list := newVirtualServiceList()
	if err := r.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing VirtualServices: %w", err)
	}
	seen.rival = routing.FindRival(rollout, rollouts.Items, list.Items)
	seen.root = routing.FindRoot(list.Items, rollout.Namespace, rollout.Name)
	return nil
}

// virtualService reads a VirtualService, nil if there is none.
func (r *Reconciler) virtualService(ctx context.Context, namespace, name string) (*unstructured.Unstructured, error) {
	vs := routing.NewVirtualService()
	err := r.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, vs)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading VirtualService %q: %w", name, err)
	}
	return vs, nil
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

func newVirtualServiceList() *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(routing.VirtualServiceKind.GroupVersion().WithKind(routing.VirtualServiceKind.Kind + "List"))
	return list
}
