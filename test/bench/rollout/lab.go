// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/controllers"
	"serverless.xyz/outrigger/test/testbed"
)

// hands is how many objects are made, or edited, at once.
const hands = 16

var (
	virtualServices = schema.GroupVersionResource{
		Group: "networking.istio.io", Version: "v1", Resource: "virtualservices",
	}
	virtualServiceKind = virtualServices.GroupVersion().WithKind("VirtualService")
)

// lab is the API server, and who watches it.
type lab struct {
	bed    *testbed.Testbed
	client client.Client
	say    func(format string, args ...any)
	// running are the controllers, and processes theirs by the name of the system.
	running   sync.WaitGroup
	processes map[string]int

	mu      sync.Mutex
	routes  map[types.NamespacedName]*unstructured.Unstructured
	waiters map[types.NamespacedName][]*waiter
	// changes counts, by namespace, how often a route was stored.
	changes map[string]int
}

// waiter waits until a route carries something.
type waiter struct {
	carries func(*unstructured.Unstructured) bool
	seen    chan time.Time
}

// newLab starts an API server that has the kinds of all systems. It calls fail when it no longer sees what is stored.
func newLab(ctx context.Context, fail context.CancelCauseFunc, say func(string, ...any)) (*lab, error) {
	bed, err := testbed.Start(ctx, testbed.Options{})
	if err != nil {
		return nil, err
	}
	l := &lab{
		bed: bed, say: say, processes: map[string]int{},
		routes:  map[types.NamespacedName]*unstructured.Unstructured{},
		waiters: map[types.NamespacedName][]*waiter{}, changes: map[string]int{},
	}
	if err := l.furnish(ctx, fail); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) furnish(ctx context.Context, fail context.CancelCauseFunc) error {
	var err error
	if l.client, err = client.New(l.bed.Config(), client.Options{Scheme: controllers.Scheme()}); err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	if err := l.define(ctx); err != nil {
		return err
	}
	if err := l.watch(ctx, fail); err != nil {
		return err
	}
	return pretend(ctx, l.bed.Config())
}

func (l *lab) close() {
	l.running.Wait()
	if err := l.bed.Stop(); err != nil {
		l.say("stopping the testbed: %v", err)
	}
}

// define installs the kinds of all systems.
func (l *lab) define(ctx context.Context) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	dirs := map[string]string{}
	for _, one := range []struct{ module, in string }{
		{argoModule, filepath.Join(root, modules, "rollouts")},
		{flaggerModule, filepath.Join(root, modules, "flagger")},
		{"istio.io/istio", filepath.Join(root, "test/testbed/modules/istio")},
		{"github.com/kserve/kserve", root},
	} {
		if dirs[one.module], err = testbed.ModuleDir(ctx, one.in, one.module); err != nil {
			return err
		}
	}
	crds := filepath.Join(dirs[argoModule], "manifests/crds")
	if err := l.bed.ApplyFiles(ctx,
		filepath.Join(dirs["istio.io/istio"], "manifests/charts/base/files/crd-all.gen.yaml"),
		filepath.Join(dirs[flaggerModule], "artifacts/flagger/crd.yaml"),
		filepath.Join(crds, "rollout-crd.yaml"), filepath.Join(crds, "experiment-crd.yaml"),
		filepath.Join(crds, "analysis-run-crd.yaml"), filepath.Join(crds, "analysis-template-crd.yaml"),
		filepath.Join(crds, "cluster-analysis-template-crd.yaml"),
	); err != nil {
		return err
	}
	return l.bed.InstallCRDs(ctx,
		filepath.Join(root, "config/crd/bases"), filepath.Join(dirs["github.com/kserve/kserve"], "config/crd/full"))
}

// watch follows all routes by a plain watch of its own.
func (l *lab) watch(ctx context.Context, fail context.CancelCauseFunc) error {
	dyn, err := dynamic.NewForConfig(l.bed.Config())
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	list, err := dyn.Resource(virtualServices).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	events, err := dyn.Resource(virtualServices).Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return fmt.Errorf("watching routes: %w", err)
	}
	go func() {
		for event := range events.ResultChan() {
			at := time.Now()
			if route, ok := event.Object.(*unstructured.Unstructured); ok && event.Type != watch.Deleted {
				l.see(route, at)
			}
		}
		fail(errors.New("the watch of routes has ended, so nothing can be measured any more"))
	}()
	return nil
}

// see notes a route, and tells who waited for it.
func (l *lab) see(route *unstructured.Unstructured, at time.Time) {
	key := types.NamespacedName{Namespace: route.GetNamespace(), Name: route.GetName()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.routes[key] = route
	l.changes[key.Namespace]++
	var still []*waiter
	for _, w := range l.waiters[key] {
		if w.carries(route) {
			w.seen <- at
		} else {
			still = append(still, w)
		}
	}
	l.waiters[key] = still
}

// await returns a channel that tells when a route is stored that carries something.
func (l *lab) await(key types.NamespacedName, carries func(*unstructured.Unstructured) bool) <-chan time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &waiter{carries: carries, seen: make(chan time.Time, 1)}
	l.waiters[key] = append(l.waiters[key], w)
	return w.seen
}

// route returns the last state of a route.
func (l *lab) route(key types.NamespacedName) *unstructured.Unstructured {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.routes[key]
}

// stored is how often routes of a namespace were stored until now.
func (l *lab) stored(namespace string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes[namespace]
}

// create makes objects from YAML, unless they are there.
func (l *lab) create(ctx context.Context, text string) error {
	for part := range strings.SplitSeq(text, "\n---\n") {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(part), &object.Object); err != nil {
			return fmt.Errorf("reading an object: %w", err)
		}
		if err := l.client.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("making %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

func (l *lab) namespace(ctx context.Context, name string) error {
	return l.create(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}")
}

const user = client.FieldOwner("a-user")

func named(kind schema.GroupVersionKind, key types.NamespacedName) *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	object.SetNamespace(key.Namespace)
	object.SetName(key.Name)
	return object
}

// patch sends a merge patch of an object.
func (l *lab) patch(ctx context.Context, kind schema.GroupVersionKind, key types.NamespacedName, patch string) error {
	if err := l.client.Patch(ctx, named(kind, key), client.RawPatch(types.MergePatchType, []byte(patch)), user); err != nil {
		return fmt.Errorf("editing %s %s: %w", kind.Kind, key.Name, err)
	}
	return nil
}

// patchStatus sends a merge patch of an object's status.
func (l *lab) patchStatus(ctx context.Context, kind schema.GroupVersionKind, key types.NamespacedName, patch string) error {
	raw := client.RawPatch(types.MergePatchType, []byte(patch))
	if err := l.client.Status().Patch(ctx, named(kind, key), raw, user); err != nil {
		return fmt.Errorf("editing the status of %s %s: %w", kind.Kind, key.Name, err)
	}
	return nil
}

// each does something for many canaries, so many at a time.
func each(n, lanes int, do func(i int) error) error {
	numbers, failed := make(chan int), make(chan error, lanes)
	var workers sync.WaitGroup
	for range min(n, lanes) {
		workers.Go(func() {
			for i := range numbers {
				if err := do(i); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	workers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}
