// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"math"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Result is what a metric says of a canary.
type Result = v1alpha1.VerdictResult

// Results.
const (
	ResultPass         = v1alpha1.VerdictPass
	ResultFail         = v1alpha1.VerdictFail
	ResultInconclusive = v1alpha1.VerdictInconclusive
	ResultError        = v1alpha1.VerdictError
)

// Judge compares an interval with the most that is tolerated. As long as the bound is inside the interval, or the
// interval says nothing, that is inconclusive.
func Judge(i Interval, most float64) Result {
	switch {
	case math.IsNaN(i.Low) || math.IsNaN(i.High) || math.IsNaN(most):
		return ResultInconclusive
	case i.Low > most:
		return ResultFail
	case i.High <= most:
		return ResultPass
	default:
		return ResultInconclusive
	}
}

// Negate returns the interval of the negated quantity, for metrics of which too little is bad.
func (i Interval) Negate() Interval {
	return Interval{Estimate: -i.Estimate, Low: -i.High, High: -i.Low}
}

// Combine returns what several metrics say together: the first of Fail, Error and Inconclusive that any says, Pass only
// if all do. Nothing said is Pass: without metrics, time alone decides.
func Combine(results ...Result) Result {
	combined := ResultPass
	for _, result := range results {
		if severity(result) > severity(combined) {
			combined = result
		}
	}
	return combined
}

func severity(r Result) int {
	switch r {
	case ResultPass:
		return 0
	case ResultInconclusive:
		return 1
	case ResultFail:
		return 3
	default:
		return 2
	}
}

// ShareOfAlpha returns the part of alpha that one test has, so that all of a rollout together err with a probability of
// at most alpha: every metric is tested anew in each of the rollout's holds. Being one of many costs a test little, for
// it is the logarithm that counts.
func ShareOfAlpha(alpha float64, metrics, holds int) float64 {
	return alpha / float64(max(metrics, 1)*max(holds, 1))
}
