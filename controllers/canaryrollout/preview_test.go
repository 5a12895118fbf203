// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/routing"
)

// TestDryRunTellsWhatWouldBeDone: the plan in the status is what an edit does once it is let loose, line by line, and
// until then nothing is done.
func TestDryRunTellsWhatWouldBeDone(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		for route, made := range map[string]faults.Step{name: p.owned(), "shop": p.adopting()} {
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(p.users), made, percent(10))
			settleAll(t, w, r)
			before := p.live(t, w, route)
			do(t, w, edit(`{"spec":{"dryRun":true,"canaryPercent":60}}`))
			settleAll(t, w, r)
			if diff := cmp.Diff(before.Object["spec"], p.live(t, w, route).Object["spec"]); diff != "" {
				t.Errorf("dryRun changed the route (-before +after):\n%s", diff)
			}
			wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDryRun)
			planned := get(t, w, name).Status.Plan
			do(t, w, edit(`{"spec":{"dryRun":false}}`))
			settleAll(t, w, r)
			done, err := routing.Diff(before, p.live(t, w, route))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(done, planned); diff != "" || done == "" {
				t.Errorf("%s: what was planned is not what was done (-done +planned):\n%s", route, diff)
			}
			wantReady(t, w)
			if plan := get(t, w, name).Status.Plan; plan != "" {
				t.Errorf("the plan stays when it has been carried out: %s", plan)
			}
		}
	})
}

func TestDryRunOfANewRollout(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(func(r *v1alpha1.CanaryRollout) {
		r.Spec.DryRun, r.Spec.CanaryPercent = true, 5
	}))
	settle(t, w, r)
	wantWeights(t, w, "no VirtualService")
	got := get(t, w, name)
	if !strings.HasPrefix(got.Status.Plan, "--- nothing\n+++ VirtualService ") || len(got.Finalizers) > 0 {
		t.Errorf("finalizers %v, plan:\n%s", got.Finalizers, got.Status.Plan)
	}
	// What keeps the route from being written is told as well.
	do(t, w, inferenceService("v1", 0))
	settle(t, w, r)
	if plan := get(t, w, name).Status.Plan; !strings.Contains(plan, "has no ready pod") {
		t.Errorf("plan: %s", plan)
	}
}

// TestPreviewOfAForeignRoute: what belongs to somebody else is not shown as if it were to be overwritten.
func TestPreviewOfAForeignRoute(t *testing.T) {
	w := soleWorld(t)
	foreign := createYAML(strings.ReplaceAll(shop, "name: shop", "name: "+name))
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), foreign, rollout(nil))
	r := canaryrollout.New(w.Client, w.Client, w.Clock, record.NewFakeRecorder(1))
	preview, err := r.Preview(t.Context(), get(t, w, name))
	if err != nil || preview.Diff != "" || !strings.Contains(preview.Why, "exists already") {
		t.Errorf("preview %+v, %v", preview, err)
	}
}
