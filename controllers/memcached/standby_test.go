// SPDX-License-Identifier: Apache-2.0

package memcached_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

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
	).WithEmptier(func(ctx context.Context, instance mc.Server) error {
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
