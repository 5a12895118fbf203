// SPDX-License-Identifier: Apache-2.0

package memcached_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/memcached"
	mc "serverless.xyz/outrigger/memcached"
	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// TestStandbyHoldsNoKeys: an instance that left the ring and goes on as a standby is emptied before it is in the ring
// again, and stays outside for as long as it cannot be.
func TestStandbyHoldsNoKeys(t *testing.T) {
	w := newWorld(t)
	server := memcachedtest.Start(t)
	reachable, asked := false, []mc.Server{}
	r := reconcile.AsReconciler(w.Client, memcached.New(
		w.Client, w.Client, w.Clock, record.NewFakeRecorder(1000), "memcached:test", silentStats,
	).WithPurger(nothingToPurge).WithEmptier(func(ctx context.Context, instance mc.Server) error {
		if !reachable {
			return errors.New("nobody is there")
		}
		asked = append(asked, instance)
		return mc.Empty(ctx, mc.Server{Name: instance.Name, Address: server.Addr})
	}))
	must(t, create(2, 1)(t.Context(), w))
	settle(t, w, r)
	c := mc.NewClient(t.Context(), mc.ClientOptions{Timeout: 10 * time.Second})
	must(t, c.SetRing(&mc.Document{Hash: mc.HashKetamaMD5, Servers: []mc.Server{{Name: "features-1", Address: server.Addr}}}))
	must(t, c.Set(t.Context(), "k", []byte("old"), 0))

	must(t, resize(1)(t.Context(), w))
	w.Clock.SetTime(w.Clock.Now().Add(2 * time.Minute))
	settle(t, w, r)
	wantServers(t, w, 1)
	must(t, resize(2)(t.Context(), w))
	reconcileOnce(t, w, r)
	wantServers(t, w, 1)
	if _, ok := c.Get(t.Context(), "k"); !ok {
		t.Error("the key is gone although the instance could not be emptied")
	}
	reachable = true
	settle(t, w, r)
	wantServers(t, w, 2)
	want := []mc.Server{{
		Name: ring(t, w).Servers[1].Name, Address: "10.0.0.2:11211", Identity: "features-1," + string(get(t, w).UID),
	}}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("who was asked to empty itself (-want +got):\n%s", diff)
	}
	if value, ok := c.Get(t.Context(), "k"); ok {
		t.Errorf("an instance is in the ring again with %q", value)
	}
}

// TestShrunkRingHoldsNoOldValues: an instance that gets keys back when the ring shrinks has forgotten what they were when
// it had them last, and keeps all others.
func TestShrunkRingHoldsNoOldValues(t *testing.T) {
	w := newWorld(t)
	servers := memcachedtest.StartRing(t, 2)
	behind := func(s mc.Server) mc.Server {
		address := map[string]string{"10.0.0.1:11211": servers[0].Addr, "10.0.0.2:11211": servers[1].Addr}[s.Address]
		return mc.Server{Name: s.Name, Address: address}
	}
	reachable := false
	r := reconcile.AsReconciler(w.Client, memcached.New(
		w.Client, w.Client, w.Clock, record.NewFakeRecorder(1000), "memcached:test", silentStats,
	).WithPurger(func(ctx context.Context, s mc.Server, ring *mc.Ring) (int, error) {
		if !reachable {
			return 0, errors.New("nobody is there")
		}
		return mc.Purge(ctx, behind(s), ring)
	}))
	use := func() *mc.Client {
		document := ring(t, w)
		for i := range document.Servers {
			document.Servers[i] = behind(document.Servers[i])
		}
		c := mc.NewClient(t.Context(), mc.ClientOptions{Timeout: 10 * time.Second})
		must(t, c.SetRing(document))
		return c
	}
	keys := make([]string, 100)
	write := func(value string) {
		c := use()
		for i := range keys {
			keys[i] = fmt.Sprint("feature:", i)
			must(t, c.Set(t.Context(), keys[i], []byte(value), 0))
		}
	}
	must(t, create(1, 0)(t.Context(), w))
	settle(t, w, r)
	write("old")
	must(t, resize(2)(t.Context(), w))
	settle(t, w, r)
	wantServers(t, w, 2)
	write("new")

	must(t, resize(1)(t.Context(), w))
	w.Clock.SetTime(w.Clock.Now().Add(2 * time.Minute))
	settle(t, w, r)
	wantServers(t, w, 2)
	if c := meta.FindStatusCondition(get(t, w).Status.Conditions, v1alpha1.ConditionReady); c.Status != metav1.ConditionTrue ||
		c.Reason != v1alpha1.ReasonInstancesUnreachable {
		t.Errorf("Ready is %s, %s while an instance cannot be searched", c.Status, c.Reason)
	}
	reachable = true
	settle(t, w, r)
	wantServers(t, w, 1)
	found := use().GetMulti(t.Context(), keys...)
	for key, value := range found {
		if string(value) != "new" {
			t.Errorf("%s is %q again", key, value)
		}
	}
	if len(found) == 0 || len(found) == len(keys) {
		t.Errorf("%d of %d keys are left, want those that did not move", len(found), len(keys))
	}
}
