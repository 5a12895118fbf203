// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ConditionAnalysisHealthy is True while the metrics of a CanaryRollout's analysis can be read; its message says which
// cannot.
const ConditionAnalysisHealthy = "AnalysisHealthy"

// Reasons of the condition AnalysisHealthy, and of phases that follow from the analysis.
const (
	// ReasonMetricsRead says that all metrics could be read.
	ReasonMetricsRead = "MetricsRead"
	// ReasonMetricsUnread says that nothing is asked of the metrics now, or that no answer has come yet.
	ReasonMetricsUnread = "MetricsUnread"
	// ReasonMetricsUnavailable says that a metric could not be read. It neither promotes a canary nor turns it back.
	ReasonMetricsUnavailable = "MetricsUnavailable"
	// ReasonAnalysisFailed says that a metric proved the canary to be worse than is tolerated.
	ReasonAnalysisFailed = "AnalysisFailed"
	// ReasonInconclusive says that a step's maxDuration is over and nothing has been proved.
	ReasonInconclusive = "Inconclusive"
)

// RolloutAnalysis proves by metrics that a canary is not worse than is tolerated.
//
// Every metric gives one of four verdicts. Pass: the canary is proved to be within its bound. Fail: it is proved to be
// beyond. Inconclusive: neither is proved, for instance because there were no requests. Error: the metric could not be
// read. A step ends only with Pass from all; one Fail turns the canary back; the other two do neither.
//
// +kubebuilder:validation:XValidation:rule="!has(self.interval) || (duration(self.interval) >= duration('1s') && duration(self.interval) <= duration('10m'))",message="interval must be between 1s and 10m"
// +kubebuilder:validation:XValidation:rule="!has(self.settle) || (duration(self.settle) >= duration('0s') && duration(self.settle) <= duration('1h'))",message="settle must be between 0s and 1h"
// +kubebuilder:validation:XValidation:rule="!has(self.alpha) || (double(self.alpha) >= 0.001 && double(self.alpha) <= 0.5)",message="alpha must be between 0.001 and 0.5"
type RolloutAnalysis struct {
	// prometheus is where metrics are asked for.
	// +optional
	Prometheus PrometheusSource `json:"prometheus,omitzero"`

	// interval is how often the metrics are read, 1s to 10m.
	// +optional
	// +kubebuilder:default="15s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	Interval *metav1.Duration `json:"interval,omitempty"`

	// settle is how long after every change of the weights requests are not counted, 0s to 1h: until the mesh has the new
	// weights and a scrape has passed.
	// +optional
	// +kubebuilder:default="15s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	Settle *metav1.Duration `json:"settle,omitempty"`

	// alpha is the probability, at most, that a rollout turns back a canary which is within all its bounds, over all
	// metrics, all steps and all looks together: 0.001 to 0.5.
	// +optional
	// +kubebuilder:default="0.05"
	// +kubebuilder:validation:MaxLength=8
	// +kubebuilder:validation:Pattern=`^0\.[0-9]+$`
	Alpha string `json:"alpha,omitempty"`

	// minSamples is how many requests of the canary a metric must have counted before it can pass, 1 to 1000000000. A
	// metric can fail with fewer, since that takes a proof in any case.
	// +optional
	// +kubebuilder:default=200
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	MinSamples int64 `json:"minSamples,omitempty"`

	// metrics are what is measured.
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=12
	Metrics []AnalysisMetric `json:"metrics"`

	// onNoData says what a metric counts as that has seen nothing at all since the weights are in force, once five
	// intervals have passed and the step's duration is over.
	// +optional
	// +kubebuilder:default=Inconclusive
	OnNoData NoDataPolicy `json:"onNoData,omitempty"`

	// onInconclusive says what becomes of a step whose maxDuration is over while metrics that have their samples are
	// inconclusive. Hold waits for a proof or a person. Advance goes on.
	// +optional
	// +kubebuilder:default=Hold
	OnInconclusive InconclusivePolicy `json:"onInconclusive,omitempty"`

	// onProviderError says what becomes of a canary whose metrics cannot be read.
	// +optional
	// +kubebuilder:default={action: Hold, after: "5m"}
	OnProviderError ProviderErrorPolicy `json:"onProviderError,omitzero"`
}

// PrometheusSource is a Prometheus and how its series name pods.
type PrometheusSource struct {
	// url is the address of the Prometheus API, without credentials. When unset, the one that the manager was started
	// with.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:Pattern=`^https?://[^@\s?#]+$`
	URL string `json:"url,omitempty"`

	// namespaceLabel is the label that holds a pod's namespace.
	// +optional
	// +kubebuilder:default=namespace
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-zA-Z_][a-zA-Z0-9_]*$`
	NamespaceLabel string `json:"namespaceLabel,omitempty"`

	// podLabel is the label that holds a pod's name.
	// +optional
	// +kubebuilder:default=pod
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-zA-Z_][a-zA-Z0-9_]*$`
	PodLabel string `json:"podLabel,omitempty"`
}

// AnalysisMetric is something measured of a canary, and its bound.
//
// In queries, $side stands for the labels that tell one side's pods, such as namespace="ml",pod=~"fraud-v2-predictor-...",
// $service and $namespace for the Service and namespace of the side, and $window for a time such as 60s over which rates
// are taken.
//
// +kubebuilder:validation:XValidation:rule="(has(self.builtin) ? 1 : 0) + (has(self.share) ? 1 : 0) + (has(self.histogram) ? 1 : 0) + (has(self.value) ? 1 : 0) == 1",message="give exactly one of builtin, share, histogram and value"
// +kubebuilder:validation:XValidation:rule="(has(self.compare) ? 1 : 0) + (has(self.threshold) ? 1 : 0) + (has(self.burnRate) ? 1 : 0) == 1",message="give exactly one of compare, threshold and burnRate"
// +kubebuilder:validation:XValidation:rule="!has(self.burnRate) || has(self.share) || (has(self.builtin) && self.builtin.endsWith('error-rate'))",message="burnRate needs a share of errors: share, or a builtin that ends in error-rate"
// +kubebuilder:validation:XValidation:rule="!has(self.compare) || !has(self.compare.maxIncrease) || has(self.share) || (has(self.builtin) && self.builtin.endsWith('error-rate'))",message="maxIncrease is for shares; use maxIncreasePercent or maxDecreasePercent"
// +kubebuilder:validation:XValidation:rule="!has(self.compare) || has(self.compare.maxIncrease) || !(has(self.share) || (has(self.builtin) && self.builtin.endsWith('error-rate')))",message="a share is compared by maxIncrease, in absolute terms: the percentage of next to nothing says nothing"
// +kubebuilder:validation:XValidation:rule="!has(self.compare) || !has(self.compare.maxDecreasePercent) || has(self.value) || has(self.builtin)",message="maxDecreasePercent is for values"
// +kubebuilder:validation:XValidation:rule="!has(self.compare) || !has(self.compare.test) || self.compare.test != 'MannWhitney' || has(self.histogram) || (has(self.builtin) && self.builtin.matches('-p[0-9]+$'))",message="test MannWhitney needs a histogram"
type AnalysisMetric struct {
	// name tells the metric from others.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`

	// builtin is a metric that needs no query. error-rate and latency-* are Istio's; the others need the pods of the two
	// sides to be scraped.
	// +optional
	Builtin BuiltinMetric `json:"builtin,omitempty"`

	// share is a share of requests, such as errors, from two counters.
	// +optional
	Share *ShareQuery `json:"share,omitempty"`

	// histogram is how a time, or something else, spreads over the requests.
	// +optional
	Histogram *HistogramQuery `json:"histogram,omitempty"`

	// value is any number. Since it does not come with a number of requests, each interval is one sample: the metric
	// fails once the intervals in which it was beyond its bound are more than half, beyond chance.
	// +optional
	Value *ValueQuery `json:"value,omitempty"`

	// compare tolerates a difference from stable.
	// +optional
	Compare *CompareBound `json:"compare,omitempty"`

	// threshold bounds the canary by itself.
	// +optional
	Threshold *ThresholdBound `json:"threshold,omitempty"`

	// burnRate bounds how fast the canary uses up an error budget.
	// +optional
	BurnRate *BurnRateBound `json:"burnRate,omitempty"`

	// dryRun has the metric give verdicts that count for nothing.
	// +optional
	DryRun bool `json:"dryRun,omitempty"`
}

// BuiltinMetric names a metric that needs no query.
//
// +enum
// +kubebuilder:validation:Enum=error-rate;latency-p50;latency-p95;latency-p99;vllm/ttft-p95;vllm/ttft-p99;vllm/itl-p95;vllm/latency-p95;vllm/queue-p95;vllm/tokens-per-second;vllm/waiting;vllm/kv-cache;triton/error-rate;triton/ttft-p95;triton/latency;triton/queue;triton/gpu-utilization;dcgm/gpu-utilization;dcgm/gpu-memory
type BuiltinMetric string

// ShareQuery is a share of requests.
//
// +kubebuilder:validation:XValidation:rule="[self.events, self.total].all(q, q.contains('$side') || q.contains('$service'))",message="events and total must contain $side or $service, or the two sides could not be told apart"
type ShareQuery struct {
	// events selects the counters of the requests that count, such as http_requests_total{code=~"5..",$side}.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Events string `json:"events"`

	// total selects the counters of all requests, such as http_requests_total{$side}.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Total string `json:"total"`
}

// HistogramQuery is how something spreads over the requests.
//
// +kubebuilder:validation:XValidation:rule="self.buckets.contains('$side') || self.buckets.contains('$service')",message="buckets must contain $side or $service, or the two sides could not be told apart"
// +kubebuilder:validation:XValidation:rule="!has(self.quantile) || double(self.quantile) >= 0.01",message="quantile must be between 0.01 and 0.999"
type HistogramQuery struct {
	// buckets selects the bucket counters of a histogram, such as http_request_duration_seconds_bucket{$side}.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Buckets string `json:"buckets"`

	// quantile is the one that is looked at, 0.01 to 0.999; test MannWhitney looks at the whole instead.
	// +optional
	// +kubebuilder:default="0.95"
	// +kubebuilder:validation:MaxLength=5
	// +kubebuilder:validation:Pattern=`^0\.[0-9]+$`
	Quantile string `json:"quantile,omitempty"`
}

// ValueQuery is any number.
//
// +kubebuilder:validation:XValidation:rule="self.query.contains('$side') || self.query.contains('$service')",message="query must contain $side or $service, or the two sides could not be told apart"
type ValueQuery struct {
	// query is a PromQL expression that gives one number.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	Query string `json:"query"`
}

// CompareBound tolerates a difference from stable.
//
// +kubebuilder:validation:XValidation:rule="(has(self.maxIncrease) ? 1 : 0) + (has(self.maxIncreasePercent) ? 1 : 0) + (has(self.maxDecreasePercent) ? 1 : 0) == 1",message="give exactly one of maxIncrease, maxIncreasePercent and maxDecreasePercent"
type CompareBound struct {
	// test is SequentialRatio or MannWhitney. The first compares rates and quantiles, exactly at every look. The second
	// compares histograms as a whole: it sees a shift of the bulk, not one of the tail.
	// +optional
	// +kubebuilder:default=SequentialRatio
	Test ComparisonTest `json:"test,omitempty"`

	// maxIncrease is by how much a share may be above stable's, 0.005 for half a percentage point.
	// +optional
	// +kubebuilder:validation:MaxLength=10
	// +kubebuilder:validation:Pattern=`^0(\.[0-9]+)?$`
	MaxIncrease string `json:"maxIncrease,omitempty"`

	// maxIncreasePercent is by how many percent the metric may be above stable's, 0 to 1000.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	MaxIncreasePercent *int32 `json:"maxIncreasePercent,omitempty"`

	// maxDecreasePercent is by how many percent a value may be below stable's, 0 to 100.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	MaxDecreasePercent *int32 `json:"maxDecreasePercent,omitempty"`
}

// ComparisonTest is how the canary is compared with stable.
//
// +enum
// +kubebuilder:validation:Enum=SequentialRatio;MannWhitney
type ComparisonTest string

// Ways to compare.
const (
	// TestSequentialRatio compares rates and quantiles by likelihood ratios.
	TestSequentialRatio ComparisonTest = "SequentialRatio"
	// TestMannWhitney compares histograms by ranks.
	TestMannWhitney ComparisonTest = "MannWhitney"
)

// ThresholdBound bounds the canary by itself.
//
// +kubebuilder:validation:XValidation:rule="has(self.max) != has(self.min)",message="give either max or min"
type ThresholdBound struct {
	// max is the most that the metric may be: of a share, of a quantile in the histogram's own unit, or of a value.
	// +optional
	// +kubebuilder:validation:MaxLength=24
	// +kubebuilder:validation:Pattern=`^-?[0-9]+(\.[0-9]+)?$`
	Max string `json:"max,omitempty"`

	// min is the least that the metric may be.
	// +optional
	// +kubebuilder:validation:MaxLength=24
	// +kubebuilder:validation:Pattern=`^-?[0-9]+(\.[0-9]+)?$`
	Min string `json:"min,omitempty"`
}

// BurnRateBound bounds how fast the canary uses up an error budget. It is quick with great harm and proves nothing: unlike
// the other bounds it has no part in alpha.
//
// +kubebuilder:validation:XValidation:rule="self.windows.all(w, duration(w) >= duration('10s') && duration(w) <= duration('24h'))",message="windows must be between 10s and 24h"
type BurnRateBound struct {
	// objective is the share of requests that must not be errors, such as 0.995.
	// +required
	// +kubebuilder:validation:MaxLength=10
	// +kubebuilder:validation:Pattern=`^0\.[0-9]+$`
	Objective string `json:"objective"`

	// windows are the times over which errors are counted, such as 5m and 1h, never further back than the weights are in
	// force. The metric fails when the rate is too high in all of them.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	// +kubebuilder:validation:items:MaxLength=24
	// +kubebuilder:validation:items:Pattern=`^[0-9]+(s|m|h)$`
	Windows []string `json:"windows"`

	// max is how many times faster than the objective allows the budget may be used, such as 6.
	// +required
	// +kubebuilder:validation:MaxLength=10
	// +kubebuilder:validation:Pattern=`^[0-9]+(\.[0-9]+)?$`
	Max string `json:"max"`
}

// NoDataPolicy says what a metric counts as that has seen nothing.
//
// +enum
// +kubebuilder:validation:Enum=Inconclusive;Fail;Pass
type NoDataPolicy string

// What a metric counts as that has seen nothing.
const (
	// NoDataInconclusive neither promotes nor turns back.
	NoDataInconclusive NoDataPolicy = "Inconclusive"
	// NoDataFail turns the canary back.
	NoDataFail NoDataPolicy = "Fail"
	// NoDataPass does not mind.
	NoDataPass NoDataPolicy = "Pass"
)

// InconclusivePolicy says what becomes of a step that is over without a proof.
//
// +enum
// +kubebuilder:validation:Enum=Hold;Advance
type InconclusivePolicy string

// What becomes of a step that is over without a proof.
const (
	// InconclusiveHold waits for a proof or a person.
	InconclusiveHold InconclusivePolicy = "Hold"
	// InconclusiveAdvance goes on.
	InconclusiveAdvance InconclusivePolicy = "Advance"
)

// ProviderErrorPolicy says what becomes of a canary whose metrics cannot be read.
//
// +kubebuilder:validation:XValidation:rule="!has(self.after) || (duration(self.after) >= duration('1s') && duration(self.after) <= duration('24h'))",message="after must be between 1s and 24h"
type ProviderErrorPolicy struct {
	// action is Hold or Rollback. Hold takes no step until the metrics can be read again. Rollback turns the canary back
	// when they could not be read for as long as after says.
	// +optional
	// +kubebuilder:default=Hold
	Action OnFailure `json:"action,omitempty"`

	// after is how long the metrics must have been unreadable, 1s to 24h.
	// +optional
	// +kubebuilder:default="5m"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	After *metav1.Duration `json:"after,omitempty"`
}

// VerdictResult is what a metric says of a canary.
type VerdictResult string

// What a metric says of a canary.
const (
	// VerdictPass says that the canary is proved to be within its bound.
	VerdictPass VerdictResult = "Pass"
	// VerdictFail says that the canary is proved to be beyond its bound.
	VerdictFail VerdictResult = "Fail"
	// VerdictInconclusive says that neither is proved.
	VerdictInconclusive VerdictResult = "Inconclusive"
	// VerdictError says that the metric could not be read.
	VerdictError VerdictResult = "Error"
)

// MetricVerdict is what a metric says of a canary, and by what evidence.
type MetricVerdict struct {
	// metric is its name.
	// +required
	// +kubebuilder:validation:MaxLength=32
	Metric string `json:"metric"`

	// result is Pass, Fail, Inconclusive or Error.
	// +optional
	Result VerdictResult `json:"result,omitempty"`

	// estimate is what was measured, such as +3.1%.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	Estimate string `json:"estimate,omitempty"`

	// interval is between what ends the truth lies, such as "-1.2% to +7.9%".
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Interval string `json:"interval,omitempty"`

	// bound is what is tolerated.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Bound string `json:"bound,omitempty"`

	// samples is the number of the canary's requests, or intervals, that the verdict comes from.
	// +optional
	Samples int64 `json:"samples,omitempty"`

	// dryRun tells that the verdict counts for nothing.
	// +optional
	DryRun bool `json:"dryRun,omitempty"`

	// message says what keeps the metric from passing, empty if nothing does.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Message string `json:"message,omitempty"`
}
