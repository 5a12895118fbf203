// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	promclient "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/prometheus"
	"serverless.xyz/outrigger/test/testbed"
)

// exporter serves metrics of pods that need not exist, to a real Prometheus that scrapes it every second.
type exporter struct {
	url      string // of Prometheus
	requests *promclient.CounterVec
	seconds  *promclient.HistogramVec
	level    *promclient.GaugeVec
	used     atomic.Int64 // namespaces
}

var newExporter = sync.OnceValues(func() (*exporter, error) {
	pod := []string{"namespace", "pod"}
	e := &exporter{
		requests: promclient.NewCounterVec(
			promclient.CounterOpts{Name: "http_requests_total", Help: "Requests answered."},
			append(pod, "code"),
		),
		seconds: promclient.NewHistogramVec(promclient.HistogramOpts{
			Name:    "http_request_duration_seconds",
			Help:    "Time to the answer.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1},
		}, pod),
		level: promclient.NewGaugeVec(promclient.GaugeOpts{Name: "queue_length", Help: "Requests waiting."}, pod),
	}
	registry := promclient.NewRegistry()
	registry.MustRegister(e.requests, e.seconds, e.level)
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	url, err := sharedBed.StartPrometheus(context.Background(), fmt.Sprintf(
		"global: {scrape_interval: 1s}\nscrape_configs: [{job_name: pods, static_configs: [{targets: [%q]}]}]\n",
		strings.TrimPrefix(server.URL, "http://")))
	e.url = url
	return e, err
})

var sharedBed *testbed.Testbed

func startExporter(t *testing.T) *exporter {
	t.Helper()
	sharedBed = testbed.Shared(t, testbed.API)
	e, err := newExporter()
	if err != nil {
		t.Fatalf("starting Prometheus: %v", err)
	}
	return e
}

func podOf(service string) string { return service + "-7c9d8b6f5-x2k4q" }

// serve counts answered requests of a side's pod.
func (e *exporter) serve(namespace, service, code string, n int, took float64) {
	e.requests.WithLabelValues(namespace, podOf(service), code).Add(float64(n))
	for range n {
		e.seconds.WithLabelValues(namespace, podOf(service)).Observe(took)
	}
}

// namespace returns one that nobody has used.
func (e *exporter) namespace() string { return fmt.Sprintf("models-%d", e.used.Add(1)) }

// whileScraped takes a measurement, of a namespace that nobody else uses, during which no scrape of Prometheus failed.
// After one that did, as on a machine that stands still for a second, Prometheus knows of no pod until the next, and
// what was counted then is an estimate: it is taken again.
func (e *exporter) whileScraped(
	t *testing.T, c *prometheus.Client, measure func(namespace string) canaryrollout.Answer,
) canaryrollout.Answer {
	t.Helper()
	for range 10 {
		began := time.Now()
		answer := measure(e.namespace())
		ended := time.Now()
		least, ok, err := c.Number(t.Context(), fmt.Sprintf("min_over_time(up[%ds])", 1+ended.Sub(began)/time.Second), ended)
		if err == nil && ok && least == 1 {
			return answer
		}
		t.Logf("a scrape has failed (%g, %v, %v)", least, ok, err)
	}
	t.Fatal("Prometheus does not come to scrape for a while without fail")
	return canaryrollout.Answer{}
}

// await waits until Prometheus answers a query with a number.
func await(t *testing.T, c *prometheus.Client, query string, want float64) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		got, ok, err := c.Number(t.Context(), query, time.Now())
		if err == nil && ok && got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %g, %v, %v after %s; want %g", query, got, ok, err, within, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

const (
	stableService = "v1-predictor"
	canaryService = "v2-predictor"
)

// analysisOf reads an analysis, with the API server's defaults.
func analysisOf(t *testing.T, metrics string) v1alpha1.RolloutAnalysis {
	t.Helper()
	a := v1alpha1.RolloutAnalysis{
		Prometheus: v1alpha1.PrometheusSource{NamespaceLabel: "namespace", PodLabel: "pod"},
		Interval:   &metav1.Duration{Duration: time.Second},
		Settle:     &metav1.Duration{},
		Alpha:      "0.05", MinSamples: 200,
		OnNoData: v1alpha1.NoDataInconclusive,
	}
	if err := yaml.Unmarshal([]byte(metrics), &a.Metrics); err != nil {
		t.Fatal(err)
	}
	return a
}

func questionOf(namespace string, a v1alpha1.RolloutAnalysis, from, at time.Time) *canaryrollout.Question {
	return &canaryrollout.Question{
		Rollout: types.NamespacedName{Namespace: namespace, Name: name}, Matter: "1", Analysis: a, Holds: 1,
		StableService: stableService, CanaryService: canaryService,
		From: from, At: at, StableFrom: from, StableTo: at,
	}
}

const errorsOfBoth = `
- name: errors
  share: {events: 'http_requests_total{code=~"5..",$side}', total: 'http_requests_total{$side}'}
  compare: {maxIncrease: "0.05"}
`

// TestRequestsAreCountedExactly: those before the weights are not counted, and those of a series that began after, such as
// the first error, are all counted.
func TestRequestsAreCountedExactly(t *testing.T) {
	e := startExporter(t)
	c, err := prometheus.New(e.url)
	if err != nil {
		t.Fatal(err)
	}
	answer := e.whileScraped(t, c, func(ns string) canaryrollout.Answer {
		total := fmt.Sprintf("sum(http_requests_total{namespace=%q})", ns)
		e.serve(ns, stableService, "200", 5000, .01)
		e.serve(ns, canaryService, "200", 700, .01)
		e.serve(ns, canaryService+"-of-another", "500", 900, .01) // a service whose name begins alike
		e.serve(ns+"-too", canaryService, "500", 900, .01)        // another namespace
		await(t, c, total, 6600)
		from := time.Now()
		e.serve(ns, stableService, "200", 1000, .01)
		e.serve(ns, canaryService, "200", 90, .01)
		e.serve(ns, canaryService, "500", 3, .01)
		e.requests.WithLabelValues(ns, canaryService+"-7c9d8b6f5-zzzzz", "200").Add(7) // a pod that has just started
		e.serve(ns, canaryService+"-of-another", "500", 100, .01)
		await(t, c, total, 7800)
		return canaryrollout.Measure(t.Context(), c, questionOf(ns, analysisOf(t, errorsOfBoth+`
- name: own
  share: {events: 'http_requests_total{code=~"5..",$side}', total: 'http_requests_total{$side}'}
  threshold: {max: "0.1"}
- name: latency
  histogram: {buckets: 'http_request_duration_seconds_bucket{$side}', quantile: "0.95"}
  threshold: {max: "0.1"}
`), from, time.Now().Add(2*time.Second)))
	})
	for i, want := range []int64{100, 100, 93} {
		if v := answer.Verdicts[i]; v.Samples != want || v.Result != v1alpha1.VerdictInconclusive {
			t.Errorf("verdict %+v; want %d samples, inconclusive because they are few", v, want)
		}
	}
	if got, want := answer.Verdicts[1].Estimate, "3%"; got != want {
		t.Errorf("the share of errors is %s, want %s", got, want)
	}
	if answer.Samples != 93 {
		t.Errorf("%d samples altogether, want the least of all metrics, 93", answer.Samples)
	}
}

// TestWhatPrometheusDoesNotRemember: a counter is not taken for one that began within the window because Prometheus was
// not there at its beginning, has deleted what it knew of it, or could not scrape the pod then.
func TestWhatPrometheusDoesNotRemember(t *testing.T) {
	e := startExporter(t)
	c, err := prometheus.New(e.url)
	if err != nil {
		t.Fatal(err)
	}
	for what, from := range map[string]func(ns string) time.Time{
		"before its time": func(string) time.Time { return time.Now().Add(-48 * time.Hour) },
		"not scraped": func(ns string) time.Time {
			e.requests.DeleteLabelValues(ns, podOf(canaryService), "200")
			await(t, c, fmt.Sprintf(`absent(http_requests_total{namespace=%q})`, ns), 1)
			from := time.Now()
			time.Sleep(1100 * time.Millisecond) // a query tells whole seconds
			e.serve(ns, canaryService, "200", 700, .01)
			return from
		},
	} {
		ns := e.namespace()
		query := fmt.Sprintf(`sum(http_requests_total{namespace=%q})`, ns)
		e.serve(ns, canaryService, "200", 700, .01)
		await(t, c, query, 700)
		since := from(ns)
		await(t, c, query, 700)
		e.serve(ns, canaryService, "200", 10, .01)
		await(t, c, query, 710)
		v := canaryrollout.Measure(t.Context(), c, questionOf(ns, analysisOf(t, `
- name: own
  share: {events: 'http_requests_total{code=~"5..",$side}', total: 'http_requests_total{$side}'}
  threshold: {max: "0.1"}
`), since, time.Now().Add(time.Second))).Verdicts[0]
		if v.Result == v1alpha1.VerdictError || v.Samples > 100 {
			t.Errorf("%s: %+v, want some 10 samples", what, v)
		}
	}
}

// TestWarmupRequestsAreNoSamples: not those to pods that are still at it, nor those to pods that were since the weights are
// in force.
func TestWarmupRequestsAreNoSamples(t *testing.T) {
	e := startExporter(t)
	c, err := prometheus.New(e.url)
	if err != nil {
		t.Fatal(err)
	}
	answer := e.whileScraped(t, c, func(ns string) canaryrollout.Answer {
		serve := func(pod, code string, n int, took float64) {
			e.requests.WithLabelValues(ns, pod, code).Add(float64(n))
			for range n {
				e.seconds.WithLabelValues(ns, pod).Observe(took)
			}
		}
		total := fmt.Sprintf("sum(http_requests_total{namespace=%q})", ns)
		old, late, cold := podOf(canaryService), canaryService+"-7c9d8b6f5-lates", canaryService+"-7c9d8b6f5-colds"
		serve(old, "200", 100, .01)
		await(t, c, total, 100)
		from := time.Now()
		serve(old, "200", 50, .01)
		serve(late, "500", 3, 1)
		serve(late, "200", 4, 1)
		serve(cold, "500", 2, 1)
		await(t, c, total, 159)
		lateFrom := time.Now()
		time.Sleep(1100 * time.Millisecond) // a query tells whole seconds
		serve(late, "200", 20, .01)
		serve(cold, "500", 1, 1)
		await(t, c, total, 180)
		q := questionOf(ns, analysisOf(t, `
- name: own
  share: {events: 'http_requests_total{code=~"5..",$side}', total: 'http_requests_total{$side}'}
  threshold: {max: "0.1"}
- name: latency
  histogram: {buckets: 'http_request_duration_seconds_bucket{$side}', quantile: "0.99"}
  threshold: {max: "0.1"}
`), from, time.Now().Add(2*time.Second))
		q.Cold, q.Late, q.LateFrom = []string{cold}, []string{late}, lateFrom
		return canaryrollout.Measure(t.Context(), c, q)
	})
	for _, v := range answer.Verdicts {
		if v.Samples != 70 || v.Estimate != "0%" && v.Metric == "own" || v.Estimate > "0.01" && v.Metric == "latency" {
			t.Errorf("%+v, want 70 samples, none of them an error or slow", v)
		}
	}
}

// impatient is a source that never answers some queries, and no query that comes too late.
type impatient struct{ figures }

func (s impatient) Number(ctx context.Context, query string, at time.Time) (float64, bool, error) {
	if strings.Contains(query, "slow") {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return 0, false, errors.New("too late")
	}
	return s.figures.Number(ctx, query, at)
}

// TestSlowMetricTakesNoTimeFromOthers: one query that hangs is one metric that cannot be read.
func TestSlowMetricTakesNoTimeFromOthers(t *testing.T) {
	a := analysisOf(t, `
- name: slow
  share: {events: 'slow{code=~"5..",$side}', total: 'slow{$side}'}
  threshold: {max: "0.1"}
`+strings.TrimPrefix(errorsOfBoth, "\n"))
	synctest.Test(t, func(t *testing.T) { // time passes only while all that is measured waits
		at := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		source := impatient{figures{counts: map[string]float64{"stable": 9000, "canary": 1000}}}
		answer := canaryrollout.Measure(ctx, source, questionOf("ml", a, at.Add(-time.Minute), at))
		for i, want := range []v1alpha1.VerdictResult{v1alpha1.VerdictError, v1alpha1.VerdictPass} {
			if v := answer.Verdicts[i]; v.Result != want {
				t.Errorf("%+v, want %s", v, want)
			}
		}
	})
}

// TestDryRunsHoldNothingUp: a metric that counts for nothing does not keep a step from its samples either.
func TestDryRunsHoldNothingUp(t *testing.T) {
	a := analysisOf(t, errorsOfBoth+`
- name: tried
  dryRun: true
  share: {events: 'nobody{x="stable",$side}', total: 'nobody{$side}'}
  threshold: {max: "0.1"}
`)
	at := time.Now()
	source := only{figures{counts: map[string]float64{"stable": 9000, "canary": 1000}}, "http_requests_total"}
	answer := canaryrollout.Measure(t.Context(), source, questionOf("ml", a, at.Add(-time.Minute), at))
	if v := answer.Verdicts[1]; v.Samples != 0 || !v.DryRun {
		t.Errorf("the verdict of the dry run is %+v, want one of no sample", v)
	}
	if answer.Samples != 1000 {
		t.Errorf("%d samples altogether, want 1000", answer.Samples)
	}
}

// only is a source that knows one metric.
type only struct {
	figures

	metric string
}

func (o only) Number(ctx context.Context, query string, at time.Time) (float64, bool, error) {
	if !strings.Contains(query, o.metric) {
		return 0, false, nil
	}
	return o.figures.Number(ctx, query, at)
}

// grpcOnly is a source of a canary whose callers speak gRPC, where a failure is a code of its own beside HTTP's 200.
type grpcOnly struct{ figures }

func (grpcOnly) Number(_ context.Context, query string, _ time.Time) (float64, bool, error) {
	switch {
	case strings.Contains(query, `response_code=~"5.."`):
		return 10, true, nil
	case strings.Contains(query, `response_code!~"5..",grpc_response_status=~"2|4|12|13|14|15"`):
		return 50, true, nil
	default:
		return 1000, true, nil
	}
}

// TestFailuresOfGRPC: the builtin rate of errors counts them, too.
func TestFailuresOfGRPC(t *testing.T) {
	at := time.Now()
	a := analysisOf(t, "- {name: errors, builtin: error-rate, threshold: {max: '0.1'}}")
	v := canaryrollout.Measure(t.Context(), grpcOnly{}, questionOf("ml", a, at.Add(-time.Minute), at)).Verdicts[0]
	if v.Estimate != "6%" {
		t.Errorf("%+v, want 6%% of errors", v)
	}
}

// TestLongBakes: a value can be read for as long as a bake may take, although Prometheus gives no more than 11000 points.
func TestLongBakes(t *testing.T) {
	e := startExporter(t)
	c, err := prometheus.New(e.url)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	for _, long := range []time.Duration{10_000 * time.Second, 10_001 * time.Second, 168 * time.Hour} {
		a := analysisOf(t, "- {name: one, value: {query: 'vector(1) + 0 * scalar(absent(none{$side}))'}, threshold: {max: '2'}}")
		a.MinSamples = 1
		v := canaryrollout.Measure(t.Context(), c, questionOf("none", a, at.Add(-long), at)).Verdicts[0]
		if v.Result != v1alpha1.VerdictPass || v.Samples < 5000 || v.Samples > 10_000 {
			t.Errorf("%s: %+v, want it to pass by some 10000 values", long, v)
		}
	}
}

// TestBucketsAreAdded: pods may write the end of one bucket in different ways, and no count may get lost.
func TestBucketsAreAdded(t *testing.T) {
	c, err := prometheus.New(startExporter(t).url)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Buckets(t.Context(),
		`label_replace(vector(3), "le", "1", "", "") or label_replace(vector(4), "le", "1.0", "", "")`, time.Now())
	if err != nil || len(got) != 1 || got[1] != 7 {
		t.Errorf("buckets %v (%v), want 7 up to 1", got, err)
	}
}

// TestBuiltinsAreUnderstood: a real Prometheus takes the queries of all metrics that come with the release.
func TestBuiltinsAreUnderstood(t *testing.T) {
	e := startExporter(t)
	c, err := prometheus.New(e.url)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	for _, builtin := range []string{
		"error-rate", "latency-p50", "latency-p95", "latency-p99", "vllm/ttft-p95", "vllm/ttft-p99", "vllm/itl-p95",
		"vllm/latency-p95", "vllm/queue-p95", "vllm/tokens-per-second", "vllm/waiting", "vllm/kv-cache", "triton/error-rate",
		"triton/ttft-p95", "triton/latency", "triton/queue", "triton/gpu-utilization", "dcgm/gpu-utilization", "dcgm/gpu-memory",
	} {
		bound := "{maxIncreasePercent: 10}"
		if strings.HasSuffix(builtin, "error-rate") {
			bound = `{maxIncrease: "0.01"}`
		}
		a := analysisOf(t, fmt.Sprintf("- {name: one, builtin: %s, compare: %s}", builtin, bound))
		v := canaryrollout.Measure(t.Context(), c, questionOf("none", a, at.Add(-time.Minute), at)).Verdicts[0]
		if v.Result != v1alpha1.VerdictInconclusive || v.Message != "there is no data of the canary" {
			t.Errorf("%s: %+v, want it inconclusive for lack of data", builtin, v)
		}
	}
}

// figures is a source that answers from fixed figures, for what a real Prometheus would take hours to collect. It is told
// by the labels in a query which side is meant.
type figures struct {
	counts  map[string]float64 // by side and code
	buckets map[string]map[float64]float64
	series  map[string][]float64
	err     error
}

func (f figures) side(query string) string {
	if strings.Contains(query, stableService) {
		return "stable"
	}
	return "canary"
}

func (f figures) Number(_ context.Context, query string, _ time.Time) (float64, bool, error) {
	key := f.side(query)
	if strings.Contains(query, "5..") {
		key += " errors"
	}
	n, ok := f.counts[key]
	return n, ok, f.err
}

func (f figures) Buckets(_ context.Context, query string, _ time.Time) (map[float64]float64, error) {
	return f.buckets[f.side(query)], f.err
}

func (f figures) Series(_ context.Context, query string, from, _ time.Time, step time.Duration) ([]prometheus.Point, error) {
	var points []prometheus.Point
	for i, value := range f.series[f.side(query)] {
		points = append(points, prometheus.Point{At: from.Add(time.Duration(i) * step), Value: value})
	}
	return points, f.err
}

func repeat(value float64, n int) []float64 {
	values := make([]float64, n)
	for i := range values {
		values[i] = value
	}
	return values
}

func TestVerdicts(t *testing.T) {
	inf := math.Inf(1)
	fast := map[float64]float64{.1: 9000, .2: 9900, .5: 10_000, inf: 10_000}
	slow := map[float64]float64{.1: 1000, .2: 8000, .5: 10_000, inf: 10_000}
	const (
		latency = "- {name: m, histogram: {buckets: 'b{$side}', quantile: '0.95'}, "
		errs    = `- {name: m, share: {events: 'r{code=~"5..",$side}', total: 'r{$side}'}, `
		queue   = "- {name: m, value: {query: 'q{$side}'}, "
	)
	for when, tc := range map[string]struct {
		metric  string
		figures figures
		overdue bool
		noData  v1alpha1.NoDataPolicy
		want    v1alpha1.VerdictResult
		says    string
	}{
		"errors as with stable": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{counts: map[string]float64{"stable": 90_000, "stable errors": 900, "canary": 10_000, "canary errors": 100}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"more errors than stable": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{counts: map[string]float64{"stable": 90_000, "stable errors": 900, "canary": 10_000, "canary errors": 400}},
			false, "",
			v1alpha1.VerdictFail, "the difference from stable is +3 points, proved to be beyond +1 points",
		},
		"great harm is proved before the samples are complete": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{counts: map[string]float64{"stable": 900, "stable errors": 9, "canary": 30, "canary errors": 20}},
			false, "",
			v1alpha1.VerdictFail, "beyond +1 points",
		},
		"stable has no requests": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{counts: map[string]float64{"canary": 10_000, "canary errors": 100}},
			false, "",
			v1alpha1.VerdictInconclusive, "may be on either side",
		},
		"stable has no requests, and the canary so few errors that they are within the bound of any stable": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{counts: map[string]float64{"canary": 10_000}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"nobody has any request": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{},
			true, v1alpha1.NoDataInconclusive,
			v1alpha1.VerdictInconclusive, "there is no data of the canary",
		},
		"no request, and that is a failure": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{},
			true, v1alpha1.NoDataFail,
			v1alpha1.VerdictFail, "onNoData says Fail",
		},
		"no request yet": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{},
			false, v1alpha1.NoDataFail,
			v1alpha1.VerdictInconclusive, "there is no data of the canary",
		},
		"no request, and nobody minds": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{},
			true, v1alpha1.NoDataPass,
			v1alpha1.VerdictPass, "",
		},
		"few errors by themselves": {
			errs + "threshold: {max: '0.02'}}",
			figures{counts: map[string]float64{"canary": 10_000, "canary errors": 100}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"many by themselves": {
			errs + "threshold: {max: '0.02'}}",
			figures{counts: map[string]float64{"canary": 10_000, "canary errors": 900}},
			false, "",
			v1alpha1.VerdictFail, "the share is 9%, proved to be beyond 2%",
		},
		"too few of something good": {
			errs + "threshold: {min: '0.9'}}",
			figures{counts: map[string]float64{"canary": 10_000, "canary errors": 5000}},
			false, "",
			v1alpha1.VerdictFail, "the share is 50%, proved to be beyond 90%",
		},
		"as fast as stable": {
			latency + "compare: {maxIncreasePercent: 20}}",
			figures{buckets: map[string]map[float64]float64{"stable": fast, "canary": fast}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"slower than stable": {
			latency + "compare: {maxIncreasePercent: 20}}",
			figures{buckets: map[string]map[float64]float64{"stable": fast, "canary": slow}},
			false, "",
			v1alpha1.VerdictFail, "proved to be beyond +20%",
		},
		"slower as a whole": {
			latency + "compare: {test: MannWhitney, maxIncreasePercent: 20}}",
			figures{buckets: map[string]map[float64]float64{"stable": fast, "canary": slow}},
			false, "",
			v1alpha1.VerdictFail, "the growth over stable is",
		},
		"slower than allowed": {
			latency + "threshold: {max: '0.15'}}",
			figures{buckets: map[string]map[float64]float64{"canary": slow}},
			false, "",
			v1alpha1.VerdictFail, "proved to be beyond 0.15",
		},
		"a queue as long as stable's": {
			queue + "compare: {maxIncreasePercent: 20}}",
			figures{series: map[string][]float64{"stable": repeat(3, 40), "canary": repeat(3.1, 40)}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"a longer queue": {
			queue + "compare: {maxIncreasePercent: 20}}",
			figures{series: map[string][]float64{"stable": repeat(3, 40), "canary": repeat(4, 40)}},
			false, "",
			v1alpha1.VerdictFail, "the share of intervals beyond the bound is 100%",
		},
		"a longer queue for a moment": {
			queue + "compare: {maxIncreasePercent: 20}}",
			figures{series: map[string][]float64{"stable": repeat(3, 3), "canary": repeat(9, 3)}},
			false, "",
			v1alpha1.VerdictInconclusive, "may be on either side",
		},
		"a queue where stable has none": {
			queue + "compare: {maxIncreasePercent: 20}}",
			figures{series: map[string][]float64{"stable": repeat(0, 40), "canary": repeat(1, 40)}},
			false, "",
			v1alpha1.VerdictInconclusive, "in 40 of them stable's value is 0, of which there is no percentage: give a threshold",
		},
		"no queue on either side": {
			queue + "compare: {maxIncreasePercent: 20}}",
			figures{series: map[string][]float64{"stable": repeat(0, 40), "canary": repeat(0, 40)}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"a queue where stable mostly has none": {
			queue + "compare: {maxIncreasePercent: 20}}",
			figures{series: map[string][]float64{
				"stable": append(repeat(0, 20), repeat(1, 80)...), "canary": append(repeat(3, 20), repeat(2, 80)...),
			}},
			false, "",
			v1alpha1.VerdictFail, "beyond 50%",
		},
		"tokens where stable has none": {
			queue + "compare: {maxDecreasePercent: 10}}",
			figures{series: map[string][]float64{"stable": repeat(0, 40), "canary": repeat(20, 40)}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"fewer tokens": {
			queue + "compare: {maxDecreasePercent: 10}}",
			figures{series: map[string][]float64{"stable": repeat(30, 40), "canary": repeat(20, 40)}},
			false, "",
			v1alpha1.VerdictFail, "beyond 50%",
		},
		"a value of stable's only": {
			queue + "compare: {maxIncreasePercent: 20}}",
			figures{series: map[string][]float64{"stable": repeat(3, 40)}},
			false, "",
			v1alpha1.VerdictInconclusive, "there is no data of the canary",
		},
		"a budget that burns": {
			errs + "burnRate: {objective: '0.99', windows: [1m, 5m], max: '6'}}",
			figures{counts: map[string]float64{"canary": 1000, "canary errors": 100}},
			false, "",
			v1alpha1.VerdictFail, "the burn rate is 10x, proved to be beyond 6x",
		},
		"a budget that lasts": {
			errs + "burnRate: {objective: '0.99', windows: [1m], max: '6'}}",
			figures{counts: map[string]float64{"canary": 1000, "canary errors": 20}},
			false, "",
			v1alpha1.VerdictPass, "",
		},
		"a budget that burns for two requests": {
			errs + "burnRate: {objective: '0.99', windows: [1m], max: '6'}}",
			figures{counts: map[string]float64{"canary": 2, "canary errors": 2}},
			false, "",
			v1alpha1.VerdictInconclusive, "2 of 200 samples",
		},
		"nothing can be read": {
			errs + "compare: {maxIncrease: '0.01'}}",
			figures{err: errors.New("out of order")},
			true, v1alpha1.NoDataFail,
			v1alpha1.VerdictError, "out of order",
		},
		"a builtin of a later release": {
			"- {name: m, builtin: magic, compare: {maxIncreasePercent: 1}}",
			figures{},
			false, "",
			v1alpha1.VerdictError, `builtin "magic" is unknown to this release`,
		},
	} {
		a := analysisOf(t, tc.metric)
		a.OnNoData = tc.noData
		at := time.Now()
		q := questionOf("ml", a, at.Add(-10*time.Minute), at)
		q.Overdue = tc.overdue
		v := canaryrollout.Measure(t.Context(), tc.figures, q).Verdicts[0]
		if v.Result != tc.want || !strings.Contains(v.Message, tc.says) || tc.says == "" && v.Message != "" {
			t.Errorf("%s: %+v; want %s, %q", when, v, tc.want, tc.says)
		}
		if len(v.Message) > 256 || len(v.Estimate) > 32 || len(v.Interval) > 64 || len(v.Bound) > 64 {
			t.Errorf("%s: the API server will not have %+v", when, v)
		}
	}
}

// hang answers nothing until the caller has had enough, which a server only notices once it has read the request.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// TestBrokenPrometheus: whatever a server that is no good answers, it is an Error or no data, in bounded time and text.
// A real Prometheus cannot be made to do most of this.
func TestBrokenPrometheus(t *testing.T) {
	respond := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	const vector = `{"status":"success","data":{"resultType":"vector","result":[%s]}}`
	for what, tc := range map[string]struct {
		handler http.HandlerFunc
		want    v1alpha1.VerdictResult
		says    string
	}{
		"answers 500":       {respond(500, "secret"), v1alpha1.VerdictError, "Prometheus answers with an error (server_error)"},
		"answers 503":       {respond(503, `{"status":"error","errorType":"unavailable","error":"secret"}`), v1alpha1.VerdictError, "Prometheus answers with an error"},
		"refuses the query": {respond(400, `{"status":"error","errorType":"bad_data","error":"parse error"}`), v1alpha1.VerdictError, "Prometheus refuses the query: parse error"},
		"answers nonsense":  {respond(200, "<html>secret</html>"), v1alpha1.VerdictError, "Prometheus answers with an error (bad_response)"},
		"has nothing":       {respond(200, fmt.Sprintf(vector, "")), v1alpha1.VerdictInconclusive, "there is no data"},
		"has NaN":           {respond(200, fmt.Sprintf(vector, `{"metric":{},"value":[1,"NaN"]}`)), v1alpha1.VerdictError, "not finite"},
		"has infinity":      {respond(200, fmt.Sprintf(vector, `{"metric":{},"value":[1,"+Inf"]}`)), v1alpha1.VerdictError, "not finite"},
		"sends somebody abroad": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/secret", http.StatusFound)
		}, v1alpha1.VerdictError, "Prometheus answers with an error"},
		"hangs": {hang, v1alpha1.VerdictError, "Prometheus did not answer in time"},
	} {
		t.Run(what, func(t *testing.T) {
			server := httptest.NewServer(tc.handler)
			defer server.Close()
			c, err := prometheus.New(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if what != "hangs" {
				ctx, cancel = context.WithTimeout(t.Context(), within)
			}
			defer cancel()
			at := time.Now()
			v := canaryrollout.Measure(ctx, c, questionOf("ml", analysisOf(t, errorsOfBoth), at.Add(-time.Minute), at)).Verdicts[0]
			if v.Result != tc.want || !strings.Contains(v.Message, tc.says) {
				t.Errorf("%+v; want %s, %q", v, tc.want, tc.says)
			}
			if strings.Contains(v.Message, "secret") || strings.Contains(v.Message, "127.0.0.1") {
				t.Errorf("the message tells more than it may: %s", v.Message)
			}
		})
	}
	c, err := prometheus.New("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	v := canaryrollout.Measure(t.Context(), c, questionOf("ml", analysisOf(t, errorsOfBoth), at.Add(-time.Minute), at)).Verdicts[0]
	if v.Result != v1alpha1.VerdictError || v.Message != "Prometheus cannot be reached" {
		t.Errorf("nobody listens: %+v", v)
	}
	v = canaryrollout.Measure(t.Context(), c, questionOf("ml", analysisOf(t, errorsOfBoth), at.Add(time.Minute), at)).Verdicts[0]
	if v.Result != v1alpha1.VerdictError || v.Message != "Prometheus cannot be reached" {
		t.Errorf("nobody listens, and no request counts yet: %+v", v)
	}
}
