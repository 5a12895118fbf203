// SPDX-License-Identifier: Apache-2.0

package routing_test

import (
	"math"
	"testing"

	"serverless.xyz/outrigger/routing"
)

func TestRateInterval(t *testing.T) {
	tests := map[string]struct {
		counts                 routing.Counts
		wantEstimate           float64
		wantLowMin, wantLowMax float64
		wantHighMin            float64
		wantHighMax            float64
	}{
		"nothing seen says nothing":            {routing.Counts{}, 0, 0, 0, 1, 1},
		"one good request says next to naught": {routing.Counts{Events: 0, Total: 1}, 0, 0, 0, 0.9, 1},
		"a thousand good ones bound the rate":  {routing.Counts{Events: 0, Total: 1000}, 0, 0, 0, 0.004, 0.01},
		"a tenth of a thousand":                {routing.Counts{Events: 100, Total: 1000}, 0.1, 0.06, 0.08, 0.12, 0.15},
		"all of twenty":                        {routing.Counts{Events: 20, Total: 20}, 1, 0.4, 0.8, 1, 1},
		"more events than requests are all":    {routing.Counts{Events: 21.3, Total: 20}, 1, 0.4, 0.8, 1, 1},
		"fewer events than none are none":      {routing.Counts{Events: -0.2, Total: 1000}, 0, 0, 0, 0.004, 0.01},
		"no number is nothing":                 {routing.Counts{Events: math.NaN(), Total: math.NaN()}, 0, 0, 0, 1, 1},
		"parts of requests":                    {routing.Counts{Events: 99.7, Total: 1000.4}, 0.09966, 0.06, 0.08, 0.12, 0.15},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := routing.Rate(tc.counts, 0.01)
			if math.Abs(got.Estimate-tc.wantEstimate) > 1e-4 || got.Low < tc.wantLowMin || got.Low > tc.wantLowMax ||
				got.High < tc.wantHighMin || got.High > tc.wantHighMax {
				t.Errorf("interval %+v; want %g, from %g..%g to %g..%g", got,
					tc.wantEstimate, tc.wantLowMin, tc.wantLowMax, tc.wantHighMin, tc.wantHighMax)
			}
		})
	}
}

// TestRateHoldsTheTruthAtEveryLook enumerates what can happen instead of drawing: the probability of all sequences in
// which any of the first looks excludes the true rate.
func TestRateHoldsTheTruthAtEveryLook(t *testing.T) {
	const alpha, looks = 0.05, 400
	for _, rate := range []float64{0.002, 0.01, 0.1, 0.5, 0.97} {
		alive := []float64{1} // the probability of each number of events, of sequences that excluded nothing yet
		excluded := 0.0
		for n := 1; n <= looks; n++ {
			next := make([]float64, n+1)
			for events, p := range alive {
				next[events] += p * (1 - rate)
				next[events+1] += p * rate
			}
			for events := range next {
				if next[events] == 0 {
					continue
				}
				i := routing.Rate(routing.Counts{Events: float64(events), Total: float64(n)}, alpha)
				if rate < i.Low || rate > i.High {
					excluded += next[events]
					next[events] = 0
				}
			}
			alive = next
		}
		if excluded > alpha {
			t.Errorf("rate %g: some of %d looks excludes the truth with probability %.4f, want at most %g",
				rate, looks, excluded, alpha)
		}
	}
}

func TestRateDifferenceTellsTheSign(t *testing.T) {
	stable := routing.Counts{Events: 1000, Total: 100_000}
	for name, tc := range map[string]struct {
		canary routing.Counts
		want   routing.Result
	}{
		"the same rate, many requests": {routing.Counts{Events: 200, Total: 20_000}, routing.ResultPass},
		"the same rate, few requests":  {routing.Counts{Events: 2, Total: 200}, routing.ResultInconclusive},
		"three times the rate":         {routing.Counts{Events: 90, Total: 3000}, routing.ResultFail},
		"half of the requests fail":    {routing.Counts{Events: 5, Total: 10}, routing.ResultFail},
		"nothing":                      {routing.Counts{}, routing.ResultInconclusive},
		"fewer errors than stable has": {routing.Counts{Events: 0, Total: 3000}, routing.ResultPass},
	} {
		i := routing.RateDifference(stable, tc.canary, 0.01)
		if got := routing.Judge(i, 0.005); got != tc.want {
			t.Errorf("%s: %s by %+v, want %s", name, got, i, tc.want)
		}
		if i.Low > i.Estimate || i.Estimate > i.High {
			t.Errorf("%s: the estimate is outside its interval: %+v", name, i)
		}
	}
}

func FuzzIntervals(f *testing.F) {
	f.Add(10.0, 100.0, 20.0, 90.0, 3.0)
	f.Add(0.0, 0.0, 0.0, 0.0, 0.0)
	f.Add(-1.0, 1e300, math.Inf(1), math.NaN(), 1e-300)
	f.Fuzz(func(t *testing.T, a, b, c, d, e float64) {
		h := routing.NewHistogram(map[float64]float64{0: a, 0.1: b, 1: c, 10: d, math.Inf(1): e})
		other := routing.NewHistogram(map[float64]float64{0: e, 0.1: d, 1: c, 10: b, math.Inf(1): a})
		for name, i := range map[string]routing.Interval{
			"Rate":             routing.Rate(routing.Counts{Events: a, Total: b}, 0.01),
			"RateDifference":   routing.RateDifference(routing.Counts{Events: a, Total: b}, routing.Counts{Events: c, Total: d}, 0.01),
			"Quantile":         routing.Quantile(h, 0.95, 0.01),
			"QuantileIncrease": routing.QuantileIncrease(h, other, 0.95, 0.01),
			"MannWhitney":      routing.MannWhitney(h, other, 0.01),
		} {
			if math.IsNaN(i.Low) || math.IsNaN(i.High) || i.Low > i.High {
				t.Errorf("%s gives %+v", name, i)
			}
		}
	})
}
