// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/podwebhook"
	"serverless.xyz/outrigger/controllers/sidecarpolicy"
)

// TestRolloutFaults: whatever happens to the manager, each change replaces each pod once.
func TestRolloutFaults(t *testing.T) {
	cluster := testcluster.New(t)
	serveWebhook(t, cluster)
	deployments := newActor()
	faults.Run(t, cluster, faults.Scenario{
		Name:        name,
		Kinds:       append([]client.ObjectList{&appsv1.ReplicaSetList{}}, kinds...),
		New:         newReconciler,
		Environment: deployments.act,
		Steps: []faults.Step{
			all(
				withWebhook,
				create(rolling(preloadPolicy())),
				create(inferenceService("a", nil)),
				create(inferenceService("b", nil)),
			),
			change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyRequire }),
			change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyAuto }),
		},
		Check: func(_ context.Context, w *faults.World) error {
			if n := deployments.replaced(w, "a"); n > 2 {
				return fmt.Errorf("the pods of an InferenceService were replaced %d times for two changes", n)
			}
			return nil
		},
		// Made again under other UIDs, the InferenceServices find the policy as it is in the end, and nothing to replace.
		Forget: func(text string) string {
			return layout.ReplaceAllString(rolloutAnnotation.ReplaceAllString(text, ""), "")
		},
	})
}

var layout = regexp.MustCompile(`[\s,]`)

var rolloutAnnotation = regexp.MustCompile(
	`"annotations": \{\s*"outrigger.serverless.xyz/rollout": "[^"]*"\s*\},?\s*|` +
		`,\s*"outrigger.serverless.xyz/rollout": "[^"]*"`)

func TestAChangeIsRolledOutOnce(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(rolling(preloadPolicy())))
	for _, service := range []string{"a", "b", "c"} {
		do(t, r.World, create(inferenceService(service, nil)))
	}
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0, "b": 0, "c": 0})
	do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyRequire }))
	reconcileOnce(t, r.World)
	if s := get(t, r.World).Status; s.Rolling != 1 {
		t.Errorf("%d InferenceServices are rolling at once, want 1 of 3", s.Rolling)
	}
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionFalse, v1alpha1.ReasonRollingOut)
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1, "b": 1, "c": 1})
	wantCounts(t, r.World, 3, 3, 0)
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionTrue, v1alpha1.ReasonRolledOut)
	if got := r.services(t)["a"].Annotations; got[v1alpha1.AnnotationRollout] != "" {
		t.Errorf("annotations %v of the InferenceService itself were edited", got)
	}
}

func TestAChangeWaitsForTheNextRestart(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(preloadPolicy()), create(inferenceService("a", nil)))
	r.rest(t)
	do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyRequire }))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	wantCounts(t, r.World, 1, 0, 1)
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionFalse, v1alpha1.ReasonWaitingForRestart)
}

func TestAPolicyReachesPodsThatRunAlready(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(inferenceService("a", nil)))
	r.rest(t)
	r.Clock.SetTime(time.Now().Add(time.Hour)) // the pods are older than the policy
	do(t, r.World, create(rolling(preloadPolicy())))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1})
	wantCounts(t, r.World, 1, 1, 0)
}

// TestAPolicyThatWouldBreakPodsIsNotRolledOut: one pod has no room for what the policy adds, which only its trial shows.
func TestAPolicyThatWouldBreakPodsIsNotRolledOut(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(rolling(preloadPolicy())), create(inferenceService("a", nil)), create(inferenceService("b", nil)))
	r.rest(t)
	do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) {
		p.Spec.Containers = raw(
			`{"name": "reader", "image": "registry.example/r", "volumeMounts": [{"name": "no-such-thing", "mountPath": "/v"}]}`,
		)
	}))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0, "b": 0})
	wantCondition(t, r.World, v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted)
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionFalse, v1alpha1.ReasonTrialRefused)
	wantCondition(t, r.World, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonTrialRefused)
	c := meta.FindStatusCondition(get(t, r.World).Status.Conditions, v1alpha1.ConditionRolledOut)
	if !strings.Contains(c.Message, `"a"`) || !strings.Contains(c.Message, "no-such-thing") {
		t.Errorf("message %q does not name the InferenceService and the field", c.Message)
	}
	if after := r.round(t); after == 0 {
		t.Error("a trial that was refused is not repeated")
	}
	do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) {
		p.Spec.Containers = raw(`{"name": "reader", "image": "registry.example/r"}`)
	}))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1, "b": 1})
	wantCondition(t, r.World, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionTrue, v1alpha1.ReasonRolledOut)
}

// TestAQuotaThatIsUsedUpHoldsRestarts: it says nothing about the policy.
func TestAQuotaThatIsUsedUpHoldsRestarts(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(rolling(preloadPolicy())), create(inferenceService("a", nil)))
	r.rest(t)
	full := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1")}
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: "full"}, Spec: corev1.ResourceQuotaSpec{Hard: full},
	}
	do(t, r.World, func(ctx context.Context, w *faults.World) error {
		if err := w.Client.Create(ctx, quota); err != nil {
			return err
		}
		quota.Status = corev1.ResourceQuotaStatus{Hard: full, Used: full} // as kube-controller-manager does
		return w.Client.Status().Update(ctx, quota)
	})
	eventually(t, "the quota to be enforced", func(ctx context.Context) bool {
		probe := modelPod("probe", "probe", "")
		probe.Namespace = r.Namespace
		return r.Client.Create(ctx, probe, client.DryRunAll) != nil
	})
	do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyRequire }))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionFalse, v1alpha1.ReasonTrialRefused)
	wantCondition(t, r.World, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
}

func TestNothingIsRolledOutWhileTheWebhookIsAway(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(rolling(preloadPolicy())), create(inferenceService("a", nil)))
	r.rest(t)
	do(t, r.World, withoutWebhook, change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyOff }))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionFalse, v1alpha1.ReasonWaitingForWebhook)
	if after := r.round(t); after == 0 || after > time.Minute {
		t.Errorf("the next look is in %s", after)
	}
	do(t, r.World, withWebhook)
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1})
}

func TestPodsThatWereMissedAreReplaced(t *testing.T) {
	r := newRolloutWorld(t)
	p := preloadPolicy()
	p.Spec.OnMissedInjection = v1alpha1.MissedRestart
	do(t, r.World, create(p), withoutWebhook)
	reconcileOnce(t, r.World)
	do(t, r.World, create(inferenceService("a", nil)))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	if s := get(t, r.World).Status; s.Missed != 1 {
		t.Fatalf("%d pods missed, want 1", s.Missed)
	}
	do(t, r.World, withWebhook)
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1})

	// The same once more: the plan is the same, the pods are others.
	do(t, r.World, withoutWebhook, r.kserve.lose("a"))
	r.rest(t)
	do(t, r.World, withWebhook)
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 2})

	// And once more, too soon: the clock of the world stands before the pods'.
	do(t, r.World, withoutWebhook, r.kserve.lose("a"))
	r.rest(t)
	do(t, r.World, withWebhook)
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 2})
	r.Clock.SetTime(time.Now().Add(11 * time.Minute))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 3})
	wantCounts(t, r.World, 1, 1, 0)
}

func TestPodsThatWereMissedAreReportedOnly(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(rolling(preloadPolicy())), withoutWebhook)
	reconcileOnce(t, r.World)
	do(t, r.World, create(inferenceService("a", nil)))
	r.rest(t)
	do(t, r.World, withWebhook)
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	if s := get(t, r.World).Status; s.Missed != 1 {
		t.Errorf("%d pods missed, want 1", s.Missed)
	}
}

// TestEachPolicyRestartsForItselfOnly: of two policies that equip the same pods, the change of the one that says so
// replaces them, that of the other does not, and neither does its end.
func TestEachPolicyRestartsForItselfOnly(t *testing.T) {
	r := newRolloutWorld(t)
	other := cachePolicy()
	other.Name = "other"
	do(t, r.World, create(rolling(preloadPolicy())), create(other), create(inferenceService("a", nil)))
	r.rest(t)
	do(t, r.World, change("other", func(p *v1alpha1.SidecarPolicy) { p.Spec.FeatureCache.MemcachedRef.Name = "more" }))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyRequire }))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1})
	do(
		t,
		r.World,
		change("other", func(p *v1alpha1.SidecarPolicy) { p.Spec.Selector.MatchLabels = map[string]string{"no": "one"} }),
	)
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1})
	wantCounts(t, r.World, 1, 0, 1)
}

// TestTwoPoliciesAtOnceReplaceOnce: both want the same pods replaced; the first acts for both.
func TestTwoPoliciesAtOnceReplaceOnce(t *testing.T) {
	r := newRolloutWorld(t)
	other := rolling(cachePolicy())
	other.Name = "other"
	r.policies = append(r.policies, "other")
	do(t, r.World, create(rolling(preloadPolicy())), create(other), create(inferenceService("a", nil)))
	r.rest(t)
	do(t, r.World,
		change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.Preload.Verify = v1alpha1.VerifyRequire }),
		change("other", func(p *v1alpha1.SidecarPolicy) { p.Spec.FeatureCache.MemcachedRef.Name = "more" }))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1})
	wantCounts(t, r.World, 1, 1, 0)
}

// TestABrokenPolicyHoldsRestarts: with one policy that cannot be understood, what the pods are to carry is not known.
func TestABrokenPolicyHoldsRestarts(t *testing.T) {
	r := newRolloutWorld(t)
	low := rolling(preloadPolicy())
	low.Spec.Preload.Verify = v1alpha1.VerifyOff
	high := preloadPolicy()
	high.Name, high.Spec.Priority = "high", 900
	do(t, r.World, create(low), create(high), create(inferenceService("a", nil)))
	r.rest(t)
	do(t, r.World, change("high", func(p *v1alpha1.SidecarPolicy) { p.Spec.Condition = "isvc.spec ==" }))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	wantCondition(t, r.World, v1alpha1.ConditionRolledOut, metav1.ConditionFalse, v1alpha1.ReasonHeldByPolicy)
}

// TestAnUpgradeReplacesNoPod: a manager with other images finds the pods of its predecessor as they should be.
func TestAnUpgradeReplacesNoPod(t *testing.T) {
	r := newRolloutWorld(t)
	both := rolling(preloadPolicy())
	both.Spec.FeatureCache, both.Spec.OnMissedInjection = cachePolicy().Spec.FeatureCache, v1alpha1.MissedRestart
	do(t, r.World, create(both), create(inferenceService("a", nil)))
	r.rest(t)
	r.newReconciler = func(w *faults.World) reconcile.Reconciler {
		return reconcile.AsReconciler(w.Client, sidecarpolicy.New(w.Client, w.Client, w.Clock, record.NewFakeRecorder(1000),
			sidecar.Settings{Preloader: "preloader:2", FeatureCache: "outrigger:2"}, &sidecarpolicy.Memo{}))
	}
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 0})
	wantCounts(t, r.World, 1, 1, 0)
}

// rolloutWorld is a namespace where pods pass through the webhook, and in which something acts like KServe does.
type rolloutWorld struct {
	*faults.World
	kserve        *actor
	newReconciler func(*faults.World) reconcile.Reconciler
	policies      []string
}

func newRolloutWorld(t *testing.T) *rolloutWorld {
	t.Helper()
	cluster := testcluster.New(t)
	serveWebhook(t, cluster)
	w := &rolloutWorld{
		World: faults.NewSoleWorld(t, cluster), kserve: newActor(), policies: []string{name},
		newReconciler: func(w *faults.World) reconcile.Reconciler { return newReconciler(w.Client, w) },
	}
	do(t, w.World, withWebhook)
	return w
}

// round has KServe act and all policies reconciled, and returns when to look again.
func (r *rolloutWorld) round(t *testing.T) time.Duration {
	t.Helper()
	var after time.Duration
	do(t, r.World, r.kserve.act)
	for _, policy := range r.policies {
		key := client.ObjectKey{Namespace: r.Namespace, Name: policy}
		result, err := r.newReconciler(r.World).Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
		if err != nil {
			t.Fatalf("reconciling: %v", err)
		}
		after = max(after, result.RequeueAfter)
	}
	return after
}

// rest goes on until long after nothing should happen any more.
func (r *rolloutWorld) rest(t *testing.T) {
	t.Helper()
	for range 12 {
		r.round(t)
	}
}

func (r *rolloutWorld) wantReplaced(t *testing.T, want map[string]int) {
	t.Helper()
	got := map[string]int{}
	for service := range want {
		got[service] = r.kserve.replaced(r.World, service)
	}
	if !maps.Equal(got, want) {
		t.Errorf("pods were replaced %v times, want %v", got, want)
	}
}

func (r *rolloutWorld) services(t *testing.T) map[string]*kserve.InferenceService {
	t.Helper()
	var list kserve.InferenceServiceList
	if err := r.Client.List(t.Context(), &list, client.InNamespace(r.Namespace)); err != nil {
		t.Fatal(err)
	}
	found := map[string]*kserve.InferenceService{}
	for i := range list.Items {
		found[list.Items[i].Name] = &list.Items[i]
	}
	return found
}

// actor stands for KServe and the controllers of Deployments: of each InferenceService it keeps one ReplicaSet with the
// annotations that KServe copies, and one pod of it, and replaces both when these change. The real ones do so in
// TestKServe.
type actor struct {
	mu     sync.Mutex
	counts map[string]int
}

func newActor() *actor { return &actor{counts: map[string]int{}} }

// replaced returns how often the pods of an InferenceService were replaced.
func (a *actor) replaced(w *faults.World, service string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.counts[w.Namespace+"/"+service]
}

func (a *actor) act(ctx context.Context, w *faults.World) error {
	var services kserve.InferenceServiceList
	if err := w.Client.List(ctx, &services, client.InNamespace(w.Namespace)); err != nil {
		return err
	}
	for i := range services.Items {
		if err := a.actOn(ctx, w, &services.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

func (a *actor) actOn(ctx context.Context, w *faults.World, isvc *kserve.InferenceService) error {
	want := replicaSet(w, isvc)
	live := &appsv1.ReplicaSet{}
	err := w.Client.Get(ctx, client.ObjectKeyFromObject(want), live)
	if err == nil && !equality.Semantic.DeepEqual(live.Spec.Template.Annotations, want.Spec.Template.Annotations) {
		if err := w.Client.Delete(ctx, live); err != nil {
			return err
		}
		a.mu.Lock()
		a.counts[w.Namespace+"/"+isvc.Name]++
		a.mu.Unlock()
		return a.replace(ctx, w, want)
	}
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	if err != nil {
		return a.replace(ctx, w, want)
	}
	pod := &corev1.Pod{}
	err = w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: isvc.Name + "-1"}, pod)
	if err == nil && metav1.IsControlledBy(pod, live) {
		return nil
	}
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	return a.makePod(ctx, w, live)
}

func (a *actor) replace(ctx context.Context, w *faults.World, want *appsv1.ReplicaSet) error {
	if err := w.Client.Create(ctx, want); err != nil {
		return err
	}
	return a.makePod(ctx, w, want)
}

func (a *actor) makePod(ctx context.Context, w *faults.World, of *appsv1.ReplicaSet) error {
	pod := &corev1.Pod{ObjectMeta: *of.Spec.Template.ObjectMeta.DeepCopy(), Spec: *of.Spec.Template.Spec.DeepCopy()}
	pod.Namespace, pod.Name = w.Namespace, of.Name+"-1"
	pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(of, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	if err := client.IgnoreNotFound(w.Client.Delete(ctx, pod.DeepCopy(), client.GracePeriodSeconds(0))); err != nil {
		return err
	}
	return w.Client.Create(ctx, pod)
}

// lose has the pod of an InferenceService die, so that another takes its place.
func (a *actor) lose(service string) faults.Step {
	return all(remove(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: service + "-1"}}), a.act)
}

func replicaSet(w *faults.World, isvc *kserve.InferenceService) *appsv1.ReplicaSet {
	pod := modelPod("", isvc.Name, "")
	annotations := kserve.AnnotationsOf(isvc, v1alpha1.ComponentPredictor)
	if len(annotations) == 0 {
		annotations = nil
	}
	pod.Spec.TerminationGracePeriodSeconds = nil
	pod.Spec.InitContainers = []corev1.Container{{
		Name: kserve.ContainerStorageInitializer, Image: "kserve", Args: []string{"s3://b/m", "/mnt/models"},
	}}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: isvc.Name},
		Spec: appsv1.ReplicaSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: annotations}, Spec: pod.Spec,
			},
		},
	}
}

func rolling(p *v1alpha1.SidecarPolicy) *v1alpha1.SidecarPolicy {
	p.Spec.Rollout = v1alpha1.RolloutAlways
	return p
}

func change(name string, edit func(*v1alpha1.SidecarPolicy)) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		var p v1alpha1.SidecarPolicy
		if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: name}, &p); err != nil {
			return err
		}
		edit(&p)
		return w.Client.Update(ctx, &p)
	}
}

const webhookLabel = "equipped"

func withWebhook(ctx context.Context, w *faults.World) error { return labelNamespace(ctx, w, "true") }

func withoutWebhook(ctx context.Context, w *faults.World) error {
	return labelNamespace(ctx, w, "false")
}

func labelNamespace(ctx context.Context, w *faults.World, value string) error {
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, webhookLabel, value)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.Namespace}}
	if err := w.Client.Patch(ctx, ns, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		return err
	}
	// The API server's own picture of namespaces follows with a delay.
	return awaitWebhook(ctx, w, value == "true")
}

func awaitWebhook(ctx context.Context, w *faults.World, want bool) error {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		pod := modelPod("probe", "probe", "")
		pod.Namespace, pod.Annotations = w.Namespace, map[string]string{v1alpha1.AnnotationPreload: "true"}
		if err := w.Client.Create(ctx, pod, client.DryRunAll); err != nil {
			return err
		}
		if (pod.Annotations[v1alpha1.AnnotationInjected] != "") == want {
			return nil
		}
	}
	return fmt.Errorf("the API server calls the webhook: %v, want %v", !want, want)
}

var webhookOnce sync.Once

// serveWebhook has the API server that all tests share call the real webhook, as the project's own manifest says, for
// pods of namespaces that ask for it.
func serveWebhook(t *testing.T, cluster *testcluster.Cluster) {
	t.Helper()
	webhookOnce.Do(func() {
		server := httptest.NewUnstartedServer(&admission.Webhook{
			Handler: podwebhook.New(cluster.Client, cluster.Client, admission.NewDecoder(cluster.Client.Scheme()), settings),
		})
		server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		server.StartTLS() // as long as the API server, which ends with the test binary
		raw, err := os.ReadFile(filepath.Join(testcluster.Root(), "config/webhook/webhook.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var configuration admissionv1.MutatingWebhookConfiguration
		if err := yaml.UnmarshalStrict(raw, &configuration); err != nil {
			t.Fatal(err)
		}
		url := server.URL + podwebhook.Path
		configuration.Webhooks[0].ClientConfig = admissionv1.WebhookClientConfig{
			URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		}
		configuration.Webhooks[0].NamespaceSelector.MatchLabels = map[string]string{webhookLabel: "true"}
		configuration.Webhooks[0].TimeoutSeconds = new(int32(30)) // a pod that is missed would be one too many
		if err := cluster.Client.Create(t.Context(), &configuration); err != nil {
			t.Fatal(err)
		}
	})
}
