// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"fmt"
	"os"
	"runtime"
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
	// decisions are the times of the webhook's, in order.
	decisions []time.Duration
	// heap is what the manager holds, in bytes.
	heap int64
}

func (b *bench) report() string {
	f, objects := &b.figures, b.services*(1+b.podsEach)+b.policies
	p := func(q float64) time.Duration { return f.decisions[int(q*float64(len(f.decisions)-1))] }
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
	line(
		"%d cores of %s, Go %s, %s.",
		runtime.NumCPU(),
		cpu(),
		strings.TrimPrefix(runtime.Version(), "go"),
		time.Now().UTC().Format("2006-01-02"),
	)
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
	line("| a decision of the webhook, %d of them | p50 %.2f ms, p99 %.2f ms, most %.2f ms |", len(f.decisions),
		ms(p(0.5)), ms(p(0.99)), ms(p(1)))
	line("")
	line("```")
	target(line, "policies-webhook-p99", fmt.Sprintf("%.2fms", ms(p(0.99))), "<5ms", p(0.99) < 5*time.Millisecond)
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
