// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"fmt"
	"slices"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/routing"
)

func requestFor(name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "ml", Name: name}}
}

func rolloutNamed(name string, change func(*v1alpha1.CanaryRollout)) *v1alpha1.CanaryRollout {
	r := &v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: name},
		Spec: v1alpha1.CanaryRolloutSpec{
			Stable: v1alpha1.RolloutSide{InferenceService: "v1"}, Canary: v1alpha1.RolloutSide{InferenceService: "v2"},
			CanaryPercent: 50,
		},
	}
	if change != nil {
		change(r)
	}
	return r
}

func newQueue(t *testing.T, u *urgency) workQueue {
	t.Helper()
	q := u.queue("", workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](retryFirst, retryMost))
	t.Cleanup(q.ShutDown)
	return q
}

// drain takes what is queued, in its order.
func drain(q workQueue) []string {
	var names []string
	for q.Len() > 0 {
		request, _ := q.Get()
		names = append(names, request.Name)
		q.Done(request)
	}
	return names
}

// TestWhatTakesTrafficFromACanaryGoesFirst: with hundreds of rollouts waiting, one whose canary is to lose traffic is the
// next, whether it waited already or not.
func TestWhatTakesTrafficFromACanaryGoesFirst(t *testing.T) {
	slice := func(ready int) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "ml", Name: "last"},
			AddressType: discoveryv1.AddressTypeIPv4,
		}
		for i := range ready {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.0.%d", i)}})
		}
		return s
	}
	verdict := func(result v1alpha1.VerdictResult, dryRun bool) func(*v1alpha1.CanaryRollout) {
		return func(r *v1alpha1.CanaryRollout) {
			r.Status.Verdicts = []v1alpha1.MetricVerdict{{Result: result, DryRun: dryRun}}
		}
	}
	for name, tc := range map[string]struct {
		urgent   func(was, is client.Object) bool
		was, is  client.Object // no was: an event of no edit
		wantLast bool
	}{
		"canaryPercent is lowered": {
			urgent: lowered, was: rolloutNamed("last", nil),
			is: rolloutNamed("last", func(r *v1alpha1.CanaryRollout) { r.Spec.CanaryPercent = 0 }),
		},
		"canaryPercent is raised": {
			urgent: lowered, was: rolloutNamed("last", nil),
			is: rolloutNamed("last", func(r *v1alpha1.CanaryRollout) { r.Spec.CanaryPercent = 60 }), wantLast: true,
		},
		"a person says abort": {
			urgent: lowered, was: rolloutNamed("last", nil),
			is: rolloutNamed("last", func(r *v1alpha1.CanaryRollout) {
				r.Annotations = map[string]string{v1alpha1.AnnotationAbort: "1.2"}
			}),
		},
		"another canary is named": {
			urgent: lowered, was: rolloutNamed("last", nil),
			is: rolloutNamed("last", func(r *v1alpha1.CanaryRollout) { r.Spec.Canary.InferenceService = "v3" }),
		},
		"a metric fails": {urgent: disproved, is: rolloutNamed("last", verdict(v1alpha1.VerdictFail, false))},
		"a metric that counts for nothing fails": {
			urgent: disproved, is: rolloutNamed("last", verdict(v1alpha1.VerdictFail, true)), wantLast: true,
		},
		"a metric passes":           {urgent: disproved, is: rolloutNamed("last", verdict(v1alpha1.VerdictPass, false)), wantLast: true},
		"a side loses a ready pod":  {urgent: fewer, was: slice(2), is: slice(1)},
		"a side gains a ready pod":  {urgent: fewer, was: slice(1), is: slice(2), wantLast: true},
		"an InferenceService goes":  {urgent: leaving, was: rolloutNamed("last", nil), is: rolloutNamed("last", going)},
		"an InferenceService stays": {urgent: leaving, was: rolloutNamed("last", nil), is: rolloutNamed("last", nil), wantLast: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, waits := range []bool{false, true} {
				u := newUrgency()
				q := newQueue(t, u)
				for i := range 300 {
					q.Add(requestFor(fmt.Sprintf("edited-%d", i)))
				}
				if waits {
					q.Add(requestFor("last"))
				}
				h := u.first(&handler.EnqueueRequestForObject{}, tc.urgent)
				if tc.was == nil {
					h.Generic(t.Context(), event.GenericEvent{Object: tc.is}, q)
				} else {
					h.Update(t.Context(), event.UpdateEvent{ObjectOld: tc.was, ObjectNew: tc.is}, q)
				}
				want := 0
				if tc.wantLast {
					want = 300
				}
				order := drain(q)
				if got := slices.Index(order, "last"); got != want || len(order) != 301 {
					t.Errorf("waiting %t: it is number %d of %d, want number %d of 301", waits, got, len(order), want)
				}
			}
		})
	}
}

func going(r *v1alpha1.CanaryRollout) { r.DeletionTimestamp = &metav1.Time{} }

// TestUrgencyEnds: urgency is of one change, not of a rollout; and of several urgent ones the first comes first.
func TestUrgencyEnds(t *testing.T) {
	u := newUrgency()
	q := newQueue(t, u)
	urgently := marking{workQueue: q, urgency: u}
	q.Add(requestFor("a"))
	urgently.Add(requestFor("b"))
	urgently.Add(requestFor("c"))
	urgently.Add(requestFor("b"))
	if got, want := drain(q), []string{"b", "c", "a"}; !slices.Equal(got, want) {
		t.Errorf("the order is %q, want %q", got, want)
	}
	q.Add(requestFor("a"))
	q.Add(requestFor("b"))
	if got, want := drain(q), []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("afterwards the order is %q, want %q", got, want)
	}

	// One that becomes urgent while it is worked on is the next again.
	q.Add(requestFor("a"))
	working, _ := q.Get()
	q.Add(requestFor("b"))
	urgently.Add(requestFor("a"))
	q.Done(working)
	if got, want := drain(q), []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("made urgent while worked on, the order is %q, want %q", got, want)
	}
}

// TestMeddled: what somebody else made of a route is not taken for an echo of the controller's own write, which waits.
func TestMeddled(t *testing.T) {
	route, err := routing.DefaultDomain.VirtualServices().Render(routing.Owned{
		Name: "digits", Namespace: "ml", Hosts: []string{"digits.ml.svc.cluster.local"},
		Stable: routing.Destination{Host: "v1", Port: 80}, Canary: routing.Destination{Host: "v2", Port: 80},
		Weights: v1alpha1.WeightPair{Stable: 80, Canary: 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	if meddled(route) {
		t.Error("a route without a mark is taken for one of Outrigger's that somebody changed")
	}
	fingerprint, err := routing.Fingerprint(route)
	if err != nil {
		t.Fatal(err)
	}
	route.SetAnnotations(map[string]string{v1alpha1.AnnotationAppliedHash: fingerprint})
	if meddled(route) {
		t.Error("Outrigger's own write is taken for somebody else's")
	}
	if err := unstructured.SetNestedStringSlice(route.Object, []string{"other"}, "spec", "hosts"); err != nil {
		t.Fatal(err)
	}
	if !meddled(route) {
		t.Error("somebody else's write is taken for an echo of Outrigger's own")
	}
}
