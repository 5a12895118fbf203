// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"os"
	"strings"
	"testing"

	"serverless.xyz/outrigger/preloader/crc"
)

// machine gives the program the machine's own libraries, or skips the test where there
// is no GPU.
func machine(t *testing.T) settings {
	t.Helper()
	env := settings{"LD_LIBRARY_PATH": os.Getenv("LD_LIBRARY_PATH")}
	for _, name := range []string{"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HOME", "PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			env[name] = v
		}
	}
	out := run(t, env, "preflight", "--json", "--link", "0")
	for _, f := range out.report.Findings {
		if f.Reason == "NoDriver" || f.Reason == "NoDevice" {
			t.Skip("this machine has no GPU: " + f.Cause)
		}
	}
	return env
}

// TestRealPreflight runs where there is a GPU.
func TestRealPreflight(t *testing.T) {
	env := machine(t)
	t.Log("\n" + run(t, env, "preflight").stdout)
	out := run(t, env, "preflight", "--json", "--fail")
	if out.code != 0 || out.report.Verdict == Unhealthy {
		t.Fatalf("code %d\n%s%s", out.code, out.stdout, out.stderr)
	}
	for _, d := range out.report.Devices {
		if d.Link == nil || !d.Link.Intact || d.Link.ToDevice < 1e9 || d.MemoryFree == 0 || !strings.HasPrefix(d.UUID, "GPU-") {
			t.Errorf("GPU %d is %+v, link %+v", d.Index, d, d.Link)
		}
	}
}

// TestRealLoad runs where there is a GPU: 2 GiB in three files, checked against a pull
// and compared in GPU memory to the last byte.
func TestRealLoad(t *testing.T) {
	env := machine(t)
	const gibibyte = 1 << 30
	dir := modelDir(t, map[string][]byte{
		"model-00001-of-00003.safetensors": safetensorsFile(1, gibibyte/2, gibibyte/2),
		"model-00002-of-00003.safetensors": safetensorsFile(2, gibibyte/4+13, gibibyte/4),
		"model-00003-of-00003.safetensors": safetensorsFile(3, gibibyte/2),
	}, crc.NVME)
	for range 3 {
		t.Log("\n" + run(t, env, "load", dir).stdout)
	}
	out := run(t, env, "load", "--json", "--fail", "--read-back", "all", dir)
	if out.code != 0 || out.report.Load == nil || out.report.Load.Proven != 3 || out.report.Load.ReadBack != 2*gibibyte+13 {
		t.Fatalf("code %d\n%s%s", out.code, out.stdout, out.stderr)
	}
}

// TestRealRefusal asks for more GPU memory than any machine has.
func TestRealRefusal(t *testing.T) {
	env := machine(t)
	out := run(t, env, "preflight", "--json", "--fail", "--memory", "900Ti", "--link", "0")
	if f := out.finding(t, "NotEnoughMemory"); out.code != int(ExitGPU) || f.Advice == "" {
		t.Errorf("code %d, %+v", out.code, f)
	}
}
