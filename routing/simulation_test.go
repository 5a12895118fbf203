// SPDX-License-Identifier: Apache-2.0

package routing_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"serverless.xyz/outrigger/routing"
)

// The simulated rollout: a canary with a tenth of the requests, looked at every interval and rolled back at the first
// look that fails. Beside it stands a fixed threshold at the same bound, as Flagger has: each interval's own value
// against the bound, rolled back at the fifth that is above it.
const (
	intervals         = 60
	canaryRequests    = 200  // of the canary, each interval
	stableRequests    = 1800 // of stable
	alpha             = 0.05
	flaggersThreshold = 5
	runs              = 200
)

// tally is how a rule did over all runs.
type tally struct {
	rollbacks, promotions int
	requests              []float64 // of the canary until the rollback
}

func (l *tally) add(looks int) {
	if looks > 0 {
		l.rollbacks++
		l.requests = append(l.requests, float64(looks*canaryRequests))
	}
}

func (l *tally) share() float64 { return float64(l.rollbacks) / runs }

func (l *tally) median() string {
	if len(l.requests) == 0 {
		return "-"
	}
	slices.Sort(l.requests)
	return fmt.Sprintf("%.0f", l.requests[len(l.requests)/2])
}

// TestErrorRateSimulation plays rollouts by the code as shipped: with no difference, and with a difference at the very
// bound, at most alpha of them are rolled back although every interval is looked at; real harm is found.
func TestErrorRateSimulation(t *testing.T) {
	const stableRate, tolerated = 0.01, 0.01
	var table strings.Builder
	fmt.Fprintf(
		&table,
		"errors: stable %g, tolerated +%g, %d looks, alpha %g, %d runs\n",
		stableRate,
		tolerated,
		intervals,
		alpha,
		runs,
	)
	fmt.Fprintf(&table, "%-28s %10s %10s %10s | %10s %10s\n",
		"canary's error rate", "rollback", "after", "promoted", "threshold", "after")
	for _, tc := range []struct {
		rate                float64
		wantMost, wantLeast float64
	}{
		{0.01, alpha, 0}, {0.02, alpha, 0}, {0.04, 1, 0.9}, {0.05, 1, 0.99}, {0.1, 1, 1}, {0.5, 1, 1},
	} {
		random := rand.New(rand.NewPCG(1, uint64(tc.rate*1e6)))
		var ours, fixed tally
		for range runs {
			looks, promoted, threshold := playErrors(random, stableRate, tc.rate, tolerated)
			ours.add(looks)
			fixed.add(threshold)
			if promoted {
				ours.promotions++
			}
		}
		fmt.Fprintf(&table, "%-28g %10.3f %10s %10.3f | %10.3f %10s\n", tc.rate,
			ours.share(), ours.median(), float64(ours.promotions)/runs, fixed.share(), fixed.median())
		if ours.share() > tc.wantMost || ours.share() < tc.wantLeast {
			t.Errorf("canary with an error rate of %g: %.3f are rolled back, want %g to %g",
				tc.rate, ours.share(), tc.wantLeast, tc.wantMost)
		}
		if tc.rate == stableRate && fixed.share() <= alpha {
			t.Errorf("the fixed threshold rolls back %.3f of sound canaries only: the comparison shows nothing", fixed.share())
		}
		if tc.rate == stableRate && ours.promotions < runs*9/10 {
			t.Errorf("only %d of %d sound canaries are proved sound", ours.promotions, runs)
		}
	}
	t.Log("\n" + table.String())
}

// playErrors returns at which look the canary is rolled back, whether it was promoted by then, and at which interval a
// fixed threshold would have rolled it back; 0 is never.
func playErrors(random *rand.Rand, stableRate, canaryRate, tolerated float64) (rolledBack int, promoted bool, threshold int) {
	var stable, canary routing.Counts
	beyond := 0
	for look := 1; look <= intervals; look++ {
		errors := occurrences(random, canaryRequests, canaryRate)
		canary = routing.Counts{Events: canary.Events + errors, Total: canary.Total + canaryRequests}
		stable = routing.Counts{
			Events: stable.Events + occurrences(random, stableRequests, stableRate), Total: stable.Total + stableRequests,
		}
		if errors/canaryRequests > stableRate+tolerated {
			beyond++
		}
		if beyond == flaggersThreshold && threshold == 0 {
			threshold = look
		}
		if rolledBack > 0 {
			continue
		}
		switch routing.Judge(routing.RateDifference(stable, canary, alpha), tolerated) {
		case routing.ResultFail:
			rolledBack = look
		case routing.ResultPass:
			promoted = true
		default:
		}
	}
	return rolledBack, promoted && rolledBack == 0, threshold
}

func occurrences(random *rand.Rand, of int, rate float64) float64 {
	n := 0
	for range of {
		if random.Float64() < rate {
			n++
		}
	}
	return float64(n)
}

// latencyBounds are buckets as model servers have them.
var latencyBounds = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, inf}

// TestLatencySimulation is the like for latencies, whose logarithms are normal: for a shift of all of them, and for one
// of the slowest tenth alone.
func TestLatencySimulation(t *testing.T) {
	const tolerated = 0.1
	var table strings.Builder
	fmt.Fprintf(&table, "latency: tolerated +%g, %d looks, alpha %g, %d runs\n", tolerated, intervals, alpha, runs)
	fmt.Fprintf(&table, "%-34s %8s %8s | %8s %8s | %9s %8s\n",
		"canary", "p95", "after", "ranks", "after", "threshold", "after")
	for _, tc := range []struct {
		name               string
		factor, slowFactor float64
		mostFalse          float64
		leastTail          float64
		leastBulk          float64
	}{
		{"no difference", 1, 1, alpha, 0, 0},
		{"all slower by 10 percent", 1.1, 1, alpha, 0, 0},
		{"all slower by 50 percent", 1.5, 1, 1, 0.9, 0.99},
		{"all slower by 100 percent", 2, 1, 1, 1, 1},
		{"the slowest tenth takes 3 times", 1, 3, 1, 1, 0},
	} {
		random := rand.New(rand.NewPCG(2, math.Float64bits(tc.factor*tc.slowFactor)))
		stable, canary := latencies(1, 1), latencies(tc.factor, tc.slowFactor)
		var tail, bulk, fixed tally
		for range runs {
			atTail, atBulk, threshold := playLatency(random, stable, canary, tolerated)
			tail.add(atTail)
			bulk.add(atBulk)
			fixed.add(threshold)
		}
		fmt.Fprintf(&table, "%-34s %8.3f %8s | %8.3f %8s | %9.3f %8s\n", tc.name,
			tail.share(), tail.median(), bulk.share(), bulk.median(), fixed.share(), fixed.median())
		if tail.share() > tc.mostFalse || tail.share() < tc.leastTail {
			t.Errorf("%s: by p95 %.3f are rolled back, want %g to %g", tc.name, tail.share(), tc.leastTail, tc.mostFalse)
		}
		if bulk.share() > tc.mostFalse || bulk.share() < tc.leastBulk {
			t.Errorf("%s: by ranks %.3f are rolled back, want %g to %g", tc.name, bulk.share(), tc.leastBulk, tc.mostFalse)
		}
		if tc.factor == 1 && tc.slowFactor == 1 && fixed.share() <= alpha {
			t.Errorf("the fixed threshold rolls back %.3f of sound canaries only: the comparison shows nothing", fixed.share())
		}
	}
	t.Log("\n" + table.String())
}

// latencies returns how likely a latency is in each bucket or below. The median is 80 ms.
func latencies(factor, slowFactor float64) []float64 {
	below := func(x, factor float64) float64 {
		return math.Erfc(-(math.Log(x)-math.Log(0.08*factor))/(0.5*math.Sqrt2)) / 2
	}
	slowest := 0.08 * math.Exp(0.5*1.2816) // nine tenths are faster
	var cumulative []float64
	for _, bound := range latencyBounds {
		if slowFactor == 1 || bound < slowest {
			cumulative = append(cumulative, below(bound, factor))
			continue
		}
		cumulative = append(cumulative, math.Max(0.9, below(bound, factor*slowFactor)))
	}
	cumulative[len(cumulative)-1] = 1
	return cumulative
}

func playLatency(random *rand.Rand, stableOdds, canaryOdds []float64, tolerated float64) (tail, bulk, threshold int) {
	stable := routing.Histogram{Bounds: latencyBounds, Counts: make([]float64, len(latencyBounds))}
	canary := routing.Histogram{Bounds: latencyBounds, Counts: make([]float64, len(latencyBounds))}
	known := routing.Histogram{Bounds: latencyBounds, Counts: make([]float64, len(latencyBounds))}
	before := 0.0
	for i, odds := range stableOdds {
		known.Counts[i], before = odds-before, odds
	}
	bound := known.Within(0.95) * (1 + tolerated)
	beyond := 0
	for look := 1; look <= intervals && (tail == 0 || bulk == 0 || threshold == 0); look++ {
		own := observe(random, canaryOdds, canaryRequests)
		for i, count := range own.Counts {
			canary.Counts[i] += count
		}
		for i, count := range observe(random, stableOdds, stableRequests).Counts {
			stable.Counts[i] += count
		}
		if own.Within(0.95*canaryRequests) > bound {
			beyond++
		}
		if beyond == flaggersThreshold && threshold == 0 {
			threshold = look
		}
		if tail == 0 && routing.Judge(routing.QuantileIncrease(stable, canary, 0.95, alpha), tolerated) == routing.ResultFail {
			tail = look
		}
		if bulk == 0 && routing.Judge(routing.MannWhitney(stable, canary, alpha), tolerated) == routing.ResultFail {
			bulk = look
		}
	}
	return tail, bulk, threshold
}

func observe(random *rand.Rand, odds []float64, requests int) routing.Histogram {
	h := routing.Histogram{Bounds: latencyBounds, Counts: make([]float64, len(latencyBounds))}
	for range requests {
		at, _ := slices.BinarySearch(odds, random.Float64())
		h.Counts[at]++
	}
	return h
}
