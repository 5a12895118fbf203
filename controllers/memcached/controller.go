// SPDX-License-Identifier: Apache-2.0

// Package memcached reconciles Memcached objects: a StatefulSet of memcached instances, the headless Service that names
// them, and the ConfigMap that publishes the ring of those that hold keys.
//
// The published ring is the memory of the controller: what it holds and since when is read from there, never from the
// status. An instance that is in the ring keeps its slot until the ring shrinks, so a pod that fails costs its own keys
// only.
package memcached

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/apply"
	"serverless.xyz/outrigger/controllers/internal/status"
	mc "serverless.xyz/outrigger/memcached"
)

// Name is the controller's name.
const Name = "memcached"

// fieldManager must never change, or fields written by an older release would have two owners.
const fieldManager = "outrigger-memcached"

// purgesAtOnce bounds the instances that are purged at a time for one Memcached, and with it the memory for their keys; and
// workers the Memcacheds that are reconciled at a time, so that none waits for another's purge.
const (
	purgesAtOnce = 4
	workers      = 4
)

// statsTimeout bounds the reading of statistics of all instances of one Memcached.
const statsTimeout = 2 * time.Second

// Reconciler brings the cluster to what a Memcached asks for.
type Reconciler struct {
	clock    clock.PassiveClock
	client   client.Client
	live     client.Reader
	applier  *apply.Applier
	reporter *status.Reporter
	image    string
	stats    StatsReader
	empty    Emptier
	purge    Purger
}

// StatsReader reads the statistics of the memcached server at host:port.
type StatsReader func(ctx context.Context, address string) (mc.Stats, error)

// Emptier has a memcached forget all its items, and nobody else who may have its address by now.
type Emptier func(ctx context.Context, server mc.Server) error

// Purger has a memcached forget the keys that a ring gives to others.
type Purger func(ctx context.Context, server mc.Server, ring *mc.Ring) (int, error)

// New returns a Reconciler that runs image where a Memcached names none, and asks instances by stats. It reads through c,
// which may be a cache of Outrigger's objects, and through live, which must not be one, where c finds nothing.
func New(
	c client.Client, live client.Reader, clk clock.PassiveClock, recorder record.EventRecorder,
	image string, stats StatsReader,
) *Reconciler {
	return &Reconciler{
		clock:    clk,
		client:   c,
		live:     live,
		applier:  apply.New(c, live, fieldManager),
		reporter: status.NewReporter(c, recorder, fieldManager),
		image:    image,
		stats:    stats,
		empty:    mc.Empty,
		purge:    mc.Purge,
	}
}

// WithEmptier has the Reconciler empty instances in another way, and returns it.
func (r *Reconciler) WithEmptier(empty Emptier) *Reconciler {
	r.empty = empty
	return r
}

// WithPurger has the Reconciler purge instances in another way, and returns it.
func (r *Reconciler) WithPurger(purge Purger) *Reconciler {
	r.purge = purge
	return r
}

// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=memcacheds,verbs=get;list;watch
// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=memcacheds/status,verbs=patch
// +kubebuilder:rbac:groups=outrigger.serverless.xyz,resources=memcacheds/finalizers,verbs=update
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch

// Reconcile moves the cluster one step closer to what a Memcached asks for.
func (r *Reconciler) Reconcile(ctx context.Context, m *v1alpha1.Memcached) (reconcile.Result, error) {
	if m.DeletionTimestamp != nil {
		return reconcile.Result{}, nil // owner references take the children
	}
	seen, err := r.observe(ctx, m)
	if err != nil {
		return reconcile.Result{}, err
	}
	now := r.clock.Now()
	p := planFor(m, seen, now)
	if seen.full = r.emptyAll(ctx, m, p, seen); len(seen.full) > 0 {
		p = planFor(m, seen, now)
	}
	if seen.unsearched = r.purgeAll(ctx, m, p, seen); len(seen.unsearched) > 0 {
		p = planFor(m, seen, now)
	}
	err = r.apply(ctx, m, p)
	return status.Result(p.wake(now), errors.Join(err, r.report(ctx, m, seen, p, err)))
}

// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch

func (r *Reconciler) observe(ctx context.Context, m *v1alpha1.Memcached) (observed, error) {
	seen := observed{}
	var err error
	if seen.ring, err = r.observeRing(ctx, m); err != nil {
		return seen, err
	}
	var slices discoveryv1.EndpointSliceList
	ofService := client.MatchingLabels{discoveryv1.LabelServiceName: m.Name}
	if err := r.client.List(ctx, &slices, client.InNamespace(m.Namespace), ofService); err != nil {
		return seen, fmt.Errorf("listing instances: %w", err)
	}
	seen.instances = instancesIn(m, slices.Items)
	seen.stats = r.readStats(ctx, seen.instances)
	return seen, nil
}

func (r *Reconciler) observeRing(ctx context.Context, m *v1alpha1.Memcached) (*publishedRing, error) {
	var cm corev1.ConfigMap
	key := client.ObjectKey{Namespace: m.Namespace, Name: v1alpha1.RingConfigMapName(m.Name)}
	err := r.client.Get(ctx, key, &cm)
	if apierrors.IsNotFound(err) {
		// A ring that lost the label of Outrigger's objects is still the memory of what instances hold.
		err = r.live.Get(ctx, key, &cm)
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the ring: %w", err)
	}
	if !metav1.IsControlledBy(&cm, m) {
		return nil, nil // apply finds out whose it is
	}
	ring := &publishedRing{resourceVersion: cm.ResourceVersion}
	document, err := mc.ParseDocument([]byte(cm.Data[v1alpha1.RingConfigMapKey]))
	if err != nil {
		// Somebody broke it. An empty ring has it rebuilt from the instances that are ready; the epoch goes on.
		document = &mc.Document{Hash: mc.HashKetamaMD5, Epoch: m.Status.Ring.Epoch}
	}
	ring.document = *document
	if at, err := time.Parse(time.RFC3339Nano, cm.Annotations[v1alpha1.AnnotationChangedAt]); err == nil {
		ring.changedAt = at
	}
	ring.former = parseFormer(cm.Annotations[v1alpha1.AnnotationFormerServers])
	return ring, nil
}

// readStats reads the statistics of all ready instances at once. Those that do not answer are left out.
func (r *Reconciler) readStats(ctx context.Context, instances map[int32]instance) map[int32]mc.Stats {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	stats := make(map[int32]mc.Stats, len(instances))
	for ordinal, one := range instances {
		if !one.ready || one.ip == "" {
			continue
		}
		wg.Go(func() {
			if s, err := r.stats(ctx, dialAddress(one.ip)); err == nil {
				mu.Lock()
				defer mu.Unlock()
				stats[ordinal] = s
			}
		})
	}
	wg.Wait()
	return stats
}

// +kubebuilder:rbac:groups="",resources=services;configmaps,verbs=get;list;watch;create;patch
// +kubebuilder:rbac:groups=apps,resources=statefulsets,verbs=get;list;watch;create;patch

// apply writes the ring before the instances, so that none is taken away while clients still send keys to it.
func (r *Reconciler) apply(ctx context.Context, m *v1alpha1.Memcached, p plan) error {
	ring, err := ringConfigMap(m, p.ring)
	if err != nil {
		return err
	}
	for _, desired := range []any{ring, service(m), statefulSet(m, r.image, p.replicas)} {
		if _, err := r.applier.Apply(ctx, m, desired); err != nil {
			return err
		}
	}
	return nil
}

// emptyAll empties the instances that come back into the ring, and returns those that it could not: nobody may read what
// they were told when they were in it last, since it may have been changed elsewhere since.
func (r *Reconciler) emptyAll(
	ctx context.Context, m *v1alpha1.Memcached, p plan, seen observed,
) map[int32]bool {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	full := map[int32]bool{}
	for _, ordinal := range p.toEmpty {
		if r.empty(ctx, serverOf(m, ordinal, seen.instances[ordinal].ip)) != nil {
			full[ordinal] = true
		}
	}
	return full
}

// purgeAll has the instances that stay when others leave the ring forget what they do not own, and returns those that did
// not: they held those keys before the others had them, and get them back as they were then.
func (r *Reconciler) purgeAll(ctx context.Context, m *v1alpha1.Memcached, p plan, seen observed) []int32 {
	if len(p.toPurge) == 0 {
		return nil
	}
	ring, err := seen.ring.document.Ring()
	if err != nil {
		return p.toPurge
	}
	var mu sync.Mutex
	var failed []int32
	var purges errgroup.Group
	purges.SetLimit(purgesAtOnce)
	for _, ordinal := range p.toPurge {
		purges.Go(func() error {
			if _, err := r.purge(ctx, serverOf(m, ordinal, seen.instances[ordinal].ip), ring); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, ordinal)
			}
			return nil
		})
	}
	_ = purges.Wait()
	slices.Sort(failed)
	return failed
}

func (r *Reconciler) report(ctx context.Context, m *v1alpha1.Memcached, seen observed, p plan, err error) error {
	after := m.DeepCopy()
	after.Status = statusFor(m, seen, p, err)
	return r.reporter.Report(ctx, m, after, func(o client.Object) []metav1.Condition {
		return o.(*v1alpha1.Memcached).Status.Conditions //nolint:forcetypeassert // Report passes what it was given.
	})
}

// SetupWithManager registers the controller and its watches.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	return builder.ControllerManagedBy(mgr).
		Named(Name).
		For(&v1alpha1.Memcached{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&appsv1.StatefulSet{}).
		Owns(&corev1.Service{}).
		Owns(&corev1.ConfigMap{}).
		// Slices belong to the Service, whose labels they carry.
		Watches(&discoveryv1.EndpointSlice{}, handler.EnqueueRequestsFromMapFunc(memcachedOf)).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(reconcile.AsReconciler(mgr.GetClient(), r))
}

func memcachedOf(_ context.Context, slice client.Object) []reconcile.Request {
	labels := slice.GetLabels()
	if labels[v1alpha1.LabelName] != "memcached" || labels[v1alpha1.LabelInstance] == "" {
		return nil
	}
	return []reconcile.Request{{
		NamespacedName: client.ObjectKey{Namespace: slice.GetNamespace(), Name: labels[v1alpha1.LabelInstance]},
	}}
}
