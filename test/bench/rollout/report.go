// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
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

// cost is what wishes cost.
type cost struct {
	// routes is how often a route was stored, and writes how many writes of the system the API server stored, among them
	// routes, statuses and events.
	wishes, routes, writes int
	// processor is what the system's controller used.
	processor time.Duration
}

// results are all measurements.
type results struct {
	programs map[string]program
	options  options
	// busyBefore and busyAfter are how many processors were busy while all systems had nothing to do.
	busyBefore, busyAfter float64

	mu      sync.Mutex
	samples map[string]map[string][]time.Duration // by system and cell
	costs   map[string]cost                       // by system
}

func newResults(programs map[string]program, o options) *results {
	return &results{
		programs: programs, options: o, samples: map[string]map[string][]time.Duration{}, costs: map[string]cost{},
	}
}

func (r *results) add(system, cell string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.samples[system] == nil {
		r.samples[system] = map[string][]time.Duration{}
	}
	r.samples[system][cell] = append(r.samples[system][cell], took)
}

func (r *results) count(system string, more cost) {
	sum := r.costs[system]
	r.costs[system] = cost{
		wishes: sum.wishes + more.wishes, routes: sum.routes + more.routes, writes: sum.writes + more.writes,
		processor: sum.processor + more.processor,
	}
}

// gaveUp reports whether there are samples and all are of changes that never came.
func (r *results) gaveUp(system, cell string) bool {
	samples := r.samples[system][cell]
	return len(samples) > 0 && !slices.ContainsFunc(samples, func(d time.Duration) bool { return d != never })
}

// quantile returns the sample, in milliseconds, that a share of all does not exceed; +Inf if that is one that never came,
// NaN without any.
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
	line := func(title string, cell func(system string) string) {
		_, _ = fmt.Fprintf(&text, "| %s |", title)
		for _, system := range columns {
			_, _ = fmt.Fprintf(&text, " %s |", cell(system))
		}
		text.WriteString("\n")
	}
	line("", func(system string) string { return system + " " + r.programs[system].version })
	text.WriteString("| --- |" + strings.Repeat(" ---: |", len(columns)) + "\n")
	for _, row := range []struct{ title, cell string }{
		{"a wish, to the route stored", cellEdit},
		{"a foreign edit of the weights, to it undone", cellDrift},
		{fmt.Sprintf("a wish among %d at once, to the route stored", r.options.rollouts), cellStorm},
	} {
		line(row.title+": p50", func(system string) string { return r.milliseconds(system, row.cell, .5) })
		line("p99", func(system string) string { return r.milliseconds(system, row.cell, .99) })
		line("of", func(system string) string { return strconv.Itoa(len(r.samples[system][row.cell])) })
	}
	line(fmt.Sprintf("all %d, from the first wish on", r.options.rollouts), func(system string) string {
		return r.milliseconds(system, cellWhole, .5)
	})
	per := func(of func(cost) float64) func(string) string {
		return func(system string) string {
			if c := r.costs[system]; c.wishes > 0 {
				return fmt.Sprintf("%.2f", of(c)/float64(c.wishes))
			}
			return "-"
		}
	}
	line("times that the route was stored, a wish", per(func(c cost) float64 { return float64(c.routes) }))
	line("all that was stored, statuses and events too, a wish", per(func(c cost) float64 { return float64(c.writes) }))
	line("milliseconds of a processor that the controller used, a wish", per(func(c cost) float64 {
		return float64(c.processor.Milliseconds())
	}))
	return text.String()
}

// losses says why targets are missed, a line for each: part of the target's name, a colon, the reason. It is written by
// hand.
//
//go:embed losses.md
var losses string

func reason(id string) string {
	for line := range strings.Lines(losses) {
		if about, why, ok := strings.Cut(strings.TrimPrefix(line, "- "), ": "); ok && strings.Contains(id, about) {
			return strings.TrimSpace(why)
		}
	}
	return ""
}

// lines judges the targets, and why tells of those that are missed what is known of the reason.
func (r *results) lines() (lines, why string) {
	var text, reasons strings.Builder
	judge := func(id string, figure, bound float64, unit string) {
		word := "pass"
		if !(figure <= bound) { // nothing measured is no pass
			word = "short"
			_, _ = fmt.Fprintf(&reasons, "- `%s` %s\n", id, reason(id))
		}
		_, _ = fmt.Fprintf(&text, "bench %s %.2f%s <=%g%s %s\n", id, figure, unit, bound, unit, word)
	}
	for _, cell := range []string{cellEdit, cellDrift, cellStorm} {
		ours := r.quantile(nameOutrigger, cell, .99)
		judge("rollout-"+cell+"-p99", ours, 250, "ms")
		for _, peer := range []struct{ id, name string }{{"argo", nameArgo}, {"flagger", nameFlagger}} {
			judge("rollout-"+cell+"-p99-against-"+peer.id, ours/r.quantile(peer.name, cell, .99), 1, "x")
		}
	}
	judge("rollout-edit-p50", r.quantile(nameOutrigger, cellEdit, .5), 50, "ms")
	c := r.costs[nameOutrigger]
	judge("rollout-route-writes-per-wish", float64(c.routes)/float64(c.wishes), 1, "")
	return text.String(), reasons.String()
}

//go:embed report.md
var page string

// report prints everything, and writes it to the report's file.
func (r *results) report(o options, out io.Writer) error {
	lines, why := r.lines()
	_, _ = fmt.Fprintf(out, "%s\n%s", r.table(), lines)
	if o.out == "" {
		return nil
	}
	if why != "" {
		why = "\n" + why
	}
	text := strings.NewReplacer(
		"MACHINE",
		fmt.Sprintf("%d cores of %s, %s, %s", runtime.NumCPU(), machine(), runtime.Version(),
			time.Now().UTC().Format(time.DateOnly)),
		"BUSY",
		fmt.Sprintf("%.2f processors were busy before the first round, and %.2f after the last", r.busyBefore, r.busyAfter),
		"COUNT",
		strconv.Itoa(o.rollouts),
		"ROUNDS",
		strconv.Itoa(o.rounds),
		"PATIENCE",
		o.patience.String(),
		"TABLE\n",
		r.table(),
		"LINES\n",
		lines,
		"WHY\n",
		why,
	).Replace(page)
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
