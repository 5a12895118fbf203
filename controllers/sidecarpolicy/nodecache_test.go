// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy_test

import (
	"context"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/sidecarpolicy"
)

var nodeCacheKinds = []client.ObjectList{
	&v1alpha1.SidecarPolicyList{}, &v1alpha1.MemcachedList{}, &kserve.InferenceServiceList{}, &corev1.PodList{},
	&appsv1.DaemonSetList{}, &corev1.ServiceList{},
}

func features() *v1alpha1.Memcached {
	return &v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Name: "features"}}
}

func sharedPolicy() *v1alpha1.SidecarPolicy {
	p := cachePolicy()
	p.Spec.FeatureCache.Mode = v1alpha1.FeatureCacheShared
	return p
}

func newNodeCacheReconciler(c client.Client, w *faults.World) reconcile.Reconciler {
	return reconcile.AsReconciler(c,
		sidecarpolicy.NewNodeCacheReconciler(c, w.Client, record.NewFakeRecorder(1000), "outrigger:1", &sidecarpolicy.Memo{}))
}

func TestNodeCacheFaults(t *testing.T) {
	plan := sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features", Shared: true}}
	user := equipped(modelPod("a-1", "a", ""), plan)
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name:  "features",
		Kinds: nodeCacheKinds,
		New:   newNodeCacheReconciler,
		Environment: func(ctx context.Context, w *faults.World) error {
			return faults.CollectGarbage(ctx, w, nodeCacheKinds...)
		},
		Forget: func(text string) string { return clusterIP.ReplaceAllString(text, "IP") },
		Steps: []faults.Step{
			all(create(features()), create(sharedPolicy()), create(inferenceService("a", nil)), create(user)),
			change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.FeatureCache.Mode = v1alpha1.FeatureCacheSidecar }),
			remove(user),
			change(name, func(p *v1alpha1.SidecarPolicy) { p.Spec.FeatureCache.Mode = v1alpha1.FeatureCacheShared }),
		},
	})
}

var clusterIP = regexp.MustCompile(`"\d+\.\d+\.\d+\.\d+"`)

// equipped marks a pod as the webhook does.
func equipped(pod *corev1.Pod, plan sidecar.Plan) *corev1.Pod {
	sidecar.Inject(pod, plan, sidecar.Settings{FeatureCache: "outrigger:1"})
	return pod
}

// TestNodeCachesStayWhileTheyAreUsed: those that a pod was connected to go when it has gone.
func TestNodeCachesStayWhileTheyAreUsed(t *testing.T) {
	w := newWorld(t)
	user := equipped(
		modelPod("a-1", "a", ""),
		sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features", Shared: true}},
	)
	own := equipped(modelPod("b-1", "b", ""), sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features"}})
	do(t, w, create(features()), create(own))
	look := func() (caches, services int) {
		t.Helper()
		key := client.ObjectKey{Namespace: w.Namespace, Name: "features"}
		r := newNodeCacheReconciler(w.Client, w)
		if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
			t.Fatal(err)
		}
		var sets appsv1.DaemonSetList
		var list corev1.ServiceList
		for _, l := range []client.ObjectList{&sets, &list} {
			if err := w.Client.List(t.Context(), l, client.InNamespace(w.Namespace)); err != nil {
				t.Fatal(err)
			}
		}
		return len(sets.Items), len(list.Items)
	}
	want := func(when string, n int) {
		t.Helper()
		if caches, services := look(); caches != n || services != n {
			t.Errorf("%s: %d DaemonSets and %d Services, want %d", when, caches, services, n)
		}
	}
	want("nobody shares", 0)
	do(t, w, create(sharedPolicy()))
	want("a policy shares", 1)
	do(t, w, create(user), remove(sharedPolicy()))
	want("only a pod uses it", 1)
	do(t, w, remove(user))
	want("nobody uses it", 0)
	// The annotation keeps the mode of the policy that picks the InferenceService.
	other := sharedPolicy()
	other.Spec.FeatureCache.MemcachedRef.Name = "other"
	do(t, w, create(other))
	want("another is shared", 0)
	do(t, w, create(inferenceService("c", map[string]string{v1alpha1.AnnotationFeatureCache: "features"})))
	want("an InferenceService names it", 1)
}

// TestNodeCacheLeavesForeignObjectsAlone: the cache of the manager holds Outrigger's objects only, and does not know of a
// foreign one by the same name.
func TestNodeCacheLeavesForeignObjectsAlone(t *testing.T) {
	w := newWorld(t)
	foreign := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.NodeCacheName("features")},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	do(t, w, create(foreign), create(features()), create(sharedPolicy()))
	blind := interceptor.NewClient(w.Client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			err := c.Get(ctx, key, o, opts...)
			if err == nil && key.Name == foreign.Name && o.GetLabels()[v1alpha1.LabelManagedBy] == "" {
				return notFound(key.Name)
			}
			return err
		},
	})
	recorder := record.NewFakeRecorder(10)
	r := reconcile.AsReconciler(client.Client(blind),
		sidecarpolicy.NewNodeCacheReconciler(blind, w.Client, recorder, "outrigger:1", &sidecarpolicy.Memo{}))
	key := client.ObjectKey{Namespace: w.Namespace, Name: "features"}
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
		t.Fatal(err)
	}
	var live corev1.Service
	if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: foreign.Name}, &live); err != nil {
		t.Fatal(err)
	}
	if len(live.OwnerReferences) > 0 || live.Spec.Ports[0].Port != 80 {
		t.Errorf("the foreign Service was changed: %+v", live.Spec.Ports)
	}
	if event := <-recorder.Events; !strings.Contains(event, v1alpha1.ReasonNameTaken) {
		t.Errorf("event %q", event)
	}
}

func TestAPolicyIsReadyWhenAllNodesHaveTheCacheItShares(t *testing.T) {
	w := newWorld(t)
	do(t, w, create(features()), create(sharedPolicy()), create(inferenceService("a", nil)))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonWaitingForNodeCaches)
	key := client.ObjectKey{Namespace: w.Namespace, Name: "features"}
	if _, err := newNodeCacheReconciler(w.Client, w).Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
		t.Fatal(err)
	}
	running := func(ready int32) faults.Step {
		return func(ctx context.Context, w *faults.World) error {
			set := &appsv1.DaemonSet{}
			key := client.ObjectKey{Namespace: w.Namespace, Name: v1alpha1.NodeCacheName("features")}
			if err := w.Client.Get(ctx, key, set); err != nil {
				return err
			}
			set.Status.DesiredNumberScheduled, set.Status.NumberReady = 3, ready
			return w.Client.Status().Update(ctx, set)
		}
	}
	do(t, w, running(2))
	reconcileOnce(t, w)
	c := meta.FindStatusCondition(get(t, w).Status.Conditions, v1alpha1.ConditionReady)
	if c.Status != metav1.ConditionFalse || !strings.HasPrefix(c.Message, "2 of 3 nodes") {
		t.Errorf("Ready is %s: %s", c.Status, c.Message)
	}
	do(t, w, running(3))
	reconcileOnce(t, w)
	wantCondition(t, w, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
}

func notFound(name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, name)
}
