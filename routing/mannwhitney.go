// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"math"
	"slices"
)

// MannWhitney returns by what share the canary's observations are above stable's as a whole, 0.1 for a tenth, with its
// interval. It sees a shift of the bulk, where QuantileIncrease sees one of the tail.
//
// The measure is that of Mann and Whitney: how likely a request to the canary takes longer than one to stable, even odds
// within a bucket. It is turned into a share by asking by how much stable's own observations would have to grow to give
// the same. The interval is of the kind that Rate has, but by the normal approximation, so that it wants some dozens of
// observations of either side.
func MannWhitney(stable, canary Histogram, alpha float64) Interval {
	if !(stable.Total() > 0) || !(canary.Total() > 0) || !slices.Equal(stable.Bounds, canary.Bounds) {
		return Interval{Estimate: math.NaN(), Low: -1, High: math.Inf(1)}
	}
	odds, spreadOfCanary := rank(stable, canary)
	_, spreadOfStable := rank(canary, stable)
	radius := mixtureRadius(spreadOfCanary, alpha/2) + mixtureRadius(spreadOfStable, alpha/2)
	l := lawOf(stable)
	return Interval{Estimate: l.growth(odds), Low: l.growth(odds - radius), High: l.growth(odds + radius)}
}

// rank returns the mean of the places that observations take among those of another side, 0 being below all and 1 above
// all, and the variance of that mean. One imagined observation at either end keeps the variance honest while there are
// few.
func rank(among, of Histogram) (float64, float64) {
	total, all := of.Total(), among.Total()
	mean, square, below := 0.0, 0.5, 0.0
	for i, count := range of.Counts {
		place := (below + among.Counts[i]/2) / all
		below += among.Counts[i]
		mean += count * place / total
		square += count * (place - 0.5) * (place - 0.5)
	}
	shift := (mean - 0.5) * total / (total + 2)
	return mean, (square/(total+2) - shift*shift) / total
}

// expectedOdds is how far from even odds a difference is that the mixture of MannWhitney expects.
const expectedOdds = 0.05

// mixtureRadius is half the width of an interval for a mean whose variance is given, that holds at every look: that of
// Robbins' mixture of normal distributions.
func mixtureRadius(variance, alpha float64) float64 {
	const prior = expectedOdds * expectedOdds
	grown := variance + prior
	return math.Sqrt(variance * grown / prior * (2*math.Log(1/alpha) + math.Log(grown/variance)))
}

// Bounds of the growth that can be told.
const (
	leastGrowth = -0.99
	mostGrowth  = 99
)

// growth returns by what share observations must grow to beat what they are now with the given odds.
func (l law) growth(odds float64) float64 {
	switch {
	case odds <= l.oddsOfGrown(leastGrowth):
		return -1
	case odds >= l.oddsOfGrown(mostGrowth):
		return math.Inf(1)
	}
	// By the logarithm, so that halving a value and doubling it are equally far.
	low, high := math.Log1p(leastGrowth), math.Log1p(mostGrowth)
	for range halvings {
		middle := (low + high) / 2
		if l.oddsOfGrown(math.Expm1(middle)) < odds {
			low = middle
		} else {
			high = middle
		}
	}
	return math.Expm1((low + high) / 2)
}

// law is a histogram as a law of probability: even within each bucket.
type law struct {
	// edges are the buckets' ends, from the begin of the first one on.
	edges []float64
	// below is the probability of a value below each edge, and area the integral of that from the first edge on.
	below, area []float64
}

// lawOf returns the law of a histogram that is not empty. A bucket without an end is taken for as wide as it is far.
func lawOf(h Histogram) law {
	first, _ := h.edges(0)
	l := law{edges: []float64{first}, below: []float64{0}, area: []float64{0}}
	total := h.Total()
	for i, count := range h.Counts {
		begin, end := h.edges(i)
		if math.IsInf(end, 1) {
			end = math.Max(2*begin, 1)
		}
		below := l.below[i] + count/total
		l.edges = append(l.edges, end)
		l.area = append(l.area, l.area[i]+(l.below[i]+below)/2*(end-begin))
		l.below = append(l.below, below)
	}
	return l
}

// integral returns the integral of the probability of a value below x.
func (l law) integral(x float64) float64 {
	last := len(l.edges) - 1
	if x >= l.edges[last] {
		return l.area[last] + (x-l.edges[last])*l.below[last]
	}
	i, _ := slices.BinarySearch(l.edges, x)
	if i == 0 {
		return 0
	}
	width, into := l.edges[i]-l.edges[i-1], x-l.edges[i-1]
	return l.area[i-1] + into*(l.below[i-1]+(l.below[i]-l.below[i-1])*into/width/2)
}

// oddsOfGrown returns how likely an observation, grown by a share, is above one that is not.
func (l law) oddsOfGrown(by float64) float64 {
	odds := 0.0
	for i := 1; i < len(l.edges); i++ {
		from, to := l.edges[i-1]*(1+by), l.edges[i]*(1+by)
		if to > from {
			odds += (l.below[i] - l.below[i-1]) * (l.integral(to) - l.integral(from)) / (to - from)
		}
	}
	return odds
}
