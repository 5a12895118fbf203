// SPDX-License-Identifier: Apache-2.0

package routing_test

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/routing"
)

var inf = math.Inf(1)

// spread makes a histogram with these counts in the buckets up to 0.1, 0.2, 0.5, 1 and above.
func spread(counts ...float64) routing.Histogram {
	cumulative, sum := map[float64]float64{}, 0.0
	for i, bound := range []float64{0.1, 0.2, 0.5, 1, inf} {
		sum += counts[i]
		cumulative[bound] = sum
	}
	return routing.NewHistogram(cumulative)
}

func TestNewHistogram(t *testing.T) {
	for name, tc := range map[string]struct {
		cumulative map[float64]float64
		want       routing.Histogram
	}{
		"in any order": {
			map[float64]float64{inf: 9, 1: 7, 0.1: 2},
			routing.Histogram{Bounds: []float64{0.1, 1, inf}, Counts: []float64{2, 5, 2}},
		},
		"counts that fall are taken for equal": {
			map[float64]float64{0.1: 2, 1: 1.9, inf: 4},
			routing.Histogram{Bounds: []float64{0.1, 1, inf}, Counts: []float64{2, 0, 2}},
		},
		"no number is nothing more": {
			map[float64]float64{0.1: 2, 1: math.NaN(), inf: 4},
			routing.Histogram{Bounds: []float64{0.1, 1, inf}, Counts: []float64{2, 0, 2}},
		},
	} {
		if diff := cmp.Diff(tc.want, routing.NewHistogram(tc.cumulative)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestQuantile(t *testing.T) {
	h := spread(500, 400, 60, 30, 10)
	i := routing.Quantile(h, 0.95, 0.01)
	if math.Abs(i.Estimate-0.45) > 1e-9 {
		t.Errorf("the 95th percentile is %g, want 0.45 as Prometheus has it", i.Estimate)
	}
	if i.Low < 0.15 || i.Low > 0.4 || i.High < 0.5 || i.High > 1 {
		t.Errorf("interval %+v is not one of a thousand observations", i)
	}
	if i := routing.Quantile(h, 0.999, 0.01); !math.IsInf(i.High, 1) || !math.IsInf(i.Estimate, 1) {
		t.Errorf("a quantile in the bucket without an end is %+v", i)
	}
	if i := routing.Quantile(spread(0, 0, 0, 0, 0), 0.95, 0.01); !math.IsNaN(i.Estimate) || i.Low != 0 || !math.IsInf(i.High, 1) {
		t.Errorf("nothing observed gives %+v", i)
	}
}

func TestComparisonOfHistograms(t *testing.T) {
	stable := spread(50_000, 40_000, 6_000, 3_000, 1_000)
	for name, tc := range map[string]struct {
		canary             routing.Histogram
		wantTail, wantBulk routing.Result
	}{
		"the same, many":              {spread(5_000, 4_000, 600, 300, 100), routing.ResultPass, routing.ResultPass},
		"the same, few":               {spread(25, 20, 3, 2, 0), routing.ResultInconclusive, routing.ResultInconclusive},
		"nothing":                     {spread(0, 0, 0, 0, 0), routing.ResultInconclusive, routing.ResultInconclusive},
		"the bulk slower":             {spread(1_000, 8_000, 600, 300, 100), routing.ResultPass, routing.ResultFail},
		"the tail slower":             {spread(5_000, 3_500, 300, 1_100, 100), routing.ResultFail, routing.ResultPass},
		"slower than can be measured": {spread(0, 0, 0, 0, 100), routing.ResultFail, routing.ResultFail},
		"faster":                      {spread(9_000, 900, 60, 30, 10), routing.ResultPass, routing.ResultPass},
	} {
		tail := routing.QuantileIncrease(stable, tc.canary, 0.95, 0.01)
		if got := routing.Judge(tail, 0.25); got != tc.wantTail {
			t.Errorf("%s: the tail is %s by %+v, want %s", name, got, tail, tc.wantTail)
		}
		bulk := routing.MannWhitney(stable, tc.canary, 0.01)
		if got := routing.Judge(bulk, 0.25); got != tc.wantBulk {
			t.Errorf("%s: the bulk is %s by %+v, want %s", name, got, bulk, tc.wantBulk)
		}
	}
}

// TestMannWhitneyFindsTheGrowth: all observations grown by a fifth are found to have grown by a fifth.
func TestMannWhitneyFindsTheGrowth(t *testing.T) {
	const by, bounds = 0.2, 200
	stable, canary := map[float64]float64{inf: 1e6}, map[float64]float64{inf: 1e6}
	below := func(x float64) float64 { return 1e6 * (1 - math.Exp(-x)) } // an exponential distribution
	for i := range bounds {
		bound := float64(i+1) * 0.05
		stable[bound], canary[bound] = below(bound), below(bound/(1+by))
	}
	i := routing.MannWhitney(routing.NewHistogram(stable), routing.NewHistogram(canary), 0.01)
	if math.Abs(i.Estimate-by) > 0.005 || i.Low > by || i.High < by || i.High-i.Low > 0.05 {
		t.Errorf("interval %+v, want one around %g", i, by)
	}
}

func TestHistogramsOfOtherBucketsAreNotCompared(t *testing.T) {
	other := routing.NewHistogram(map[float64]float64{0.3: 10, inf: 20})
	i := routing.MannWhitney(spread(5, 5, 5, 5, 5), other, 0.01)
	if got := routing.Judge(i, 0.1); got != routing.ResultInconclusive || !math.IsNaN(i.Estimate) {
		t.Errorf("%s by %+v, want nothing to be said", got, i)
	}
}

func TestCombine(t *testing.T) {
	const pass, fail, unclear, broken = routing.ResultPass, routing.ResultFail, routing.ResultInconclusive, routing.ResultError
	for name, tc := range map[string]struct {
		results []routing.Result
		want    routing.Result
	}{
		"nothing is no obstacle":        {nil, pass},
		"all pass":                      {[]routing.Result{pass, pass}, pass},
		"one is unclear":                {[]routing.Result{pass, unclear}, unclear},
		"one is broken":                 {[]routing.Result{unclear, broken, pass}, broken},
		"one fails, whatever else":      {[]routing.Result{broken, fail, unclear, pass}, fail},
		"a result of another time's":    {[]routing.Result{pass, "Splendid"}, "Splendid"},
		"unclear before and after pass": {[]routing.Result{unclear, pass}, unclear},
	} {
		if got := routing.Combine(tc.results...); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}
