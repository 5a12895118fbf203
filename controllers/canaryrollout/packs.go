// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"serverless.xyz/outrigger/apis/v1alpha1"
)

// probe is how a metric is read: by exactly one of share, histogram and value.
type probe struct {
	share *v1alpha1.ShareQuery
	// also selects counters of events that those of the share leave out, empty for none.
	also string
	// apart tells that the share's total does not include its events.
	apart     bool
	histogram *v1alpha1.HistogramQuery
	value     *v1alpha1.ValueQuery
}

// istio are the labels of requests that a side's own proxies report. Those that callers report would hide what a retry
// has mended.
const istio = `reporter="destination",destination_workload_namespace="$namespace",destination_workload="$service"$pods`

// grpcFailures are the codes of gRPC that stand for what HTTP answers with 500 to 599: UNKNOWN, DEADLINE_EXCEEDED,
// UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS. HTTP's own code is 200 then.
const grpcFailures = `2|4|12|13|14|15`

// packs are the metrics that need no query. The names are those of Istio 1.22 and newer, vLLM's engine V1, Triton 2.50
// and newer (its first-response histogram needs --metrics-config histogram_latencies=true), and NVIDIA's DCGM exporter.
var packs = map[v1alpha1.BuiltinMetric]probe{
	"error-rate": {
		share: &v1alpha1.ShareQuery{
			Events: `istio_requests_total{` + istio + `,response_code=~"5.."}`, Total: `istio_requests_total{` + istio + `}`,
		},
		also: `istio_requests_total{` + istio + `,response_code!~"5..",grpc_response_status=~"` + grpcFailures + `"}`,
	},
	"latency-p50": quantile(`istio_request_duration_milliseconds_bucket{`+istio+`}`, "0.5"),
	"latency-p95": quantile(`istio_request_duration_milliseconds_bucket{`+istio+`}`, "0.95"),
	"latency-p99": quantile(`istio_request_duration_milliseconds_bucket{`+istio+`}`, "0.99"),

	"vllm/ttft-p95":    quantile(`vllm:time_to_first_token_seconds_bucket{$side}`, "0.95"),
	"vllm/ttft-p99":    quantile(`vllm:time_to_first_token_seconds_bucket{$side}`, "0.99"),
	"vllm/itl-p95":     quantile(`vllm:inter_token_latency_seconds_bucket{$side}`, "0.95"),
	"vllm/latency-p95": quantile(`vllm:e2e_request_latency_seconds_bucket{$side}`, "0.95"),
	"vllm/queue-p95":   quantile(`vllm:request_queue_time_seconds_bucket{$side}`, "0.95"),
	// Of each request in flight: a side with a tenth of the requests makes a tenth of the tokens.
	"vllm/tokens-per-second": value(`sum(rate(vllm:generation_tokens_total{$side}[$window])) / ` +
		`sum(avg_over_time(vllm:num_requests_running{$side}[$window]))`),
	"vllm/waiting":  value(`avg(avg_over_time(vllm:num_requests_waiting{$side}[$window]))`),
	"vllm/kv-cache": value(`avg(avg_over_time(vllm:kv_cache_usage_perc{$side}[$window]))`),

	"triton/error-rate": {apart: true, share: &v1alpha1.ShareQuery{
		Events: `nv_inference_request_failure{$side}`, Total: `nv_inference_request_success{$side}`,
	}},
	"triton/ttft-p95": quantile(`nv_inference_first_response_histogram_ms_bucket{$side}`, "0.95"),
	"triton/latency": value(`sum(rate(nv_inference_request_duration_us{$side}[$window])) / ` +
		`sum(rate(nv_inference_request_success{$side}[$window]))`),
	"triton/queue":           value(`avg(avg_over_time(nv_inference_pending_request_count{$side}[$window]))`),
	"triton/gpu-utilization": value(`avg(avg_over_time(nv_gpu_utilization{$side}[$window]))`),

	"dcgm/gpu-utilization": value(`avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL{$side}[$window]))`),
	"dcgm/gpu-memory":      value(`avg(avg_over_time(DCGM_FI_DEV_FB_USED{$side}[$window]))`),
}

// probeOf returns how a metric is read.
func probeOf(metric *v1alpha1.AnalysisMetric) probe {
	if metric.Builtin != "" {
		return packs[metric.Builtin]
	}
	return probe{share: metric.Share, histogram: metric.Histogram, value: metric.Value}
}

func quantile(buckets, quantile string) probe {
	return probe{histogram: &v1alpha1.HistogramQuery{Buckets: buckets, Quantile: quantile}}
}

func value(query string) probe {
	return probe{value: &v1alpha1.ValueQuery{Query: query}}
}
