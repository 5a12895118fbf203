// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"math"
)

// Counts are how many requests a side has answered since a moment, and how many of these were events: errors, or slow
// ones. They need not be whole, because Prometheus estimates between scrapes.
type Counts struct {
	Events, Total float64
}

// Interval is an estimate, and between what ends the truth lies. All intervals of a sequence of looks at growing counts
// hold the truth at once, with a probability of at least 1 - alpha: one may look after every request and stop whenever
// one likes.
type Interval struct {
	Estimate, Low, High float64
}

// Rate returns the share of events, 0 to 1, with its interval. It is exact for independent events, whatever their
// number: the interval holds the rates that a mixture of rates does not beat by a likelihood ratio of 1/alpha. Under the
// true rate that ratio is a martingale that starts at 1, so it ever reaches 1/alpha with a probability of at most alpha.
func Rate(c Counts, alpha float64) Interval {
	c = c.sane()
	if c.Total == 0 {
		return Interval{Estimate: 0, Low: 0, High: 1}
	}
	estimate := c.Events / c.Total
	mixed, limit := c.logMixture(), math.Log(1/alpha)
	plausible := func(rate float64) bool { return mixed-c.logLikelihood(rate) < limit }
	return Interval{
		Estimate: estimate,
		Low:      bisect(0, estimate, plausible, true),
		High:     bisect(estimate, 1, plausible, false),
	}
}

// RateDifference returns the canary's rate of events less stable's, with its interval. Each side has half of alpha,
// which costs least where it matters: stable's rate is known far better than that of a canary with a few percent of the
// requests.
func RateDifference(stable, canary Counts, alpha float64) Interval {
	s, c := Rate(stable, alpha/2), Rate(canary, alpha/2)
	return Interval{Estimate: c.Estimate - s.Estimate, Low: c.Low - s.High, High: c.High - s.Low}
}

// sane brings counts that cannot be, such as Prometheus' extrapolation may give, to the nearest that can.
func (c Counts) sane() Counts {
	if !(c.Total > 0) || math.IsInf(c.Total, 0) {
		return Counts{}
	}
	if !(c.Events > 0) {
		return Counts{Total: c.Total}
	}
	return Counts{Events: math.Min(c.Events, c.Total), Total: c.Total}
}

// rare is the second parameter of the Beta distribution in the mixture that expects events to be rare; the other one
// expects nothing. Together they cost at most log 2 more than the better of the two.
const rare = 50

// logMixture is the logarithm of the likelihood of the counts under the mixture of rates.
func (c Counts) logMixture() float64 {
	const half = 0.5
	events, rest := c.Events+half, c.Total-c.Events
	expectsNothing := logBeta(events, rest+half) - logBeta(half, half)
	expectsFew := logBeta(events, rest+rare) - logBeta(half, rare)
	most := math.Max(expectsNothing, expectsFew)
	return most + math.Log((math.Exp(expectsNothing-most)+math.Exp(expectsFew-most))/2)
}

func (c Counts) logLikelihood(rate float64) float64 {
	return timesLog(c.Events, rate) + timesLog(c.Total-c.Events, 1-rate)
}

// timesLog returns n times the logarithm of x, which is nothing where n is nothing.
func timesLog(n, x float64) float64 {
	if n == 0 {
		return 0
	}
	return n * math.Log(x)
}

func logBeta(a, b float64) float64 {
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	return la + lb - lab
}

// halvings is how often bisect halves its range.
const halvings = 40

// bisect finds where holds changes between low and high. It returns the end of the last range at which holds is false,
// so that an interval is never too short. fromLow tells that holds is false at low, rather than at high.
func bisect(low, high float64, holds func(float64) bool, fromLow bool) float64 {
	if fromLow && holds(low) {
		return low
	}
	if !fromLow && holds(high) {
		return high
	}
	for range halvings {
		middle := (low + high) / 2
		if holds(middle) == fromLow {
			high = middle
		} else {
			low = middle
		}
	}
	if fromLow {
		return low
	}
	return high
}
