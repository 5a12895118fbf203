// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
	mc "serverless.xyz/outrigger/memcached"
)

// statsInterval is how often the statistics of the instances are read while there are any.
const statsInterval = 15 * time.Second

// defaultScalingWindow stands in for an unset scalingWindow, as the API server's default does.
const defaultScalingWindow = time.Minute

// observed is all that a plan is made from besides the spec.
type observed struct {
	// ring is the published ring, nil before the first one.
	ring *publishedRing
	// instances are those that have an address, by ordinal.
	instances map[int32]instance
	// stats are the statistics of the instances that answered, by ordinal.
	stats map[int32]mc.Stats
	// full are the instances, by ordinal, that hold keys of an earlier ring and could not be emptied.
	full map[int32]bool
	// unsearched are the ordinals of instances that could not be searched for keys which they do not own.
	unsearched []int32
}

// publishedRing is the ring that clients use now.
type publishedRing struct {
	// document is what the ConfigMap holds.
	document mc.Document
	// changedAt is when the set of its servers last changed.
	changedAt time.Time
	// former are the addresses, by ordinal, of instances that have left the ring and may still hold what they held.
	former map[int32]string
	// resourceVersion is that of the ConfigMap.
	resourceVersion string
}

// instance is one pod of the StatefulSet.
type instance struct {
	// ready tells whether the pod answered its last probe and is to stay.
	ready bool
	// ip is the pod's address.
	ip string
}

// instancesIn reads instances from the EndpointSlices of the headless Service: a pod of the StatefulSet has its name as
// hostname there. Of two addresses of one pod the smaller one counts, so that the choice is stable.
func instancesIn(m *v1alpha1.Memcached, slices []discoveryv1.EndpointSlice) map[int32]instance {
	instances := map[int32]instance{}
	for i := range slices {
		for _, endpoint := range slices[i].Endpoints {
			ordinal, ok := ordinalOf(m, ptr.Deref(endpoint.Hostname, ""))
			if !ok || len(endpoint.Addresses) == 0 {
				continue
			}
			// The Service publishes addresses that are not ready, so that the ready condition is always true there.
			ready := ptr.Deref(endpoint.Conditions.Serving, false) && !ptr.Deref(endpoint.Conditions.Terminating, false)
			one := instance{ready: ready, ip: endpoint.Addresses[0]}
			if before, ok := instances[ordinal]; ok && (before.ready && !ready || before.ready == ready && before.ip < one.ip) {
				continue
			}
			instances[ordinal] = one
		}
	}
	return instances
}

// ordinalOf returns the ordinal of the instance with the given name.
func ordinalOf(m *v1alpha1.Memcached, name string) (int32, bool) {
	suffix, ok := strings.CutPrefix(name, m.Name+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(suffix, 10, 32)
	return int32(n), err == nil && n >= 0
}

// maxInstances is how many instances a spec may ask for, size and coldStartBuffer together.
const maxInstances = 200

// members returns the ordinals of the instances in the ring, in their order. What no instance can be named is left out.
func (r *publishedRing) members(m *v1alpha1.Memcached) []int32 {
	if r == nil {
		return nil
	}
	var members []int32
	for _, server := range r.document.Servers {
		if ordinal, ok := serverOrdinal(m, server); ok {
			members = append(members, ordinal)
		}
	}
	slices.Sort(members)
	return members
}

// serverOrdinal returns the ordinal of the instance that a server of a ring is, false if it is none.
func serverOrdinal(m *v1alpha1.Memcached, server mc.Server) (int32, bool) {
	name, _, _ := strings.Cut(server.Name, ".")
	ordinal, ok := ordinalOf(m, name)
	return ordinal, ok && ordinal < maxInstances && serverName(m, ordinal) == server.Name
}

// plan is what to make true.
type plan struct {
	// ring is the ring to be published, which may be the published one.
	ring publishedRing
	// members are the ordinals of the instances in ring, in their order.
	members []int32
	// toEmpty are those among them that hold keys of an earlier ring: they are emptied before the ring is published.
	toEmpty []int32
	// toPurge are, when the ring shrinks, those among the members that are ready: they forget what they do not own before the
	// ring is published. No shrink waits for one that is not ready, which is most often empty when it is again.
	toPurge []int32
	// unsearched are the names of those for which the shrink waits, because they did not.
	unsearched []string
	// full are the names of instances that are ready and not members because they could not be emptied.
	full []string
	// size is the number of members.
	size int32
	// replicas is the number of instances to run, standby instances included.
	replicas int32
	// scaleInAt is when the ring may shrink, zero unless a shrink waits.
	scaleInAt time.Time
	// ready and standby count the ready instances inside and outside the ring.
	ready, standby int32
}

// skipAfter is how long an instance that is not ready keeps those behind it from the ring, counted from the last change of
// the ring. Most are only slower than the others, and a ring without gaps needs no instance beyond its size.
const skipAfter = 30 * time.Second

// planFor decides the ring and the number of instances.
//
// Instances are promoted into the ring in order of their ordinals, and only when they are ready; one that does not become
// ready is passed over for a standby instance behind it. Once in, an instance keeps its slot whether ready or not, so that
// the keys of the others stay where they are. The ring shrinks only when the scaling window has passed since it last
// changed, and loses the highest ordinals then. Those that stay held keys of the others before these joined, and get them
// back: what they still have of them is out of date, and is forgotten first.
func planFor(m *v1alpha1.Memcached, seen observed, now time.Time) plan {
	p := plan{members: seen.ring.members(m)}
	var changedAt time.Time
	if seen.ring != nil {
		changedAt = seen.ring.changedAt
	}
	before := int32(len(p.members)) //nolint:gosec // at most maxInstances.
	switch {
	case m.Spec.Size > before:
		p.promote(m, seen, !changedAt.IsZero() && now.Sub(changedAt) >= skipAfter)
	case m.Spec.Size < before:
		p.shrink(m, seen, changedAt.Add(scalingWindow(m)), now)
	}
	p.size = int32(len(p.members)) //nolint:gosec // the same.
	p.replicas = max(m.Spec.Size, p.size) + m.Spec.ColdStartBuffer
	if p.size > 0 {
		p.replicas = max(p.replicas, p.members[p.size-1]+1)
	}
	p.ring = nextRing(m, seen, p.members, now)
	for ordinal, one := range seen.instances {
		switch {
		case !one.ready:
		case slices.Contains(p.members, ordinal):
			p.ready++
		default:
			p.standby++
		}
	}
	return p
}

// shrink takes the highest ordinals from the ring when it is time, and the others are ready for it.
func (p *plan) shrink(m *v1alpha1.Memcached, seen observed, at, now time.Time) {
	if at.After(now) {
		p.scaleInAt = at
		return
	}
	if len(seen.unsearched) > 0 {
		for _, ordinal := range seen.unsearched {
			p.unsearched = append(p.unsearched, instanceName(m, ordinal))
		}
		return
	}
	p.members = p.members[:m.Spec.Size]
	for _, ordinal := range p.members {
		if one := seen.instances[ordinal]; one.ready && one.ip != "" {
			p.toPurge = append(p.toPurge, ordinal)
		}
	}
}

// promote takes ready instances into the ring until it has its size, those with the lowest ordinals first. Without gaps it
// stops at the first that is not ready.
func (p *plan) promote(m *v1alpha1.Memcached, seen observed, gaps bool) {
	members := slices.Clone(p.members)
	for ordinal := range m.Spec.Size + m.Spec.ColdStartBuffer {
		if int32(len(members)) >= m.Spec.Size { //nolint:gosec // at most maxInstances.
			break
		}
		if slices.Contains(members, ordinal) {
			continue
		}
		one := seen.instances[ordinal]
		if one.ready && !seen.full[ordinal] {
			members = append(members, ordinal)
			if seen.ring != nil && seen.ring.former[ordinal] == dialAddress(one.ip) {
				p.toEmpty = append(p.toEmpty, ordinal)
			}
			continue
		}
		if one.ready {
			p.full = append(p.full, instanceName(m, ordinal))
		}
		if !gaps {
			break
		}
	}
	slices.Sort(members)
	p.members = members
}

// nextRing returns the ring of some instances. The epoch and the time of the change move only when the set of servers
// changes: a server that moved to another address keeps its keys' slot, though not its keys.
func nextRing(m *v1alpha1.Memcached, seen observed, members []int32, now time.Time) publishedRing {
	next := publishedRing{document: mc.Document{Hash: mc.HashKetamaMD5}, changedAt: now}
	var old []mc.Server
	if seen.ring != nil {
		next.document.Epoch = seen.ring.document.Epoch
		next.resourceVersion = seen.ring.resourceVersion
		old = seen.ring.document.Servers
	}
	addresses := make(map[string]string, len(old))
	for _, server := range old {
		addresses[server.Name] = server.Address
	}
	kept := 0
	for _, ordinal := range members {
		server := serverOf(m, ordinal, seen.instances[ordinal].ip)
		address, was := addresses[server.Name]
		if was {
			kept++
		}
		if server.Address == "" {
			server.Address = address
		}
		next.document.Servers = append(next.document.Servers, server)
	}
	if seen.ring == nil || kept != len(old) || kept != len(members) {
		next.document.Epoch++
		next.document.Former = formerRings(seen.ring, now)
	} else {
		next.document.Former, next.changedAt = seen.ring.document.Former, seen.ring.changedAt
	}
	next.former = formerServers(m, seen, members)
	return next
}

// formerRings returns the rings by which clients may still go when the ring changes: the one that is and, unless it has
// settled, those before. Where there was none, or too many, it is one without servers.
func formerRings(ring *publishedRing, now time.Time) [][]string {
	if ring == nil {
		return [][]string{nil}
	}
	var former [][]string
	if now.Sub(ring.changedAt) < mc.SettleTime {
		former = slices.Clone(ring.document.Former)
	}
	if len(former) == mc.MaxFormer {
		return [][]string{nil}
	}
	var names []string
	for _, server := range ring.document.Servers {
		names = append(names, server.Name)
	}
	return append(former, names)
}

// formerServers returns the addresses of instances that have been in a ring and are not in the next one. One is forgotten
// when its place is seen to have another address, and not for being out of sight: it may come back as it was.
func formerServers(m *v1alpha1.Memcached, seen observed, next []int32) map[int32]string {
	former := map[int32]string{}
	if seen.ring == nil {
		return former
	}
	maps.Copy(former, seen.ring.former)
	for _, server := range seen.ring.document.Servers {
		if ordinal, ok := serverOrdinal(m, server); ok {
			former[ordinal] = server.Address
		}
	}
	maps.DeleteFunc(former, func(ordinal int32, address string) bool {
		one, running := seen.instances[ordinal]
		return slices.Contains(next, ordinal) || running && dialAddress(one.ip) != address
	})
	return former
}

// formerText writes such addresses for an annotation, and parseFormer reads them. What cannot be read is left out.
func formerText(former map[int32]string) string {
	var text []string
	for _, ordinal := range slices.Sorted(maps.Keys(former)) {
		text = append(text, fmt.Sprintf("%d=%s", ordinal, former[ordinal]))
	}
	return strings.Join(text, ",")
}

func parseFormer(text string) map[int32]string {
	former := map[int32]string{}
	for entry := range strings.SplitSeq(text, ",") {
		place, address, _ := strings.Cut(entry, "=")
		if ordinal, err := strconv.ParseInt(place, 10, 32); err == nil && ordinal >= 0 && ordinal < maxInstances {
			former[int32(ordinal)] = address
		}
	}
	return former
}

// wake returns when to look again if nothing happens before, 0 for never.
func (p plan) wake(now time.Time) time.Duration {
	var wake time.Duration
	if p.replicas > 0 {
		wake = statsInterval
	}
	if !p.scaleInAt.IsZero() {
		wake = min(wake, max(p.scaleInAt.Sub(now), time.Millisecond))
	}
	return wake
}

// statusFor returns the status that tells what was planned and, if err is not nil, why it did not come about.
func statusFor(m *v1alpha1.Memcached, seen observed, p plan, err error) v1alpha1.MemcachedStatus {
	s := *m.Status.DeepCopy()
	s.ObservedGeneration = m.Generation
	s.Selector = metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labelsOf(m)})
	conditions := []status.Condition{readyCondition(m, p), availableCondition(m, p), metricsCondition(m, seen, p)}
	s.Phase = phaseFor(m, p)
	if err == nil {
		s.Size, s.ReadyInstances, s.StandbyInstances = p.size, p.ready, p.standby
		s.Ring.Epoch = p.ring.document.Epoch
		// The API server keeps whole seconds; anything finer would differ at every look.
		s.LastScaleTime = &metav1.Time{Time: p.ring.changedAt.Truncate(time.Second)}
		s.ActiveConnections = activeConnections(seen, p)
	}
	stalled := status.StalledCondition(err)
	if stalled.Status == metav1.ConditionTrue {
		s.Phase = v1alpha1.MemcachedError
		conditions[0] = status.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: stalled.Reason, Message: stalled.Message,
		}
	}
	status.Set(&s.Conditions, m.Generation, append(conditions, stalled)...)
	return s
}

func phaseFor(m *v1alpha1.Memcached, p plan) v1alpha1.MemcachedPhase {
	if p.size == m.Spec.Size && p.ready == p.size && p.standby == p.replicas-p.size {
		return v1alpha1.MemcachedRunning
	}
	return v1alpha1.MemcachedScaling
}

func readyCondition(m *v1alpha1.Memcached, p plan) status.Condition {
	c := status.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	switch {
	case len(p.unsearched) > 0:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonInstancesUnreachable
		c.Message = fmt.Sprintf("%d instances serve; shrinking to %d when %s can be searched for keys that others own now; "+
			"does a NetworkPolicy keep the manager from port %d?", p.size, m.Spec.Size, listed(p.unsearched, 3), memcachedPort)
	case !p.scaleInAt.IsZero():
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonWaitingForScalingWindow
		c.Message = fmt.Sprintf("%d instances serve; shrinking to %d when scalingWindow has passed, at %s.",
			p.size, m.Spec.Size, p.scaleInAt.UTC().Format(time.RFC3339))
	case len(p.full) > 0:
		c.Reason = v1alpha1.ReasonInstancesUnreachable
		c.Message = fmt.Sprintf("%s cannot be emptied of the keys of an earlier ring, and may not serve before; does a "+
			"NetworkPolicy keep the manager from port %d?", listed(p.full, 3), memcachedPort)
	case p.size < m.Spec.Size || p.ready < p.size:
		c.Reason = v1alpha1.ReasonWaitingForInstances
		c.Message = fmt.Sprintf("%d of %d instances are ready; `kubectl get pods -l %s=%s` shows them.",
			p.ready, m.Spec.Size, v1alpha1.LabelInstance, m.Name)
	case m.Spec.Size == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, v1alpha1.ReasonScaledToZero, "No instance is asked for."
	default:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonReady
		c.Message = fmt.Sprintf("%d of %d instances are ready.", p.ready, m.Spec.Size)
	}
	return c
}

func availableCondition(m *v1alpha1.Memcached, p plan) status.Condition {
	c := status.Condition{Type: v1alpha1.ConditionAvailable, Status: metav1.ConditionTrue}
	switch {
	case p.ready > 0:
		c.Reason, c.Message = v1alpha1.ReasonReady, "At least one instance serves."
	case m.Spec.Size == 0:
		c.Reason, c.Message = v1alpha1.ReasonScaledToZero, "No instance is asked for."
	default:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonWaitingForInstances
		c.Message = "No instance serves yet; every look-up is a miss."
	}
	return c
}

func metricsCondition(m *v1alpha1.Memcached, seen observed, p plan) status.Condition {
	c := status.Condition{
		Type: v1alpha1.ConditionMetricsAvailable, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady,
		Message: "Every ready instance reports statistics.",
	}
	var silent []string
	for _, ordinal := range p.members {
		if _, ok := seen.stats[ordinal]; !ok && seen.instances[ordinal].ready {
			silent = append(silent, instanceName(m, ordinal))
		}
	}
	if len(silent) > 0 {
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonInstancesUnreachable
		c.Message = fmt.Sprintf("No statistics from %s; does a NetworkPolicy keep the manager from port %d?",
			listed(silent, 3), memcachedPort)
	}
	return c
}

func activeConnections(seen observed, p plan) int64 {
	var sum int64
	for _, ordinal := range p.members {
		if one, ok := seen.stats[ordinal]; ok {
			sum += one.ActiveConnections()
		}
	}
	return sum
}

// listed joins at most n names, and tells how many more there are.
func listed(names []string, n int) string {
	if len(names) <= n {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:n], ", "), len(names)-n)
}

func scalingWindow(m *v1alpha1.Memcached) time.Duration {
	if m.Spec.ScalingWindow == nil {
		return defaultScalingWindow
	}
	return m.Spec.ScalingWindow.Duration
}
