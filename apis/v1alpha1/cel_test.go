// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/test/testbed"
)

// rules holds, for every rule and bound of the kinds, one spec that is taken and one that is refused, with what the
// refusal must say.
var rules = map[string]struct {
	kind, name       string
	taken, refused   string
	refusedName      string
	wantField, wants string
}{
	"size has a lower bound":  {kind: "Memcached", taken: "size: 0", refused: "size: -1", wantField: "spec.size"},
	"size has an upper bound": {kind: "Memcached", taken: "size: 100", refused: "size: 101", wantField: "spec.size"},
	"size is required":        {kind: "Memcached", taken: "size: 1", refused: "{}", wantField: "spec.size"},
	"coldStartBuffer has a bound": {
		kind:      "Memcached",
		taken:     "{size: 1, coldStartBuffer: 100}",
		refused:   "{size: 1, coldStartBuffer: 101}",
		wantField: "spec.coldStartBuffer",
	},
	"scalingWindow is at most a day": {
		kind:    "Memcached",
		taken:   "{size: 1, scalingWindow: 24h}",
		refused: "{size: 1, scalingWindow: 25h}",
		wants:   "scalingWindow must be between 0s and 24h",
	},
	"scalingWindow is not negative": {
		kind:    "Memcached",
		taken:   "{size: 1, scalingWindow: 0s}",
		refused: "{size: 1, scalingWindow: -1s}",
		wants:   "scalingWindow must be between 0s and 24h",
	},
	"scalingWindow is a duration": {
		kind:      "Memcached",
		taken:     "{size: 1, scalingWindow: 1m30s}",
		refused:   "{size: 1, scalingWindow: soon}",
		wantField: "spec",
	},
	"memory has a lower bound": {
		kind:    "Memcached",
		taken:   "{size: 1, instance: {memory: 16Mi}}",
		refused: "{size: 1, instance: {memory: 15Mi}}",
		wants:   "memory must be between 16Mi and 1Ti",
	},
	"memory has an upper bound": {
		kind:    "Memcached",
		taken:   "{size: 1, instance: {memory: 1Ti}}",
		refused: "{size: 1, instance: {memory: 2Ti}}",
		wants:   "memory must be between 16Mi and 1Ti",
	},
	"items are smaller than memory": {
		kind:    "Memcached",
		taken:   "{size: 1, instance: {memory: 64Mi, maxItemSize: 32Mi}}",
		refused: "{size: 1, instance: {memory: 64Mi, maxItemSize: 33Mi}}",
		wants:   "maxItemSize must be at most half of memory",
	},
	"items have a lower bound": {
		kind:    "Memcached",
		taken:   "{size: 1, instance: {maxItemSize: 512Ki}}",
		refused: "{size: 1, instance: {maxItemSize: 0}}",
		wants:   "maxItemSize must be between 512Ki and 512Mi",
	},
	"items have an upper bound": {
		kind:    "Memcached",
		taken:   "{size: 1, instance: {memory: 2Gi, maxItemSize: 512Mi}}",
		refused: "{size: 1, instance: {memory: 2Gi, maxItemSize: 513Mi}}",
		wants:   "maxItemSize must be between 512Ki and 512Mi",
	},
	"maxItemSize is what memcached can divide": {
		kind:    "Memcached",
		taken:   "{size: 1, instance: {maxItemSize: 1536Ki}}",
		refused: "{size: 1, instance: {maxItemSize: 1500k}}",
		wants:   "maxItemSize must be a whole multiple of 512Ki",
	},
	"threads are bounded": {
		kind:      "Memcached",
		taken:     "{size: 1, instance: {threads: 64}}",
		refused:   "{size: 1, instance: {threads: 65}}",
		wantField: "spec.instance.threads",
	},
	"connections are bounded": {
		kind:      "Memcached",
		taken:     "{size: 1, instance: {maxConnections: 16}}",
		refused:   "{size: 1, instance: {maxConnections: 15}}",
		wantField: "spec.instance.maxConnections",
	},
	"the name starts with a letter": {
		kind:        "Memcached",
		taken:       "size: 1",
		refused:     "size: 1",
		refusedName: "1st",
		wants:       "metadata.name must be a DNS label of at most 46 characters",
	},
	"the name has no dots": {
		kind:        "Memcached",
		taken:       "size: 1",
		refused:     "size: 1",
		refusedName: "a.b",
		wants:       "metadata.name must be a DNS label of at most 46 characters",
	},
	"the name is short": {
		kind:        "Memcached",
		name:        strings.Repeat("a", 46),
		taken:       "size: 1",
		refused:     "size: 1",
		refusedName: strings.Repeat("a", 47),
		wants:       "metadata.name must be a DNS label of at most 46 characters",
	},
	"steps do not go back": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {steps: [{setPercent: 10}, {pause: {}}, {setPercent: 10}, {setPercent: 100}]}}",
		refused: sides + ", strategy: {steps: [{setPercent: 50}, {pause: {}}, {setPercent: 10}]}}",
		wants:   "steps must not lower setPercent",
	},
	"steps set a weight": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {steps: [{pause: {}}, {setPercent: 1}]}}",
		refused: sides + ", strategy: {steps: [{pause: {}}]}}",
		wants:   "steps need at least one setPercent",
	},
	"steps are needed": {
		kind:      "CanaryRollout",
		taken:     sides + ", strategy: {steps: [{setPercent: 100}]}}",
		refused:   sides + ", strategy: {bake: 1m}}",
		wantField: "spec.strategy.steps",
	},
	"a step gives the canary something": {
		kind:      "CanaryRollout",
		taken:     sides + ", strategy: {steps: [{setPercent: 1}]}}",
		refused:   sides + ", strategy: {steps: [{setPercent: 0}]}}",
		wantField: "spec.strategy.steps[0].setPercent",
	},
	"a step gives the canary no more than all": {
		kind:      "CanaryRollout",
		taken:     sides + ", strategy: {steps: [{setPercent: 100}]}}",
		refused:   sides + ", strategy: {steps: [{setPercent: 101}]}}",
		wantField: "spec.strategy.steps[0].setPercent",
	},
	"a step is one thing": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {steps: [{setPercent: 1, hold: {duration: 10m}}]}}",
		refused: sides + ", strategy: {steps: [{setPercent: 1}, {setPercent: 2, pause: {}}]}}",
		wants:   "give either setPercent or pause",
	},
	"a pause has no hold": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {steps: [{setPercent: 1}, {pause: {}}]}}",
		refused: sides + ", strategy: {steps: [{setPercent: 1}, {pause: {}, hold: {duration: 1m}}]}}",
		wants:   "hold belongs to setPercent",
	},
	"a hold is at most a week": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {steps: [{setPercent: 1, hold: {duration: 168h}}]}}",
		refused: sides + ", strategy: {steps: [{setPercent: 1, hold: {duration: 169h}}]}}",
		wants:   "duration must be between 0s and 168h",
	},
	"a bake is at most a week": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {bake: 168h, steps: [{setPercent: 1}]}}",
		refused: sides + ", strategy: {bake: 169h, steps: [{setPercent: 1}]}}",
		wants:   "bake must be between 0s and 168h",
	},
	"a deadline is at least a second": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {progressDeadline: 1s, steps: [{setPercent: 1}]}}",
		refused: sides + ", strategy: {progressDeadline: 0s, steps: [{setPercent: 1}]}}",
		wants:   "progressDeadline must be between 1s and 720h",
	},
	"steps and canaryPercent exclude each other": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {steps: [{setPercent: 1}]}, canaryPercent: 0}",
		refused: sides + ", strategy: {steps: [{setPercent: 1}]}, canaryPercent: 5}",
		wants:   "canaryPercent and strategy exclude each other",
	},
	"suspend needs steps": {
		kind:    "CanaryRollout",
		taken:   sides + ", strategy: {steps: [{setPercent: 1}]}, suspend: true}",
		refused: sides + ", suspend: true}",
		wants:   "suspend stops the steps of a strategy",
	},
	"an analysis belongs to steps": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wants:   "analysis belongs to the steps of a strategy",
	},
	"samples are those of an analysis": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1, hold: {minSamples: 1}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1, hold: {minSamples: 1}}]}}`,
		wants:   "minSamples and maxDuration wait for an analysis",
	},
	"a proof is that of an analysis": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1, hold: {maxDuration: 1h}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1, hold: {maxDuration: 1h}}]}}`,
		wants:   "minSamples and maxDuration wait for an analysis",
	},
	"samples are counted by a metric of requests": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1, hold: {minSamples: 1}}]}, analysis: {metrics: [{name: w, builtin: vllm/waiting, threshold: {max: "9"}}, {name: t, builtin: vllm/ttft-p95, threshold: {max: "1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1, hold: {minSamples: 1}}]}, analysis: {metrics: [{name: w, builtin: vllm/waiting, threshold: {max: "9"}}, {name: e, builtin: error-rate, dryRun: true, threshold: {max: "0.01"}}]}}`,
		wants:   "hold.minSamples counts requests, and no metric does",
	},
	"maxDuration is at most a week": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1, hold: {maxDuration: 168h}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1, hold: {maxDuration: 169h}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wants:   "maxDuration must be between 1s and 168h",
	},
	"maxDuration is not shorter than duration": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1, hold: {duration: 1h, maxDuration: 1h}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1, hold: {duration: 1h, maxDuration: 59m}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wants:   "maxDuration must not be shorter than duration",
	},
	"minSamples of a step is positive": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1, hold: {minSamples: 1}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1, hold: {minSamples: 0}}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.strategy.steps[0].hold.minSamples",
	},
	"an analysis is not in a hurry": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {interval: 1s, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {interval: 500ms, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wants:   "interval must be between 1s and 10m",
	},
	"an analysis settles within an hour": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {settle: 1h, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {settle: 61m, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wants:   "settle must be between 0s and 1h",
	},
	"alpha is a probability": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {alpha: "0.001", metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {alpha: "0.0001", metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wants:   "alpha must be between 0.001 and 0.5",
	},
	"alpha is a number": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {alpha: "0.5", metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {alpha: "1", metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.alpha",
	},
	"minSamples of an analysis is positive": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {minSamples: 1, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {minSamples: 0, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.minSamples",
	},
	"an analysis has metrics": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: []}}`,
		wantField: "spec.analysis.metrics",
	},
	"onNoData is known": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onNoData: Pass, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onNoData: Retry, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.onNoData",
	},
	"onInconclusive is known": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onInconclusive: Advance, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onInconclusive: Retry, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.onInconclusive",
	},
	"onProviderError is known": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onProviderError: {action: Rollback}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onProviderError: {action: Retry}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.onProviderError.action",
	},
	"onProviderError waits a day at most": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onProviderError: {after: 24h}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {onProviderError: {after: 25h}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wants:   "after must be between 1s and 24h",
	},
	"a Prometheus has no credentials in its address": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {prometheus: {url: "http://prometheus:9090/p"}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {prometheus: {url: "http://me:secret@prometheus:9090"}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.prometheus.url",
	},
	"a Prometheus is asked by HTTP": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {prometheus: {url: "https://prometheus"}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {prometheus: {url: "file:///etc/passwd"}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.prometheus.url",
	},
	"a label of a Prometheus is one": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {prometheus: {podLabel: kubernetes_pod}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {prometheus: {podLabel: "a=~'.*',b"}, metrics: [{name: e, builtin: error-rate, threshold: {max: "0.01"}}]}}`,
		wantField: "spec.analysis.prometheus.podLabel",
	},
	"a metric is one thing": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, value: {query: "q{$side}"}, threshold: {max: "0.1"}}]}}`,
		wants:   "give exactly one of builtin, share, histogram and value",
	},
	"a metric has one bound": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.1"}, compare: {maxIncrease: "0.1"}}]}}`,
		wants:   "give exactly one of compare, threshold and burnRate",
	},
	"a builtin is known": {
		kind:      "CanaryRollout",
		taken:     sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: vllm/ttft-p95, threshold: {max: "1"}}]}}`,
		refused:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: magic, threshold: {max: "1"}}]}}`,
		wantField: "spec.analysis.metrics[0].builtin",
	},
	"a burn rate is that of errors": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: triton/error-rate, burnRate: {objective: "0.99", windows: [5m], max: "6"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: latency-p95, burnRate: {objective: "0.99", windows: [5m], max: "6"}}]}}`,
		wants:   "burnRate needs a share of errors",
	},
	"the windows of a burn rate are not short": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, burnRate: {objective: "0.99", windows: [10s, 24h], max: "6"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, burnRate: {objective: "0.99", windows: [9s], max: "6"}}]}}`,
		wants:   "windows must be between 10s and 24h",
	},
	"maxIncrease is for shares": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, compare: {maxIncrease: "0.01"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: latency-p95, compare: {maxIncrease: "0.01"}}]}}`,
		wants:   "maxIncrease is for shares",
	},
	"a share is compared in points": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, compare: {maxIncrease: "0"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, compare: {maxIncreasePercent: 10}}]}}`,
		wants:   "a share is compared by maxIncrease",
	},
	"less is bad of values only": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, value: {query: "q{$side}"}, compare: {maxDecreasePercent: 10}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, histogram: {buckets: "b{$side}"}, compare: {maxDecreasePercent: 10}}]}}`,
		wants:   "maxDecreasePercent is for values",
	},
	"ranks are those of histograms": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: latency-p95, compare: {test: MannWhitney, maxIncreasePercent: 10}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: vllm/waiting, compare: {test: MannWhitney, maxIncreasePercent: 10}}]}}`,
		wants:   "test MannWhitney needs a histogram",
	},
	"a comparison has one bound": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, value: {query: "q{$side}"}, compare: {maxIncreasePercent: 10}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, value: {query: "q{$side}"}, compare: {maxIncreasePercent: 10, maxDecreasePercent: 10}}]}}`,
		wants:   "give exactly one of maxIncrease, maxIncreasePercent and maxDecreasePercent",
	},
	"a threshold has one end": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, builtin: error-rate, threshold: {max: "0.1", min: "0"}}]}}`,
		wants:   "give either max or min",
	},
	"a share tells the sides apart": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, share: {events: "e{$side}", total: "t{$side}"}, threshold: {max: "0.1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, share: {events: "e{$side}", total: "t"}, threshold: {max: "0.1"}}]}}`,
		wants:   "events and total must contain $side or $service",
	},
	"a histogram tells the sides apart": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, histogram: {buckets: "b{a=\"$service\"}"}, threshold: {max: "0.1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, histogram: {buckets: "b"}, threshold: {max: "0.1"}}]}}`,
		wants:   "buckets must contain $side or $service",
	},
	"a value tells the sides apart": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, value: {query: "q{$side}"}, threshold: {max: "0.1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, value: {query: "q"}, threshold: {max: "0.1"}}]}}`,
		wants:   "query must contain $side or $service",
	},
	"a quantile is not the least": {
		kind:    "CanaryRollout",
		taken:   sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, histogram: {buckets: "b{$side}", quantile: "0.01"}, threshold: {max: "0.1"}}]}}`,
		refused: sides + `, strategy: {steps: [{setPercent: 1}]}, analysis: {metrics: [{name: e, histogram: {buckets: "b{$side}", quantile: "0.001"}, threshold: {max: "0.1"}}]}}`,
		wants:   "quantile must be between 0.01 and 0.999",
	},
	"a warm-up has a path": {
		kind:      "CanaryRollout",
		taken:     sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}}}`,
		refused:   sides + `, warmup: {request: {path: models, body: b}}}`,
		wantField: "spec.warmup.request.path",
	},
	"a warm-up has a body": {
		kind:      "CanaryRollout",
		taken:     sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}}}`,
		refused:   sides + `, warmup: {request: {path: /m, body: ""}}}`,
		wantField: "spec.warmup.request.body",
	},
	"a warm-up's type is one": {
		kind:      "CanaryRollout",
		taken:     sides + `, warmup: {request: {path: /m, body: b, contentType: application/octet-stream}}}`,
		refused:   sides + `, warmup: {request: {path: /m, body: b, contentType: "a/b\r\nx: y"}}}`,
		wantField: "spec.warmup.request.contentType",
	},
	"a warm-up takes requests": {
		kind:      "CanaryRollout",
		taken:     sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}, count: 1}}`,
		refused:   sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}, count: 0}}`,
		wantField: "spec.warmup.count",
	},
	"a warm-up waits ten minutes at most": {
		kind:    "CanaryRollout",
		taken:   sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}, timeout: 10m}}`,
		refused: sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}, timeout: 11m}}`,
		wants:   "timeout must be between 1s and 10m",
	},
	"maxLatency is not nothing": {
		kind:    "CanaryRollout",
		taken:   sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}, maxLatency: 1ms}}`,
		refused: sides + `, warmup: {request: {path: /v2/models/m/infer, body: b}, maxLatency: 0s}}`,
		wants:   "maxLatency must be between 1ms and 10m",
	},
	"pods carry something": {
		kind:      "CanaryRollout",
		taken:     sides + `, capacity: {podsForAllTraffic: 1}}`,
		refused:   sides + `, capacity: {podsForAllTraffic: 0}}`,
		wantField: "spec.capacity.podsForAllTraffic",
	},
	"headroom is bounded": {
		kind:      "CanaryRollout",
		taken:     sides + `, capacity: {headroomPercent: 200}}`,
		refused:   sides + `, capacity: {headroomPercent: 201}}`,
		wantField: "spec.capacity.headroomPercent",
	},
	"what becomes of a small stable is known": {
		kind:      "CanaryRollout",
		taken:     sides + `, capacity: {stable: Ignore}}`,
		refused:   sides + `, capacity: {stable: Scale}}`,
		wantField: "spec.capacity.stable",
	},
	"a policy does something": {
		kind:    "SidecarPolicy",
		taken:   "preload: {}",
		refused: "priority: 1",
		wants:   "a policy needs preload, featureCache, containers",
	},
	"priority is bounded": {
		kind:      "SidecarPolicy",
		taken:     "{preload: {}, priority: 1000}",
		refused:   "{preload: {}, priority: 1001}",
		wantField: "spec.priority",
	},
	"components are known": {
		kind:      "SidecarPolicy",
		taken:     "{preload: {}, components: [Predictor, Transformer]}",
		refused:   "{preload: {}, components: [Explainer]}",
		wantField: "spec.components[0]",
	},
	"verify is known": {
		kind:      "SidecarPolicy",
		taken:     "preload: {verify: Require}",
		refused:   "preload: {verify: Maybe}",
		wantField: "spec.preload.verify",
	},
	"io is known": {
		kind:      "SidecarPolicy",
		taken:     "preload: {io: Bounded}",
		refused:   "preload: {io: Cold}",
		wantField: "spec.preload.io",
	},
	"what is done about GPUs is known": {
		kind:      "SidecarPolicy",
		taken:     `preload: {gpu: "Off"}`,
		refused:   "preload: {gpu: Warm}",
		wantField: "spec.preload.gpu",
	},
	"the mode of a cache is known": {
		kind:      "SidecarPolicy",
		taken:     "featureCache: {memcachedRef: {name: a}, mode: Shared}",
		refused:   "featureCache: {memcachedRef: {name: a}, mode: Cluster}",
		wantField: "spec.featureCache.mode",
	},
	"rollout is known": {
		kind:      "SidecarPolicy",
		taken:     "{preload: {}, rollout: Always}",
		refused:   "{preload: {}, rollout: Never}",
		wantField: "spec.rollout",
	},
	"onMissedInjection is known": {
		kind:      "SidecarPolicy",
		taken:     "{preload: {}, onMissedInjection: Restart}",
		refused:   "{preload: {}, onMissedInjection: Evict}",
		wantField: "spec.onMissedInjection",
	},
	"sidecars are objects": {
		kind:      "SidecarPolicy",
		taken:     "containers: [{name: c, image: i}]",
		refused:   "containers: [c]",
		wantField: "spec.containers[0]",
	},
	"sidecars are not many": {
		kind:      "SidecarPolicy",
		taken:     "initContainers: [{}, {}, {}, {}, {}, {}, {}, {}]",
		refused:   "initContainers: [{}, {}, {}, {}, {}, {}, {}, {}, {}]",
		wantField: "spec.initContainers",
	},
	"an ephemeral volume has its own size": {
		kind:    "SidecarPolicy",
		taken:   "preload: {volume: {ephemeral: {size: 1Gi}}}",
		refused: "preload: {volume: {ephemeral: {size: 1Gi}, sizeLimit: 1Gi}}",
		wants:   "an ephemeral volume has its own size",
	},
	"compiled kernels come from S3": {
		kind:      "SidecarPolicy",
		taken:     "preload: {jitCache: {uri: 's3://models/jit', key: 'tp=2,mig=1g.10gb'}}",
		refused:   "preload: {jitCache: {uri: 'gs://models/jit'}}",
		wantField: "spec.preload.jitCache.uri",
	},
	"what kernels depend on has names": {
		kind:      "SidecarPolicy",
		taken:     "preload: {jitCache: {uri: 's3://models/jit', key: 'engine=host:5000/vllm@sha256:00'}}",
		refused:   "preload: {jitCache: {uri: 's3://models/jit', key: 'tp=2,'}}",
		wantField: "spec.preload.jitCache.key",
	},
	"memory as a volume is limited": {
		kind:    "SidecarPolicy",
		taken:   "preload: {volume: {medium: Memory, sizeLimit: 1Gi}}",
		refused: "preload: {volume: {medium: Memory}}",
		wants:   "medium Memory needs a sizeLimit",
	},
	"the cache is named": {
		kind:      "SidecarPolicy",
		taken:     "featureCache: {memcachedRef: {name: a}}",
		refused:   "featureCache: {memcachedRef: {name: ''}}",
		wantField: "spec.featureCache.memcachedRef.name",
	},
	"canaryPercent has a lower bound": {
		kind:      "CanaryRollout",
		taken:     sides + ", canaryPercent: 0}",
		refused:   sides + ", canaryPercent: -1}",
		wantField: "spec.canaryPercent",
	},
	"canaryPercent has an upper bound": {
		kind:      "CanaryRollout",
		taken:     sides + ", canaryPercent: 100}",
		refused:   sides + ", canaryPercent: 101}",
		wantField: "spec.canaryPercent",
	},
	"the sides differ": {
		kind:    "CanaryRollout",
		taken:   sides + "}",
		refused: "{stable: {inferenceService: a}, canary: {inferenceService: a}}",
		wants:   "must be two different InferenceServices",
	},
	"dryRun is not for strategies": {
		kind:    "CanaryRollout",
		taken:   sides + ", dryRun: true}",
		refused: sides + ", dryRun: true, strategy: {steps: [{setPercent: 10}]}}",
		wants:   "must be free to turn its canary back",
	},
	"a route is adopted once": {
		kind:    "CanaryRollout",
		taken:   sides + ", routing: {mode: Adopt, httpRouteRef: {name: v, rule: r}}}",
		refused: sides + ", routing: {mode: Adopt, virtualServiceRef: {name: v, route: r}, httpRouteRef: {name: v, rule: r}}}",
		wants:   "one of the two",
	},
	"HTTPRoutes do not delegate": {
		kind:    "CanaryRollout",
		taken:   sides + ", routing: {mode: Delegate, provider: VirtualService}}",
		refused: sides + ", routing: {mode: Delegate, provider: HTTPRoute}}",
		wants:   "has neither mode Delegate nor",
	},
	"a provider adopts its own kind": {
		kind:    "CanaryRollout",
		taken:   sides + ", routing: {mode: Adopt, provider: HTTPRoute, httpRouteRef: {name: v, rule: r}}}",
		refused: sides + ", routing: {mode: Adopt, provider: VirtualService, httpRouteRef: {name: v, rule: r}}}",
		wants:   "has no httpRouteRef",
	},
	"repairs are bounded": {
		kind:      "CanaryRollout",
		taken:     sides + ", routing: {driftPolicy: {maxRepairsPerMinute: 60}}}",
		refused:   sides + ", routing: {driftPolicy: {maxRepairsPerMinute: 61}}}",
		wantField: "spec.routing.driftPolicy.maxRepairsPerMinute",
	},
	"variants of one InferenceService differ": {
		kind:    "CanaryRollout",
		taken:   "{stable: {inferenceService: a}, canary: {inferenceService: a, variant: v2}}",
		refused: "{stable: {inferenceService: a, variant: v2}, canary: {inferenceService: a, variant: v2}}",
		wants:   "or two variants of one",
	},
	"Knative shares traffic between revisions of one": {
		kind:    "CanaryRollout",
		taken:   revisions + ", routing: {provider: Knative}}",
		refused: sides + ", routing: {provider: Knative}}",
		wants:   "name it in stable and in canary, without variants",
	},
	"Knative knows nothing but a percentage": {
		kind:    "CanaryRollout",
		taken:   revisions + ", routing: {provider: Knative}, canaryPercent: 5}",
		refused: revisions + ", routing: {provider: Knative}, shadow: {percent: 5}}",
		wants:   "provider Knative knows nothing but one percentage",
	},
	"Knative has no route to describe": {
		kind:    "CanaryRollout",
		taken:   revisions + ", routing: {provider: Knative, onDelete: Restore}}",
		refused: revisions + ", routing: {provider: Knative, hosts: [a.example.com]}}",
		wants:   "provider Knative writes a field of the InferenceService",
	},
	"Adopt needs a reference": {
		kind:    "CanaryRollout",
		taken:   sides + ", routing: {mode: Adopt, virtualServiceRef: {name: v, route: r}}}",
		refused: sides + ", routing: {mode: Adopt}}",
		wants:   "virtualServiceRef or httpRouteRef, one of the two, is needed in mode Adopt",
	},
	"Owned has no reference": {
		kind:    "CanaryRollout",
		taken:   sides + ", routing: {mode: Owned}}",
		refused: sides + ", routing: {mode: Owned, virtualServiceRef: {name: v, route: r}}}",
		wants:   "virtualServiceRef or httpRouteRef, one of the two, is needed in mode Adopt",
	},
	"Adopt has no hosts": {
		kind:    "CanaryRollout",
		taken:   sides + ", routing: {hosts: [a.example.com]}}",
		refused: sides + ", routing: {mode: Adopt, hosts: [a.example.com], virtualServiceRef: {name: v, route: r}}}",
		wants:   "hosts and gateways belong to the adopted route",
	},
	"gateways need hosts": {
		kind:    "CanaryRollout",
		taken:   sides + ", routing: {gateways: [mesh]}}",
		refused: sides + ", routing: {gateways: [istio-system/ingress]}}",
		wants:   "gateways other than mesh need hosts",
	},
	"a rollout's name is a DNS label": {
		kind:        "CanaryRollout",
		taken:       sides + "}",
		refused:     sides + "}",
		refusedName: "a.b",
		wants:       "metadata.name must be a DNS label of at most 63 characters that starts with a letter",
	},
}

const (
	sides = "{stable: {inferenceService: a}, canary: {inferenceService: b}"
	// revisions of one InferenceService.
	revisions = "{stable: {inferenceService: a}, canary: {inferenceService: a}"
)

// startAPI returns a client of an API server that serves the kinds.
func startAPI(t *testing.T) client.Client {
	t.Helper()
	tb := testbed.Shared(t, testbed.API)
	if err := tb.InstallCRDs(t.Context(), "../../config/crd/bases"); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(tb.Config(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRules(t *testing.T) {
	c := startAPI(t)
	for name, tc := range rules {
		t.Run(name, func(t *testing.T) {
			takenName, refusedName := "x", "x"
			if tc.name != "" {
				takenName = tc.name
			}
			if tc.refusedName != "" {
				refusedName = tc.refusedName
			}
			if err := c.Create(t.Context(), object(t, tc.kind, takenName, tc.taken), client.DryRunAll); err != nil {
				t.Errorf("refused, though it is right: %v", err)
			}
			err := c.Create(t.Context(), object(t, tc.kind, refusedName, tc.refused), client.DryRunAll)
			if !apierrors.IsInvalid(err) {
				t.Fatalf("want it refused as invalid, got: %v", err)
			}
			for _, want := range []string{tc.wantField, tc.wants} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the refusal does not say %q: %v", want, err)
				}
			}
		})
	}
}

func object(t *testing.T, kind, name, spec string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{}}
	text := fmt.Sprintf("{apiVersion: outrigger.serverless.xyz/v1alpha1, kind: %s, metadata: {name: %s, namespace: default}}",
		kind, name)
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	var content map[string]any
	if err := yaml.Unmarshal([]byte(spec), &content); err != nil {
		t.Fatal(err)
	}
	o.Object["spec"] = content
	return o
}
