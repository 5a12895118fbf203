// SPDX-License-Identifier: Apache-2.0

// Package gpu looks at the NVIDIA GPUs of a machine before a model server does, and
// streams models into their memory to prove that they fit and arrive intact.
//
// It calls the CUDA driver (libcuda.so.1) and NVML (libnvidia-ml.so.1) at run time,
// without cgo. Neither is needed to build it, and a machine without them is a finding
// like any other.
//
// The contract:
//
//   - Whatever is wrong becomes a [Finding]: a reason in one word, a cause, and one
//     sentence of advice. Nothing panics, nothing is fatal to the caller.
//   - A check never fails a pod unless asked: [Options.Fail].
//   - A call into the driver that does not come back is a failure too, after
//     [Options.Stall]. The thread that made it is given up, so a process that met one
//     should end soon.
//   - All calls that concern one GPU come from one OS thread, because the driver keeps
//     the current context by thread.
//   - Host memory that the driver reads or writes asynchronously is the driver's own,
//     page-locked, and never the Go heap's.
//   - Everything that was allocated is freed, in the reverse order, also after errors.
//     GPU memory does not outlive the process anyway; see [Load.Remains].
//
// The files, in the order of a run: command.go (arguments), thread.go (deadlines),
// cuda.go and nvml.go (the two libraries), session.go (initialising), device.go (one
// GPU), link.go and health.go (checks), preflight.go; model.go and place.go (which bytes
// go where), stream.go and load.go (moving them); finding.go and advice.go (what it
// means), report.go (saying so).
package gpu
