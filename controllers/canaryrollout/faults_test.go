// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"regexp"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

var kinds = []client.ObjectList{
	&v1alpha1.CanaryRolloutList{}, virtualServiceList(), httpRouteList(), &kserve.InferenceServiceList{},
	&corev1.ServiceList{}, &discoveryv1.EndpointSliceList{},
}

func virtualServiceList() *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(routing.VirtualServiceKind.GroupVersion().WithKind("VirtualServiceList"))
	return list
}

func TestFaultsOfAnOwnedRoute(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, New: anew, Environment: collectGarbage, Check: splitIsWhole, Forget: addresses,
		Steps: []faults.Step{
			all(inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), percent(20)),
			all(inferenceService("v2", 0), percent(100)),
		},
	})
}

func TestFaultsOfAChangeOfMode(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, New: anew, Environment: collectGarbage, Check: splitIsWhole, Forget: addresses,
		Steps: []faults.Step{
			all(inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), rollout(nil), percent(20)),
			all(edit(`{"spec":{"routing":{"mode":"Adopt","virtualServiceRef":{"name":"shop","route":"predict"}}}}`), percent(70)),
		},
	})
}

// addresses replaces those that the API server gives to Services.
func addresses(text string) string {
	return regexp.MustCompile(`"198\.[0-9.]+"`).ReplaceAllString(text, `"address"`)
}

func anew(c client.Client, w *faults.World) reconcile.Reconciler { return newReconciler(c, w) }

func collectGarbage(ctx context.Context, w *faults.World) error {
	return faults.CollectGarbage(ctx, w, kinds...)
}

func all(steps ...faults.Step) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		for _, step := range steps {
			if err := step(ctx, w); err != nil {
				return err
			}
		}
		return nil
	}
}

// splitIsWhole checks what must hold after every single write: the weights of the owned route add up to 100, and both
// sides are in it.
func splitIsWhole(ctx context.Context, w *faults.World) error {
	vs := routing.NewRoute(routing.DefaultDomain.VirtualServices())
	if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: name}, vs); err != nil {
		return client.IgnoreNotFound(err)
	}
	list, _, _ := unstructured.NestedSlice(vs.Object, "spec", "http")
	sum, sides := int64(0), 0
	for _, route := range list {
		for _, destination := range route.(map[string]any)["route"].([]any) {
			sum += destination.(map[string]any)["weight"].(int64)
			sides++
		}
	}
	if sum != 100 || sides != 2 {
		return fmt.Errorf("the route has %d destinations with %d percent", sides, sum)
	}
	return nil
}
