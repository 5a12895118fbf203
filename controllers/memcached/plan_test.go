// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	mc "serverless.xyz/outrigger/memcached"
	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// ringOf is a published ring of some ordinals, changed at a time.
func ringOf(m *v1alpha1.Memcached, changedAt time.Time, ordinals ...int32) *publishedRing {
	ring := &publishedRing{document: mc.Document{Hash: mc.HashKetamaMD5, Epoch: 7}, changedAt: changedAt}
	for _, ordinal := range ordinals {
		ring.document.Servers = append(ring.document.Servers,
			mc.Server{Name: serverName(m, ordinal), Address: dialAddress(ipOf(ordinal))})
	}
	return ring
}

func ipOf(ordinal int32) string { return fmt.Sprintf("10.0.0.%d", ordinal+1) }

// running are instances that are ready or, of negative numbers, have an address only: -1 is ordinal 0.
func running(ordinals ...int32) map[int32]instance {
	instances := map[int32]instance{}
	for _, ordinal := range ordinals {
		ready := ordinal >= 0
		if !ready {
			ordinal = -1 - ordinal
		}
		instances[ordinal] = instance{ready: ready, ip: ipOf(ordinal)}
	}
	return instances
}

func TestPlan(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	lately, longAgo := now.Add(-10*time.Second), now.Add(-time.Hour)
	for name, tc := range map[string]struct {
		size, buffer int32
		ring         []int32 // nil for none
		changedAt    time.Time
		former       string
		instances    map[int32]instance
		full         map[int32]bool
		unsearched   []int32

		wantMembers  []int32
		wantReplicas int32
		wantEpoch    int64
		wantToEmpty  []int32
		wantFormer   string
		wantToPurge  []int32
	}{
		"the first ring waits for the first instance": {
			size: 2, instances: running(1), wantReplicas: 2, wantEpoch: 1,
		},
		"instances join in their order": {
			size: 3, ring: []int32{}, changedAt: lately, instances: running(0, 1, -3), wantMembers: []int32{0, 1},
			wantReplicas: 3, wantEpoch: 8,
		},
		"a slow instance is waited for, although a standby is ready": {
			size: 3, buffer: 1, ring: []int32{0}, changedAt: lately, instances: running(0, -2, 2, 3),
			wantMembers: []int32{0}, wantReplicas: 4, wantEpoch: 7,
		},
		"one that does not become ready is passed over": {
			size: 3, buffer: 1, ring: []int32{0}, changedAt: longAgo, instances: running(0, -2, 2, 3),
			wantMembers: []int32{0, 2, 3}, wantReplicas: 4, wantEpoch: 8,
		},
		"one that has no address, too": {
			size: 2, buffer: 1, ring: []int32{0}, changedAt: longAgo, instances: running(0, 2),
			wantMembers: []int32{0, 2}, wantReplicas: 3, wantEpoch: 8,
		},
		"without a standby there is nobody to pass it over for": {
			size: 2, ring: []int32{0}, changedAt: longAgo, instances: running(0, -2),
			wantMembers: []int32{0}, wantReplicas: 2, wantEpoch: 7,
		},
		"one that was passed over is a standby later": {
			size: 3, buffer: 1, ring: []int32{0, 2, 3}, changedAt: longAgo, instances: running(0, 1, 2, 3),
			wantMembers: []int32{0, 2, 3}, wantReplicas: 4, wantEpoch: 7,
		},
		"and joins when the ring grows": {
			size: 4, buffer: 1, ring: []int32{0, 2, 3}, changedAt: longAgo, instances: running(0, 1, 2, 3),
			wantMembers: []int32{0, 1, 2, 3}, wantReplicas: 5, wantEpoch: 8,
		},
		"a ring with a gap shrinks from above, and its last instance goes on running": {
			size: 2, ring: []int32{0, 2, 3}, changedAt: longAgo, instances: running(0, 1, 2, 3),
			wantMembers: []int32{0, 2}, wantReplicas: 3, wantEpoch: 8, wantFormer: "3=10.0.0.4:11211",
			wantToPurge: []int32{0, 2},
		},
		"it does not wait for one that is not ready": {
			size: 2, ring: []int32{0, 1, 2}, changedAt: longAgo, instances: running(-1, 1, 2),
			wantMembers: []int32{0, 1}, wantReplicas: 2, wantEpoch: 8, wantFormer: "2=10.0.0.3:11211",
			wantToPurge: []int32{1},
		},
		"but for one that is and could not be searched": {
			size: 2, ring: []int32{0, 1, 2}, changedAt: longAgo, instances: running(0, 1, 2), unsearched: []int32{1},
			wantMembers: []int32{0, 1, 2}, wantReplicas: 3, wantEpoch: 7,
		},
		"one that failed keeps its slot": {
			size: 3, buffer: 1, ring: []int32{0, 1, 2}, changedAt: longAgo, instances: running(0, -2, 2, 3),
			wantMembers: []int32{0, 1, 2}, wantReplicas: 4, wantEpoch: 7,
		},
		"a standby that was in the ring is remembered": {
			size: 2, buffer: 1, ring: []int32{0, 1, 2}, changedAt: longAgo, instances: running(0, 1, 2),
			wantMembers: []int32{0, 1}, wantReplicas: 3, wantEpoch: 8, wantFormer: "2=10.0.0.3:11211",
			wantToPurge: []int32{0, 1},
		},
		"and emptied before it is in the ring again": {
			size: 3, ring: []int32{0, 1}, changedAt: longAgo, former: "2=10.0.0.3:11211", instances: running(0, 1, 2),
			wantMembers: []int32{0, 1, 2}, wantReplicas: 3, wantEpoch: 8, wantToEmpty: []int32{2},
		},
		"one that cannot be emptied stays outside": {
			size: 3, buffer: 1, ring: []int32{0, 1}, changedAt: longAgo, former: "2=10.0.0.3:11211",
			instances: running(0, 1, 2, 3), full: map[int32]bool{2: true},
			wantMembers: []int32{0, 1, 3}, wantReplicas: 4, wantEpoch: 8, wantFormer: "2=10.0.0.3:11211",
		},
		"a pod that was made anew is empty": {
			size: 3, ring: []int32{0, 1}, changedAt: longAgo, former: "2=10.0.9.9:11211,nonsense,7000=x", instances: running(0, 1, 2),
			wantMembers: []int32{0, 1, 2}, wantReplicas: 3, wantEpoch: 8,
		},
		"one that is out of sight may come back as it was": {
			size: 2, buffer: 1, ring: []int32{0, 1}, changedAt: longAgo, former: "2=10.0.0.3:11211", instances: running(0, 1),
			wantMembers: []int32{0, 1}, wantReplicas: 3, wantEpoch: 7, wantFormer: "2=10.0.0.3:11211",
		},
		"the ring waits for its window before it shrinks": {
			size: 1, ring: []int32{0, 1}, changedAt: lately, instances: running(0, 1),
			wantMembers: []int32{0, 1}, wantReplicas: 2, wantEpoch: 7,
		},
		"nothing is asked for": {
			ring: []int32{0, 2}, changedAt: longAgo, instances: running(0, 2), wantEpoch: 8,
			wantFormer: "0=10.0.0.1:11211,2=10.0.0.3:11211",
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := &v1alpha1.Memcached{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: "features"},
				Spec:       v1alpha1.MemcachedSpec{Size: tc.size, ColdStartBuffer: tc.buffer},
			}
			seen := observed{instances: tc.instances, full: tc.full, unsearched: tc.unsearched}
			if tc.ring != nil {
				seen.ring = ringOf(m, tc.changedAt, tc.ring...)
				seen.ring.former = parseFormer(tc.former)
			}
			p := planFor(m, seen, now)
			type outcome struct {
				Members, ToEmpty, ToPurge []int32
				Replicas                  int32
				Epoch                     int64
				Former                    string
			}
			want := outcome{tc.wantMembers, tc.wantToEmpty, tc.wantToPurge, tc.wantReplicas, tc.wantEpoch, tc.wantFormer}
			got := outcome{p.members, p.toEmpty, p.toPurge, p.replicas, p.ring.document.Epoch, formerText(p.ring.former)}
			if len(got.Members) == 0 {
				got.Members = nil
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if changed := p.ring.changedAt.Equal(now); changed != (tc.wantEpoch != 7) {
				t.Errorf("the ring changed at %s", p.ring.changedAt)
			}
		})
	}
}

// TestAdmittedInstancesStart: the real memcached takes the arguments for what the definition of the kind lets through.
func TestAdmittedInstancesStart(t *testing.T) {
	for _, instance := range []struct{ memory, maxItemSize string }{
		{"16Mi", "512Ki"}, {"16Mi", "8Mi"}, {"17.9Mi", "8.5Mi"}, {"64Mi", "1536Ki"}, {"1Gi", "512Mi"},
	} {
		m := &v1alpha1.Memcached{Spec: v1alpha1.MemcachedSpec{Instance: v1alpha1.MemcachedInstance{
			Memory: resource.MustParse(instance.memory), MaxItemSize: resource.MustParse(instance.maxItemSize),
			Threads: 4, MaxConnections: 4096,
		}}}
		server := memcachedtest.Start(t, arguments(m)[2:]...) // it listens elsewhere
		if _, err := mc.ReadStats(t.Context(), server.Addr); err != nil {
			t.Errorf("memory %s, items of %s: %v", instance.memory, instance.maxItemSize, err)
		}
	}
}

// TestRingOfStrangersIsRebuilt: a document that names no instance of this cache, or too many, asks for no pods.
func TestRingOfStrangersIsRebuilt(t *testing.T) {
	m := &v1alpha1.Memcached{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: "features"},
		Spec:       v1alpha1.MemcachedSpec{Size: 1},
	}
	ring := ringOf(m, time.Time{}, 0, 1_000_000)
	ring.document.Servers = append(ring.document.Servers, mc.Server{Name: "elsewhere-1.elsewhere.ml.svc"})
	p := planFor(m, observed{ring: ring, instances: running(0)}, time.Now())
	if diff := cmp.Diff([]int32{0}, p.members); diff != "" || p.replicas != 1 || p.ring.document.Epoch != 8 {
		t.Errorf("%d replicas, epoch %d, members (-want +got):\n%s", p.replicas, p.ring.document.Epoch, diff)
	}
}

// TestFormerRings: clients may go by every ring that was in force since the last one that had settled.
func TestFormerRings(t *testing.T) {
	m := &v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: "features"}}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	names := func(ordinals ...int32) []string {
		var list []string
		for _, ordinal := range ordinals {
			list = append(list, serverName(m, ordinal))
		}
		return list
	}
	settled, unsettled := ringOf(m, now.Add(-mc.SettleTime), 0, 1), ringOf(m, now.Add(-time.Minute), 0, 1)
	unsettled.document.Former, settled.document.Former = [][]string{names(0)}, [][]string{names(0)}
	many := ringOf(m, now, 0)
	many.document.Former = make([][]string, mc.MaxFormer)
	for what, tc := range map[string]struct {
		ring *publishedRing
		want [][]string
	}{
		"before the first ring": {nil, [][]string{nil}},
		"a settled ring":        {settled, [][]string{names(0, 1)}},
		"an unsettled ring":     {unsettled, [][]string{names(0), names(0, 1)}},
		"too many":              {many, [][]string{nil}},
	} {
		if diff := cmp.Diff(tc.want, formerRings(tc.ring, now)); diff != "" {
			t.Errorf("%s: former rings (-want +got):\n%s", what, diff)
		}
	}
}
