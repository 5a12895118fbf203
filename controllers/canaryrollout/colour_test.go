// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
)

const coloured = `{"spec":{"colours":[
  {"name":"qa","to":"Canary","match":{"any":[{"header":{"name":"x-colour","exact":"canary"}}]}},
  {"name":"vip","to":"Stable","match":{"any":[{"cookie":{"name":"tier","value":"gold"}}]}}]}}`

// routeNames returns the names of the routes of the rollout's VirtualService, in their order.
func routeNames(t *testing.T, w *faults.World) []string {
	t.Helper()
	list, _, _ := unstructured.NestedSlice(virtualService(t, w, name).Object, "spec", "http")
	var names []string
	for _, route := range list {
		names = append(names, route.(map[string]any)["name"].(string))
	}
	return names
}

// TestColoursComeAndGoWithTheirSide: no marked request is sent to a side that cannot answer it, and nobody else's
// weights change for a colour.
func TestColoursComeAndGoWithTheirSide(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), edit(coloured))
	for _, step := range []struct {
		when        string
		do          faults.Step
		want        []string
		wantColours []string
		wantWeights string
	}{
		{"both are ready", percent(0), []string{"colour-qa", "colour-vip", "split"}, []string{"qa", "vip"}, "v1=100 v2=0 "},
		{"a share is asked too", percent(30), []string{"colour-qa", "colour-vip", "split"}, []string{"qa", "vip"}, "v1=70 v2=30 "},
		{"the canary dies", inferenceService("v2", 0), []string{"colour-vip", "split"}, []string{"vip"}, "v1=100 v2=0 "},
		{"the canary is back", inferenceService("v2", 1), []string{"colour-qa", "colour-vip", "split"}, []string{"qa", "vip"}, "v1=70 v2=30 "},
		{"stable dies", inferenceService("v1", 0), []string{"colour-qa", "split"}, []string{"qa"}, "v1=0 v2=100 "},
		{"no colours are asked", edit(`{"spec":{"colours":null}}`), []string{"split"}, nil, "v1=0 v2=100 "},
	} {
		do(t, w, step.do)
		settle(t, w, r)
		if diff := cmp.Diff(step.want, routeNames(t, w)); diff != "" {
			t.Errorf("when %s: routes (-want +got):\n%s", step.when, diff)
		}
		if diff := cmp.Diff(step.wantColours, get(t, w, name).Status.Colours); diff != "" {
			t.Errorf("when %s: status.colours (-want +got):\n%s", step.when, diff)
		}
		wantWeights(t, w, step.wantWeights)
	}
}

func TestBrokenColourChangesNothing(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil), edit(coloured), percent(30))
	settle(t, w, r)
	before := virtualService(t, w, name)
	do(
		t,
		w,
		edit(`{"spec":{"colours":[{"name":"qa","to":"Canary","match":{"any":[{"header":{"name":"x-colour","regex":"("}}]}}]}}`),
	)
	settle(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonInvalidColour)
	if diff := cmp.Diff(before, virtualService(t, w, name)); diff != "" {
		t.Errorf("the route changed (-before +after):\n%s", diff)
	}
	do(t, w, edit(coloured))
	settle(t, w, r)
	wantCondition(t, w, name, v1alpha1.ConditionStalled, metav1.ConditionFalse, v1alpha1.ReasonNotStalled)
}
