// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// within bounds how long a test waits for something that takes milliseconds, or some seconds where it takes a real
// Prometheus or the real KServe. Only what never happens exceeds it, however slow the machine is.
const within = 3 * time.Minute

// startManager runs the controller over one namespace, and returns a function that stops it.
func startManager(t *testing.T, w *faults.World, restConfig *rest.Config) context.CancelFunc {
	t.Helper()
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme: w.Client.Scheme(),
		Logger: testr.New(t),
		Cache: cache.Options{
			DefaultNamespaces: map[string]cache.Config{w.Namespace: {}},
			DefaultTransform:  cache.TransformStripManagedFields(),
		},
		Client:     client.Options{Cache: &client.CacheOptions{Unstructured: true}},
		Controller: config.Controller{SkipNameValidation: new(true)},
		Metrics:    server.Options{BindAddress: "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := canaryrollout.New(mgr.GetClient(), mgr.GetAPIReader(), clock.RealClock{}, mgr.GetEventRecorderFor(canaryrollout.Name))
	if err := r.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := mgr.Start(ctx); err != nil {
			t.Errorf("running the manager: %v", err)
		}
	})
	stop := func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// awaitWeights waits until a route has these weights.
func awaitWeights(t *testing.T, w *faults.World, vs, route, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	watch, err := w.Client.Watch(ctx, virtualServiceList(), client.InNamespace(w.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	got := weights(t, virtualService(t, w, vs), route)
	for got != want {
		event, open := <-watch.ResultChan()
		if !open {
			t.Fatalf("weights of %s are %q after %s, want %q", vs, got, within, want)
		}
		if live, ok := event.Object.(*unstructured.Unstructured); ok && live.GetName() == vs {
			got = weights(t, live, route)
		}
	}
}

// awaitReason waits until the Ready condition of a rollout has a reason.
func awaitReason(t *testing.T, w *faults.World, rollout, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	watch, err := w.Client.Watch(ctx, &v1alpha1.CanaryRolloutList{}, client.InNamespace(w.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	got := readyReason(get(t, w, rollout))
	for got != want {
		event, open := <-watch.ResultChan()
		if !open {
			t.Fatalf("reason of %s is %q after %s, want %q", rollout, got, within, want)
		}
		if live, ok := event.Object.(*v1alpha1.CanaryRollout); ok && live.Name == rollout {
			got = readyReason(live)
		}
	}
}

func readyReason(r *v1alpha1.CanaryRollout) string {
	for _, c := range r.Status.Conditions {
		if c.Type == v1alpha1.ConditionReady && c.ObservedGeneration == r.Generation {
			return c.Reason
		}
	}
	return ""
}

// TestEveryChangeIsHeardOf: nothing polls, so each thing that a decision rests on must wake the controller.
func TestEveryChangeIsHeardOf(t *testing.T) {
	w := newWorld(t)
	startManager(t, w, testcluster.New(t).Config)
	await := func(want string) { t.Helper(); awaitWeights(t, w, name, routing.SplitRoute, want) }

	do(t, w, rollout(func(r *v1alpha1.CanaryRollout) { r.Spec.CanaryPercent = 20 }))
	awaitReason(t, w, name, v1alpha1.ReasonInferenceServiceNotFound)
	do(t, w, inferenceService("v1", 1))
	await("v1=100 v2=0 ")
	do(t, w, inferenceService("v2", 1))
	await("v1=80 v2=20 ")
	do(t, w, percent(60))
	await("v1=40 v2=60 ")
	do(t, w, inferenceService("v2", 0))
	await("v1=100 v2=0 ")
	do(t, w, inferenceService("v2", 1))
	await("v1=40 v2=60 ")

	drift := client.RawPatch(
		"application/json-patch+json",
		[]byte(`[{"op":"replace","path":"/spec/http/0/route/1/weight","value":1}]`),
	)
	if err := w.Client.Patch(t.Context(), virtualService(t, w, name), drift); err != nil {
		t.Fatal(err)
	}
	await("v1=40 v2=60 ")
	if err := w.Client.Delete(t.Context(), virtualService(t, w, name)); err != nil {
		t.Fatal(err)
	}
	await("v1=40 v2=60 ")

	isvc := &kserve.InferenceService{}
	isvc.Namespace, isvc.Name = w.Namespace, "v2"
	if err := w.Client.Delete(t.Context(), isvc); err != nil {
		t.Fatal(err)
	}
	await("v1=100 v2=0 ")
}

func TestAdoptedChangesAreHeardOf(t *testing.T) {
	w := newWorld(t)
	startManager(t, w, testcluster.New(t).Config)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(adopts("shop", "predict")), percent(35))
	awaitReason(t, w, name, v1alpha1.ReasonVirtualServiceNotFound)
	do(t, w, applyYAML(shop))
	awaitWeights(t, w, "shop", "predict", "v1=65 v2=35 ")
	do(t, w, applyYAML(shop)) // which puts the weights back to 100 and 0
	awaitWeights(t, w, "shop", "predict", "v1=65 v2=35 ")
	do(t, w, percent(1))
	awaitWeights(t, w, "shop", "predict", "v1=99 v2=1 ")
}

func TestLoserTakesOverWhenTheWinnerGoes(t *testing.T) {
	w := newWorld(t)
	startManager(t, w, testcluster.New(t).Config)
	do(
		t,
		w,
		inferenceService("v1", 1),
		inferenceService("v2", 1),
		applyYAML(shop),
		rollout(adopts("shop", "predict")),
		percent(35),
	)
	awaitWeights(t, w, "shop", "predict", "v1=65 v2=35 ")
	do(t, w, rollout(func(second *v1alpha1.CanaryRollout) {
		adopts("shop", "predict")(second)
		second.Name, second.Spec.CanaryPercent = "second", 90
	}))
	awaitReason(t, w, "second", v1alpha1.ReasonRouteConflict)
	if err := w.Client.Delete(t.Context(), get(t, w, name)); err != nil {
		t.Fatal(err)
	}
	awaitWeights(t, w, "shop", "predict", "v1=10 v2=90 ")
}

// writes counts requests that changed something, events aside. Whoever watches an object hears of a write maybe before
// the writer has its answer, and one that comes too late, by a cache that is behind, is refused and changes nothing. So
// they are counted while none is under way.
type writes struct {
	mu      sync.Mutex
	rest    sync.Cond // signalled when none is under way any more
	asked   int
	written int
}

func newWrites() *writes {
	w := &writes{}
	w.rest.L = &w.mu
	return w
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

func (c *writes) counting(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		if request.Method == http.MethodGet || strings.Contains(request.URL.Path, "/events") {
			return next.RoundTrip(request)
		}
		c.mu.Lock()
		c.asked++
		c.mu.Unlock()
		response, err := next.RoundTrip(request)
		c.mu.Lock()
		defer c.mu.Unlock()
		if err == nil && response.StatusCode < http.StatusMultipleChoices {
			c.written++
		}
		if c.asked--; c.asked == 0 {
			c.rest.Broadcast()
		}
		return response, err
	})
}

// count returns how many there have been, once there is an answer to each.
func (c *writes) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.asked > 0 {
		c.rest.Wait()
	}
	return c.written
}

// TestWriteEconomy: an edit costs one write of the route and one of the status, and a manager that starts over finds
// nothing to write.
func TestWriteEconomy(t *testing.T) {
	w := newWorld(t)
	counting := newWrites()
	restConfig := rest.CopyConfig(testcluster.New(t).Config)
	restConfig.Wrap(counting.counting)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(nil),
		applyYAML(shop), rollout(func(r *v1alpha1.CanaryRollout) {
			adopts("shop", "predict")(r)
			r.Name, r.Spec.CanaryPercent = "adopting", 35
		}))
	stop := startManager(t, w, restConfig)
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	awaitReason(t, w, "adopting", v1alpha1.ReasonWeightsApplied)
	stop()
	before := counting.count()

	// Each edit is the last in the manager's queue, so all that it did before has been counted too.
	startManager(t, w, restConfig)
	const edits = 20
	for n := range edits {
		do(t, w, percent(10+n))
		awaitWeights(t, w, name, routing.SplitRoute, fmt.Sprintf("v1=%d v2=%d ", 90-n, 10+n))
		awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	}
	if got := counting.count() - before; got != 2*edits {
		t.Errorf("%d writes after a restart and %d edits, want two an edit: the route and the status", got, edits)
	}
}

// TestVerbsAndTimeWakeARollout: a hold of a second ends, and an annotation is obeyed, without anybody's help.
func TestVerbsAndTimeWakeARollout(t *testing.T) {
	w := newWorld(t)
	startManager(t, w, testcluster.New(t).Config)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(stepsOf(time.Second, time.Second)))
	awaitPhase(t, w, v1alpha1.PhasePaused)
	do(t, w, say(v1alpha1.AnnotationPromote))
	awaitPhase(t, w, v1alpha1.PhaseSucceeded)
	wantWeights(t, w, "v1=0 v2=100 ")
	do(t, w, say(v1alpha1.AnnotationAbort))
	awaitWeights(t, w, name, routing.SplitRoute, "v1=100 v2=0 ")
	awaitPhase(t, w, v1alpha1.PhaseRolledBack)
}

// awaitPhase waits until the rollout is in a phase.
func awaitPhase(t *testing.T, w *faults.World, want v1alpha1.RolloutPhase) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	watch, err := w.Client.Watch(ctx, &v1alpha1.CanaryRolloutList{}, client.InNamespace(w.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	s := get(t, w, name).Status
	for s.Phase != want {
		event, open := <-watch.ResultChan()
		if !open {
			t.Fatalf("the phase is %s after %s, want %s: %s", s.Phase, within, want, s.PhaseMessage)
		}
		if live, ok := event.Object.(*v1alpha1.CanaryRollout); ok && live.Name == name {
			s = live.Status
		}
	}
}
