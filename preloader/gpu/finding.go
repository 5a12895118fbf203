// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"errors"
	"fmt"

	"serverless.xyz/outrigger/preloader/quantity"
	"serverless.xyz/outrigger/preloader/safetensors"
)

// Severity orders findings.
type Severity string

const (
	// Failure means that a model server will not run well on this GPU, or not at all.
	Failure Severity = "failure"
	// Warning means that it runs, but something deserves a look.
	Warning Severity = "warning"
	// Note is worth knowing and no trouble.
	Note Severity = "note"
)

// Finding is one thing that a check came upon.
type Finding struct {
	// Severity is how bad it is.
	Severity Severity `json:"severity"`
	// GPU is the index of the GPU, absent if it concerns all or none.
	GPU *int `json:"gpu,omitempty"`
	// Reason names it in one CamelCase word. The words are listed in docs/preloader-gpu.md.
	Reason string `json:"reason"`
	// Cause is one sentence without a full stop.
	Cause string `json:"cause"`
	// Advice is one sentence that says what to do next.
	Advice string `json:"advice,omitempty"`

	// code is the exit code that a failure asks for; 0 stands for ExitGPU.
	code ExitCode
}

// on says which GPU the finding concerns.
func (f Finding) on(index int) Finding {
	f.GPU = &index
	return f
}

// sentence words the finding for people.
func (f Finding) sentence() string {
	text := f.Cause + "."
	if f.GPU != nil {
		text = fmt.Sprintf("GPU %d: %s", *f.GPU, text)
	}
	if f.Advice != "" {
		text += " " + f.Advice
	}
	return text
}

// noRoomError says that a model does not fit the memory of the GPUs.
type noRoomError struct {
	need int64
	free []uint64
}

func (n *noRoomError) Error() string {
	var sum uint64
	for _, f := range n.free {
		sum += f
	}
	return fmt.Sprintf("the model needs %s of GPU memory, and %s are free on all GPUs here together",
		quantity.FormatBytes(n.need), quantity.FormatBytes(int64(sum)))
}

// more is how many bytes are missing at least.
func (n *noRoomError) more() int64 {
	missing := n.need
	for _, f := range n.free {
		missing -= int64(f) //nolint:gosec // bytes of memory
	}
	return missing
}

// modelError says that a model on disk cannot be loaded.
type modelError struct {
	code           ExitCode
	reason, advice string
	err            error
}

func (m *modelError) Error() string { return m.err.Error() }
func (m *modelError) Unwrap() error { return m.err }

// explain makes a finding of any error.
func explain(err error) Finding {
	var (
		refused *cudaError
		query   *nvmlError
		stuck   *stuckError
		library *libraryError
		few     *tooFewError
		old     *oldDriverError
		room    *noRoomError
		model   *modelError
		stopped *StoppedError
	)
	f := Finding{Severity: Failure, Cause: err.Error(), Reason: "Failed"}
	switch {
	case errors.As(err, &refused):
		f.Reason, f.Advice = adviceForCUDA(refused.code)
	case errors.As(err, &query):
		f.Reason, f.Advice = adviceForNVML(query.code)
	case errors.As(err, &stuck):
		f.Reason = "DriverStuck"
		f.Advice = "The driver hangs, often because a GPU fell off the bus: look for Xid in the node's kernel log, drain the node and reboot it."
	case errors.As(err, &library):
		return explainLibrary(library)
	case errors.As(err, &few):
		f.Reason = "TooFewGPUs"
		f.Advice = "Request that many nvidia.com/gpu in the init container too, or ask for fewer."
	case errors.As(err, &old):
		f.Reason = "InsufficientDriver"
		f.Advice = fmt.Sprintf("Install a driver for CUDA %v on the node, or use an image built for CUDA %v.", old.want, old.got)
	case errors.As(err, &room):
		f.Reason = "NotEnoughMemory"
		f.Advice = adviceForRoom(room)
	case errors.As(err, &model):
		f.Reason, f.Advice, f.code = model.reason, model.advice, model.code
	case errors.Is(err, safetensors.ErrMalformed):
		f.Reason, f.code = "Malformed", ExitIntegrity
		f.Advice = "The file is damaged or cut short: pull the model again with PRELOADER_VERIFY=require."
	case errors.As(err, &stopped):
		f.Reason = "Stopped"
	case errors.Is(err, context.DeadlineExceeded):
		f.Reason = "DeadlineExceeded"
		f.Advice = "Raise PRELOADER_GPU_DEADLINE if the machine is merely slow; otherwise look for Xid in the node's kernel log."
	}
	return f
}

// explainLibrary tells a missing driver, one that is too old, and a missing NVML
// apart.
func explainLibrary(l *libraryError) Finding {
	f := Finding{Severity: Failure, Cause: l.Error()}
	switch {
	case l.soname == nvmlLibrary:
		f.Severity, f.Reason = Warning, "NoManagementLibrary"
		f.Advice = "Health is not checked; set NVIDIA_DRIVER_CAPABILITIES to compute,utility."
	case len(l.missing) > 0:
		f.Reason = "InsufficientDriver"
		f.Advice = "Install driver 470 or later on the node."
	default:
		f.Reason = "NoDriver"
		f.Advice = "Request nvidia.com/gpu in this container, and run it with the NVIDIA container runtime, which mounts the driver."
	}
	return f
}

func adviceForRoom(room *noRoomError) string {
	if more := room.more(); more > 0 {
		return fmt.Sprintf("Free %s, use more or larger GPUs, or a quantised model.", quantity.FormatBytes(more))
	}
	return "The tensors cannot be cut so that each GPU takes its share: use fewer, larger GPUs."
}
