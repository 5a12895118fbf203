// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/routing"
)

// behind is a client whose watch of VirtualServices is slow, unlike those of everything else: it reads one as it is now,
// or finds none if there is none.
func behind(t *testing.T, w *faults.World, vs string) client.Client {
	t.Helper()
	seen := virtualService(t, w, vs)
	return interceptor.NewClient(w.Client, interceptor.Funcs{
		Get: func(
			ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object, opts ...client.GetOption,
		) error {
			route, ok := into.(*unstructured.Unstructured)
			switch {
			case !ok || key.Name != vs || route.GroupVersionKind() != routing.VirtualServiceKind:
				return c.Get(ctx, key, into, opts...)
			case seen == nil:
				return apierrors.NewNotFound(schema.GroupResource{Resource: "virtualservices"}, vs)
			default:
				route.Object = seen.DeepCopy().Object
				return nil
			}
		},
	})
}

// TestCacheThatIsBehind: a route that seems to carry the wanted weights, because the cache has not heard of those that
// came between, is written all the same.
func TestCacheThatIsBehind(t *testing.T) {
	for vs, tc := range map[string]struct {
		made  faults.Step
		route string
	}{
		name:   {rollout(nil), routing.SplitRoute},
		"shop": {rollout(adopts("shop", "predict")), "predict"},
	} {
		w := soleWorld(t)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), tc.made, percent(20))
		settle(t, w, newReconciler(w.Client, w))
		r := newReconciler(behind(t, w, vs), w)
		for _, step := range []struct {
			percent int
			want    string
		}{{50, "v1=50 v2=50 "}, {20, "v1=80 v2=20 "}} {
			do(t, w, percent(step.percent))
			reconcileOnce(t, w, r)
			if got := weights(t, virtualService(t, w, vs), tc.route); got != step.want {
				t.Errorf("%s at %d percent: weights %q, want %q", vs, step.percent, got, step.want)
			}
		}
	}
}

// TestDeletionWithACacheThatIsBehind: nobody looks again after a deletion, so it must see the route as it is.
func TestDeletionWithACacheThatIsBehind(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), rollout(adopts("shop", "predict")))
	settle(t, w, newReconciler(w.Client, w))
	r := newReconciler(behind(t, w, "shop"), w)
	do(t, w, percent(40))
	settle(t, w, r)
	wantShop(t, w, "v1=60 v2=40 ")
	do(t, w, remove)
	settle(t, w, r)
	wantGone(t, w)
	wantShop(t, w, "v1=100 v2=0 ")
}

// TestRouteThatTheCacheHasNotHeardOf: somebody made one of the rollout's name just before it.
func TestRouteThatTheCacheHasNotHeardOf(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(behind(t, w, name), w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: digits}
spec: {hosts: [x.example.com], http: [{name: mine, route: [{destination: {host: mine}}]}]}
`))
	before := virtualService(t, w, name)
	do(t, w, rollout(nil), percent(20))
	settle(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonNameTaken)
	if diff := cmp.Diff(before, virtualService(t, w, name)); diff != "" {
		t.Errorf("the user's VirtualService changed (-before +after):\n%s", diff)
	}
}
