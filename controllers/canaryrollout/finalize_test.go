// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

func onDelete(policy v1alpha1.OnDelete) faults.Step {
	return edit(`{"spec":{"routing":{"onDelete":"` + string(policy) + `"}}}`)
}

// foundAt is the shop with weights that a user may have left.
var foundAt = strings.NewReplacer("weight: 100", "weight: 88", "{host: v2-predictor}", "{host: v2-predictor}\n      weight: 12").
	Replace(shop)

func TestDeletionOfAnAdoptingRollout(t *testing.T) {
	tests := map[string]struct {
		policy v1alpha1.OnDelete
		before faults.Step
		want   string
	}{
		"Stable":               {v1alpha1.OnDeleteStable, percent(40), "v1=100 v2=0 "},
		"Keep":                 {v1alpha1.OnDeleteKeep, percent(40), "v1=60 v2=40 "},
		"Restore":              {v1alpha1.OnDeleteRestore, percent(40), "v1=88 v2=12 "},
		"Restore, edited late": {v1alpha1.OnDeleteRestore, all(percent(40), applyYAML(shop)), "v1=88 v2=12 "},
		"Stable is down, and the canary is not": {
			v1alpha1.OnDeleteStable, all(percent(40), inferenceService("v1", 0)), "v1=0 v2=100 ",
		},
		"Stable was removed after the promotion": {
			v1alpha1.OnDeleteStable, all(percent(100), deleteInferenceService("v1")), "v1=0 v2=100 ",
		},
		"Restore would send traffic to a dead canary": {
			v1alpha1.OnDeleteRestore, all(percent(40), inferenceService("v2", 0)), "v1=100 v2=0 ",
		},
		"nobody is ready": {
			v1alpha1.OnDeleteStable, all(percent(40), inferenceService("v1", 0), inferenceService("v2", 0)), "v1=100 v2=0 ",
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(foundAt),
				rollout(adopts("shop", "predict")), onDelete(tc.policy), percent(10))
			settle(t, w, r)
			wantShop(t, w, "v1=90 v2=10 ")
			do(t, w, tc.before)
			settle(t, w, r)
			do(t, w, remove)
			settle(t, w, r)
			wantGone(t, w)
			wantShop(t, w, tc.want)
		})
	}
}

// refuse returns a client to which the API server answers every write of the shop with a status code.
func refuse(code int) func(c client.WithWatch) client.WithWatch {
	return func(c client.WithWatch) client.WithWatch {
		return interceptor.NewClient(c, interceptor.Funcs{
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
				if o.GetName() != "shop" {
					return c.Patch(ctx, o, p, opts...)
				}
				resource := v1alpha1.GroupVersion.WithResource("x").GroupResource()
				return apierrors.NewGenericServerResponse(code, "patch", resource, "shop", "no", 0, false)
			},
		})
	}
}

// TestDeletionAlwaysEnds: whatever has become of the route, and whatever the API server says.
func TestDeletionAlwaysEnds(t *testing.T) {
	tests := map[string]struct {
		before    faults.Step
		client    func(client.WithWatch) client.WithWatch
		wantEvent bool
	}{
		"the VirtualService is gone": {before: func(ctx context.Context, w *faults.World) error {
			return w.Client.Delete(ctx, named("shop", w))
		}},
		"the route is gone":           {before: applyYAML(strings.ReplaceAll(shop, "name: predict", "name: other"))},
		"somebody else keeps it now":  {before: ownedBy("serving.kserve.io/v1beta1", "InferenceService")},
		"the InferenceServices are":   {before: all(deleteInferenceService("v1"), deleteInferenceService("v2"))},
		"a webhook refuses the patch": {before: percent(50), client: refuse(400), wantEvent: true},
		"the patch is forbidden":      {before: percent(50), client: refuse(403), wantEvent: true},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			w := soleWorld(t)
			do(
				t,
				w,
				inferenceService("v1", 1),
				inferenceService("v2", 1),
				applyYAML(shop),
				rollout(adopts("shop", "predict")),
				percent(10),
			)
			settle(t, w, newReconciler(w.Client, w))
			do(t, w, tc.before, remove)
			var c client.Client = w.Client
			if tc.client != nil {
				c = tc.client(w.Client)
			}
			events := record.NewFakeRecorder(10)
			r := reconcile.AsReconciler(c, canaryrollout.New(c, w.Client, w.Clock, events))
			settle(t, w, r)
			wantGone(t, w)
			if got := len(events.Events) > 0; got != tc.wantEvent {
				t.Errorf("an event: %t, want %t", got, tc.wantEvent)
			}
		})
	}
}

// TestDeletionDoesNotWaitForEver: a webhook that is away for a moment is waited for, one that does not come back is not.
func TestDeletionDoesNotWaitForEver(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), rollout(adopts("shop", "predict")),
		percent(10))
	settle(t, w, newReconciler(w.Client, w))
	do(t, w, remove)
	c, events := refuse(500)(w.Client), record.NewFakeRecorder(10)
	r := reconcile.AsReconciler(c, canaryrollout.New(c, w.Client, w.Clock, events))
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	for _, minutes := range []int{0, 4} {
		w.Clock.SetTime(get(t, w, name).DeletionTimestamp.Add(time.Duration(minutes) * time.Minute))
		if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err == nil {
			t.Errorf("after %d minutes the failure is not tried again", minutes)
		}
	}
	w.Clock.SetTime(get(t, w, name).DeletionTimestamp.Add(5 * time.Minute))
	settle(t, w, r)
	wantGone(t, w)
	if len(events.Events) != 1 {
		t.Errorf("%d events, want one that tells what was given up", len(events.Events))
	}
}

// TestLoserLeavesTheRouteAlone: the deletion of a rollout that never had the route does not touch it.
func TestLoserLeavesTheRouteAlone(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), rollout(func(first *v1alpha1.CanaryRollout) {
		adopts("shop", "predict")(first)
		first.Name, first.Spec.CanaryPercent = "a-first", 10
	}))
	settle(t, w, r, "a-first")
	do(t, w, rollout(adopts("shop", "predict")), edit(`{"metadata":{"finalizers":["`+v1alpha1.FinalizerRoute+`"]}}`))
	settle(t, w, r, name, "a-first")
	do(t, w, remove)
	settle(t, w, r)
	wantGone(t, w)
	wantShop(t, w, "v1=90 v2=10 ")
}

// TestKeptRouteOutlivesItsRollout: nothing owns it then, and the next rollout of the name takes it over.
func TestKeptRouteOutlivesItsRollout(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	keep := func(r *v1alpha1.CanaryRollout) { r.Spec.Routing.OnDelete = v1alpha1.OnDeleteKeep }
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(keep), percent(30))
	settle(t, w, r)
	before := virtualService(t, w, name)
	do(t, w, remove)
	settle(t, w, r)
	wantGone(t, w)
	if err := faults.CollectGarbage(t.Context(), w, kinds...); err != nil {
		t.Fatal(err)
	}
	wantWeights(t, w, "v1=70 v2=30 ")
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	var service corev1.Service
	if err := w.Client.Get(t.Context(), key, &service); err != nil {
		t.Errorf("reading the Service that clients call: %v", err)
	}

	do(t, w, rollout(func(r *v1alpha1.CanaryRollout) { keep(r); r.Spec.DryRun = true }), percent(60))
	settle(t, w, r)
	if plan := get(t, w, name).Status.Plan; !strings.Contains(plan, "+      weight: 60") {
		t.Errorf("the plan for a route that is to be taken over: %s", plan)
	}
	do(t, w, edit(`{"spec":{"dryRun":false}}`))
	settle(t, w, r)
	wantReady(t, w)
	wantWeights(t, w, "v1=40 v2=60 ")
	after := virtualService(t, w, name)
	if after.GetUID() != before.GetUID() || !metav1.IsControlledBy(after, get(t, w, name)) {
		t.Error("the VirtualService was not taken over")
	}

	do(t, w, onDelete(v1alpha1.OnDeleteStable))
	settle(t, w, r)
	if finalizers := get(t, w, name).Finalizers; len(finalizers) > 0 {
		t.Errorf("finalizers %v without a use for one", finalizers)
	}
}

// TestForsakenRoute: a route that the rollout names no more is left as a deletion would leave it.
func TestForsakenRoute(t *testing.T) {
	elsewhere := edit(`{"spec":{"routing":{"virtualServiceRef":{"name":"market"}}}}`)
	heir := rollout(func(r *v1alpha1.CanaryRollout) {
		adopts("shop", "predict")(r)
		r.Name = "heir"
	})
	for what, tc := range map[string]struct {
		edit faults.Step
		want string
	}{
		"another route":              {elsewhere, "v1=100 v2=0 "},
		"it is to be restored":       {all(onDelete(v1alpha1.OnDeleteRestore), elsewhere), "v1=88 v2=12 "},
		"it is to be kept":           {all(onDelete(v1alpha1.OnDeleteKeep), elsewhere), "v1=60 v2=40 "},
		"stable is down":             {all(inferenceService("v1", 0), elsewhere), "v1=60 v2=40 "},
		"another rollout has it now": {all(elsewhere, heir), "v1=60 v2=40 "},
		"the other does not exist": {
			edit(`{"spec":{"routing":{"virtualServiceRef":{"name":"typo"}}}}`), "v1=60 v2=40 ",
		},
		"a route of the rollout's own": {
			edit(`{"spec":{"routing":{"mode":"Owned","virtualServiceRef":null}}}`), "v1=100 v2=0 ",
		},
		"it is named still, and restored at last": {all(onDelete(v1alpha1.OnDeleteRestore), remove), "v1=88 v2=12 "},
	} {
		t.Run(what, func(t *testing.T) {
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(foundAt),
				applyYAML(strings.NewReplacer("name: shop", "name: market", "shop.", "market.").Replace(shop)),
				rollout(adopts("shop", "predict")), percent(40))
			settle(t, w, r)
			wantShop(t, w, "v1=60 v2=40 ")
			do(t, w, tc.edit)
			settle(t, w, r)
			wantShop(t, w, tc.want)
		})
	}
}

// TestKeptRouteIsAdopted: a rollout that adopts the route which an earlier one of its name left behind sets its weights,
// and the route outlives that rollout, too. One that adopts another route leaves it alone.
func TestKeptRouteIsAdopted(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	keep := func(r *v1alpha1.CanaryRollout) { r.Spec.Routing.OnDelete = v1alpha1.OnDeleteKeep }
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(shop), rollout(keep), percent(30))
	settle(t, w, r)
	for _, adopted := range []string{"shop", name} {
		do(t, w, remove)
		settle(t, w, r)
		do(t, w, rollout(adopts(adopted, map[string]string{"shop": "predict", name: routing.SplitRoute}[adopted])), percent(60))
		settle(t, w, r)
		wantReady(t, w)
		wantWeights(t, w, map[string]string{"shop": "v1=70 v2=30 ", name: "v1=40 v2=60 "}[adopted])
	}
	do(t, w, remove)
	settle(t, w, r)
	wantGone(t, w)
	if err := faults.CollectGarbage(t.Context(), w, kinds...); err != nil {
		t.Fatal(err)
	}
	wantWeights(t, w, "v1=100 v2=0 ")
}

func deleteInferenceService(name string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		if err := endpoints(name+"-predictor", name, 0)(ctx, w); err != nil {
			return err
		}
		var isvc metav1.PartialObjectMetadata
		isvc.SetGroupVersionKind(kserve.GroupVersionKind)
		isvc.Namespace, isvc.Name = w.Namespace, name
		return w.Client.Delete(ctx, &isvc)
	}
}

// TestFaultsOfADeletion goes through the death at every write of an adoption and its end.
func TestFaultsOfADeletion(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, New: anew, Environment: collectGarbage, Forget: addresses,
		Steps: []faults.Step{
			all(inferenceService("v1", 1), inferenceService("v2", 1), applyYAML(foundAt),
				rollout(adopts("shop", "predict")), onDelete(v1alpha1.OnDeleteRestore), percent(20)),
			remove,
		},
	})
}
