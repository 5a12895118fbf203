// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"serverless.xyz/outrigger/preloader/quantity"
)

// Verdict sums the findings up.
type Verdict string

const (
	// Healthy means that nothing is wrong.
	Healthy Verdict = "healthy"
	// Degraded means that there are warnings.
	Degraded Verdict = "degraded"
	// Unhealthy means that there are failures.
	Unhealthy Verdict = "unhealthy"
)

// Report is what a run has to say. All sizes are in bytes, all rates in bytes a second.
type Report struct {
	// Check is preflight or load.
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	// Summary is the report in one sentence.
	Summary string   `json:"summary"`
	Driver  Driver   `json:"driver"`
	Devices []Device `json:"devices,omitempty"`
	// Load is there if a model was to be loaded, and got as far as being read.
	Load *Load `json:"load,omitempty"`
	// Findings are in the order in which they were made.
	Findings []Finding `json:"findings,omitempty"`
	// Waited is how long the fabric manager was waited for.
	Waited float64 `json:"waitedSeconds,omitempty"`
	// Seconds is the time of the whole run but for the wait.
	Seconds float64 `json:"seconds"`
}

// Driver is the driver of the machine.
type Driver struct {
	// Version is that of the kernel module, empty without NVML.
	Version string `json:"version,omitempty"`
	// CUDA is the newest version of CUDA that it supports.
	CUDA string `json:"cuda,omitempty"`
}

// Device is one GPU.
type Device struct {
	Index int    `json:"index"`
	Name  string `json:"name,omitempty"`
	UUID  string `json:"uuid,omitempty"`
	PCI   string `json:"pci,omitempty"`
	// Compute is the compute capability, such as 9.0.
	Compute     string `json:"computeCapability,omitempty"`
	MemoryTotal uint64 `json:"memoryTotal,omitempty"`
	// MemoryFree is what was free before anything was allocated, but for the context.
	MemoryFree uint64 `json:"memoryFree,omitempty"`
	// ECC says that memory errors are corrected and counted.
	ECC    bool    `json:"ecc"`
	Health *Health `json:"health,omitempty"`
	Link   *Link   `json:"link,omitempty"`
	Loaded *Loaded `json:"loaded,omitempty"`
}

// Health is what NVML tells about a GPU. A field is absent if it does not.
type Health struct {
	// EccErrors counts uncorrectable memory errors since the driver was loaded.
	EccErrors *uint64 `json:"eccUncorrectable,omitempty"`
	// RowsPending says that a remapping of memory rows waits for a reset, RowsFailed that
	// one has failed.
	RowsPending *bool `json:"rowRemapPending,omitempty"`
	RowsFailed  *bool `json:"rowRemapFailed,omitempty"`
	// PagesPending says that the retirement of memory pages waits for a reboot.
	PagesPending *bool `json:"pageRetirementPending,omitempty"`
	// RecoveryAction is what the driver asks for: 0 for nothing.
	RecoveryAction *uint64 `json:"recoveryAction,omitempty"`
	// Fabric is the state of the links between GPUs, absent where there is no fabric.
	Fabric *Fabric `json:"fabric,omitempty"`
	// Persistence says that the driver stays initialised without a process.
	Persistence *bool `json:"persistence,omitempty"`
	// PCIe is the link right after the copies.
	PCIe *PCIe `json:"pcie,omitempty"`
	// Processes are those with memory on the GPU, as far as the container may see them.
	Processes []Process `json:"processes,omitempty"`
	// Xids are critical events during the check.
	Xids []uint64 `json:"xids,omitempty"`
	// Silent are the queries that this GPU, driver or container does not answer.
	Silent []string `json:"notReported,omitempty"`
}

// Fabric is what NVML calls the GPU's fabric information.
type Fabric struct {
	// State is 1 for not started, 2 for in progress, 3 for done.
	State uint8 `json:"state"`
	// Status is how it ended if it is done: 0 for well.
	Status int32 `json:"status"`
	// Health is NVML's mask: two bits for each of four ailments.
	Health uint32 `json:"healthMask"`
}

// PCIe is a GPU's link to the machine.
type PCIe struct {
	Gen      uint32 `json:"gen"`
	MaxGen   uint32 `json:"maxGen"`
	Width    uint32 `json:"width"`
	MaxWidth uint32 `json:"maxWidth"`
}

// Process is a process with memory on a GPU.
type Process struct {
	PID    uint32 `json:"pid"`
	Memory uint64 `json:"memory"`
}

// Link is what a GPU's link carried, by copies of page-locked memory.
type Link struct {
	// ToDevice and ToHost are the best of three rounds.
	ToDevice float64 `json:"hostToDevice"`
	ToHost   float64 `json:"deviceToHost"`
	// Intact says that the bytes that went there and back are the same.
	Intact bool `json:"intact"`
}

// add takes a finding in.
func (r *Report) add(f ...Finding) { r.Findings = append(r.Findings, f...) }

// failed reports whether there is a failure so far.
func (r *Report) failed() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Failure })
}

// finish settles verdict and summary.
func (r *Report) finish() {
	r.Verdict = Healthy
	for _, f := range r.Findings {
		switch {
		case f.Severity == Failure:
			r.Verdict = Unhealthy
		case f.Severity == Warning && r.Verdict == Healthy:
			r.Verdict = Degraded
		}
	}
	r.Summary = r.summary()
}

// worst returns the first finding of the worst severity that there is, if it is more
// than a note.
func (r *Report) worst() *Finding {
	for _, s := range []Severity{Failure, Warning} {
		for i := range r.Findings {
			if r.Findings[i].Severity == s {
				return &r.Findings[i]
			}
		}
	}
	return nil
}

func (r *Report) summary() string {
	text := fmt.Sprintf("GPU %s: %s", r.Check, r.Verdict)
	if n := len(r.Devices); n > 0 {
		text += fmt.Sprintf(", %d × %s", n, r.Devices[0].Name)
	}
	if r.Load != nil && r.Load.Rate > 0 {
		text += ", " + r.Load.sentence()
	}
	if f := r.worst(); f != nil {
		return text + "; " + f.sentence()
	}
	return text + "."
}

// write writes the report, as JSON in one line or for people.
func (r *Report) write(w io.Writer, asJSON bool) error {
	if !asJSON {
		_, err := io.WriteString(w, r.text())
		return err
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

func (r *Report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "GPU %s: %s, after %.1f s", r.Check, r.Verdict, r.Seconds)
	if r.Waited > 0 {
		fmt.Fprintf(&b, " and %.0f s of waiting for the fabric manager", r.Waited)
	}
	b.WriteByte('\n')
	if r.Driver.CUDA != "" {
		version := r.Driver.Version
		if version == "" {
			version = "of unknown version"
		}
		fmt.Fprintf(&b, "driver %s, for CUDA up to %s\n", version, r.Driver.CUDA)
	}
	for i := range r.Devices {
		r.Devices[i].describe(&b)
	}
	if r.Load != nil {
		r.Load.describe(&b)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s %s: %s\n", f.Severity, f.Reason, f.sentence())
	}
	return b.String()
}

func (d *Device) describe(b *strings.Builder) {
	fmt.Fprintf(b, "GPU %d  %s  %s  %s  compute %s\n", d.Index, d.Name, d.UUID, d.PCI, d.Compute)
	if d.MemoryTotal > 0 {
		fmt.Fprintf(b, "  memory  %s of %s free\n", bytesOf(d.MemoryFree), bytesOf(d.MemoryTotal))
	}
	if d.Link != nil {
		intact := "bytes intact"
		if !d.Link.Intact {
			intact = "BYTES CHANGED"
		}
		fmt.Fprintf(b, "  link    %s to the GPU, %s back, %s", rate(d.Link.ToDevice), rate(d.Link.ToHost), intact)
		if d.Health != nil && d.Health.PCIe != nil {
			fmt.Fprintf(
				b,
				"; PCIe gen %d x%d of gen %d x%d",
				d.Health.PCIe.Gen,
				d.Health.PCIe.Width,
				d.Health.PCIe.MaxGen,
				d.Health.PCIe.MaxWidth,
			)
		}
		b.WriteByte('\n')
	}
	if d.Health != nil {
		fmt.Fprintf(b, "  health  %s\n", d.Health.words(d.ECC))
	}
	if d.Loaded != nil {
		d.Loaded.describe(b)
	}
}

// words is the health as far as it is told.
func (h *Health) words(ecc bool) string {
	words := []string{"no ECC"}
	if ecc {
		words[0] = "ECC"
	}
	if h.EccErrors != nil {
		words = append(words, fmt.Sprintf("%d uncorrectable errors", *h.EccErrors))
	}
	yesNo := func(p *bool, yes, no string) {
		switch {
		case p == nil:
		case *p:
			words = append(words, yes)
		default:
			words = append(words, no)
		}
	}
	yesNo(h.RowsPending, "a row remapping is pending", "no row remapping pending")
	yesNo(h.Persistence, "persistence mode on", "persistence mode off")
	for _, p := range h.Processes {
		words = append(words, fmt.Sprintf("process %d holds %s", p.PID, bytesOf(p.Memory)))
	}
	if len(h.Silent) > 0 {
		words = append(words, "not reported: "+strings.Join(h.Silent, ", "))
	}
	return strings.Join(words, "; ")
}

func bytesOf(n uint64) string { return quantity.FormatBytes(int64(n)) } //nolint:gosec // bytes of memory

// rate words bytes a second.
func rate(bytesPerSecond float64) string { return quantity.FormatBytes(int64(bytesPerSecond)) + "/s" }
