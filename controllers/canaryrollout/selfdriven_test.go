// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// analysed is a spec whose every step takes a proof by three metrics.
const analysed = `
strategy:
  steps:
  - {setPercent: 10, hold: {minSamples: 400}}
  - {setPercent: 50, hold: {duration: 2s}}
  - {setPercent: 100}
  bake: 2s
analysis:
  interval: 1s
  settle: 1s
  minSamples: 300
  prometheus: {url: %q}
  metrics:
  - name: errors
    share: {events: 'http_requests_total{code=~"5..",$side}', total: 'http_requests_total{$side}'}
    compare: {maxIncrease: "0.05"}
  - name: latency
    histogram: {buckets: 'http_request_duration_seconds_bucket{$side}', quantile: "0.95"}
    compare: {maxIncreasePercent: 50}
  - name: bulk
    histogram: {buckets: 'http_request_duration_seconds_bucket{$side}'}
    compare: {test: MannWhitney, maxIncreasePercent: 50}
`

func specified(t *testing.T, format string, args ...any) faults.Step {
	t.Helper()
	return rollout(func(r *v1alpha1.CanaryRollout) {
		if err := yaml.Unmarshal(fmt.Appendf(nil, format, args...), &r.Spec); err != nil {
			t.Error(err)
		}
	})
}

// drive has both sides answer requests until the test ends, the canary with this share of errors and this latency.
func (e *exporter) drive(t *testing.T, namespace string, errorShare, took float64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		ticks := time.NewTicker(20 * time.Millisecond)
		defer ticks.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
			for range 20 {
				e.serve(namespace, stableService, "200", 1, .02+.06*rand.Float64())
				code := "200"
				if rand.Float64() < errorShare {
					code = "503"
				}
				e.serve(namespace, canaryService, code, 1, took*(.02+.06*rand.Float64()))
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// startAnalysing runs the controller with an analyst over one namespace.
func startAnalysing(t *testing.T, w *faults.World) {
	t.Helper()
	mgr, err := ctrl.NewManager(testcluster.New(t).Config, ctrl.Options{
		Scheme: w.Client.Scheme(),
		Logger: logr.Discard(),
		Cache: cache.Options{
			DefaultNamespaces: map[string]cache.Config{w.Namespace: {}}, DefaultTransform: cache.TransformStripManagedFields(),
		},
		Client:     client.Options{Cache: &client.CacheOptions{Unstructured: true}},
		Controller: config.Controller{SkipNameValidation: new(true)},
		Metrics:    server.Options{BindAddress: "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := canaryrollout.New(mgr.GetClient(), mgr.GetAPIReader(), clock.RealClock{}, mgr.GetEventRecorderFor(canaryrollout.Name))
	if err := r.WithAsker(canaryrollout.NewAnalyst("")).SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := mgr.Start(ctx); err != nil {
			t.Errorf("running the manager: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// TestSoundCanaryPromotesItself: real metrics of a real Prometheus take it to the end.
func TestSoundCanaryPromotesItself(t *testing.T) {
	w, e := newWorld(t), startExporter(t)
	e.drive(t, w.Namespace, 0, 1)
	startAnalysing(t, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), specified(t, analysed, e.url))
	awaitPhase(t, w, v1alpha1.PhaseSucceeded)
	wantWeights(t, w, "v1=0 v2=100 ")
	s := get(t, w, name).Status
	var shares []int32
	for _, period := range s.History {
		shares = append(shares, period.Percent)
	}
	if got := fmt.Sprint(shares); got != "[0 10 50 100]" {
		t.Errorf("weights %s on the way, want [0 10 50 100]", got)
	}
	for _, v := range s.Verdicts {
		t.Logf("%+v", v)
	}
}

// TestBadCanariesRollThemselvesBack: one fails some requests, one is slow.
func TestBadCanariesRollThemselvesBack(t *testing.T) {
	for what, tc := range map[string]struct {
		errors, took float64
		wantMetric   string
	}{
		"errors":  {0.3, 1, "errors"},
		"latency": {0, 6, "latency"},
	} {
		t.Run(what, func(t *testing.T) {
			w, e := newWorld(t), startExporter(t)
			e.drive(t, w.Namespace, tc.errors, tc.took)
			startAnalysing(t, w)
			do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), specified(t, analysed, e.url))
			awaitPhase(t, w, v1alpha1.PhaseRolledBack)
			wantWeights(t, w, "v1=100 v2=0 ")
			s := get(t, w, name).Status
			if s.PhaseReason != v1alpha1.ReasonAnalysisFailed {
				t.Errorf("rolled back for %s: %s", s.PhaseReason, s.PhaseMessage)
			}
			found := false
			for _, v := range s.Verdicts {
				t.Logf("%+v", v)
				found = found || v.Metric == tc.wantMetric && v.Result == v1alpha1.VerdictFail
			}
			if !found {
				t.Errorf("metric %s did not fail", tc.wantMetric)
			}
		})
	}
}

// TestPrometheusThatHangs: it neither promotes nor turns back, and rollouts that do without it go on.
func TestPrometheusThatHangs(t *testing.T) {
	w := newWorld(t)
	asked := make(chan struct{}, 100)
	hanging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		hang(w, r)
	}))
	t.Cleanup(hanging.Close)
	startAnalysing(t, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), specified(t, analysed, hanging.URL))
	awaitWeights(t, w, name, routing.SplitRoute, "v1=90 v2=10 ")
	<-asked
	do(t, w, rollout(func(other *v1alpha1.CanaryRollout) {
		other.Name, other.Spec.CanaryPercent = "another", 40
	}))
	awaitWeights(t, w, "another", routing.SplitRoute, "v1=60 v2=40 ")
	awaitCondition(t, w, v1alpha1.ConditionAnalysisHealthy, v1alpha1.ReasonMetricsUnavailable)
	wantWeights(t, w, "v1=90 v2=10 ")
	wantPhase(t, w, v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding)
	do(t, w, say(v1alpha1.AnnotationAbort))
	awaitWeights(t, w, name, routing.SplitRoute, "v1=100 v2=0 ")
}

// awaitCondition waits until a condition of the rollout has a reason.
func awaitCondition(t *testing.T, w *faults.World, kind, want string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for time.Now().Before(deadline) {
		for _, c := range get(t, w, name).Status.Conditions {
			if c.Type == kind && c.Reason == want {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("condition %s does not have the reason %s", kind, want)
}

// told answers what the test wants: Fail to an analysis that asks for 666 samples, Error for 667, Pass otherwise.
type told struct{}

func (told) Ask(q *canaryrollout.Question) (*canaryrollout.Answer, time.Duration) {
	v := v1alpha1.MetricVerdict{Metric: "errors", Result: v1alpha1.VerdictPass, Samples: 1000}
	switch q.Analysis.MinSamples {
	case 666:
		v.Result, v.Message = v1alpha1.VerdictFail, "worse"
	case 667:
		v.Result, v.Message = v1alpha1.VerdictError, "unknown"
	}
	return &canaryrollout.Answer{Verdicts: []v1alpha1.MetricVerdict{v}, Samples: v.Samples}, time.Minute
}

const toldOnly = `
strategy: {steps: [{setPercent: 10, hold: {duration: 2m, minSamples: 500}}, {pause: {}}, {setPercent: 100}]}
analysis:
  onProviderError: {action: Rollback, after: 10m}
  metrics:
  - name: errors
    share: {events: 'r{code=~"5..",$side}', total: 'r{$side}'}
    compare: {maxIncrease: "0.05"}
`

func TestFaultsOfAnAnalysis(t *testing.T) {
	t.Parallel()
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, Environment: collectGarbage, Check: splitIsWhole, Forget: identities,
		New: toldReconciler,
		Steps: []faults.Step{
			all(inferenceService("v1", 1), inferenceService("v2", 1), specified(t, toldOnly)),
			all(reachPause(toldReconciler), edit(`{"spec":{"analysis":{"minSamples":666}}}`)),
		},
	})
}

func toldReconciler(c client.Client, w *faults.World) reconcile.Reconciler {
	r := canaryrollout.New(c, w.Client, w.Clock, record.NewFakeRecorder(1000))
	return reconcile.AsReconciler(c, r.WithAsker(told{}))
}

// listening is told, and remembers since when requests were to be counted.
type listening struct {
	told

	from time.Time
}

func (l *listening) Ask(q *canaryrollout.Question) (*canaryrollout.Answer, time.Duration) {
	l.from = q.From
	return l.told.Ask(q)
}

// TestAnotherStableIsAnotherMeasure: requests from before stable became another revision are not counted.
func TestAnotherStableIsAnotherMeasure(t *testing.T) {
	w, asker := soleWorld(t), &listening{}
	r := reconcile.AsReconciler(w.Client,
		canaryrollout.New(w.Client, w.Client, w.Clock, record.NewFakeRecorder(1000)).WithAsker(asker))
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), specified(t, toldOnly))
	const settles = 15 * time.Second
	for _, edited := range []string{"", `{"spec":{"predictor":{"minReplicas":3}}}`, `{"spec":{"predictor":{"timeout":7}}}`} {
		before := asker.from
		if edited != "" {
			do(t, w, pass(time.Minute), editInferenceService("v1", edited))
		}
		for range 4 {
			settle(t, w, r)
		}
		want := w.Clock.Now().Add(settles)
		if strings.Contains(edited, "minReplicas") {
			want = before
		}
		if !asker.from.Equal(want) {
			t.Errorf("after %q requests count from %s on, want %s", edited, asker.from, want)
		}
	}
}

// TestMetricsOutOfReach: the rollout waits for them, and is turned back only if the user says so.
func TestMetricsOutOfReach(t *testing.T) {
	w := soleWorld(t)
	r := toldReconciler(w.Client, w)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), specified(t, toldOnly),
		edit(`{"spec":{"analysis":{"minSamples":667,"onProviderError":{"action":"Hold"}}}}`))
	settle(t, w, r)
	settle(t, w, r)
	do(t, w, pass(24*time.Hour))
	settle(t, w, r)
	wantPhase(t, w, v1alpha1.PhaseProgressing, v1alpha1.ReasonHolding)
	wantWeights(t, w, "v1=90 v2=10 ")
	if since := get(t, w, name).Status.Step.ErrorSince; since == nil {
		t.Error("the status does not say since when the metrics are out of reach")
	}
	do(t, w, edit(`{"spec":{"analysis":{"onProviderError":{"action":"Rollback"}}}}`))
	settle(t, w, r)
	wantPhase(t, w, v1alpha1.PhaseRolledBack, v1alpha1.ReasonMetricsUnavailable)
	wantWeights(t, w, "v1=100 v2=0 ")
}
