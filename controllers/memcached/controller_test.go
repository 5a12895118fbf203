// SPDX-License-Identifier: Apache-2.0

package memcached_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/memcached"
	mc "serverless.xyz/outrigger/memcached"
	"serverless.xyz/outrigger/memcached/memcachedtest"
)

const name = "features"

var kinds = []client.ObjectList{
	&v1alpha1.MemcachedList{}, &appsv1.StatefulSetList{}, &corev1.ServiceList{}, &corev1.ConfigMapList{},
	&discoveryv1.EndpointSliceList{},
}

func TestFaults(t *testing.T) {
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name:  name,
		Kinds: kinds,
		New: func(c client.Client, w *faults.World) reconcile.Reconciler {
			return newReconciler(c, w, silentStats)
		},
		Steps:       []faults.Step{create(1, 1), resize(3), resize(2)},
		Environment: environment,
		Check:       ringNeverShrinksEarly(),
		Forget: func(text string) string {
			// How often the ring changed on the way there, and what the conditions said of times.
			text = regexp.MustCompile(`\\?"epoch\\?": \d+`).ReplaceAllString(text, `"epoch": N`)
			// Which ring was before, which depends on when it changed.
			text = regexp.MustCompile(`,\\n  \\"former\\": \[(\s|\\n|\[[^\]]*\],?)*\]`).ReplaceAllString(text, "")
			// Who the cache is.
			text = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`).ReplaceAllString(text, "UID")
			// Which standby instances were in the ring before.
			return regexp.MustCompile(`("outrigger.serverless.xyz/former-servers": )"[^"]*"`).ReplaceAllString(text, `$1"F"`)
		},
	})
}

func TestScaling(t *testing.T) {
	w := newWorld(t)
	r := newReconciler(w.Client, w, silentStats)
	must(t, create(1, 1)(t.Context(), w))
	settle(t, w, r)
	wantStatus(t, w, v1alpha1.MemcachedRunning, 1, 1, 1)
	wantReplicas(t, w, 2)
	first := lastScaleTime(t, w)

	must(t, resize(3)(t.Context(), w))
	reconcileOnce(t, w, r)
	m := get(t, w)
	if m.Status.Size != 2 {
		t.Errorf("the standby instance did not serve at once: size %d, want 2", m.Status.Size)
	}
	if m.Status.Phase != v1alpha1.MemcachedScaling {
		t.Errorf("phase %s, want Scaling", m.Status.Phase)
	}
	w.Clock.SetTime(w.Clock.Now().Add(time.Minute))
	settle(t, w, r)
	wantStatus(t, w, v1alpha1.MemcachedRunning, 3, 3, 1)
	wantReplicas(t, w, 4)
	if !lastScaleTime(t, w).After(first) {
		t.Error("lastScaleTime did not move")
	}

	must(t, resize(1)(t.Context(), w))
	settle(t, w, r)
	wantStatus(t, w, v1alpha1.MemcachedScaling, 3, 3, 1)
	if c := meta.FindStatusCondition(
		get(t, w).Status.Conditions,
		v1alpha1.ConditionReady,
	); c.Reason != v1alpha1.ReasonWaitingForScalingWindow {
		t.Errorf("reason %s before the window has passed, want %s", c.Reason, v1alpha1.ReasonWaitingForScalingWindow)
	}
	w.Clock.SetTime(w.Clock.Now().Add(59 * time.Second))
	settle(t, w, r)
	wantReplicas(t, w, 4)
	w.Clock.SetTime(w.Clock.Now().Add(2 * time.Second))
	settle(t, w, r)
	wantStatus(t, w, v1alpha1.MemcachedRunning, 1, 1, 1)
	wantReplicas(t, w, 2)
}

func TestSizeZeroKeepsStandby(t *testing.T) {
	w := newWorld(t)
	r := newReconciler(w.Client, w, silentStats)
	must(t, create(0, 2)(t.Context(), w))
	settle(t, w, r)
	wantStatus(t, w, v1alpha1.MemcachedRunning, 0, 0, 2)
	if c := meta.FindStatusCondition(
		get(t, w).Status.Conditions,
		v1alpha1.ConditionReady,
	); c.Reason != v1alpha1.ReasonScaledToZero {
		t.Errorf("reason %s, want %s", c.Reason, v1alpha1.ReasonScaledToZero)
	}
}

func TestFailedInstanceKeepsItsSlot(t *testing.T) {
	w := newWorld(t)
	r := newReconciler(w.Client, w, silentStats)
	must(t, create(3, 0)(t.Context(), w))
	settle(t, w, r)
	before := ring(t, w)

	var slice discoveryv1.EndpointSlice
	must(t, w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name + "-1"}, &slice))
	slice.Endpoints[1].Conditions.Serving = new(false)
	must(t, w.Client.Update(t.Context(), &slice))
	reconcileOnceWithout(t, w, r)
	after := ring(t, w)
	if after.Epoch != before.Epoch || len(after.Servers) != 3 {
		t.Errorf("the ring changed when an instance failed: %+v, before %+v", after, before)
	}
	if got := get(t, w).Status; got.ReadyInstances != 2 || got.Phase != v1alpha1.MemcachedScaling {
		t.Errorf("status %d ready, phase %s; want 2, Scaling", got.ReadyInstances, got.Phase)
	}

	slice.Endpoints[1].Conditions.Serving = new(true)
	slice.Endpoints[1].Addresses = []string{"10.9.9.9"}
	must(t, w.Client.Update(t.Context(), &slice))
	reconcileOnceWithout(t, w, r)
	after = ring(t, w)
	if after.Epoch != before.Epoch {
		t.Errorf("epoch %d after a pod got another address, want %d", after.Epoch, before.Epoch)
	}
	if after.Servers[1].Address != "10.9.9.9:11211" {
		t.Errorf("address %s, want the new one", after.Servers[1].Address)
	}
}

func TestActiveConnectionsComeFromTheServers(t *testing.T) {
	w := newWorld(t)
	server := memcachedtest.Start(t)
	r := newReconciler(w.Client, w, func(ctx context.Context, address string) (mc.Stats, error) {
		if address != "10.0.0.1:11211" {
			return mc.Stats{}, errors.New("nobody is there")
		}
		return mc.ReadStats(ctx, server.Addr)
	})
	const clients = 5
	for range clients {
		conn, err := net.Dial("tcp", server.Addr)
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		// An answer proves that the server counts the connection.
		_, err = conn.Write([]byte("version\r\n"))
		must(t, err)
		_, err = bufio.NewReader(conn).ReadString('\n')
		must(t, err)
	}
	must(t, create(2, 0)(t.Context(), w))
	settle(t, w, r)
	m := get(t, w)
	// The server may not have heard yet that whoever asked it before has hung up.
	for deadline := time.Now().Add(time.Minute); m.Status.ActiveConnections != clients && time.Now().Before(deadline); m = get(t, w) {
		reconcileOnce(t, w, r)
	}
	if m.Status.ActiveConnections != clients {
		t.Errorf("activeConnections %d, want %d", m.Status.ActiveConnections, clients)
	}
	c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionMetricsAvailable)
	if c.Status != metav1.ConditionFalse || c.Reason != v1alpha1.ReasonInstancesUnreachable {
		t.Errorf("MetricsAvailable is %s, %s; the second instance does not answer", c.Status, c.Reason)
	}
}

func TestForeignObjectIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	r := newReconciler(w.Client, w, silentStats)
	foreign := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	must(t, w.Client.Create(t.Context(), foreign))
	must(t, create(1, 0)(t.Context(), w))
	settle(t, w, r)
	m := get(t, w)
	if m.Status.Phase != v1alpha1.MemcachedError {
		t.Errorf("phase %s, want Error", m.Status.Phase)
	}
	c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionStalled)
	if c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonNameTaken {
		t.Errorf("Stalled is %s, %s; want True, %s", c.Status, c.Reason, v1alpha1.ReasonNameTaken)
	}
	must(t, w.Client.Delete(t.Context(), foreign))
	settle(t, w, r)
	wantStatus(t, w, v1alpha1.MemcachedRunning, 1, 1, 0)
}

func TestBrokenRingIsRebuilt(t *testing.T) {
	w := newWorld(t)
	r := newReconciler(w.Client, w, silentStats)
	must(t, create(2, 0)(t.Context(), w))
	settle(t, w, r)
	before := ring(t, w)
	var cm corev1.ConfigMap
	must(t, w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name + "-ring"}, &cm))
	cm.Data[v1alpha1.RingConfigMapKey] = "{"
	must(t, w.Client.Update(t.Context(), &cm))
	settle(t, w, r)
	after := ring(t, w)
	if len(after.Servers) != 2 || after.Epoch <= before.Epoch {
		t.Errorf("ring %+v after it was broken, before %+v", after, before)
	}
}

// ringNeverShrinksEarly returns a check that the ring loses a server only when a minute has passed since it last changed.
func ringNeverShrinksEarly() faults.Step {
	type seen struct {
		servers int
		at      time.Time
	}
	last := map[string]seen{}
	return func(ctx context.Context, w *faults.World) error {
		var cm corev1.ConfigMap
		err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: name + "-ring"}, &cm)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		document, err := mc.ParseDocument([]byte(cm.Data[v1alpha1.RingConfigMapKey]))
		if err != nil {
			return err
		}
		key := string(cm.UID)
		before, ok := last[key]
		if ok && len(document.Servers) < before.servers && w.Clock.Now().Sub(before.at) < time.Minute {
			return fmt.Errorf("the ring shrank from %d to %d too early", before.servers, len(document.Servers))
		}
		if !ok || len(document.Servers) != before.servers {
			last[key] = seen{servers: len(document.Servers), at: w.Clock.Now()}
		}
		return nil
	}
}

// environment acts like the controllers of Kubernetes: instances get an address and become ready, one round after they
// were asked for.
func environment(ctx context.Context, w *faults.World) error {
	if err := faults.CollectGarbage(ctx, w, kinds...); err != nil {
		return err
	}
	var set appsv1.StatefulSet
	err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: name}, &set)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.Namespace, Name: name + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: name},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{},
	}
	for i := range *set.Spec.Replicas {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Hostname: new(fmt.Sprintf("%s-%d", name, i)), Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true)},
		})
	}
	var live discoveryv1.EndpointSlice
	err = w.Client.Get(ctx, client.ObjectKeyFromObject(slice), &live)
	switch {
	case apierrors.IsNotFound(err):
		return w.Client.Create(ctx, slice)
	case err != nil:
		return err
	case len(live.Endpoints) == len(slice.Endpoints):
		return nil
	default:
		slice.ResourceVersion = live.ResourceVersion
		return w.Client.Update(ctx, slice)
	}
}

func create(size, buffer int32) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		return w.Client.Create(ctx, &v1alpha1.Memcached{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name},
			Spec:       v1alpha1.MemcachedSpec{Size: size, ColdStartBuffer: buffer},
		})
	}
}

func resize(size int32) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		patch := fmt.Sprintf(`{"spec":{"size":%d}}`, size)
		m := &v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		return w.Client.Patch(ctx, m, client.RawPatch("application/merge-patch+json", []byte(patch)))
	}
}

// silentStats stands for servers that nobody uses; what real ones report is in
// TestActiveConnectionsComeFromTheServers.
func silentStats(context.Context, string) (mc.Stats, error) { return mc.Stats{}, nil }

// nothingToPurge stands for servers that hold nothing; what real ones forget is in TestShrunkRingHoldsNoOldValues.
func nothingToPurge(context.Context, mc.Server, *mc.Ring) (int, error) { return 0, nil }

func newReconciler(c client.Client, w *faults.World, stats memcached.StatsReader) reconcile.Reconciler {
	r := memcached.New(c, w.Client, w.Clock, record.NewFakeRecorder(1000), "memcached:test", stats)
	return reconcile.AsReconciler(c, r.WithPurger(nothingToPurge))
}

func newWorld(t *testing.T) *faults.World {
	t.Helper()
	return faults.NewSoleWorld(t, testcluster.New(t))
}

func settle(t *testing.T, w *faults.World, r reconcile.Reconciler) {
	t.Helper()
	for range 6 {
		reconcileOnce(t, w, r)
	}
}

func reconcileOnce(t *testing.T, w *faults.World, r reconcile.Reconciler) {
	t.Helper()
	must(t, environment(t.Context(), w))
	reconcileOnceWithout(t, w, r)
}

func reconcileOnceWithout(t *testing.T, w *faults.World, r reconcile.Reconciler) {
	t.Helper()
	key := client.ObjectKey{Namespace: w.Namespace, Name: name}
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
		t.Fatalf("reconciling: %v", err)
	}
}

func get(t *testing.T, w *faults.World) *v1alpha1.Memcached {
	t.Helper()
	var m v1alpha1.Memcached
	must(t, w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, &m))
	return &m
}

func ring(t *testing.T, w *faults.World) *mc.Document {
	t.Helper()
	var cm corev1.ConfigMap
	must(t, w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name + "-ring"}, &cm))
	document, err := mc.ParseDocument([]byte(cm.Data[v1alpha1.RingConfigMapKey]))
	must(t, err)
	return document
}

func lastScaleTime(t *testing.T, w *faults.World) time.Time {
	t.Helper()
	at := get(t, w).Status.LastScaleTime
	if at == nil {
		t.Fatal("no lastScaleTime")
	}
	return at.Time
}

func wantStatus(t *testing.T, w *faults.World, phase v1alpha1.MemcachedPhase, size, ready, standby int32) {
	t.Helper()
	got := get(t, w).Status
	if got.Phase != phase || got.Size != size || got.ReadyInstances != ready || got.StandbyInstances != standby {
		t.Errorf("status: phase %s, size %d, ready %d, standby %d; want %s, %d, %d, %d",
			got.Phase, got.Size, got.ReadyInstances, got.StandbyInstances, phase, size, ready, standby)
	}
}

func wantReplicas(t *testing.T, w *faults.World, want int32) {
	t.Helper()
	var set appsv1.StatefulSet
	must(t, w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: name}, &set))
	if *set.Spec.Replicas != want {
		t.Errorf("%d replicas, want %d", *set.Spec.Replicas, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantServers wants so many servers in the published ring.
func wantServers(t *testing.T, w *faults.World, want int) {
	t.Helper()
	if got := len(ring(t, w).Servers); got != want {
		t.Fatalf("%d servers in the ring, want %d", got, want)
	}
}
