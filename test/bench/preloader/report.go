// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// results are all measurements so far. Parts of a series may be run one after the other; a cell that is run again
// replaces what was there.
type results struct {
	Machine string
	// Versions by client.
	Versions map[string]string
	// Samples by cell and client.
	Samples map[string]map[string][]sample
	// Failed says why a client has no samples in a cell.
	Failed map[string]map[string]string
	// Refetched is the share of the model that came twice for a kill at nine tenths, by cell and client.
	Refetched map[string]map[string]float64
}

func newResults() *results {
	return &results{
		Versions: map[string]string{}, Samples: map[string]map[string][]sample{},
		Failed: map[string]map[string]string{}, Refetched: map[string]map[string]float64{},
	}
}

func loadResults(path string) (*results, error) {
	r := newResults()
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("reading %s, which may be removed: %w", path, err)
	}
	return r, nil
}

func (r *results) save(path string) error {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o644)
}

// median returns the middle of what f picks, and whether there is any.
func median(samples []sample, f func(sample) float64) (float64, bool) {
	var values []float64
	for _, s := range samples {
		values = append(values, f(s))
	}
	if len(values) == 0 {
		return 0, false
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2, true
	}
	return values[middle], true
}

func wall(s sample) float64 { return s.Wall }
func cpu(s sample) float64  { return s.CPU }
func rss(s sample) float64  { return float64(s.RSS) / 1e6 }

// ratio returns the median of one client against another's.
func (r *results) ratio(c cell, one, other string, f func(sample) float64) (float64, bool) {
	a, ok1 := median(r.Samples[c.id()][one], f)
	b, ok2 := median(r.Samples[c.id()][other], f)
	return a / b, ok1 && ok2 && b > 0
}

// target is a bound that a figure should keep.
type target struct {
	id     string
	figure float64
	// bound is a most, or with atLeast a least.
	bound   float64
	atLeast bool
	unit    string
}

func (t target) holds() bool {
	if t.atLeast {
		return t.figure >= t.bound
	}
	return t.figure <= t.bound
}

func (t target) want() string {
	sign := "<="
	if t.atLeast {
		sign = ">="
	}
	return fmt.Sprintf("%s%g%s", sign, t.bound, t.unit)
}

func (t target) line() string {
	word := "short"
	if t.holds() {
		word = "pass"
	}
	return fmt.Sprintf("bench %s %.2f%s %s %s", t.id, t.figure, t.unit, t.want(), word)
}

// targets judges everything that was measured.
func (r *results) targets() []target {
	var all []target
	add := func(c cell, id, one, other string, f func(sample) float64, bound float64, atLeast bool) {
		if got, ok := r.ratio(c, one, other, f); ok {
			all = append(
				all,
				target{id: "preloader." + id + "." + c.id(), figure: got, bound: bound, atLeast: atLeast, unit: "x"},
			)
		}
	}
	var peak float64
	for _, c := range cells {
		if got, ok := median(r.Samples[c.id()][nameOurs], rss); ok {
			peak = max(peak, got)
		}
		if c.limited {
			add(c, "speed-against-kserve", nameKServe, nameOurs, wall, 5, true)
			add(c, "speed-against-s5cmd", nameS5cmd, nameOurs, wall, 1.5, true)
			continue
		}
		if !c.far {
			add(c, "cpu-against-floor", nameOurs, nameFloor, cpu, 1.15, false)
			share := 0.5
			if c.memory {
				share = 1
			}
			add(c, "cpu-against-s5cmd", nameOurs, nameS5cmd, cpu, share, false)
			add(c, "cpu-against-transfermanager", nameOurs, nameTM, cpu, share, false)
			add(c, "cpu-against-crt", nameOurs, nameCRT, cpu, 1, false)
		}
		if strings.Contains(c.workload, "small") {
			add(c, "wall-against-s5cmd", nameOurs, nameS5cmd, wall, 1, false)
		}
	}
	if peak > 0 {
		all = append(all, target{id: "preloader.peak-rss", figure: peak, bound: 32, unit: "MB"})
	}
	for _, c := range cells {
		if share, ok := r.Refetched[c.id()][nameOurs]; ok {
			all = append(all, target{id: "preloader.refetched." + c.id(), figure: share * 100, bound: 12, unit: "%"})
		}
	}
	return all
}

// losses says why targets are missed, a line for each: part of the target's name, a colon, the reason. It is written by
// hand when they are measured.
//
//go:embed losses.md
var losses string

// reason returns why a target is missed, by the longest of such lines that is about it.
func reason(losses, id string) string {
	best, why := "", "not looked into yet"
	for line := range strings.Lines(losses) {
		part, text, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "- "), ": ")
		if ok && strings.Contains(id, part) && len(part) > len(best) {
			best, why = part, text
		}
	}
	return why
}

// printMissed writes the targets that are missed, and why.
func (r *results) printMissed(w io.Writer) {
	missed := slices.DeleteFunc(r.targets(), target.holds)
	if len(missed) == 0 {
		fmt.Fprint(w, "\nEvery target that was measured holds.\n")
		return
	}
	fmt.Fprint(w, "\n## What falls short, and why\n\n| target | figure | wanted | why |\n| --- | ---: | ---: | --- |\n")
	for _, t := range missed {
		fmt.Fprintf(w, "| %s | %.2f%s | %s | %s |\n", t.id, t.figure, t.unit, t.want(), reason(losses, t.id))
	}
}

// print writes the report.
func (r *results) print(w io.Writer, all []workload) {
	fmt.Fprint(w, "# The preloader against its peers\n\n"+
		"Written by `make bench-preloader`, which builds the peers and runs them in turns on one machine, server and client\n"+
		"together. The server is synthetic: it sends ranges of one file by sendfile, signs and stores nothing, and so leaves\n"+
		"as much of the machine as it can to the client. CPU is user and system time of the client alone. Every figure is the\n"+
		"median of interleaved rounds. The floor is the least a program can do: receive and write, nothing known unchecked,\n"+
		"nothing checked. The preloader verifies every byte against the object's CRC64NVME; s5cmd, rclone,\n"+
		"transfermanager by ranges and KServe's initializer check sizes.\n\n"+
		"`far` is a store that takes 20 ms to answer and gives each connection 90 MB/s, as S3 does; `1cpu-1gib` is a control\n"+
		"group with KServe's default limits for its initializer.\n\n")
	fmt.Fprintf(w, "Machine: %s\n\n", r.Machine)
	for _, name := range sortedKeys(r.Versions) {
		fmt.Fprintf(w, "- %s: %s\n", name, r.Versions[name])
	}
	for _, c := range cells {
		if len(r.Samples[c.id()]) > 0 {
			r.printCell(w, c, workloadNamed(all, c.workload))
		}
	}
	r.printRefetched(w)
	fmt.Fprint(w, "\n## Targets\n\n```\n")
	for _, t := range r.targets() {
		fmt.Fprintln(w, t.line())
	}
	fmt.Fprint(w, "```\n")
	r.printMissed(w)
}

func (r *results) printCell(w io.Writer, c cell, load workload) {
	fmt.Fprintf(
		w,
		"\n## %s (%s)\n\n| client | wall s | MB/s | CPU-s | CPU-s/GB | CPU against the floor | peak RSS MB | rounds |\n"+
			"| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
		c.id(),
		load,
	)
	byClient := r.Samples[c.id()]
	names := sortedKeys(byClient)
	slices.SortStableFunc(names, func(a, b string) int {
		x, _ := median(byClient[a], cpu)
		y, _ := median(byClient[b], cpu)
		return cmp.Compare(x, y)
	})
	for _, name := range names {
		samples := byClient[name]
		seconds, ok := median(samples, wall)
		if !ok {
			continue
		}
		work, _ := median(samples, cpu)
		memory, _ := median(samples, rss)
		against := "-"
		if x, ok := r.ratio(c, name, nameFloor, cpu); ok {
			against = fmt.Sprintf("%.2f", x)
		}
		gb := float64(load.bytes()) / 1e9
		fmt.Fprintf(w, "| %s | %.2f | %.0f | %.2f | %.2f | %s | %.0f | %d |\n",
			name, seconds, gb*1000/seconds, work, work/gb, against, memory, len(samples))
	}
	for _, name := range sortedKeys(r.Failed[c.id()]) {
		first, _, _ := strings.Cut(r.Failed[c.id()][name], "\n")
		fmt.Fprintf(w, "\n%s failed: %s\n", name, first)
	}
}

func (r *results) printRefetched(w io.Writer) {
	if len(r.Refetched) == 0 {
		return
	}
	fmt.Fprint(
		w,
		"\n## Sent twice after a kill\n\nEach client is killed (SIGKILL) when nine tenths are sent, and started again. "+
			"The share of the model that was sent twice:\n\n| cell | client | sent twice |\n| --- | --- | ---: |\n",
	)
	for _, c := range cells {
		for _, name := range sortedKeys(r.Refetched[c.id()]) {
			fmt.Fprintf(w, "| %s | %s | %.1f %% |\n", c.id(), name, r.Refetched[c.id()][name]*100)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
