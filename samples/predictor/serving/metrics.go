// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are those of one server, in a registry of their own.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	hits     prometheus.Counter
	misses   prometheus.Counter
	trouble  prometheus.Counter
	model    *prometheus.GaugeVec
	loading  prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "predictor_requests_total",
			Help: "Prediction requests answered, by protocol (v1, v2, grpc) and status code.",
		}, []string{"protocol", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "predictor_request_duration_seconds",
			Help:    "Time from a whole prediction request to its answer, feature lookup included.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1},
		}, []string{"protocol"}),
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "predictor_feature_cache_hits_total",
			Help: "Entities whose features came from the cache.",
		}),
		misses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "predictor_feature_cache_misses_total",
			Help: "Entities that the cache was asked for and did not give.",
		}),
		trouble: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "predictor_feature_cache_errors_total",
			Help: "Lookups during which the cache failed; they were answered from the store.",
		}),
		model: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "predictor_model_info",
			Help: "1 for the model and version being served.",
		}, []string{"model", "version"}),
		loading: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "predictor_model_load_seconds",
			Help: "Time that reading and checking the model took.",
		}),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.hits, m.misses, m.trouble, m.model, m.loading,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) setModel(name, version string, loadTime time.Duration) {
	m.model.WithLabelValues(name, version).Set(1)
	m.loading.Set(loadTime.Seconds())
}

func (m *metrics) observe(protocol, code string, took time.Duration) {
	m.requests.WithLabelValues(protocol, code).Inc()
	m.seconds.WithLabelValues(protocol).Observe(took.Seconds())
}
