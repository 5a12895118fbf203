// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/routing"
)

// kindsInterval is how often a kind that is not served is asked for again.
const kindsInterval = 5 * time.Second

// servedKinds knows which kinds the API server serves. What is served stays so; what is not is asked for again after
// kindsInterval.
type servedKinds struct {
	mapper meta.RESTMapper
	clock  clock.PassiveClock

	mu      sync.Mutex
	served  map[schema.GroupVersionKind]bool
	missing map[schema.GroupVersionKind]time.Time // when it was last asked for
}

func newServedKinds(mapper meta.RESTMapper, clk clock.PassiveClock) *servedKinds {
	return &servedKinds{
		mapper: mapper, clock: clk,
		served: map[schema.GroupVersionKind]bool{}, missing: map[schema.GroupVersionKind]time.Time{},
	}
}

// has reports whether a kind is served. Nobody waits for an API server that is asked about another kind.
func (k *servedKinds) has(kind schema.GroupVersionKind) (bool, error) {
	if served, known := k.known(kind); known {
		return served, nil
	}
	_, err := k.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		k.served[kind] = true
		return true, nil
	case meta.IsNoMatchError(err):
		k.missing[kind] = k.clock.Now()
		return false, nil
	default:
		return false, fmt.Errorf("looking for kind %s: %w", kind.Kind, err)
	}
}

// known reports whether a kind is served, if that need not be asked for now.
func (k *servedKinds) known(kind schema.GroupVersionKind) (served, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.served[kind] {
		return true, true
	}
	asked, missing := k.missing[kind]
	return false, missing && k.clock.Since(asked) < kindsInterval
}

// routesFor holds something of each provider, nil where there is nothing.
type routesFor[T any] map[v1alpha1.RoutingProvider]T

// surroundings are what Auto decides from.
type surroundings struct {
	// domain is that of the cluster's Services.
	domain routing.Domain
	// served tells which kinds of routes the API server serves.
	served routesFor[bool]
	// owned tells of which kinds the rollout has a route of its own.
	owned routesFor[bool]
	// kserveUsesHTTPRoutes tells whether KServe makes HTTPRoutes for the stable InferenceService.
	kserveUsesHTTPRoutes bool
}

// providerFor decides the kind of route. It is one that is not served if the spec asks for that, or if none is.
func providerFor(rollout *v1alpha1.CanaryRollout, around surroundings) routing.Provider {
	spec := rollout.Spec.Routing
	if asked := around.domain.ProviderNamed(spec.Provider); asked != nil {
		return asked
	}
	if ref, ok := routing.Adopted(rollout); ok {
		return around.domain.ProviderNamed(ref.Provider)
	}
	if spec.Mode == v1alpha1.RoutingDelegate {
		return around.domain.VirtualServices()
	}
	for _, p := range around.domain.Providers() {
		if around.owned[p.Name()] {
			return p
		}
	}
	const vs, hr = v1alpha1.ProviderVirtualService, v1alpha1.ProviderHTTPRoute
	if around.served[hr] && (around.kserveUsesHTTPRoutes || !around.served[vs]) {
		return around.domain.HTTPRoutes()
	}
	return around.domain.VirtualServices()
}
