// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	knservingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// fraud makes the InferenceService whose revisions share its traffic, with a model, or gives it another one. A revision
// is named like its model.
func fraud(model string, fields string) faults.Step {
	return all(
		func(ctx context.Context, w *faults.World) error {
			return createOnce(
				ctx,
				w,
				&kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "fraud"}},
			)
		},
		changeService("fraud", fmt.Sprintf(
			`{"spec":{"predictor":{"containers":[{"name":"kserve-container","image":%q}]%s}}}`, model, fields)),
	)
}

// fraudPods sets the number of ready pods of a revision.
func fraudPods(model string, ready int) faults.Step { return revisionPods("fraud", model, ready) }

// kserveShares stands in for KServe and Knative, neither of which runs on an API server alone: of the share that the
// spec says it makes the traffic of a Knative Service, as createKnativeService does in KServe v0.20.0, and reports that
// by KServe's own code. A revision is ready once it has a ready pod.
func kserveShares(ctx context.Context, w *faults.World) error {
	for range 3 { // KServe looks again whenever what it reports has changed
		var isvc kserve.InferenceService
		err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: "fraud"}, &isvc)
		if err != nil || len(isvc.Spec.Predictor.Containers) == 0 {
			return client.IgnoreNotFound(err)
		}
		before := isvc.DeepCopy()
		isvc.Status.DeploymentMode = "Knative"
		now := isvc.Status.Components["predictor"]
		service := knservingv1.ServiceStatus{}
		service.LatestCreatedRevisionName = "fraud-predictor-" + isvc.Spec.Predictor.Containers[0].Image
		service.LatestReadyRevisionName = now.LatestReadyRevision
		if ready, err := readyPods(ctx, w, service.LatestCreatedRevisionName); err != nil {
			return err
		} else if ready > 0 {
			service.LatestReadyRevisionName = service.LatestCreatedRevisionName
		}
		if service.LatestReadyRevisionName == "" {
			return nil
		}
		target := func(revision string, latest bool, percent int64) knservingv1.TrafficTarget {
			return knservingv1.TrafficTarget{RevisionName: revision, LatestRevision: &latest, Percent: &percent}
		}
		asked := isvc.Spec.Predictor.CanaryTrafficPercent
		if asked == nil || now.LatestRolledoutRevision == "" {
			service.Traffic = append(service.Traffic, target(service.LatestReadyRevisionName, true, 100))
		} else if service.Traffic = append(service.Traffic, target(service.LatestReadyRevisionName, true, *asked)); *asked < 100 {
			service.Traffic = append(service.Traffic, target(now.LatestRolledoutRevision, false, 100-*asked))
		}
		for _, kind := range []apis.ConditionType{"Ready", "RoutesReady", "ConfigurationsReady"} {
			service.Conditions = append(service.Conditions, apis.Condition{Type: kind, Status: corev1.ConditionTrue})
		}
		service.Address = &duckv1.Addressable{URL: apis.HTTP("fraud.in.cluster")}
		isvc.Status.Address = service.Address
		isvc.Status.PropagateStatus("predictor", &service)
		for i := range isvc.Status.Conditions {
			isvc.Status.Conditions[i].LastTransitionTime = apis.VolatileTime{}
		}
		if equality.Semantic.DeepEqual(before.Status, isvc.Status) {
			return nil
		}
		if err := w.Client.Status().Update(ctx, &isvc); err != nil {
			return err
		}
	}
	return nil
}

func readyPods(ctx context.Context, w *faults.World, revision string) (int, error) {
	var pods corev1.PodList
	err := w.Client.List(
		ctx,
		&pods,
		client.InNamespace(w.Namespace),
		client.MatchingLabels{"serving.knative.dev/revision": revision},
	)
	ready := 0
	for i := range pods.Items {
		for _, condition := range pods.Items[i].Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				ready++
			}
		}
	}
	return ready, err
}

// shares makes a rollout between the revisions of fraud.
func shares(change ...func(*v1alpha1.CanaryRollout)) faults.Step {
	return rollout(func(r *v1alpha1.CanaryRollout) {
		r.Spec.Stable.InferenceService, r.Spec.Canary.InferenceService = "fraud", "fraud"
		r.Spec.Routing.Provider = v1alpha1.ProviderKnative
		for _, one := range change {
			one(r)
		}
	})
}

// settleShares has KServe and the reconciler act until nothing can be left to do.
func settleShares(t *testing.T, w *faults.World, r reconcile.Reconciler) {
	t.Helper()
	for range 4 {
		do(t, w, kserveShares)
		reconcileOnce(t, w, r)
	}
	do(t, w, kserveShares)
	reconcileOnce(t, w, r)
}

func fraudOf(t *testing.T, w *faults.World) *kserve.InferenceService {
	t.Helper()
	var isvc kserve.InferenceService
	if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: "fraud"}, &isvc); err != nil {
		t.Fatal(err)
	}
	return &isvc
}

// wantShares checks what each revision of fraud gets, and what the field says.
func wantShares(t *testing.T, w *faults.World, traffic, field string) {
	t.Helper()
	isvc := fraudOf(t, w)
	got := map[string]int64{}
	for _, target := range isvc.Status.Components["predictor"].Traffic {
		got[strings.TrimPrefix(target.RevisionName, "fraud-predictor-")] += *target.Percent
	}
	var text strings.Builder
	for _, model := range []string{"a", "b", "c", "d"} {
		if got[model] > 0 {
			_, _ = fmt.Fprintf(&text, "%s=%d ", model, got[model])
		}
	}
	says := "unset"
	if percent := isvc.Spec.Predictor.CanaryTrafficPercent; percent != nil {
		says = strconv.FormatInt(*percent, 10)
	}
	if text.String() != traffic || says != field {
		t.Errorf("traffic %q by canaryTrafficPercent %s, want %q by %s", text.String(), says, traffic, field)
	}
}

// TestShares: one field of the InferenceService shares its traffic between the revision that was rolled out last and the
// newest, there and back and through promotions.
func TestShares(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, fraud("a", ""), fraudPods("a", 2), shares(), percent(20))
	for _, step := range []struct {
		when           string
		do             faults.Step
		traffic, field string
		reason         string
	}{
		{"there is one revision", nil, "a=100 ", "unset", v1alpha1.ReasonOneRevision},
		{"another is made", fraud("b", `,"canaryTrafficPercent":0`), "a=100 ", "0", v1alpha1.ReasonInferenceServiceNotReady},
		{"it is ready", fraudPods("b", 1), "a=80 b=20 ", "20", v1alpha1.ReasonWeightsApplied},
		{"it gets more", percent(50), "a=50 b=50 ", "50", v1alpha1.ReasonWeightsApplied},
		{"its pods die", fraudPods("b", 0), "a=100 ", "0", v1alpha1.ReasonInferenceServiceNotReady},
		{"they are back", fraudPods("b", 1), "a=50 b=50 ", "50", v1alpha1.ReasonWeightsApplied},
		{"it gets everything", percent(100), "b=100 ", "100", v1alpha1.ReasonWeightsApplied},
		{"stable's pods go, as Knative has it", fraudPods("a", 0), "b=100 ", "100", v1alpha1.ReasonWeightsApplied},
		{"it goes back, before they have come again", percent(30), "a=70 b=30 ", "30", v1alpha1.ReasonWeightsApplied},
		{"all the way", all(fraudPods("a", 2), percent(0)), "a=100 ", "0", v1alpha1.ReasonWeightsApplied},
		{"a better one is made and not said to get nothing", all(percent(60), fraud("c", "")), "a=100 ", "0", v1alpha1.ReasonInferenceServiceNotReady},
		{"it is ready, too", fraudPods("c", 1), "a=40 c=60 ", "60", v1alpha1.ReasonWeightsApplied},
		{"it is promoted", percent(100), "c=100 ", "100", v1alpha1.ReasonWeightsApplied},
		{"the next is made", fraud("d", ""), "c=100 ", "0", v1alpha1.ReasonInferenceServiceNotReady},
		{"and is ready", fraudPods("d", 1), "d=100 ", "100", v1alpha1.ReasonWeightsApplied},
	} {
		if step.do != nil {
			do(t, w, step.do)
		}
		settleShares(t, w, r)
		t.Log("when", step.when)
		wantShares(t, w, step.traffic, step.field)
		status := metav1.ConditionFalse
		if step.reason == v1alpha1.ReasonWeightsApplied {
			status = metav1.ConditionTrue
		}
		wantCondition(t, w, name, v1alpha1.ConditionReady, status, step.reason)
	}
	want := &v1alpha1.RolloutRevisions{Stable: "fraud-predictor-c", Canary: "fraud-predictor-d"}
	got := get(t, w, name).Status
	if got.Revisions != nil {
		got.Revisions.Hash = ""
	}
	if diff := cmp.Diff(want, got.Revisions); diff != "" {
		t.Errorf("revisions (-want +got):\n%s", diff)
	}
	if got.Provider != v1alpha1.ProviderKnative || got.Host != "fraud.in.cluster" {
		t.Errorf("provider %s at %q", got.Provider, got.Host)
	}
}

// twoRevisions makes an InferenceService with two revisions, each with a pod, and the rollout between them.
func twoRevisions(ctx context.Context, w *faults.World) error {
	return all(fraud("a", ""), fraudPods("a", 1), kserveShares, fraud("b", `,"canaryTrafficPercent":0`), fraudPods("b", 1),
		shares())(ctx, w)
}

// TestSharesLeaveWhatIsRolledOut: KServe would go back to the revision before on any share below 100. What was rolled
// out without the rollout stays.
func TestSharesLeaveWhatIsRolledOut(t *testing.T) {
	w := soleWorld(t)
	do(t, w, fraud("a", ""), fraudPods("a", 1), kserveShares)
	do(t, w, fraud("b", ""), fraudPods("b", 1), kserveShares, shares())
	settleShares(t, w, newReconciler(w.Client, w))
	wantShares(t, w, "b=100 ", "unset")
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonOneRevision)
	do(t, w, remove)
	settleShares(t, w, newReconciler(w.Client, w))
	wantGone(t, w)
	wantShares(t, w, "b=100 ", "unset")
}

// TestSharesOfAnEdit: between an edit of the model and its revision, the share is not raised, since the new one would
// have it from its first moment; and not lowered either, once the last canary is rolled out.
func TestSharesOfAnEdit(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, twoRevisions, percent(50))
	settleShares(t, w, r)
	wantShares(t, w, "a=50 b=50 ", "50")
	do(t, w, fraud("c", `,"canaryTrafficPercent":0`)) // and KServe has not seen it
	settle(t, w, r)
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonWaitingForRevision)
	settleShares(t, w, r)
	wantShares(t, w, "a=100 ", "0")
	do(t, w, fraudPods("c", 1), percent(100))
	settleShares(t, w, r)
	wantShares(t, w, "c=100 ", "100")
	do(t, w, fraud("d", ""), percent(0))
	settle(t, w, r)
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonWaitingForRevision)
	settleShares(t, w, r)
	wantShares(t, w, "c=100 ", "0")
}

// TestSharesTouchNothingElse: of the whole InferenceService one number changes, and its manager is the rollout.
func TestSharesTouchNothingElse(t *testing.T) {
	w := soleWorld(t)
	do(t, w, fraud("a", `,"minReplicas":1,"labels":{"a":"b"}`), fraudPods("a", 1), kserveShares)
	do(t, w, fraud("b", `,"canaryTrafficPercent":0`), fraudPods("b", 1), kserveShares, shares(), percent(30))
	read := func() *unstructured.Unstructured {
		isvc := routing.NewRoute(routing.KnativeTraffic())
		if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: "fraud"}, isvc); err != nil {
			t.Fatal(err)
		}
		return isvc
	}
	before := read()
	reconcileOnce(t, w, newReconciler(w.Client, w))
	after := read()
	if got := routing.Opponent(after, "somebody", routing.KnativeTraffic().RuleField()); got != "outrigger-canaryrollout" {
		t.Errorf("the field's manager is %q", got)
	}
	for _, isvc := range []*unstructured.Unstructured{before, after} {
		unstructured.RemoveNestedField(isvc.Object, "spec", "predictor", "canaryTrafficPercent")
		for _, field := range []string{"managedFields", "resourceVersion", "generation"} {
			unstructured.RemoveNestedField(isvc.Object, "metadata", field)
		}
	}
	if diff := cmp.Diff(before.Object, after.Object); diff != "" {
		t.Errorf("more than the share changed (-before +after):\n%s", diff)
	}
	wantShares(t, w, "a=100 ", "30") // Knative has not taken it up
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonWaitingForGateway)
}

// TestSharesAreNotGivenUnseen: a share that was decided for one revision is not given to a newer one that the cache does
// not know yet.
func TestSharesAreNotGivenUnseen(t *testing.T) {
	w := soleWorld(t)
	do(t, w, twoRevisions)
	settleShares(t, w, newReconciler(w.Client, w))
	old := fraudOf(t, w)
	do(t, w, fraud("c", ""), fraudPods("c", 1), kserveShares, percent(70))
	behind := interceptor.NewClient(w.Client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
			if isvc, ok := into.(*kserve.InferenceService); ok {
				old.DeepCopyInto(isvc)
				return nil
			}
			return c.Get(ctx, key, into, opts...)
		},
	})
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	result, err := newReconciler(behind, w).Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
	if err != nil || result.RequeueAfter == 0 {
		t.Errorf("result %+v, error %v; want it looked at again soon", result, err)
	}
	wantShares(t, w, "a=100 ", "0")
	settleShares(t, w, newReconciler(w.Client, w))
	wantShares(t, w, "a=30 c=70 ", "70")
}

func TestSharesThatSomebodyEdits(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, twoRevisions, percent(10))
	settleShares(t, w, r)
	foreign := func(value string) faults.Step {
		return func(ctx context.Context, w *faults.World) error {
			isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "fraud"}}
			patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"predictor":{"canaryTrafficPercent":`+value+`}}}`))
			return w.Client.Patch(ctx, isvc, patch, client.FieldOwner("argocd"))
		}
	}
	do(t, w, foreign("90"))
	settleShares(t, w, r)
	wantShares(t, w, "a=90 b=10 ", "10")
	if drift := get(t, w, name).Status.Drift; drift == nil || drift.Manager != "argocd" || len(drift.Repairs) != 1 {
		t.Errorf("drift %+v, want one repair of what argocd did", drift)
	}
	do(t, w, foreign("null"))
	settleShares(t, w, r)
	wantShares(t, w, "a=90 b=10 ", "10")
	for range 6 {
		do(t, w, foreign("90"))
		settleShares(t, w, r)
	}
	wantShares(t, w, "a=10 b=90 ", "90")
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonDriftHeld)
}

// TestSharesOfAnEnd: every policy of deletion, from the middle of a rollout and from its end.
func TestSharesOfAnEnd(t *testing.T) {
	tests := map[string]struct {
		policy         v1alpha1.OnDelete
		found          string
		percent        int
		traffic, field string
	}{
		"Stable in the middle": {
			policy:  v1alpha1.OnDeleteStable,
			found:   "0",
			percent: 40,
			traffic: "a=100 ",
			field:   "0",
		},
		"Stable at the end": {
			policy:  v1alpha1.OnDeleteStable,
			found:   "0",
			percent: 100,
			traffic: "b=100 ",
			field:   "100",
		},
		"Keep": {
			policy:  v1alpha1.OnDeleteKeep,
			found:   "0",
			percent: 40,
			traffic: "a=60 b=40 ",
			field:   "40",
		},
		"Restore of a number": {
			policy:  v1alpha1.OnDeleteRestore,
			found:   "5",
			percent: 40,
			traffic: "a=95 b=5 ",
			field:   "5",
		},
		"Restore of nothing, in the middle": {
			policy:  v1alpha1.OnDeleteRestore,
			found:   "null",
			percent: 40,
			traffic: "b=100 ",
			field:   "unset",
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := soleWorld(t)
			r := newReconciler(w.Client, w)
			do(t, w, fraud("a", ""), fraudPods("a", 1), kserveShares)
			do(t, w, fraud("b", `,"canaryTrafficPercent":0`), kserveShares)
			do(t, w, fraudPods("b", 1), kserveShares,
				changeService("fraud", `{"spec":{"predictor":{"canaryTrafficPercent":`+tc.found+`}}}`),
				shares(func(r *v1alpha1.CanaryRollout) { r.Spec.Routing.OnDelete = tc.policy }), percent(tc.percent))
			for range 4 {
				reconcileOnce(t, w, r)
				do(t, w, kserveShares)
			}
			wantReady(t, w)
			do(t, w, remove)
			for range 2 {
				reconcileOnce(t, w, r)
			}
			do(t, w, kserveShares)
			wantGone(t, w)
			wantShares(t, w, tc.traffic, tc.field)
		})
	}
}

func TestSharesRefusals(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(t, w, shares())
	settle(t, w, r)
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonInferenceServiceNotFound)
	do(t, w, inferenceService("fraud", 1), func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "fraud"}}
		return w.Client.Status().
			Patch(ctx, isvc, client.RawPatch(types.MergePatchType, []byte(`{"status":{"deploymentMode":"Standard"}}`)))
	})
	settle(t, w, r)
	wantStalled(t, w, name, v1alpha1.ReasonUnsupportedDeploymentMode)
	second := &v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "second"}, Spec: get(t, w, name).Spec,
	}
	do(t, w, func(ctx context.Context, w *faults.World) error {
		return w.Client.Create(ctx, second)
	}, fraud("a", ""), fraudPods("a", 1), kserveShares)
	settle(t, w, r, name, "second")
	wantStalled(t, w, "second", v1alpha1.ReasonRouteConflict)
}

// TestSharesOfAColdRevision: a revision that may have no pod gets no first share.
func TestSharesOfAColdRevision(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(
		t,
		w,
		fraud("a", ""),
		fraudPods("a", 1),
		kserveShares,
		fraud("b", `,"canaryTrafficPercent":0,"minReplicas":0`),
		fraudPods("b", 1),
		shares(),
		percent(10),
	)
	settleShares(t, w, r)
	wantShares(t, w, "a=100 ", "0")
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonCanaryScalesToZero)
}

// TestSharesBySteps: a strategy takes its steps, and another revision begins without traffic.
func TestSharesBySteps(t *testing.T) {
	w := soleWorld(t)
	r := newReconciler(w.Client, w)
	do(
		t,
		w,
		fraud("a", ""),
		fraudPods("a", 1),
		kserveShares,
		fraud("b", `,"canaryTrafficPercent":0`),
		fraudPods("b", 1),
		shares(),
		edit(`{"spec":{"strategy":{"steps":[{"setPercent":25},{"pause":{}},{"setPercent":100}]}}}`),
	)
	settleShares(t, w, r)
	settleShares(t, w, r)
	wantShares(t, w, "a=75 b=25 ", "25")
	if got := get(t, w, name).Status.Phase; got != v1alpha1.PhasePaused {
		t.Errorf("phase %s, want a pause", got)
	}
	do(t, w, fraud("c", ""))
	settleShares(t, w, r)
	wantShares(t, w, "a=100 ", "0")
	do(t, w, fraudPods("c", 1))
	settleShares(t, w, r)
	settleShares(t, w, r)
	wantShares(t, w, "a=75 c=25 ", "25")
}

func TestFaultsOfShares(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, New: anew, Environment: all(collectGarbage, kserveShares), Check: shareWasAsked,
		Forget: func(text string) string {
			return regexp.MustCompile(`\s*"previousRolledoutRevision": "[^"]*",?`).ReplaceAllString(addresses(text), "")
		},
		Steps: []faults.Step{
			all(fraud("a", ""), fraudPods("a", 1), kserveShares, fraud("b", `,"canaryTrafficPercent":0`), fraudPods("b", 1),
				shares(), percent(100)),
			percent(0),
		},
	})
}

// shareWasAsked checks that the field never says what nobody asked.
func shareWasAsked(ctx context.Context, w *faults.World) error {
	var isvc kserve.InferenceService
	if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: "fraud"}, &isvc); err != nil {
		return client.IgnoreNotFound(err)
	}
	if says := isvc.Spec.Predictor.CanaryTrafficPercent; says != nil && *says != 0 && *says != 100 {
		return fmt.Errorf("canaryTrafficPercent is %d", *says)
	}
	return nil
}

// TestSharesValidation asks the API server what a rollout between revisions may say.
func TestSharesValidation(t *testing.T) {
	w := soleWorld(t)
	tests := map[string]struct {
		change func(*v1alpha1.CanaryRolloutSpec)
		// want is a part of the message, empty if the object is to be taken.
		want string
	}{
		"nothing else": {},
		"Restore":      {change: func(s *v1alpha1.CanaryRolloutSpec) { s.Routing.OnDelete = v1alpha1.OnDeleteRestore }},
		"two of them": {
			change: func(s *v1alpha1.CanaryRolloutSpec) { s.Canary.InferenceService = "v2" },
			want:   "one InferenceService",
		},
		"a variant": {change: func(s *v1alpha1.CanaryRolloutSpec) { s.Canary.Variant = "v2" }, want: "without variants"},
		"hosts": {
			change: func(s *v1alpha1.CanaryRolloutSpec) { s.Routing.Hosts = []string{"a"} },
			want:   "remove mode, hosts",
		},
		"another's mode": {
			change: func(s *v1alpha1.CanaryRolloutSpec) { s.Routing.Mode = v1alpha1.RoutingDelegate },
			want:   "remove mode, hosts",
		},
		"a shadow": {
			change: func(s *v1alpha1.CanaryRolloutSpec) { s.Shadow = &v1alpha1.RolloutShadow{Percent: 5} },
			want:   "remove colours, stickiness and shadow",
		},
		"sessions": {
			change: func(s *v1alpha1.CanaryRolloutSpec) {
				s.Stickiness = &v1alpha1.RolloutStickiness{Header: &v1alpha1.SessionHeader{Name: "x-session-id"}}
			},
			want: "remove colours, stickiness and shadow",
		},
		"another provider between revisions": {
			change: func(s *v1alpha1.CanaryRolloutSpec) { s.Routing.Provider = v1alpha1.ProviderAuto },
			want:   "two different InferenceServices",
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			r := &v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
			r.Spec.Stable.InferenceService, r.Spec.Canary.InferenceService = "fraud", "fraud"
			r.Spec.Routing.Provider = v1alpha1.ProviderKnative
			if tc.change != nil {
				tc.change(&r.Spec)
			}
			err := w.Client.Create(t.Context(), r, client.DryRunAll)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want a word of %q", err, tc.want)
			}
		})
	}
}
