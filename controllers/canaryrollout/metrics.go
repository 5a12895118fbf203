// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// What a metric is called is a contract with dashboards and alerts.
var (
	weightPercent = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "outrigger_canary_weight_percent",
		Help: "Share of a side in percent: desired by the spec, or applied to the route.",
	}, []string{"namespace", "name", "role", "state"})
	rolloutReady = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "outrigger_canary_ready",
		Help: "Whether the traffic flows as asked: 1 or 0.",
	}, []string{"namespace", "name"})
	rolloutPhase = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "outrigger_canary_phase",
		Help: "1 for the phase that a rollout with a strategy is in.",
	}, []string{"namespace", "name", "phase"})
	applySeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "outrigger_canary_weight_apply_seconds",
		Help:    "Time from taking up a rollout whose weights are to change until the API server has acknowledged them.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})
	rollbackSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "outrigger_canary_rollback_seconds",
		Help:    "The same of weights that take traffic from a canary which is being turned back.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})
	driftRepairs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "outrigger_canary_drift_repairs_total",
		Help: "Foreign changes of routes that were undone, by the field manager that made them; empty for a deletion, " +
			"and other once there were too many names.",
	}, []string{"manager"})
	guardFailures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "outrigger_canary_guard_failures_total",
		Help: "Patches of adopted routes that the API server refused because the route had changed since it was read.",
	})
)

func collectors() []prometheus.Collector {
	return []prometheus.Collector{
		weightPercent, rolloutReady, rolloutPhase, applySeconds, rollbackSeconds, driftRepairs, guardFailures,
	}
}

func init() { metrics.Registry.MustRegister(collectors()...) }

// measured returns the reconciler as the work queue calls it: it reads the rollout, and forgets the series of one that
// is gone.
func (r *Reconciler) measured(c client.Client) reconcile.Reconciler {
	return reconcile.Func(func(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
		var rollout v1alpha1.CanaryRollout
		err := c.Get(ctx, request.NamespacedName, &rollout)
		if apierrors.IsNotFound(err) {
			forget(request.Namespace, request.Name)
			return reconcile.Result{}, nil
		}
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("reading CanaryRollout %q: %w", request.Name, err)
		}
		return r.Reconcile(ctx, &rollout)
	})
}

func forget(namespace, name string) {
	labels := prometheus.Labels{"namespace": namespace, "name": name}
	weightPercent.DeletePartialMatch(labels)
	rolloutReady.DeletePartialMatch(labels)
	rolloutPhase.DeletePartialMatch(labels)
}

// show sets the gauges of a rollout to what its status says.
func show(rollout *v1alpha1.CanaryRollout) {
	s := &rollout.Status
	for state, pair := range map[string]*v1alpha1.WeightPair{"desired": s.Weights.Desired, "applied": s.Weights.Applied} {
		stable := prometheus.Labels{"namespace": rollout.Namespace, "name": rollout.Name, "role": "stable", "state": state}
		canary := prometheus.Labels{"namespace": rollout.Namespace, "name": rollout.Name, "role": "canary", "state": state}
		if pair == nil {
			weightPercent.Delete(stable)
			weightPercent.Delete(canary)
			continue
		}
		weightPercent.With(stable).Set(float64(pair.Stable))
		weightPercent.With(canary).Set(float64(pair.Canary))
	}
	ready := 0.0
	if meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady) {
		ready = 1
	}
	rolloutReady.WithLabelValues(rollout.Namespace, rollout.Name).Set(ready)
	rolloutPhase.DeletePartialMatch(prometheus.Labels{"namespace": rollout.Namespace, "name": rollout.Name})
	if s.Phase != "" {
		rolloutPhase.WithLabelValues(rollout.Namespace, rollout.Name, string(s.Phase)).Set(1)
	}
}

// count observes what has been written to a route, and how long it took since the rollout was taken up.
func count(rollout *v1alpha1.CanaryRollout, p plan, took time.Duration) {
	if !p.routes() {
		return
	}
	if p.drift != nil {
		driftRepairs.WithLabelValues(opponents.label(p.drift.manager)).Inc()
	}
	if applied := rollout.Status.Weights.Applied; p.carried || applied != nil && *applied == p.weights {
		return
	}
	applySeconds.Observe(took.Seconds())
	if rollout.Status.Phase == v1alpha1.PhaseRollingBack && lowers(rollout, p) {
		rollbackSeconds.Observe(took.Seconds())
	}
}

// maxManagers is how many field managers have series of their own. Whoever edits a route chooses the name, as often as
// they like, and a series stays for as long as the manager runs.
const maxManagers = 64

// managers are those that have a series.
type managers struct {
	mu    sync.Mutex
	known map[string]bool
}

var opponents = managers{known: map[string]bool{}}

// label returns a field manager's name, or other if too many have been told already.
func (m *managers) label(manager string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.known[manager] && len(m.known) >= maxManagers {
		return "other"
	}
	m.known[manager] = true
	return manager
}
