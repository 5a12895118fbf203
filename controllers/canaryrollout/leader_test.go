// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/routing"
)

// asleep is a client that does something else before it writes a route, as a manager does whose machine is stopped there.
func asleep(w *faults.World, meanwhile func()) client.Client {
	return interceptor.NewClient(w.Client, interceptor.Funcs{
		Apply: func(
			ctx context.Context, c client.WithWatch, object runtime.ApplyConfiguration, opts ...client.ApplyOption,
		) error {
			meanwhile()
			return c.Apply(ctx, object, opts...)
		},
		Patch: func(
			ctx context.Context, c client.WithWatch, object client.Object, patch client.Patch, opts ...client.PatchOption,
		) error {
			meanwhile()
			return c.Patch(ctx, object, patch, opts...)
		},
	})
}

// madeRoute is a route that a rollout writes to, and the step that makes it do so.
type madeRoute struct {
	made       faults.Step
	name, rule string
}

// everyRoute tests with a route of the rollout's own and an adopted one, of every provider.
func everyRoute(t *testing.T, test func(t *testing.T, p provided, route madeRoute)) {
	everyProvider(t, func(t *testing.T, p provided) {
		for what, route := range map[string]madeRoute{
			"owned":   {p.owned(), name, routing.SplitRoute},
			"adopted": {p.adopting(), "shop", "predict"},
		} {
			t.Run(what, func(t *testing.T) { test(t, p, route) })
		}
	})
}

// TestFormerLeaderPutsNothingBack: a manager that has lost its lease in the midst of a reconcile, and goes on with it long
// after, does not undo what its successor has done since.
func TestFormerLeaderPutsNothingBack(t *testing.T) {
	everyRoute(t, func(t *testing.T, p provided, route madeRoute) {
		w := soleWorld(t)
		successor := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(p.users), route.made, percent(10))
		settleAll(t, w, successor)
		do(t, w, percent(60))
		former := newReconciler(asleep(w, sync.OnceFunc(func() {
			do(t, w, percent(0))
			settleAll(t, w, successor)
			p.want(t, w, route.name, route.rule, "v1=100 v2=0 ")
		})), w)
		_, err := former.Reconcile(t.Context(), reconcile.Request{
			NamespacedName: client.ObjectKey{Namespace: w.Namespace, Name: name},
		})
		t.Logf("the former leader: %v", err)
		p.want(t, w, route.name, route.rule, "v1=100 v2=0 ")
	})
}

// TestFormerLeaderPutsNoSharesBack: the same for the share of a revision, which goes back at a person's word, and by itself
// when the canary fails.
func TestFormerLeaderPutsNoSharesBack(t *testing.T) {
	for what, back := range map[string]faults.Step{"a person": percent(0), "its pods": fraudPods("b", 0)} {
		t.Run(what, func(t *testing.T) {
			w := soleWorld(t)
			successor := newReconciler(w.Client, w)
			do(t, w, fraud("a", ""), fraudPods("a", 2), shares(), percent(10))
			settleShares(t, w, successor)
			do(t, w, fraud("b", `,"canaryTrafficPercent":0`), fraudPods("b", 1))
			settleShares(t, w, successor)
			wantShares(t, w, "a=90 b=10 ", "10")
			do(t, w, percent(60))
			slept := false
			former := newReconciler(asleep(w, sync.OnceFunc(func() {
				slept = true
				do(t, w, back)
				settleShares(t, w, successor)
				wantShares(t, w, "a=100 ", "0")
			})), w)
			_, err := former.Reconcile(t.Context(), reconcile.Request{
				NamespacedName: client.ObjectKey{Namespace: w.Namespace, Name: name},
			})
			t.Logf("the former leader: %v", err)
			if !slept {
				t.Fatal("the former leader had nothing to write")
			}
			do(t, w, kserveShares)
			wantShares(t, w, "a=100 ", "0")
		})
	}
}

// TestRouteThatChangedMeanwhile: what is still due is written all the same, without another reconcile.
func TestRouteThatChangedMeanwhile(t *testing.T) {
	everyRoute(t, func(t *testing.T, p provided, route madeRoute) {
		w := soleWorld(t)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(p.users), route.made, percent(10))
		settleAll(t, w, newReconciler(w.Client, w))
		do(t, w, percent(60))
		r := newReconciler(asleep(w, sync.OnceFunc(func() {
			live := p.live(t, w, route.name)
			live.SetAnnotations(map[string]string{"somebody": "else"})
			if err := w.Client.Update(t.Context(), live); err != nil {
				t.Fatal(err)
			}
		})), w)
		_, err := r.Reconcile(t.Context(), reconcile.Request{
			NamespacedName: client.ObjectKey{Namespace: w.Namespace, Name: name},
		})
		if err != nil {
			t.Fatal(err)
		}
		p.want(t, w, route.name, route.rule, "v1=40 v2=60 ")
	})
}
