// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// library makes a folder in which the libraries are what the map says, and the fakes
// otherwise.
func library(t *testing.T, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{cudaLibrary, nvmlLibrary} {
		text, other := content[name]
		if !other {
			if err := os.Symlink(filepath.Join(must(t, fakes), name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if text != "" {
			if err := os.Symlink(text, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		// Found before any that the machine may have, and no library.
		if err := os.WriteFile(filepath.Join(dir, name), []byte("no library"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// hollow makes a library without functions.
func hollow(t *testing.T) string {
	t.Helper()
	source, made := filepath.Join(t.TempDir(), "hollow.c"), filepath.Join(t.TempDir(), "hollow.so")
	if err := os.WriteFile(source, []byte("int nothing;"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", made, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return made
}

func TestPreflightOfHealthyGPUs(t *testing.T) {
	out := run(
		t,
		settings{"FAKE_CUDA_DEVICES": "2", "FAKE_CUDA_FREE": "900000000"},
		"preflight",
		"--json",
		"--link",
		"1Mi",
		"--fail",
	)
	out.balanced(t)
	if out.code != 0 || out.report.Verdict != Healthy || len(out.report.Findings) != 0 {
		t.Fatalf("code %d\n%s%s", out.code, out.stdout, out.stderr)
	}
	if got := out.report.Driver; got != (Driver{Version: "570.00.fake", CUDA: "12.8"}) {
		t.Errorf("driver is %+v", got)
	}
	if len(out.report.Devices) != 2 {
		t.Fatalf("%d devices, want 2", len(out.report.Devices))
	}
	d := out.report.Devices[1]
	if d.Index != 1 || d.Name != "FAKE GPU" || d.UUID != "GPU-fafafafa-fafa-fafa-fafa-fafafafafa01" || d.PCI != "0000:11:00.0" ||
		d.Compute != "9.0" || d.MemoryTotal != 1<<30 || d.MemoryFree != 900_000_000 || !d.ECC {
		t.Errorf("second device is %+v", d)
	}
	if d.Link == nil || !d.Link.Intact || d.Link.ToDevice <= 0 || d.Link.ToHost <= 0 {
		t.Errorf("its link is %+v", d.Link)
	}
	if d.Health == nil || d.Health.PCIe == nil || *d.Health.PCIe != (PCIe{1, 5, 1, 1}) || *d.Health.EccErrors != 0 {
		t.Errorf("its health is %+v", d.Health)
	}
}

func TestPreflightForPeople(t *testing.T) {
	out := run(t, settings{"FAKE_NVML_PROCESSES": "4242:1500000000", "FAKE_NVML_ECC": "3"}, "preflight", "--link", "1Mi")
	for _, want := range []string{
		"GPU preflight: degraded, after ", "driver 570.00.fake, for CUDA up to 12.8",
		"GPU 0  FAKE GPU  GPU-fafafafa", "memory  1.1 GB of 1.1 GB free", "/s back, bytes intact; PCIe gen 1 x1 of gen 5 x1",
		"ECC; 3 uncorrectable errors; no row remapping pending; persistence mode on; process 4242 holds 1.5 GB",
		"warning EccErrors: GPU 0: 3 uncorrectable memory errors since the driver was loaded. Reset the GPU",
	} {
		if !strings.Contains(out.stdout, want) {
			t.Errorf("no %q in\n%s", want, out.stdout)
		}
	}
}

// TestPreflightSaysWhatIsWrong takes each way in which a driver fails through the whole
// program.
func TestPreflightSaysWhatIsWrong(t *testing.T) {
	fail := func(rule string) settings { return settings{"FAKE_CUDA_FAIL": rule} }
	tests := map[string]struct {
		env          settings
		libraries    map[string]string
		args         []string
		wantReason   string
		wantSeverity Severity
		wantCause    string
		wantAdvice   string
		// wantStuck says that a thread hangs, so that not all can be given back.
		wantStuck bool
	}{
		"no driver": {
			libraries: map[string]string{cudaLibrary: ""}, wantReason: "NoDriver", wantAdvice: "nvidia.com/gpu",
		},
		"a driver without the functions that are needed": {
			libraries: map[string]string{cudaLibrary: hollow(t)}, wantReason: "InsufficientDriver",
			wantCause: "lacks cuCtxSetCurrent", wantAdvice: "470",
		},
		"no NVML": {
			libraries: map[string]string{
				nvmlLibrary: "",
			},
			wantReason:   "NoManagementLibrary",
			wantSeverity: Warning,
			wantAdvice:   "utility",
		},
		"the toolkit's stub": {env: fail("cuInit=34"), wantReason: "StubLibrary", wantAdvice: "LD_LIBRARY_PATH"},
		"no device": {
			env:        fail("cuInit=100"),
			wantReason: "NoDevice",
			wantCause:  "CUDA_ERROR_NO_DEVICE (100)",
			wantAdvice: "nvidia.com/gpu",
		},
		"a count of 0": {
			env:        settings{"FAKE_CUDA_DEVICES": "0"},
			wantReason: "NoDevice",
			wantAdvice: "device plugin",
		},
		"a wrong CUDA_VISIBLE_DEVICES": {env: fail("cuInit=101"), wantReason: "InvalidDevice", wantAdvice: "unset"},
		"libraries and module differ": {
			env:        fail("cuInit=803"),
			wantReason: "DriverMismatch",
			wantCause:  "DRIVER_MISMATCH",
			wantAdvice: "reboot",
		},
		"compatibility libraries on the wrong GPU": {
			env: fail("cuInit=804"), wantReason: "CompatNotSupported", wantAdvice: "/usr/local/cuda/compat",
		},
		"an unknown error of the driver": {env: fail("cuInit=999"), wantReason: "Unknown", wantAdvice: "nvidia-uvm"},
		"a code that cuda.h may yet get": {env: fail("cuInit=1234"), wantReason: "CUDAError", wantCause: "CUDA error 1234"},
		"the fabric manager never comes": {
			env:        fail("cuInit=802"),
			args:       []string{"--wait", "0s"},
			wantReason: "SystemNotReady",
			wantAdvice: "nvidia-fabricmanager",
		},
		"a driver for an older CUDA than needed": {
			env: settings{"FAKE_CUDA_VERSION": "12020"}, args: []string{"--cuda", "12.4"}, wantReason: "InsufficientDriver",
			wantCause: "CUDA up to 12.2, 12.4 is asked for", wantAdvice: "CUDA 12.4",
		},
		"fewer GPUs than asked for": {
			env: settings{
				"FAKE_CUDA_DEVICES": "2",
			},
			args:       []string{"--devices", "4"},
			wantReason: "TooFewGPUs",
			wantCause:  "sees 2 GPUs, 4",
		},
		"a GPU in exclusive use": {
			env:        fail("cuDevicePrimaryCtxRetain=46"),
			wantReason: "DeviceUnavailable",
			wantAdvice: "nvidia-smi -c 0",
		},
		"no memory left for a context": {
			env:        settings{"FAKE_CUDA_FAIL": "cuDevicePrimaryCtxRetain=2", "FAKE_NVML_PROCESSES": "77:2000000000,78:1"},
			wantReason: "OutOfMemory", wantCause: "process 77 holds 2.0 GB, process 78 holds 1 B", wantAdvice: "Another process",
		},
		"less memory free than asked for": {
			env: settings{
				"FAKE_NVML_PROCESSES": "77:2000000000",
			},
			args:       []string{"--memory", "2Gi"},
			wantReason: "NotEnoughMemory",
			wantCause:  "2.1 GB of GPU memory are asked for, 1.1 GB are free, process 77 holds",
			wantAdvice: "Free 1.1 GB",
		},
		"the kernel refuses to lock memory": {
			env:        fail("cuMemHostAlloc=304"),
			wantReason: "OperatingSystem",
			wantAdvice: "/dev/nvidia",
		},
		"a memory error during a copy": {
			env:        fail("cuMemcpyHtoDAsync_v2=214@2-2"),
			wantReason: "EccUncorrectable",
			wantAdvice: "Drain",
		},
		"a memory error seen while waiting": {
			env:        fail("cuEventSynchronize=700"),
			wantReason: "IllegalAddress",
			wantAdvice: "Drain",
		},
		"a link that flips bits": {
			env: settings{"FAKE_CUDA_FLIP": "2"}, wantReason: "LinkCorruptsBytes", wantAdvice: "replaced",
		},
		"a link that flips bits on the way back": {env: settings{"FAKE_CUDA_FLIP_BACK": "1"}, wantReason: "LinkCorruptsBytes"},
		"fewer lanes than there are": {
			env: settings{
				"FAKE_NVML_PCIE": "1,5,1,16",
			},
			wantReason:   "LinkNarrow",
			wantSeverity: Warning,
			wantCause:    "1 of 16 lanes",
		},
		"copies slower than the link": {
			env: settings{
				"FAKE_NVML_PCIE": "6,6,16,16",
			},
			wantReason:   "LinkSlow",
			wantSeverity: Warning,
			wantCause:    "121.0 GB/s that PCIe 6 x16",
		},
		"memory errors": {
			env: settings{"FAKE_NVML_ECC": "3"}, wantReason: "EccErrors", wantSeverity: Warning, wantCause: "3 uncorrectable",
		},
		"a row that waits for remapping": {
			env: settings{"FAKE_NVML_ROWS": "pending"}, wantReason: "RowRemapPending", wantSeverity: Warning,
		},
		"a row that cannot be remapped": {
			env:        settings{"FAKE_NVML_ROWS": "failed"},
			wantReason: "RowRemapFailed",
			wantAdvice: "replaced",
		},
		"pages that wait for a retirement": {
			env:          settings{"FAKE_NVML_PAGES": "1"},
			wantReason:   "PageRetirementPending",
			wantSeverity: Warning,
		},
		"a GPU that wants a reset": {
			env:        settings{"FAKE_NVML_RECOVERY": "1"},
			wantReason: "RecoveryNeeded",
			wantAdvice: "--gpu-reset",
		},
		"a node that wants a reboot": {
			env:        settings{"FAKE_NVML_RECOVERY": "2"},
			wantReason: "RecoveryNeeded",
			wantAdvice: "reboot it",
		},
		"an action that nvml.h may yet get": {
			env: settings{"FAKE_NVML_RECOVERY": "9"}, wantReason: "RecoveryNeeded", wantCause: "recovery action 9",
		},
		"links between GPUs not set up": {
			env: settings{"FAKE_NVML_FABRIC": "2,0,0"}, wantReason: "FabricNotReady", wantSeverity: Warning,
		},
		"links between GPUs that failed": {
			env:        settings{"FAKE_NVML_FABRIC": "3,999,0"},
			wantReason: "FabricFailed",
			wantCause:  "error 999",
		},
		"links between GPUs with a bad route": {
			env:        settings{"FAKE_NVML_FABRIC": "3,0,16"},
			wantReason: "FabricFailed",
			wantCause:  "route",
		},
		"links between GPUs that are slow": {
			env: settings{"FAKE_NVML_FABRIC": "3,0,1"}, wantReason: "FabricDegraded", wantSeverity: Warning,
		},
		"the GPU falls off the bus": {
			env:        settings{"FAKE_NVML_XID": "79"},
			wantReason: "Xid",
			wantCause:  "Xid 79 during the check: the GPU fell off the bus",
		},
		"an Xid that nobody knows": {env: settings{"FAKE_NVML_XID": "31,777"}, wantReason: "Xid", wantCause: "Xid 777"},
		"another program's fault":  {env: settings{"FAKE_NVML_XID": "31"}, wantReason: "ApplicationXid", wantSeverity: Note},
		"NVML and module differ": {
			env:        settings{"FAKE_NVML_FAIL": "nvmlInit_v2=18"},
			wantReason: "DriverMismatch",
			wantAdvice: "reboot",
		},
		"no kernel module": {
			env:        settings{"FAKE_NVML_FAIL": "nvmlInit_v2=9"},
			wantReason: "DriverNotLoaded",
			wantAdvice: "kernel module",
		},
		"a lost GPU": {
			env: settings{"FAKE_NVML_FAIL": "nvmlDeviceGetTotalEccErrors=15"}, wantReason: "FellOffBus", wantCause: "GPU is lost",
		},
		"a GPU that needs a reset": {
			env:        settings{"FAKE_NVML_FAIL": "nvmlDeviceGetRemappedRows=16"},
			wantReason: "ResetRequired",
		},
		"the control group forbids it": {
			env:        settings{"FAKE_NVML_FAIL": "nvmlDeviceGetHandleByPciBusId_v2=17"},
			wantReason: "OperatingSystem",
			wantAdvice: "daemon-reload",
		},
		"a query fails for no known reason": {
			env: settings{"FAKE_NVML_FAIL": "nvmlDeviceGetFieldValues=998"}, wantReason: "NVMLError",
		},
		"the driver hangs while it starts": {
			env: settings{"FAKE_CUDA_HANG": "cuInit"}, args: []string{"--call-timeout", "1s"}, wantReason: "DriverStuck",
			wantCause: "cuInit did not come back within 1s", wantAdvice: "Xid", wantStuck: true,
		},
		"NVML hangs while it starts": {
			env: settings{"FAKE_NVML_HANG": "nvmlInit_v2"}, args: []string{"--call-timeout", "1s"}, wantReason: "DriverStuck",
			wantCause: "nvmlInit_v2", wantStuck: true,
		},
		"a query hangs": {
			env: settings{"FAKE_NVML_HANG": "nvmlDeviceGetTotalEccErrors", "FAKE_CUDA_DEVICES": "2"},
			args: []string{
				"--call-timeout",
				"1s",
			},
			wantReason: "DriverStuck",
			wantCause:  "nvmlDeviceGetTotalEccErrors",
			wantStuck:  true,
		},
		"a copy hangs": {
			env: settings{
				"FAKE_CUDA_HANG": "cuEventSynchronize",
			},
			args:       []string{"--call-timeout", "1s"},
			wantReason: "DriverStuck",
			wantCause:  "cuEventSynchronize",
			wantStuck:  true,
		},
		"the whole takes too long": {
			env: settings{"FAKE_CUDA_HANG": "cuInit"}, args: []string{"--deadline", "0.5"}, wantReason: "DeadlineExceeded",
			wantCause:  "took longer than 500ms, while it waited for cuInit",
			wantAdvice: "PRELOADER_GPU_DEADLINE", wantStuck: true,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			env := settings{}
			maps.Copy(env, tc.env)
			if tc.libraries != nil {
				env["LD_LIBRARY_PATH"] = library(t, tc.libraries)
			}
			if tc.wantSeverity == "" {
				tc.wantSeverity = Failure
			}
			out := run(t, env, append([]string{"preflight", "--json", "--fail", "--link", "1Mi"}, tc.args...)...)
			f := out.finding(t, tc.wantReason)
			if f.Severity != tc.wantSeverity || !strings.Contains(f.Cause, tc.wantCause) ||
				!strings.Contains(f.Advice, tc.wantAdvice) {
				t.Errorf("finding is %+v", f)
			}
			wantVerdict := map[Severity]Verdict{Failure: Unhealthy, Warning: Degraded, Note: Healthy}[tc.wantSeverity]
			wantCode := map[Verdict]int{Unhealthy: int(ExitGPU)}[wantVerdict]
			if out.report.Verdict != wantVerdict || out.code != wantCode {
				t.Errorf("verdict %s, code %d; want %s, %d", out.report.Verdict, out.code, wantVerdict, wantCode)
			}
			if !tc.wantStuck {
				out.balanced(t)
			}
		})
	}
}

func TestPreflightToleratesWhatIsNotReported(t *testing.T) {
	tests := map[string]struct {
		env        settings
		libraries  map[string]string
		wantSilent string
	}{
		"queries that the GPU does not support": {
			env: settings{
				"FAKE_NVML_FAIL": "nvmlDeviceGetTotalEccErrors=3,nvmlDeviceGetRemappedRows=3,nvmlEventSetCreate=3",
			},
			wantSilent: "nvmlDeviceGetTotalEccErrors",
		},
		"a container that may not ask": {
			env: settings{
				"FAKE_NVML_FAIL": "nvmlDeviceGetComputeRunningProcesses_v3=4",
			},
			wantSilent: "nvmlDeviceGetComputeRunningProcesses_v3",
		},
		"a GPU of which the container may ask nothing": {
			env: settings{"FAKE_NVML_FAIL": "nvmlDeviceGetHandleByPciBusId_v2=4"},
		},
		"a driver that knows of no recovery": {
			env: settings{"FAKE_NVML_RECOVERY": "unsupported"}, wantSilent: "nvmlDeviceGetFieldValues",
		},
		"an NVML of some years ago": {
			libraries: map[string]string{nvmlLibrary: "old"}, wantSilent: "nvmlDeviceGetRemappedRows",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			env := settings{}
			maps.Copy(env, tc.env)
			if tc.libraries != nil {
				env["LD_LIBRARY_PATH"] = library(
					t,
					map[string]string{nvmlLibrary: filepath.Join(must(t, fakes), "old", nvmlLibrary)},
				)
			}
			out := run(t, env, "preflight", "--json", "--fail", "--link", "1Mi")
			out.balanced(t)
			if out.code != 0 || out.report.Verdict != Healthy {
				t.Fatalf("code %d\n%s%s", out.code, out.stdout, out.stderr)
			}
			if tc.wantSilent == "" {
				return
			}
			if got := out.report.Devices[0].Health.Silent; !strings.Contains(strings.Join(got, " "), tc.wantSilent) {
				t.Errorf("not reported: %v, want %s among them", got, tc.wantSilent)
			}
		})
	}
}

func TestPreflightWaitsForTheFabricManager(t *testing.T) {
	env := settings{"FAKE_CUDA_FAIL": "cuInit=802@1-2", "FAKE_STATE": t.TempDir()}
	out := run(t, env, "preflight", "--json", "--link", "0")
	out.balanced(t)
	if out.report.Verdict != Healthy || out.report.Waited < 1 {
		t.Errorf("verdict %s after %v s of waiting, want healthy after the third attempt\n%s%s",
			out.report.Verdict, out.report.Waited, out.stdout, out.stderr)
	}
	if n := strings.Count(out.stderr, "trying again"); n != 2 {
		t.Errorf("tried again %d times, want 2\n%s", n, out.stderr)
	}
	calls, err := os.ReadFile(filepath.Join(env["FAKE_STATE"], "cuInit"))
	if err != nil || len(calls) != 3 {
		t.Errorf("the driver was initialised %d times (%v), want 3", len(calls), err)
	}
}

func TestPreflightStopsWaiting(t *testing.T) {
	env := settings{"FAKE_CUDA_FAIL": "cuInit=802@1-100", "FAKE_STATE": t.TempDir()}
	out := run(t, env, "preflight", "--json", "--wait", "600ms")
	if f := out.finding(t, "SystemNotReady"); f.Severity != Failure || out.report.Waited < 0.6 {
		t.Errorf("%+v after %v s", f, out.report.Waited)
	}
}

// TestChecksNeverFailUnlessAsked is the promise that a GPU check costs no pod its start.
func TestChecksNeverFailUnlessAsked(t *testing.T) {
	for name, env := range map[string]settings{
		"no driver":      {"LD_LIBRARY_PATH": library(t, map[string]string{cudaLibrary: "", nvmlLibrary: ""})},
		"a broken GPU":   {"FAKE_CUDA_FAIL": "cuMemcpyDtoHAsync_v2=214"},
		"a lost GPU":     {"FAKE_NVML_FAIL": "nvmlDeviceGetTotalEccErrors=15"},
		"a stuck driver": {"FAKE_CUDA_HANG": "cuMemGetInfo_v2", "PRELOADER_GPU_CALL_TIMEOUT": "500ms"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, args := range [][]string{{"preflight", "--json", "--link", "1Mi"}, {"load", "--json", "--link", "1Mi", t.TempDir()}} {
				if out := run(t, env, args...); out.code != 0 || out.report.Verdict != Unhealthy {
					t.Errorf("%v: code %d, verdict %q; want 0 and unhealthy\n%s", args, out.code, out.report.Verdict, out.stderr)
				}
			}
		})
	}
}
