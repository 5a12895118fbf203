// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"serverless.xyz/outrigger/preloader/quantity"
)

// Preflight looks at the driver and at every GPU that it shows. The report has
// everything. again says that the fabric manager is not ready, and that a new process
// may fare better in a while: nothing promises that a driver whose initialisation
// failed can be initialised again.
func Preflight(ctx context.Context, opts Options) (report *Report, again bool) {
	report = &Report{Check: "preflight"}
	began := time.Now()
	s, err := start(ctx, opts, report)
	if err != nil {
		report.add(explain(err))
	}
	s.inspect(ctx)
	s.checkMemory()
	s.end(ctx)
	report.Seconds = since(began)
	report.finish()
	return report, hasCode(err, systemNotReady)
}

// inspect examines all GPUs at once, each on its own thread. Their links are measured
// one after the other, because they may share a part of the way.
func (s *session) inspect(ctx context.Context) {
	found := make([][]Finding, len(s.devices))
	var all sync.WaitGroup
	var links sync.Mutex
	for i, d := range s.devices {
		all.Go(func() { found[i] = d.inspect(ctx, s.opts, &links) })
	}
	all.Wait()
	s.addAll(found)
}

// inspect does everything that a preflight does with one GPU.
func (d *device) inspect(ctx context.Context, opts Options, links *sync.Mutex) []Finding {
	if err := d.identify(ctx); err != nil {
		return []Finding{explain(err)}
	}
	x := &examiner{device: d, health: &Health{}}
	var found []Finding
	if d.nvml != nil {
		var err error
		if x, err = d.examine(ctx); err != nil {
			found = append(found, explain(err))
		}
	}
	if err := d.probe(ctx, opts, links); err != nil {
		found = append(found, d.explain(err))
	}
	if d.nvml != nil {
		if err := x.conclude(ctx); err != nil {
			found = append(found, explain(err))
		}
		found = append(append(found, judgeHealth(x.health)...), judgeEvents(x.health)...)
	}
	if d.info.Link != nil {
		found = append(found, judgeLink(d.info.Link, x.health.PCIe)...)
	}
	return unique(found)
}

// probe opens the GPU and measures its link.
func (d *device) probe(ctx context.Context, opts Options, links *sync.Mutex) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	if opts.Link <= 0 {
		return nil
	}
	links.Lock()
	defer links.Unlock()
	link, err := d.measureLink(ctx, opts.Link)
	if err != nil {
		return err
	}
	d.info.Link = link
	return nil
}

// explain makes a finding of an error, and says who holds the memory if there is none
// left.
func (d *device) explain(err error) Finding {
	f := explain(err)
	if hasCode(err, outOfMemory) && d.info.Health != nil {
		f.Cause += d.info.Health.holders()
	}
	return f
}

// unique drops findings that say the same again: a GPU that is lost fails each query.
func unique(findings []Finding) []Finding {
	var kept []Finding
	seen := map[string]bool{}
	for _, f := range findings {
		if key := string(f.Severity) + f.Reason + f.Cause; !seen[key] {
			seen[key] = true
			kept = append(kept, f)
		}
	}
	return kept
}

// checkMemory compares the free memory with what is asked for.
func (s *session) checkMemory() {
	var free uint64
	var holders strings.Builder
	for i := range s.report.Devices {
		free += s.report.Devices[i].MemoryFree
		if h := s.report.Devices[i].Health; h != nil {
			holders.WriteString(h.holders())
		}
	}
	if s.opts.Memory <= 0 || free == 0 || int64(free) >= s.opts.Memory {
		return
	}
	s.report.add(Finding{
		Severity: Failure, Reason: "NotEnoughMemory",
		Cause: fmt.Sprintf("%s of GPU memory are asked for, %s are free%s",
			quantity.FormatBytes(s.opts.Memory), bytesOf(free), holders.String()),
		Advice: fmt.Sprintf("Free %s, or use more or larger GPUs.",
			quantity.FormatBytes(s.opts.Memory-int64(free))),
	})
}

// holders names the processes that hold memory, as far as NVML tells.
func (h *Health) holders() string {
	var text strings.Builder
	for _, p := range h.Processes {
		fmt.Fprintf(&text, ", process %d holds %s", p.PID, bytesOf(p.Memory))
	}
	return text.String()
}
