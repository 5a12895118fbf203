// SPDX-License-Identifier: Apache-2.0

//go:build bench

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/test/testbed"
)

// benchEnv names the file that the report of TestScale goes to.
const benchEnv = "BENCH_POLICIES"

// TestScale measures the manager among many InferenceServices: how long it takes to come to rest, what it writes and holds
// in memory, what the edit of a policy touches, and how long the pod webhook takes to decide. It asserts no times: the
// last lines of its report compare figures with targets.
//
// A real API server holds the objects; pods pass through the real webhook. Nothing runs in them, and nobody acts for KServe.
func TestScale(t *testing.T) {
	out := os.Getenv(benchEnv)
	if out == "" {
		t.Fatalf("%s names no file for the report; `make bench-policies` sets it", benchEnv)
	}
	b := &bench{services: 1000, podsEach: 5, policies: 50, namespace: "models"}
	if err := b.run(t, out); err != nil {
		t.Fatal(err)
	}
}

// bench is one run.
type bench struct {
	// services is how many InferenceServices there are, half of which the edited policy picks.
	services int
	// podsEach is how many pods each has.
	podsEach int
	// policies is how many policies there are; all but two have conditions that pick nothing.
	policies int

	client    client.Client
	namespace string
	requests  requests
	figures   figures
}

func (b *bench) run(t *testing.T, out string) (err error) {
	ctx := t.Context()
	tb, err := testbed.Start(ctx, testbed.Options{Size: testbed.API})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tb.Stop()) }()
	if err := testcluster.InstallForeign(ctx, tb); err != nil {
		return err
	}
	if err := tb.InstallCRDs(ctx, filepath.Join(testcluster.Root(), "config/crd/bases")); err != nil {
		return err
	}
	config := rest.CopyConfig(tb.Config())
	config.QPS = -1
	if b.client, err = client.New(config, client.Options{Scheme: controllers.Scheme()}); err != nil {
		return err
	}
	if err := b.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b.namespace}}); err != nil {
		return err
	}
	before := heap()
	manager, err := b.startManager(ctx, config, freeAddress())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, manager.stop()) }()
	for i, step := range []func(context.Context) error{
		b.comeToRest, b.rest, b.editThatWaits, b.editThatRolls,
		func(ctx context.Context) error { return b.decide(ctx, manager.handler) },
	} {
		if err := step(ctx); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: step %d is done\n", time.Now().Format(time.TimeOnly), i+1)
	}
	b.figures.heap = heap() - before
	report := b.report()
	t.Log("\n" + report)
	return os.WriteFile(out, []byte(report), 0o644) // others read it
}

// heap returns the bytes that are in use after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// comeToRest makes all objects, eight at a time, and waits until the manager has counted them and writes no more.
func (b *bench) comeToRest(ctx context.Context) error {
	began := time.Now()
	for i := range b.policies {
		if err := b.client.Create(ctx, b.policy(i)); err != nil {
			return err
		}
	}
	// KServe makes pods of an InferenceService after it.
	for _, make := range []func(context.Context, int) error{b.makeService, b.makePods} {
		if err := parallel(ctx, 8, b.services, make); err != nil {
			return err
		}
	}
	b.figures.created = time.Since(began)
	began = time.Now()
	matched := int32(b.services / 2)
	if err := b.await(ctx, "policies to count their pods", func() bool {
		p, err := b.get(ctx, "blue")
		return err == nil && p.Status.Matched == matched &&
			p.Status.Injected == matched*int32(b.podsEach)
	}); err != nil {
		return err
	}
	last, err := b.quiet(ctx)
	b.figures.toRest = last.Sub(began)
	b.figures.writes = b.requests.since(0)
	return err
}

// rest watches the manager do nothing.
func (b *bench) rest(ctx context.Context) error {
	before := b.requests.count()
	if err := sleep(ctx, 30*time.Second); err != nil {
		return err
	}
	b.figures.atRest = b.requests.since(before)
	return nil
}

// editThatWaits changes a policy that leaves pods until they are restarted.
func (b *bench) editThatWaits(ctx context.Context) error {
	before, began := b.requests.count(), time.Now()
	if err := b.edit(ctx, func(s *v1alpha1.SidecarPolicySpec) { s.Preload.Verify = v1alpha1.VerifyRequire }); err != nil {
		return err
	}
	if err := b.await(ctx, "the pods to be outdated", func() bool {
		p, err := b.get(ctx, "blue")
		return err == nil && int(p.Status.Outdated) == b.services/2*b.podsEach
	}); err != nil {
		return err
	}
	b.figures.edit = time.Since(began)
	_, err := b.quiet(ctx)
	b.figures.editWrites = b.requests.since(before)
	return err
}

// editThatRolls has pods replaced. Nobody acts for KServe, so that the first InferenceServices are all.
func (b *bench) editThatRolls(ctx context.Context) error {
	before := b.requests.count()
	if err := b.edit(ctx, func(s *v1alpha1.SidecarPolicySpec) { s.Rollout = v1alpha1.RolloutAlways }); err != nil {
		return err
	}
	want := 1 + b.services/2/10
	if err := b.await(ctx, "the first InferenceServices to roll", func() bool {
		p, err := b.get(ctx, "blue")
		return err == nil && int(p.Status.Rolling) == want
	}); err != nil {
		return err
	}
	_, err := b.quiet(ctx)
	b.figures.rollWrites = b.requests.since(before)
	return err
}

func (b *bench) edit(ctx context.Context, change func(*v1alpha1.SidecarPolicySpec)) error {
	p, err := b.get(ctx, "blue")
	if err != nil {
		return err
	}
	before := p.DeepCopy()
	change(&p.Spec)
	return b.client.Patch(ctx, p, client.MergeFrom(before))
}

func (b *bench) get(ctx context.Context, name string) (*v1alpha1.SidecarPolicy, error) {
	p := &v1alpha1.SidecarPolicy{}
	return p, b.client.Get(ctx, client.ObjectKey{Namespace: b.namespace, Name: name}, p)
}

func (b *bench) await(ctx context.Context, what string, ready func() bool) error {
	for range 3000 {
		if ready() {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	p, err := b.get(ctx, "blue")
	return fmt.Errorf("waited too long for %s (%w): %+v", what, err, p.Status)
}

// quiet waits until the manager has not written for three seconds, and returns when it last did.
func (b *bench) quiet(ctx context.Context) (time.Time, error) {
	for {
		last := b.requests.last()
		if time.Since(last) > 3*time.Second {
			return last, nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return last, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// parallel calls do for all numbers below n, some at a time.
func parallel(ctx context.Context, workers, n int, do func(context.Context, int) error) error {
	numbers, errs := make(chan int), make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range numbers {
				errs[w] = errors.Join(errs[w], do(ctx, i))
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	wg.Wait()
	return errors.Join(errs...)
}

// requests are those of the manager that may change something, in their order.
type requests struct {
	mu   sync.Mutex
	list []string
	at   time.Time
}

func (r *requests) add(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list, r.at = append(r.list, text), time.Now()
}

func (r *requests) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list)
}

func (r *requests) last() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

func (r *requests) since(n int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list[n:])
}

// of counts the requests that have a text in them.
func of(list []string, text string) int {
	n := 0
	for _, one := range list {
		if strings.Contains(one, text) {
			n++
		}
	}
	return n
}
