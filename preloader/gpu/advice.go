// SPDX-License-Identifier: Apache-2.0

package gpu

import "fmt"

// noDevice is CUDA_ERROR_NO_DEVICE.
const noDevice result = 100

// counsel is what to call a failure and what to do about it.
type counsel struct{ reason, advice string }

const (
	drainAndReset  = "Drain the node and reset the GPU, or reboot the node."
	drainAndReport = "Drain the node; if it comes back after a reboot, have the GPU replaced."
)

// cudaCounsel is by CUresult, from cuda.h.
var cudaCounsel = map[result]counsel{
	outOfMemory: {"OutOfMemory", "Another process holds the GPU's memory: end it, or give this pod a GPU of its own."},
	3:           {"NotInitialized", "The driver is shutting down: start the pod again."},
	4:           {"NotInitialized", "The driver is shutting down: start the pod again."},
	34: {
		"StubLibrary",
		"The toolkit's stub was loaded in place of the driver: take its folder, which ends in /stubs, out of LD_LIBRARY_PATH.",
	},
	46: {
		"DeviceUnavailable",
		"The GPU takes one process at a time, or none: set its compute mode to default with nvidia-smi -c 0, or end the other process.",
	},
	noDevice: {
		"NoDevice",
		"Request nvidia.com/gpu in this container too; if that is done, look at NVIDIA_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES " +
			"and the device plugin.",
	},
	101: {"InvalidDevice", "CUDA_VISIBLE_DEVICES names a GPU that is not in this container: leave it unset."},
	102: {"NotLicensed", "The virtual GPU has no licence: configure the licence server on the node."},
	201: {"InvalidContext", "The GPU was reset while it was in use: start the pod again."},
	214: {"EccUncorrectable", drainAndReset},
	220: {"NvlinkUncorrectable", drainAndReport},
	226: {"ContainedError", "The GPU contained a hardware error: start the pod again, and drain the node if it happens twice."},
	304: {
		"OperatingSystem",
		"A call to the kernel failed: check that /dev/nvidia* are in the container, and the limits of the pod.",
	},
	700: {"IllegalAddress", drainAndReset},
	714: {"HardwareStackError", drainAndReset},
	719: {"LaunchFailed", drainAndReset},
	800: {"NotPermitted", "The container may not use the GPU: check its security context and the device plugin."},
	801: {"NotSupported", "The GPU or its driver cannot do this: check that driver and GPU belong together."},
	systemNotReady: {
		"SystemNotReady",
		"The fabric manager has not set up the links between GPUs: check nvidia-fabricmanager on the node, and that its version is the driver's.",
	},
	803: {
		"DriverMismatch",
		"The kernel module and the driver's libraries differ, as after an upgrade without a reboot: drain and reboot the node.",
	},
	804: {
		"CompatNotSupported",
		"The image's CUDA compatibility libraries do not work on this GPU: take /usr/local/cuda/compat out of LD_LIBRARY_PATH, " +
			"or upgrade the driver.",
	},
	805: {"MPS", "Start the MPS control daemon on the node, or unset CUDA_MPS_PIPE_DIRECTORY."},
	806: {"MPS", "Restart the MPS control daemon on the node."},
	807: {"MPS", "The MPS server recovers from a failure: start the pod again in a moment."},
	808: {"MPS", "Too many processes share the GPU by MPS: move some away."},
	809: {"MPS", "Too many processes share the GPU by MPS: move some away."},
	810: {"MPS", "The MPS server ended this client: start the pod again."},
	909: {"DriverTimeout", drainAndReset},
	999: {
		"Unknown",
		"Often the nvidia-uvm module is not loaded, or the GPU fell off the bus: look for Xid in the node's kernel log, and run nvidia-smi there.",
	},
}

// adviceForCUDA names a refusal of the driver.
func adviceForCUDA(code result) (reason, advice string) {
	if c, ok := cudaCounsel[code]; ok {
		return c.reason, c.advice
	}
	return "CUDAError", "Look the code up in cuda.h, and for Xid in the node's kernel log."
}

// nvmlCounsel is by nvmlReturn_t, from nvml.h.
var nvmlCounsel = map[nvmlResult]counsel{
	6:                   {"NotFound", "NVML does not know the GPU that CUDA shows: check the device plugin."},
	8:                   {"InsufficientPower", "A power cable of the GPU is missing or loose."},
	nvmlDriverNotLoaded: {"DriverNotLoaded", "Load the nvidia kernel module on the node, or reinstall its driver."},
	nvmlTimeout:         {"DriverTimeout", drainAndReset},
	11:                  {"Interrupts", "The kernel has trouble with the GPU's interrupts: drain and reboot the node."},
	14:                  {"CorruptedInfoROM", drainAndReport},
	nvmlGPUIsLost:       {"FellOffBus", drainAndReport},
	nvmlResetRequired:   {"ResetRequired", drainAndReset},
	nvmlOperatingSystem: {
		"OperatingSystem",
		"The kernel keeps the container from the GPU, as after systemctl daemon-reload on the node: start the pod again.",
	},
	nvmlVersionMismatch: {
		"DriverMismatch",
		"The kernel module and the driver's libraries differ, as after an upgrade without a reboot: drain and reboot the node.",
	},
	27:          {"SystemNotReady", "The GPU is still being initialised: start the pod again in a moment."},
	28:          {"NoDevice", "No GPU was found: check the device plugin and lspci on the node."},
	nvmlUnknown: {"Unknown", drainAndReset},
}

// adviceForNVML names a query that failed. Unknown codes are failures too: a GPU whose
// health cannot be told is not called healthy.
func adviceForNVML(code nvmlResult) (reason, advice string) {
	if c, ok := nvmlCounsel[code]; ok {
		return c.reason, c.advice
	}
	return "NVMLError", "Look the code up in nvml.h, and for Xid in the node's kernel log."
}

// applicationXids are reported where a program on the GPU did something wrong; the GPU
// itself is well.
var applicationXids = map[uint64]string{
	13: "a program's exception", 31: "a program's page fault", 43: "a program that was stopped",
	45: "a program that was cleaned up", 68: "a video processor's exception", 109: "a program's context switch timeout",
}

// hardwareXids are those whose meaning helps.
var hardwareXids = map[uint64]string{
	48: "an uncorrectable memory error", 63: "a memory row was remapped", 64: "a memory row could not be remapped",
	74: "an NVLink error", 79: "the GPU fell off the bus", 94: "a contained memory error",
	95: "an uncontained memory error", 119: "the GPU's system processor does not answer",
	120: "the GPU's system processor failed", 154: "the GPU asks for a reset or a reboot",
}

// explainXid makes a finding of a critical event. What is not known to be an
// application's counts as the hardware's.
func explainXid(xid uint64) Finding {
	if meaning, ok := applicationXids[xid]; ok {
		return Finding{
			Severity: Note, Reason: "ApplicationXid", Cause: fmt.Sprintf("Xid %d during the check: %s", xid, meaning),
			Advice: "Another process on the GPU is at fault.",
		}
	}
	meaning, ok := hardwareXids[xid]
	if !ok {
		meaning = "a critical error"
	}
	return Finding{
		Severity: Failure, Reason: "Xid", Cause: fmt.Sprintf("Xid %d during the check: %s", xid, meaning), Advice: drainAndReset,
	}
}

// recoveryActions is by nvmlDeviceGpuRecoveryAction_t.
var recoveryActions = map[uint64]counsel{
	1: {"a reset of the GPU", "Drain the node and reset the GPU with nvidia-smi --gpu-reset."},
	2: {"a reboot of the node", "Drain the node and reboot it."},
	3: {"an end of all traffic between GPUs", "End the processes that use NVLink on the node, then reset its GPUs."},
	4: {"draining and a reset", "Send it no new work, and reset it when its processes have ended."},
}
