// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"slices"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Failed writes are tried again after retryFirst, and then after twice as long each time up to retryMost, each rollout by
// itself: a rollback must not wait minutes for an API server that has been back for long, nor for the failures of others.
const (
	retryFirst = 5 * time.Millisecond
	retryMost  = 10 * time.Second
)

// workQueue is what controller-runtime takes requests from.
type workQueue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// urgency is the order of a work queue: what may take traffic from a canary goes before everything else, so that a
// rollback does not wait behind the edits of other rollouts. Among the urgent, and among the rest, who comes first is
// first.
type urgency struct {
	mu sync.Mutex
	// marked are requests that are urgent when they are added next.
	marked       map[reconcile.Request]bool
	urgent, rest []reconcile.Request
}

func newUrgency() *urgency { return &urgency{marked: map[reconcile.Request]bool{}} }

// queue returns a work queue of this order. It is called once.
func (u *urgency) queue(name string, limiter workqueue.TypedRateLimiter[reconcile.Request]) workQueue {
	type delaying = workqueue.TypedDelayingQueueConfig[reconcile.Request]
	type plain = workqueue.TypedQueueConfig[reconcile.Request]
	ordered := workqueue.NewTypedWithConfig(plain{Name: name, Queue: u})
	return workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{
		Name: name, DelayingQueue: workqueue.NewTypedDelayingQueueWithConfig(delaying{Name: name, Queue: ordered}),
	})
}

// Touch implements workqueue.Queue: a request that waits already is added again.
func (u *urgency) Touch(request reconcile.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if at := slices.Index(u.rest, request); at >= 0 && u.marked[request] {
		u.rest = slices.Delete(u.rest, at, at+1)
		u.urgent = append(u.urgent, request)
	}
}

// Push implements workqueue.Queue.
func (u *urgency) Push(request reconcile.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.marked[request] {
		u.urgent = append(u.urgent, request)
		return
	}
	u.rest = append(u.rest, request)
}

// Len implements workqueue.Queue.
func (u *urgency) Len() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.urgent) + len(u.rest)
}

// Pop implements workqueue.Queue.
func (u *urgency) Pop() reconcile.Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	from := &u.urgent
	if len(*from) == 0 {
		from = &u.rest
	}
	request := (*from)[0]
	*from = (*from)[1:]
	delete(u.marked, request)
	return request
}

// marking is a work queue to which everything is added as urgent.
type marking struct {
	workQueue
	urgency *urgency
}

// Add marks a request and adds it.
func (m marking) Add(request reconcile.Request) {
	m.urgency.mu.Lock()
	m.urgency.marked[request] = true
	m.urgency.mu.Unlock()
	m.workQueue.Add(request)
}

// first returns a handler that does as next does, and has what it adds go first where a change is urgent. A deletion is
// always urgent; an event that does not come from the API server has but one object, which urgent gets twice.
func (u *urgency) first(next handler.EventHandler, urgent func(was, is client.Object) bool) handler.EventHandler {
	when := func(yes bool, q workQueue) workQueue {
		if yes {
			return marking{workQueue: q, urgency: u}
		}
		return q
	}
	return handler.Funcs{
		CreateFunc: next.Create,
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q workQueue) {
			next.Update(ctx, e, when(urgent(e.ObjectOld, e.ObjectNew), q))
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q workQueue) { next.Delete(ctx, e, when(true, q)) },
		GenericFunc: func(ctx context.Context, e event.GenericEvent, q workQueue) {
			next.Generic(ctx, e, when(urgent(e.Object, e.Object), q))
		},
	}
}

// lowered reports whether an edit of a rollout may take traffic from its canary.
func lowered(before, after client.Object) bool {
	was, ok1 := before.(*v1alpha1.CanaryRollout)
	is, ok2 := after.(*v1alpha1.CanaryRollout)
	return ok1 && ok2 && (is.Spec.CanaryPercent < was.Spec.CanaryPercent || is.Spec.Canary != was.Spec.Canary ||
		is.Annotations[v1alpha1.AnnotationAbort] != was.Annotations[v1alpha1.AnnotationAbort])
}

// disproved reports whether a metric has proved a canary to be worse than it may be.
func disproved(_, answered client.Object) bool {
	rollout, ok := answered.(*v1alpha1.CanaryRollout)
	return ok && slices.ContainsFunc(rollout.Status.Verdicts, func(v v1alpha1.MetricVerdict) bool {
		return v.Result == v1alpha1.VerdictFail && !v.DryRun
	})
}

// fewer reports whether a side has lost ready pods.
func fewer(before, after client.Object) bool {
	was, ok1 := before.(*discoveryv1.EndpointSlice)
	is, ok2 := after.(*discoveryv1.EndpointSlice)
	if !ok1 || !ok2 {
		return false
	}
	had, _ := podsOf([]discoveryv1.EndpointSlice{*was})
	has, _ := podsOf([]discoveryv1.EndpointSlice{*is})
	return len(has) < len(had)
}

// leaving reports whether an object is being deleted.
func leaving(_, is client.Object) bool { return is.GetDeletionTimestamp() != nil }
