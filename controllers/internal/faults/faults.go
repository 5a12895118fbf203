// SPDX-License-Identifier: Apache-2.0

// Package faults drives a reconciler through what goes wrong in real clusters, on a real API server, and compares where
// it comes to rest with where it rests when nothing goes wrong:
//
//   - it is killed at every single write, before the write and after it;
//   - what it reads is older than what it has written;
//   - nobody tells it of changes in between, its object is deleted and made again under another UID;
//   - at rest, it must not write at all, and neither must its successor.
//
// The classes are those that Sieve (OSDI 2022) found in published controllers.
package faults

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/controllers/internal/testcluster"
)

// maxRounds bounds how long a reconciler may take to rest.
const maxRounds = 60

// World is what a scenario's steps act on.
type World struct {
	// Client reaches the API server, without faults.
	Client client.WithWatch
	// Namespace is the scenario's own.
	Namespace string
	// Clock is the only clock that the reconciler sees.
	Clock *clocktesting.FakePassiveClock
}

// Step is something that a user does; the reconciler is brought to rest after each.
type Step func(ctx context.Context, w *World) error

// Scenario is the life of one object under one reconciler.
type Scenario struct {
	// New returns a reconciler that reads and writes through c, as a freshly started manager would.
	New func(c client.Client, w *World) reconcile.Reconciler
	// Name is the name of the object that is reconciled, in the scenario's namespace.
	Name string
	// Steps are what a user does, one after the other.
	Steps []Step
	// Environment acts like the rest of the cluster does, such as by making pods ready. It is called before every round
	// and must do nothing when there is nothing to do. It may be nil.
	Environment Step
	// Kinds are lists of all kinds that the reconciler reads or writes.
	Kinds []client.ObjectList
	// Check finds out after every round whether something happened that never must. It may be nil.
	Check Step
	// Forget replaces, in the text of an object, what may differ between two ways to the same end. It may be nil.
	Forget func(text string) string
}

// Run runs all faults as subtests. All that acts in the scenario's namespaces must do so through the client of its world.
func Run(t *testing.T, cluster *testcluster.Cluster, s Scenario) {
	t.Helper()
	want, writes := s.clean(t, cluster)
	if len(writes) == 0 {
		t.Fatal("the reconciler wrote nothing at all")
	}
	t.Run("killed at every write", func(t *testing.T) {
		for i, first := range writes {
			n := i + 1
			for _, done := range []bool{false, true} {
				if !done && !first {
					continue // killed after the write before this one it leaves the same behind, at the same time
				}
				crash := &crash{at: n, done: done}
				got := s.play(t, cluster, crash.client, brisk)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("killed at write %d (write done: %v): end state differs (-want +got):\n%s", n, done, diff)
				}
				if !crash.happened {
					t.Errorf("write %d was never reached", n)
				}
			}
		}
	})
	for lag := 1; lag <= 3; lag++ {
		t.Run(fmt.Sprintf("reads are %d rounds old", lag), func(t *testing.T) {
			stale := &stale{lag: lag, kinds: s.Kinds}
			if diff := cmp.Diff(want, s.play(t, cluster, stale.client, patient, stale.remember)); diff != "" {
				t.Errorf("end state differs (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("deleted and made again unseen", func(t *testing.T) {
		again := s
		again.Steps = append(slices.Clone(s.Steps), s.recreate(s.Steps))
		if diff := cmp.Diff(want, again.play(t, cluster, nil, brisk)); diff != "" {
			t.Errorf("end state differs (-want +got):\n%s", diff)
		}
	})
}

// clean plays the scenario without faults, checks that rest is rest, and returns the end state and the writes that led
// there: whether each was the first of its round.
func (s Scenario) clean(t *testing.T, cluster *testcluster.Cluster) (end map[string]string, writes []bool) {
	t.Helper()
	w := NewSoleWorld(t, cluster)
	count := &crash{}
	ctx := t.Context()
	environment := s.Environment
	s.Environment = func(ctx context.Context, w *World) error {
		count.begun = false
		if environment == nil {
			return nil
		}
		return environment(ctx, w)
	}
	for i, step := range s.Steps {
		if err := step(ctx, w); err != nil {
			t.Fatalf("step %d: %v", i+1, err)
		}
		if err := s.settle(ctx, w, func(w *World) client.Client { return count.client(w) }, brisk); err != nil {
			t.Fatalf("step %d: %v", i+1, err)
		}
	}
	writes = slices.Clone(count.firsts)
	for range 10 {
		if err := s.round(ctx, w, s.New(count.client(w), w)); err != nil {
			t.Fatalf("reconciling at rest: %v", err)
		}
	}
	if count.writes != len(writes) {
		t.Errorf("%d writes at rest", count.writes-len(writes))
	}
	return s.snapshot(t, w), writes
}

// play plays all steps through a faulty client and returns the end state. The reconciler is made anew after every error.
func (s Scenario) play(
	t *testing.T, cluster *testcluster.Cluster, faulty func(*World) client.Client, patience int, before ...Step,
) map[string]string {
	t.Helper()
	w := NewSoleWorld(t, cluster)
	if faulty == nil {
		faulty = func(w *World) client.Client { return w.Client }
	}
	with := s
	with.Environment = func(ctx context.Context, w *World) error {
		if s.Environment != nil {
			if err := s.Environment(ctx, w); err != nil {
				return err
			}
		}
		for _, step := range before {
			if err := step(ctx, w); err != nil {
				return err
			}
		}
		return nil
	}
	for i, step := range s.Steps {
		if err := step(t.Context(), w); err != nil {
			t.Fatalf("step %d: %v", i+1, err)
		}
		if err := with.settle(t.Context(), w, faulty, patience); err != nil {
			t.Fatalf("step %d: %v", i+1, err)
		}
	}
	return s.snapshot(t, w)
}

// Rounds without a change that it takes to be sure that none will come.
const (
	patient = 4 // reads may be three rounds old
	brisk   = 1 // reads are new
)

// settle reconciles until nothing changes for patience rounds, twice.
func (s Scenario) settle(ctx context.Context, w *World, through func(*World) client.Client, patience int) error {
	reconciler := s.New(through(w), w)
	quiet, aged := 0, false
	before, err := versions(ctx, w, s.Kinds)
	if err != nil {
		return err
	}
	for range maxRounds {
		if err := s.round(ctx, w, reconciler); err != nil {
			reconciler = s.New(through(w), w) // what a restarted manager would do
		}
		if s.Check != nil {
			if err := s.Check(ctx, w); err != nil {
				return fmt.Errorf("checking what never must happen: %w", err)
			}
		}
		after, err := versions(ctx, w, s.Kinds)
		if err != nil {
			return err
		}
		switch {
		case !maps.Equal(before, after):
			quiet, aged = 0, false
		case quiet < patience:
			quiet++
		case aged:
			return nil
		default:
			quiet, aged = 0, true
		}
		before = after
		pause := time.Minute
		if quiet > 0 {
			pause *= patient / time.Duration(patience) // so that as much time passes at rest, in fewer rounds
		}
		w.Clock.SetTime(w.Clock.Now().Add(pause))
	}
	return fmt.Errorf("no rest after %d rounds", maxRounds)
}

func (s Scenario) round(ctx context.Context, w *World, reconciler reconcile.Reconciler) error {
	if s.Environment != nil {
		if err := s.Environment(ctx, w); err != nil {
			return fmt.Errorf("acting like the cluster: %w", err)
		}
	}
	key := client.ObjectKey{Namespace: w.Namespace, Name: s.Name}
	_, err := reconciler.Reconcile(ctx, reconcile.Request{NamespacedName: key})
	return err
}

// recreate returns a step that deletes all that the steps made, and does them again, before anybody looks.
func (s Scenario) recreate(steps []Step) Step {
	return func(ctx context.Context, w *World) error {
		for _, list := range s.Kinds {
			if err := deleteRoots(ctx, w, list); err != nil {
				return err
			}
		}
		for _, step := range steps {
			if err := step(ctx, w); err != nil {
				return err
			}
		}
		return nil
	}
}

// deleteRoots deletes what has no owner; the rest is the garbage collector's.
func deleteRoots(ctx context.Context, w *World, list client.ObjectList) error {
	objects, err := listOf(ctx, w.Client, w.Namespace, list)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if len(o.GetOwnerReferences()) > 0 || isSystem(o) {
			continue
		}
		if err := client.IgnoreNotFound(w.Client.Delete(ctx, o)); err != nil {
			return fmt.Errorf("deleting %s: %w", o.GetName(), err)
		}
	}
	return nil
}

// CollectGarbage deletes objects whose owner is gone, as kube-controller-manager does. Scenarios call it from their
// Environment.
func CollectGarbage(ctx context.Context, w *World, kinds ...client.ObjectList) error {
	alive := map[string]bool{}
	var owned []client.Object
	for _, list := range kinds {
		objects, err := listOf(ctx, w.Client, w.Namespace, list)
		if err != nil {
			return err
		}
		for _, o := range objects {
			alive[string(o.GetUID())] = true
			if metav1.GetControllerOf(o) != nil {
				owned = append(owned, o)
			}
		}
	}
	for _, o := range owned {
		if alive[string(metav1.GetControllerOf(o).UID)] {
			continue
		}
		if err := client.IgnoreNotFound(w.Client.Delete(ctx, o)); err != nil {
			return fmt.Errorf("collecting %s: %w", o.GetName(), err)
		}
	}
	return nil
}

// NewWorld makes a namespace and a clock for one life of an object.
func NewWorld(t *testing.T, cluster *testcluster.Cluster) *World {
	t.Helper()
	return &World{
		Client:    cluster.Client,
		Namespace: cluster.Namespace(t),
		Clock:     clocktesting.NewFakePassiveClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)),
	}
}

// NewSoleWorld makes a world where nobody acts but through its client. Its reads cost the API server nothing as long as
// nothing is written, and are as true as any. A manager writes through a client of its own: tests that run one take
// [NewWorld].
func NewSoleWorld(t *testing.T, cluster *testcluster.Cluster) *World {
	t.Helper()
	w := NewWorld(t, cluster)
	c, err := remembering(cluster, w.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	w.Client = c
	return w
}

func isSystem(o client.Object) bool {
	_, isConfigMap := o.(*corev1.ConfigMap)
	return isConfigMap && strings.HasSuffix(o.GetName(), "-root-ca.crt")
}
