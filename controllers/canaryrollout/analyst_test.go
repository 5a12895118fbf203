// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"serverless.xyz/outrigger/controllers/canaryrollout"
)

func startAnalyst(t *testing.T) *canaryrollout.Analyst {
	t.Helper()
	analyst := canaryrollout.NewAnalyst("")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = analyst.Start(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return analyst
}

// prometheusWithoutData is one that answers every query with nothing. Only that it answers matters.
func prometheusWithoutData(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"vector","result":[]}}`))
	}))
	t.Cleanup(server.Close)
	return server
}

func awaitAnswer(t *testing.T, a *canaryrollout.Analyst, q *canaryrollout.Question) {
	t.Helper()
	deadline := time.Now().Add(within)
	for time.Now().Before(deadline) {
		if answer, _ := a.Ask(q); answer != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no answer for %s within %s", q.Rollout, within)
}

// TestHangingPrometheusDelaysNobodyElse: however many rollouts wait for it.
func TestHangingPrometheusDelaysNobodyElse(t *testing.T) {
	hanging := httptest.NewServer(http.HandlerFunc(hang))
	t.Cleanup(hanging.Close)
	analyst := startAnalyst(t)
	at := time.Now()
	for n := range 500 {
		q := questionOf("ml", analysisOf(t, errorsOfBoth), at.Add(-time.Minute), at)
		q.Rollout.Name, q.Analysis.Prometheus.URL = fmt.Sprint("hangs-", n), hanging.URL
		analyst.Ask(q)
	}
	q := questionOf("ml", analysisOf(t, errorsOfBoth), at.Add(-time.Minute), at)
	q.Analysis.Prometheus.URL = prometheusWithoutData(t).URL
	awaitAnswer(t, analyst, q)
}

// TestOldAnswersAreNone: what was true of a canary some time ago proves nothing now.
func TestOldAnswersAreNone(t *testing.T) {
	analyst := startAnalyst(t)
	at := time.Now()
	q := questionOf("ml", analysisOf(t, errorsOfBoth), at.Add(-time.Minute), at)
	q.Analysis.Interval.Duration = time.Minute
	q.Analysis.Prometheus.URL = prometheusWithoutData(t).URL
	awaitAnswer(t, analyst, q)
	for _, tc := range []struct {
		later time.Duration
		want  bool
	}{{time.Minute, true}, {10 * time.Minute, false}} {
		again := *q
		again.At = at.Add(tc.later)
		if answer, _ := analyst.Ask(&again); (answer != nil) != tc.want {
			t.Errorf("%s later there is an answer: %t, want %t", tc.later, answer != nil, tc.want)
		}
	}
}
