// SPDX-License-Identifier: Apache-2.0

//go:build bench

package controllers_test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// figures are what was measured.
type figures struct {
	// created is how long it took to make all objects, toRest how long the manager wrote after that.
	created, toRest time.Duration
	// writes are the manager's until then, atRest those of the 30 s after it.
	writes, atRest []string
	// edit is how long an edited policy took to be counted; editWrites and rollWrites are the writes after edits.
	edit                   time.Duration
	editWrites, rollWrites []string
	// first are the webhook's decisions about an InferenceService that it had not met, again all others.
	first, again []timing
	// load is how many programs wanted a processor in the minute before decisions were measured.
	load string
	// heap is what the manager holds, in bytes.
	heap int64
}

// timing is how long a decision took, and for how much of it it had a processor.
type timing struct{ wall, processor time.Duration }

// quantiles words how long decisions took, and returns the 99th percentile by each measure.
func quantiles(list []timing) (text string, p99 timing) {
	of := func(q float64, measure func(timing) time.Duration) time.Duration {
		sorted := make([]time.Duration, len(list))
		for i := range list {
			sorted[i] = measure(list[i])
		}
		slices.Sort(sorted)
		return sorted[int(q*float64(len(sorted)-1))]
	}
	wall := func(t timing) time.Duration { return t.wall }
	processor := func(t timing) time.Duration { return t.processor }
	p99 = timing{wall: of(0.99, wall), processor: of(0.99, processor)}
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms, most %.2f ms; of the processor p50 %.2f ms, p99 %.2f ms",
		ms(of(0.5, wall)), ms(p99.wall), ms(of(1, wall)), ms(of(0.5, processor)), ms(p99.processor)), p99
}

func (b *bench) report() string {
	f, objects := &b.figures, b.services*(1+b.podsEach)+b.policies
	first, _ := quantiles(f.first)
	again, _ := quantiles(f.again)
	_, p99 := quantiles(slices.Concat(f.first, f.again))
	perObject := float64(len(f.writes)) / float64(objects)
	perThousand := float64(f.heap) / float64(objects) * 1000 / (1 << 20)
	strangers := of(f.editWrites, "/inferenceservices/") + of(f.rollWrites, "/inferenceservices/") - b.blue(f.rollWrites)
	var s strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&s, format+"\n", args...) }
	line("# Sidecar policies among many InferenceServices")
	line("")
	line(
		"`make bench-policies` has made this page: %d InferenceServices and %d pods in one namespace of a real API server,",
		b.services,
		b.services*b.podsEach,
	)
	line(
		"%d policies, of which one picks each half of the InferenceServices and the others have a CEL condition that picks",
		b.policies,
	)
	line(
		"none. The whole manager runs in one process with the objects' author; pods pass through its webhook. Nobody acts for KServe.",
	)
	line("")
	line("%d cores of %s, Go %s, %s. In the minute before decisions were measured, %s programs wanted a processor, this one",
		runtime.NumCPU(), cpu(), strings.TrimPrefix(runtime.Version(), "go"), time.Now().UTC().Format("2006-01-02"), f.load)
	line("among them: where that is more than there are cores, times on the clock are those of a busy machine.")
	line("")
	line("| what | figure |")
	line("| --- | --- |")
	line("| making all objects, the webhook called for every pod | %.1f s |", f.created.Seconds())
	line("| from the last object to the manager's last write | %.1f s |", f.toRest.Seconds())
	line("| writes of the manager until then | %d: %d of status, %d of InferenceServices, %d others; %.3f an object |",
		len(f.writes), of(f.writes, "/sidecarpolicies/"), of(f.writes, "/inferenceservices/"),
		len(f.writes)-of(f.writes, "/sidecarpolicies/")-of(f.writes, "/inferenceservices/"), perObject)
	line("| writes in 30 s at rest | %d |", len(f.atRest))
	line(
		"| heap of the manager, its caches included | %.1f MiB, %.1f MiB a thousand objects |",
		float64(f.heap)/(1<<20),
		perThousand,
	)
	line("| an edited policy, until its %d pods are counted as outdated | %.1f s |", b.services/2*b.podsEach, f.edit.Seconds())
	line("| writes after it | %d, of InferenceServices %d |", len(f.editWrites), of(f.editWrites, "/inferenceservices/"))
	line(
		"| the same policy with `rollout: Always` | %d InferenceServices asked to replace pods, after %d trials; %d of those that it does not pick |",
		b.blue(f.rollWrites),
		of(f.rollWrites, "DRY "),
		strangers,
	)
	line("| a decision of the webhook about an InferenceService that it has not met, %d of them | %s |", len(f.first), first)
	line("| every further one, %d of them | %s |", len(f.again), again)
	line("")
	line("```")
	const most = 5 * time.Millisecond
	target(line, "policies-webhook-p99", fmt.Sprintf("%.2fms", ms(p99.wall)), "<5ms", p99.wall < most)
	target(line, "policies-webhook-p99-processor", fmt.Sprintf("%.2fms", ms(p99.processor)), "<5ms", p99.processor < most)
	target(line, "policies-writes-at-rest", strconv.Itoa(len(f.atRest)), "0", len(f.atRest) == 0)
	target(line, "policies-writes-per-object", fmt.Sprintf("%.3f", perObject), "<0.1", perObject < 0.1)
	target(line, "policies-edit-strangers", strconv.Itoa(strangers), "0", strangers == 0)
	target(line, "policies-time-to-rest", fmt.Sprintf("%.1fs", f.toRest.Seconds()), "<10s", f.toRest < 10*time.Second)
	target(line, "policies-heap-per-1000", fmt.Sprintf("%.1fMiB", perThousand), "<16MiB", perThousand < 16)
	line("```")
	return s.String()
}

// blue counts writes of InferenceServices that the edited policy picks.
func (b *bench) blue(list []string) int {
	n := 0
	for i := range b.services {
		if team(i) == "blue" {
			n += of(list, "/inferenceservices/"+serviceName(i))
		}
	}
	return n
}

func target(line func(string, ...any), id, figure, target string, pass bool) {
	verdict := "short"
	if pass {
		verdict = "pass"
	}
	line("bench %s %s %s %s", id, figure, target, verdict)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// load is the kernel's average of a minute.
func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "an unknown number of"
	}
	average, _, _ := strings.Cut(string(raw), " ")
	return average
}

// cpu names the processor.
func cpu() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for text := range strings.Lines(string(raw)) {
		if name, ok := strings.CutPrefix(text, "model name\t: "); ok {
			return strings.TrimSpace(name)
		}
	}
	return runtime.GOARCH
}
