// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"math"
	"slices"
)

// Histogram is how a side's observations since a moment spread over buckets.
type Histogram struct {
	// Bounds are the upper ends of the buckets, ascending; the first bucket begins at 0, and the last one may have no
	// end: +Inf.
	Bounds []float64
	// Counts are the observations in each bucket alone. They need not be whole.
	Counts []float64
}

// NewHistogram makes a histogram of what Prometheus gives: for every upper bound, how many observations are not above
// it. Counts that fall from one bound to the next, as extrapolation may have it, are taken for equal.
func NewHistogram(cumulative map[float64]float64) Histogram {
	h := Histogram{Bounds: make([]float64, 0, len(cumulative))}
	for bound := range cumulative {
		if !math.IsNaN(bound) {
			h.Bounds = append(h.Bounds, bound)
		}
	}
	slices.Sort(h.Bounds)
	below := 0.0
	for _, bound := range h.Bounds {
		count := cumulative[bound]
		if !(count > below) || math.IsInf(count, 0) {
			count = below
		}
		h.Counts = append(h.Counts, count-below)
		below = count
	}
	return h
}

// Total is the number of observations.
func (h Histogram) Total() float64 {
	total := 0.0
	for _, count := range h.Counts {
		total += count
	}
	return total
}

// edges returns where bucket i begins and ends.
func (h Histogram) edges(i int) (float64, float64) {
	begin := 0.0
	if i > 0 {
		begin = h.Bounds[i-1]
	}
	return math.Min(begin, h.Bounds[i]), h.Bounds[i]
}

// Within returns the value that so many of the observations do not exceed, taking those of a bucket for spread evenly
// over it. It is +Inf where that is in a bucket without an end.
func (h Histogram) Within(count float64) float64 {
	for i, in := range h.Counts {
		if in > 0 && count <= in {
			begin, end := h.edges(i)
			if math.IsInf(end, 1) {
				return end
			}
			return begin + (end-begin)*math.Max(count, 0)/in
		}
		count -= in
	}
	return math.Inf(1)
}

// Quantile returns the value that a share of the observations, 0 to 1, does not exceed, with its interval. That is
// exact for independent observations as far as the buckets can tell: the ends are those of the numbers of observations
// above the true quantile that are plausible, and these do not depend on how the values are spread. An end in a bucket
// without an end is +Inf.
func Quantile(h Histogram, quantile, alpha float64) Interval {
	total := h.Total()
	if !(total > 0) {
		return Interval{Estimate: math.NaN(), Low: 0, High: math.Inf(1)}
	}
	limit := math.Log(1 / alpha)
	plausible := func(below float64) bool {
		c := Counts{Events: total - below, Total: total}
		return c.logMixture()-c.logLikelihood(1-quantile) < limit
	}
	expected := quantile * total
	return Interval{
		Estimate: h.Within(expected),
		Low:      h.Within(bisect(0, expected, plausible, true)),
		High:     h.Within(bisect(expected, total, plausible, false)),
	}
}

// QuantileIncrease returns by what share the canary's quantile is above stable's, 0.1 for a tenth, with its interval.
// Where a quantile of stable is in a bucket without an end nothing can be said: the estimate is NaN.
func QuantileIncrease(stable, canary Histogram, quantile, alpha float64) Interval {
	s, c := Quantile(stable, quantile, alpha/2), Quantile(canary, quantile, alpha/2)
	return Interval{
		Estimate: increase(s.Estimate, c.Estimate),
		Low:      increaseOr(s.High, c.lowest(canary), -1),
		High:     increaseOr(s.Low, c.High, math.Inf(1)),
	}
}

// lowest is the low end, or where the bucket without an end begins that it is in.
func (i Interval) lowest(h Histogram) float64 {
	if math.IsInf(i.Low, 1) && len(h.Bounds) > 0 {
		begin, _ := h.edges(len(h.Bounds) - 1)
		return begin
	}
	return i.Low
}

func increase(from, to float64) float64 {
	if !(from > 0) || math.IsInf(from, 1) || math.IsNaN(to) {
		return math.NaN()
	}
	return to/from - 1
}

func increaseOr(from, to, otherwise float64) float64 {
	if by := increase(from, to); !math.IsNaN(by) {
		return by
	}
	return otherwise
}
