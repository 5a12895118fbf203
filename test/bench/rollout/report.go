// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// What is measured.
const (
	cellEdit  = "edit"
	cellDrift = "drift"
	cellStorm = "storm"
	cellWhole = "storm-whole"
)

var columns = []string{nameOutrigger, nameArgo, nameFlagger}

// results are all measurements.
type results struct {
	programs map[string]program
	options  options

	mu      sync.Mutex
	samples map[string]map[string][]time.Duration // by system and cell
}

func newResults(programs map[string]program, o options) *results {
	return &results{programs: programs, options: o, samples: map[string]map[string][]time.Duration{}}
}

func (r *results) add(system, cell string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.samples[system] == nil {
		r.samples[system] = map[string][]time.Duration{}
	}
	r.samples[system][cell] = append(r.samples[system][cell], took)
}

// quantile returns the sample that a share of all does not exceed; +Inf if that is one that never came, NaN without any.
func (r *results) quantile(system, cell string, share float64) float64 {
	samples := slices.Clone(r.samples[system][cell])
	if len(samples) == 0 {
		return math.NaN()
	}
	slices.SortFunc(samples, func(a, b time.Duration) int {
		switch {
		case a == b:
			return 0
		case a == never || b != never && a > b:
			return 1
		default:
			return -1
		}
	})
	at := samples[max(0, int(math.Ceil(share*float64(len(samples))))-1)]
	if at == never {
		return math.Inf(1)
	}
	return float64(at.Microseconds()) / 1000
}

func (r *results) milliseconds(system, cell string, share float64) string {
	switch ms := r.quantile(system, cell, share); {
	case math.IsNaN(ms):
		return "-"
	case math.IsInf(ms, 1):
		return fmt.Sprintf("not within %s", r.options.patience)
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 10_000:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f s", ms/1000)
	}
}

// table is the report's, in Markdown.
func (r *results) table() string {
	var text strings.Builder
	text.WriteString("| |")
	for _, system := range columns {
		_, _ = fmt.Fprintf(&text, " %s %s |", system, r.programs[system].version)
	}
	text.WriteString("\n| --- |" + strings.Repeat(" ---: |", len(columns)) + "\n")
	for _, row := range []struct {
		title, cell string
		share       float64
	}{
		{"a wish to the route stored, p50", cellEdit, .5},
		{"p99", cellEdit, .99},
		{"a foreign edit undone, p50", cellDrift, .5},
		{"p99", cellDrift, .99},
		{fmt.Sprintf("%d wishes at once, p50", r.options.rollouts), cellStorm, .5},
		{"p99", cellStorm, .99},
		{"all of them, from the first wish on", cellWhole, .5},
	} {
		_, _ = fmt.Fprintf(&text, "| %s |", row.title)
		for _, system := range columns {
			_, _ = fmt.Fprintf(&text, " %s |", r.milliseconds(system, row.cell, row.share))
		}
		text.WriteString("\n")
	}
	return text.String()
}

// lines judges the targets.
func (r *results) lines() string {
	var text strings.Builder
	judge := func(id string, figure, bound float64, unit string) {
		word := "short"
		if figure <= bound {
			word = "pass"
		}
		_, _ = fmt.Fprintf(&text, "bench rollout.%s %.2f%s <=%g%s %s\n", id, figure, unit, bound, unit, word)
	}
	for _, cell := range []string{cellEdit, cellDrift, cellStorm} {
		ours := r.quantile(nameOutrigger, cell, .99)
		judge(cell+".p99", ours, 250, "ms")
		for _, peer := range []struct{ id, name string }{{"argo", nameArgo}, {"flagger", nameFlagger}} {
			judge(cell+".p99-against-"+peer.id, ours/r.quantile(peer.name, cell, .99), 1, "x")
		}
	}
	return text.String()
}

// report prints everything, and writes it to the report's file.
func (r *results) report(o options, out io.Writer) error {
	_, _ = fmt.Fprintf(out, "%s\n%s", r.table(), r.lines())
	if o.out == "" {
		return nil
	}
	edits := len(r.samples[nameOutrigger][cellEdit])
	text := fmt.Sprintf(`# How soon a wish reaches the route

Written by `+"`make bench-rollout`"+`, which builds all three, on %s with %d cores and %s, the three on one API server and in turns:
%d single edits, %d foreign edits and %d storms each. %s

%s
What is a wish differs. Of Outrigger it is an edit of `+"`canaryPercent`"+`. Of Argo Rollouts it is an edit of the weight of the step that
the Rollout is at. Flagger has no field for the weight: a Canary that is suspended is let go on, and takes its next step at the next tick of
its shortest interval, ten seconds. Foreign edits of weights Flagger takes for its own.

From before the edit is sent until a watch of VirtualServices tells of the stored weights. All three run with the flags that they come
with; Argo Rollouts limits itself to 40 requests a second, Flagger to 100. Nothing else acts on the objects: there is no kubelet,
no KServe and no istiod, and Deployments and ReplicaSets are said to be ready as soon as they are there.

`+"```"+`
%s`+"```"+`
`, machine(), runtime.NumCPU(), runtime.Version(), edits, len(r.samples[nameOutrigger][cellDrift]), o.rounds,
		time.Now().UTC().Format("2006-01-02."), r.table(), r.lines())
	if err := os.WriteFile(o.out, []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

// machine names the processor.
func machine() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
