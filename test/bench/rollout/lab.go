// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/controllers"
	"serverless.xyz/outrigger/test/testbed"
)

// hands is how many objects are made, or edited, at once.
const hands = 16

var virtualServices = schema.GroupVersionResource{
	Group: "networking.istio.io", Version: "v1", Resource: "virtualservices",
}

// lab is the API server, and who watches it.
type lab struct {
	bed    *testbed.Testbed
	client client.Client
	say    func(format string, args ...any)
	// running are the controllers.
	running sync.WaitGroup

	mu      sync.Mutex
	routes  map[types.NamespacedName]*unstructured.Unstructured
	waiters map[types.NamespacedName][]*waiter
}

// waiter waits until a route carries something.
type waiter struct {
	carries func(*unstructured.Unstructured) bool
	seen    chan time.Time
}

func newLab(ctx context.Context, say func(string, ...any)) (*lab, error) {
	bed, err := testbed.Start(ctx, testbed.Options{})
	if err != nil {
		return nil, err
	}
	config := bed.Config()
	config.QPS = -1
	c, err := client.New(config, client.Options{Scheme: controllers.Scheme()})
	if err != nil {
		return nil, fmt.Errorf("connecting to the API server: %w", err)
	}
	l := &lab{
		bed: bed, client: c, say: say,
		routes:  map[types.NamespacedName]*unstructured.Unstructured{},
		waiters: map[types.NamespacedName][]*waiter{},
	}
	if err := l.define(ctx); err != nil {
		l.close()
		return nil, err
	}
	if err := l.watch(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) close() {
	l.running.Wait()
	if err := l.bed.Stop(); err != nil {
		l.say("stopping the testbed: %v", err)
	}
}

// define installs the kinds of all systems.
func (l *lab) define(ctx context.Context) error {
	dirs := map[string]string{}
	for _, one := range []struct{ name, module string }{{"rollouts", argoModule}, {"flagger", flaggerModule}} {
		var err error
		if dirs[one.name], err = moduleDir(ctx, one.name, one.module); err != nil {
			return err
		}
	}
	root, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", "serverless.xyz/outrigger")
	if err != nil {
		return err
	}
	kserve, err := testbed.ModuleDir(ctx, root, "github.com/kserve/kserve")
	if err != nil {
		return err
	}
	istio, err := testbed.ModuleDir(ctx, filepath.Join(root, "test/testbed/modules/istio"), "istio.io/istio")
	if err != nil {
		return err
	}
	crds := filepath.Join(dirs["rollouts"], "manifests/crds")
	if err := l.bed.ApplyFiles(ctx,
		filepath.Join(istio, "manifests/charts/base/files/crd-all.gen.yaml"),
		filepath.Join(dirs["flagger"], "artifacts/flagger/crd.yaml"),
		filepath.Join(crds, "rollout-crd.yaml"), filepath.Join(crds, "experiment-crd.yaml"),
		filepath.Join(crds, "analysis-run-crd.yaml"), filepath.Join(crds, "analysis-template-crd.yaml"),
		filepath.Join(crds, "cluster-analysis-template-crd.yaml"),
	); err != nil {
		return err
	}
	return l.bed.InstallCRDs(ctx, filepath.Join(root, "config/crd/bases"), filepath.Join(kserve, "config/crd/full"))
}

// watch follows all routes, and has Deployments and ReplicaSets be ready.
func (l *lab) watch(ctx context.Context) error {
	config := l.bed.Config()
	config.QPS = -1
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	routes := dynamicinformer.NewDynamicSharedInformerFactory(dyn, 0)
	see := func(object any) {
		if route, ok := object.(*unstructured.Unstructured); ok {
			l.see(route, time.Now())
		}
	}
	if _, err := routes.ForResource(virtualServices).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: see, UpdateFunc: func(_, now any) { see(now) },
	}); err != nil {
		return fmt.Errorf("watching routes: %w", err)
	}
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	workloads := informers.NewSharedInformerFactory(clientset, 0)
	if err := pretend(ctx, workloads, clientset); err != nil {
		return err
	}
	routes.Start(ctx.Done())
	workloads.Start(ctx.Done())
	return nil
}

// pretend says of every Deployment and ReplicaSet that its pods are ready, as nobody else does here.
func pretend(ctx context.Context, workloads informers.SharedInformerFactory, c kubernetes.Interface) error {
	apps := c.AppsV1()
	deployment := func(object any) {
		d, ok := object.(*appsv1.Deployment)
		if !ok {
			return
		}
		want := appsv1.DeploymentStatus{
			ObservedGeneration: d.Generation, Replicas: *d.Spec.Replicas, UpdatedReplicas: *d.Spec.Replicas,
			ReadyReplicas: *d.Spec.Replicas, AvailableReplicas: *d.Spec.Replicas,
			Conditions: []appsv1.DeploymentCondition{
				{Type: appsv1.DeploymentAvailable, Status: corev1.ConditionTrue, Reason: "MinimumReplicasAvailable"},
				{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: "NewReplicaSetAvailable"},
			},
		}
		if s := d.Status; s.ObservedGeneration == want.ObservedGeneration && s.ReadyReplicas == want.ReadyReplicas {
			return
		}
		d = d.DeepCopy()
		d.Status = want
		_, _ = apps.Deployments(d.Namespace).
			UpdateStatus(ctx, d, metav1.UpdateOptions{})
		// a conflict is followed by another event
	}
	replicaSet := func(object any) {
		rs, ok := object.(*appsv1.ReplicaSet)
		if !ok || rs.Status.ReadyReplicas == *rs.Spec.Replicas && rs.Status.ObservedGeneration == rs.Generation {
			return
		}
		rs = rs.DeepCopy()
		n := *rs.Spec.Replicas
		rs.Status = appsv1.ReplicaSetStatus{
			ObservedGeneration: rs.Generation, Replicas: n, FullyLabeledReplicas: n, ReadyReplicas: n, AvailableReplicas: n,
		}
		_, _ = apps.ReplicaSets(rs.Namespace).UpdateStatus(ctx, rs, metav1.UpdateOptions{})
	}
	for informer, see := range map[cache.SharedIndexInformer]func(any){
		workloads.Apps().V1().Deployments().Informer(): deployment,
		workloads.Apps().V1().ReplicaSets().Informer(): replicaSet,
	} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: see, UpdateFunc: func(_, now any) { see(now) },
		}); err != nil {
			return fmt.Errorf("watching workloads: %w", err)
		}
	}
	return nil
}

// see notes a route, and tells who waited for it.
func (l *lab) see(route *unstructured.Unstructured, at time.Time) {
	key := types.NamespacedName{Namespace: route.GetNamespace(), Name: route.GetName()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.routes[key] = route
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

// await returns a channel that tells when a route carries something; at once if it does already.
func (l *lab) await(key types.NamespacedName, carries func(*unstructured.Unstructured) bool) <-chan time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &waiter{carries: carries, seen: make(chan time.Time, 1)}
	if route := l.routes[key]; route != nil && carries(route) {
		w.seen <- time.Now()
	} else {
		l.waiters[key] = append(l.waiters[key], w)
	}
	return w.seen
}

// route returns the last state of a route.
func (l *lab) route(key types.NamespacedName) *unstructured.Unstructured {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.routes[key]
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

// patch sends a merge patch of an object.
func (l *lab) patch(ctx context.Context, kind schema.GroupVersionKind, key types.NamespacedName, patch string) error {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	object.SetNamespace(key.Namespace)
	object.SetName(key.Name)
	err := l.client.Patch(ctx, object, client.RawPatch(types.MergePatchType, []byte(patch)), client.FieldOwner("a-user"))
	if err != nil {
		return fmt.Errorf("editing %s %s: %w", kind.Kind, key.Name, err)
	}
	return nil
}

// each does something for many canaries, some at a time.
func each(n, lanes int, do func(i int) error) error {
	numbers, failed := make(chan int), make(chan error, lanes)
	var workers sync.WaitGroup
	for range lanes {
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
