// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// meddle has another field manager give the canary of the first rule all but nothing, as stable's opponent would.
func (p provided) meddle(route string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		object := p.usersRoute(w)
		object.SetName(route)
		rule := map[bool]string{true: "1", false: "0"}[route == "shop"]
		at := "/spec/" + p.rules + "/" + rule + "/" + p.destinations
		return w.Client.Patch(ctx, object, client.RawPatch("application/json-patch+json", []byte(
			`[{"op":"add","path":"`+at+`/0/weight","value":7},{"op":"add","path":"`+at+`/1/weight","value":93}]`)),
			client.FieldOwner("meddler"))
	}
}

func wantDrift(t *testing.T, w *faults.World, reason, manager string, repairs int) {
	t.Helper()
	status := get(t, w, name).Status
	c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionDriftDetected)
	if c == nil || c.Status != metav1.ConditionTrue || c.Reason != reason ||
		manager != "" && !strings.Contains(c.Message, `"`+manager+`"`) {
		t.Errorf("condition DriftDetected is %+v; want %s by %q", c, reason, manager)
	}
	if status.Drift == nil || status.Drift.Manager != manager || len(status.Drift.Repairs) != repairs {
		t.Errorf("status.drift is %+v; want %d repairs after %q", status.Drift, repairs, manager)
	}
}

// TestDriftIsRepairedWithinABudget: each foreign change is undone and its author named; one who goes on is left alone
// for a while, and gets exactly as many answers as the policy allows.
func TestDriftIsRepairedWithinABudget(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		for route, made := range map[string]faults.Step{name: p.owned(), "shop": p.adopting()} {
			rule := map[bool]string{true: "predict", false: routing.SplitRoute}[route == "shop"]
			w := soleWorld(t)
			events := record.NewFakeRecorder(100)
			r := reconcile.AsReconciler(w.Client, canaryrollout.New(w.Client, w.Client, w.Clock, events))
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(p.users), made, percent(30),
				edit(`{"spec":{"routing":{"driftPolicy":{"maxRepairsPerMinute":3}}}}`))
			settleAll(t, w, r)
			for n := range 3 {
				w.Clock.SetTime(w.Clock.Now().Add(10 * time.Second))
				do(t, w, p.meddle(route))
				settleAll(t, w, r)
				p.want(t, w, route, rule, "v1=70 v2=30 ")
				wantDrift(t, w, v1alpha1.ReasonDriftRepaired, "meddler", n+1)
				wantReady(t, w)
			}
			if told := drain(events, v1alpha1.ReasonDriftRepaired); told != 3 {
				t.Errorf("%s: %d events of 3 repairs", route, told)
			}
			do(t, w, p.meddle(route))
			settleAll(t, w, r)
			p.want(t, w, route, rule, "v1=7 v2=93 ")
			wantDrift(t, w, v1alpha1.ReasonDriftHeld, "meddler", 3)
			wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDriftHeld)
			before := get(t, w, name).ResourceVersion
			settle(t, w, r)
			if get(t, w, name).ResourceVersion != before {
				t.Error("a held rollout is written again and again")
			}

			w.Clock.SetTime(w.Clock.Now().Add(9 * time.Minute))
			settleAll(t, w, r)
			p.want(t, w, route, rule, "v1=7 v2=93 ")
			w.Clock.SetTime(w.Clock.Now().Add(time.Minute))
			settleAll(t, w, r)
			p.want(t, w, route, rule, "v1=70 v2=30 ")
			wantReady(t, w)

			w.Clock.SetTime(w.Clock.Now().Add(routing.DriftPause))
			settleAll(t, w, r)
			status := get(t, w, name).Status
			if status.Drift != nil || meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionDriftDetected) != nil {
				t.Errorf("ten quiet minutes later the status still tells of drift: %+v", status.Drift)
			}
		}
	})
}

func drain(events *record.FakeRecorder, reason string) int {
	n := 0
	for {
		select {
		case text := <-events.Events:
			if strings.HasPrefix(text, corev1.EventTypeWarning+" "+reason) {
				n++
			}
		default:
			return n
		}
	}
}

// TestHeldDriftEndsWithTheSpec: an edit of the spec is what the user means now.
func TestHeldDriftEndsWithTheSpec(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), p.owned(), percent(30),
			edit(`{"spec":{"routing":{"driftPolicy":{"action":"Hold"}}}}`))
		settleAll(t, w, r)
		do(t, w, p.meddle(name))
		settleAll(t, w, r)
		p.want(t, w, name, routing.SplitRoute, "v1=7 v2=93 ")
		wantDrift(t, w, v1alpha1.ReasonDriftHeld, "meddler", 0)

		// A canary that dies takes no traffic, whoever gave it some.
		do(t, w, inferenceService("v2", 0))
		settleAll(t, w, r)
		p.want(t, w, name, routing.SplitRoute, "v1=100 v2=0 ")
		do(t, w, inferenceService("v2", 1))
		settleAll(t, w, r)
		p.want(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")

		do(t, w, p.meddle(name))
		settleAll(t, w, r)
		p.want(t, w, name, routing.SplitRoute, "v1=7 v2=93 ")
		do(t, w, percent(40))
		settleAll(t, w, r)
		p.want(t, w, name, routing.SplitRoute, "v1=60 v2=40 ")
		wantReady(t, w)
	})
}

// TestNoStepByForeignWeights: a step is not over by the time that somebody else's weights were left in force.
func TestNoStepByForeignWeights(t *testing.T) {
	w := soleWorld(t)
	p := providers[0]
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(steps),
		edit(`{"spec":{"routing":{"driftPolicy":{"action":"Hold"}}}}`))
	settleSteps(t, w, w.Client)
	wantPhase(t, w, v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding)
	do(t, w, p.meddle(name))
	settleSteps(t, w, w.Client)
	do(t, w, pass(time.Hour))
	settleSteps(t, w, w.Client)
	wantPhase(t, w, v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding)
	wantWeights(t, w, "v1=7 v2=93 ")
}

// TestDeletedRouteIsMadeAgain: also a deletion is a foreign change, of which nobody's name is left.
func TestDeletedRouteIsMadeAgain(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), p.owned(), percent(30))
		settleAll(t, w, r)
		if err := w.Client.Delete(t.Context(), p.live(t, w, name)); err != nil {
			t.Fatal(err)
		}
		settleAll(t, w, r)
		p.want(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")
		wantDrift(t, w, v1alpha1.ReasonDriftRepaired, "", 1)
	})
}

// TestOwnEditsAreNoDrift: whatever the controller does itself, and others do to other fields, is not taken for one.
func TestOwnEditsAreNoDrift(t *testing.T) {
	everyProvider(t, func(t *testing.T, p provided) {
		w := soleWorld(t)
		r := newReconciler(w.Client, w)
		do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), createYAML(p.users), p.adopting())
		for n := range 5 {
			other := strings.ReplaceAll(p.users, "5s", "1"+string(rune('0'+n))+"s")
			do(t, w, percent(10*n))
			settleAll(t, w, r)
			weights := p.weights(t, w, "shop", "predict")
			do(t, w, func(ctx context.Context, w *faults.World) error { // the timeout, with the weights as they are
				object := p.usersRoute(w)
				if err := w.Client.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
					return err
				}
				object.SetAnnotations(map[string]string{"note": other})
				return w.Client.Update(ctx, object, client.FieldOwner("team"))
			}, inferenceService("v2", 1-n%2))
			settleAll(t, w, r)
			if drift := get(t, w, name).Status.Drift; drift != nil {
				t.Fatalf("taken for drift: %+v (weights were %q)", drift, weights)
			}
		}
	})
}

// TestDriftIsRepairedInTime runs the manager: repairs are events, and come within a second.
func TestDriftIsRepairedInTime(t *testing.T) {
	w := newWorld(t)
	p := providers[0]
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), p.owned(), percent(30))
	startManager(t, w, testcluster.New(t).Config)
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	for range 3 {
		do(t, w, p.meddle(name))
		edited := time.Now()
		awaitWeights(t, w, name, routing.SplitRoute, "v1=70 v2=30 ")
		t.Logf("repaired %s after the edit", time.Since(edited).Round(time.Millisecond))
	}
}
