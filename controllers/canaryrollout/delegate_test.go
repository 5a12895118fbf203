// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
)

const root = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: [front.example.com]
  gateways: [edge/public]
  http:
  - name: static
    match: [{uri: {prefix: /static}}]
    route: [{destination: {host: static}}]
  - name: digits
    match: [{uri: {prefix: /v1}}]
    delegate: {name: digits}
`

func delegates(r *v1alpha1.CanaryRollout) { r.Spec.Routing.Mode = v1alpha1.RoutingDelegate }

// TestDelegate: the user's VirtualService is only read, ours has neither hosts nor gateways, and the rollout says who
// leads to it.
func TestDelegate(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(delegates), percent(30))
	settle(t, w, r)
	wantWeights(t, w, "v1=70 v2=30 ")
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonRouteNotBound)
	wantCondition(t, w, name, v1alpha1.ConditionRouteApplied, metav1.ConditionTrue, v1alpha1.ReasonWeightsApplied)
	if host := get(t, w, name).Status.Host; host != "" {
		t.Errorf("status.host %q while nobody delegates", host)
	}

	do(t, w, applyYAML(root))
	before := virtualService(t, w, "front")
	settle(t, w, r)
	wantReady(t, w)
	if host := get(t, w, name).Status.Host; host != "front.example.com" {
		t.Errorf("status.host %q, want the root's", host)
	}
	do(t, w, percent(90))
	settle(t, w, r)
	wantWeights(t, w, "v1=10 v2=90 ")
	if diff := cmp.Diff(before, virtualService(t, w, "front")); diff != "" {
		t.Errorf("the user's VirtualService changed (-before +after):\n%s", diff)
	}
}

// TestDelegateHasNoHosts: a VirtualService with hosts is no delegate, whether they were ours in mode Owned or came from
// somebody else.
func TestDelegateHasNoHosts(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), percent(30))
	settle(t, w, r)
	do(t, w, edit(`{"spec":{"routing":{"mode":"Delegate"}}}`))
	settle(t, w, r)
	wantNoHosts := func() {
		t.Helper()
		spec := virtualService(t, w, name).Object["spec"].(map[string]any)
		if spec["hosts"] != nil || spec["gateways"] != nil {
			t.Errorf("the delegate has hosts %v, gateways %v", spec["hosts"], spec["gateways"])
		}
	}
	wantNoHosts()
	wantWeights(t, w, "v1=70 v2=30 ")
	do(t, w, applyYAML(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: digits}
spec: {hosts: [x.example.com], gateways: [edge]}
`))
	settle(t, w, r)
	wantNoHosts()

	do(t, w, edit(`{"spec":{"routing":{"mode":"Owned"}}}`))
	settle(t, w, r)
	wantReady(t, w)
	if host, want := get(t, w, name).Status.Host, name+"."+w.Namespace+".svc.cluster.local"; host != want {
		t.Errorf("status.host %q, want %q", host, want)
	}
}

// TestNoStepWithoutRequests: while nobody delegates to the route, no time of a step passes.
func TestNoStepWithoutRequests(t *testing.T) {
	w := soleWorld(t)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(steps),
		edit(`{"spec":{"routing":{"mode":"Delegate"}}}`))
	settleSteps(t, w, w.Client)
	do(t, w, pass(time.Hour))
	settleSteps(t, w, w.Client)
	wantPhase(t, w, v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding)
	do(t, w, applyYAML(root))
	settleSteps(t, w, w.Client)
	do(t, w, pass(9*time.Minute))
	settleSteps(t, w, w.Client)
	wantPhase(t, w, v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding)
	do(t, w, pass(time.Minute))
	settleSteps(t, w, w.Client)
	wantPhase(t, w, v1alpha1.PhasePaused, v1alpha1.ReasonWaitingForPromotion)
}

func TestRootIsHeardOf(t *testing.T) {
	w := newWorld(t)
	startManager(t, w, testcluster.New(t).Config)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(delegates))
	awaitReason(t, w, name, v1alpha1.ReasonRouteNotBound)
	do(t, w, applyYAML(root))
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	if err := w.Client.Delete(t.Context(), virtualService(t, w, "front")); err != nil {
		t.Fatal(err)
	}
	awaitReason(t, w, name, v1alpha1.ReasonRouteNotBound)
}
