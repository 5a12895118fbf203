// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"serverless.xyz/outrigger/preloader"
	"serverless.xyz/outrigger/preloader/crc"
)

// container runs the preloader as the image with the GPU program does, and returns its
// exit code, its log, the first line of its termination message, and the last.
func container(t *testing.T, env settings, args ...string) (code int, log, last string, report preloader.Report) {
	t.Helper()
	must(t, program)
	path := must(t, preloaderProgram)
	if alone := env["alone"]; alone != "" {
		// The plain image has the preloader only.
		if err := os.Link(path, filepath.Join(alone, "preloader")); err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(alone, "preloader")
	}
	message := filepath.Join(t.TempDir(), "message")
	command := exec.Command(path, args...)
	command.Env = []string{"LD_LIBRARY_PATH=" + must(t, fakes), "PRELOADER_TERMINATION_LOG=" + message, "PRELOADER_GPU_LINK=1Mi"}
	for k, v := range env {
		command.Env = append(command.Env, k+"="+v)
	}
	out, err := command.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(message)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, line, _ := strings.Cut(string(raw), "\n")
	if err := json.Unmarshal([]byte(line), &report); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return command.ProcessState.ExitCode(), string(out), text, report
}

// TestPodStartsWhateverTheGPU is the promise that a check costs no pod its start, and
// that it does if it was asked to.
func TestPodStartsWhateverTheGPU(t *testing.T) {
	tests := map[string]struct {
		env         settings
		wantVerdict string
		wantReason  string
		wantText    string
		// wantCode is that with PRELOADER_GPU_FAIL=true.
		wantCode preloader.ExitCode
		// wantNot is what the log must not hold, unless it is empty.
		wantNot string
	}{
		"a healthy GPU": {
			env: settings{
				"PRELOADER_GPU": "preflight",
			},
			wantVerdict: "healthy",
			wantText:    "GPU preflight: healthy, 1 × FAKE GPU.",
		},
		"a healthy GPU, and the model loaded": {
			env: settings{
				"PRELOADER_GPU": "load",
			},
			wantVerdict: "healthy",
			wantText:    "GPU load: healthy, 1 × FAKE GPU, 21.0 MB in ",
		},
		"a model larger than what is free": {
			env:         settings{"PRELOADER_GPU": "preflight", "FAKE_CUDA_FREE": "9000000"},
			wantVerdict: "degraded",
			wantReason:  "NotEnoughMemory",
			wantText:    "The model's weights come to 21.0 MB, and the GPUs have 9.0 MB free",
		},
		"a GPU with a blemish": {
			env: settings{"PRELOADER_GPU": "preflight", "FAKE_NVML_ECC": "1"}, wantVerdict: "degraded", wantReason: "EccErrors",
			wantText: "1 uncorrectable memory errors",
		},
		"no driver": {
			env: settings{
				"PRELOADER_GPU":   "preflight",
				"LD_LIBRARY_PATH": library(t, map[string]string{cudaLibrary: ""}),
			},
			wantVerdict: "unhealthy",
			wantReason:  "NoDriver",
			wantText:    "Request nvidia.com/gpu",
			wantCode:    preloader.ExitGPU,
		},
		"the plain image": {
			env: settings{"PRELOADER_GPU": "load", "alone": t.TempDir()}, wantVerdict: "unhealthy", wantReason: "NoProgram",
			wantText: "Use the image preloader-gpu.", wantCode: preloader.ExitGPU,
		},
		"a driver that hangs": {
			env:         settings{"PRELOADER_GPU": "preflight", "FAKE_CUDA_HANG": "cuInit", "PRELOADER_GPU_CALL_TIMEOUT": "1s"},
			wantVerdict: "unhealthy",
			wantReason:  "DriverStuck",
			wantText:    "cuInit did not come back",
			wantCode:    preloader.ExitGPU,
		},
		"a driver that hangs, and a check that does not end": {
			env: settings{
				"PRELOADER_GPU":              "preflight",
				"FAKE_CUDA_HANG":             "cuInit",
				"PRELOADER_GPU_CALL_TIMEOUT": "1h",
				"PRELOADER_GPU_GRACE":        "100ms",
			},
			wantVerdict: "unhealthy",
			wantReason:  "Timeout",
			wantText:    "it gave no verdict in time",
			wantCode:    preloader.ExitGPU,
		},
		"a load that does not end": {
			env: settings{
				"PRELOADER_GPU": "load", "FAKE_CUDA_HANG": "cuMemAlloc_v2", "PRELOADER_GPU_CALL_TIMEOUT": "1h",
				"PRELOADER_GPU_LINK": "0", "PRELOADER_GPU_GRACE": "5s",
			},
			wantVerdict: "unhealthy",
			wantReason:  "Timeout",
			wantText:    "GPU load: it gave no verdict in time",
			wantCode:    preloader.ExitGPU,
		},
		"a driver that crashes": {
			env:         settings{"PRELOADER_GPU": "preflight", "FAKE_CUDA_CRASH": "cuInit"},
			wantVerdict: "unhealthy", wantReason: "Crashed", wantText: "the driver is broken", wantCode: preloader.ExitGPU,
			wantNot: "goroutine",
		},
		"a setting that the GPU program refuses": {
			env:         settings{"PRELOADER_GPU": "preflight", "PRELOADER_GPU_CUDA": "new"},
			wantVerdict: "unhealthy",
			wantReason:  "Configuration",
			wantText:    "PRELOADER_GPU_CUDA is \"new\"",
			wantCode:    preloader.ExitGPU,
		},
		"a model that does not fit": {
			env:         settings{"PRELOADER_GPU": "load", "FAKE_CUDA_FREE": "9000000"},
			wantVerdict: "unhealthy",
			wantReason:  "NotEnoughMemory",
			wantText:    "the model needs 21.0 MB",
			wantCode:    preloader.ExitGPU,
		},
	}
	source := modelDir(t, threeShards(), crc.NVME)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			code, log, last, report := container(t, tc.env, source, filepath.Join(t.TempDir(), "models"))
			if code != 0 || report.GPU == nil {
				t.Fatalf("code %d\n%s", code, log)
			}
			if report.GPU.Verdict != tc.wantVerdict || report.GPU.Reason != tc.wantReason ||
				!strings.Contains(last, tc.wantText) ||
				!strings.Contains(log, tc.wantText) {
				t.Errorf("verdict %+v\n%s\n%s", report.GPU, last, log)
			}
			if tc.wantNot != "" && strings.Contains(log, tc.wantNot) {
				t.Errorf("the log holds %q:\n%s", tc.wantNot, log)
			}
			env := settings{"PRELOADER_GPU_FAIL": "true"}
			maps.Copy(env, tc.env)
			if env["alone"] != "" {
				env["alone"] = t.TempDir()
			}
			code, log, last, report = container(t, env, source, filepath.Join(t.TempDir(), "models"))
			if code != int(tc.wantCode) || !strings.Contains(last, tc.wantText) {
				t.Errorf("code %d, want %d\n%s\n%s", code, tc.wantCode, last, log)
			}
			if tc.wantCode != 0 && (report.GPU == nil || report.GPU.Reason != tc.wantReason) {
				t.Errorf("verdict %+v, want %s", report.GPU, tc.wantReason)
			}
		})
	}
}

func TestPreflightRunsBesideThePull(t *testing.T) {
	// A store that never answers: only the preflight can end this pull in time.
	asked, done := make(chan struct{}, 100), make(chan struct{})
	store := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-done
	}))
	t.Cleanup(store.Close)
	t.Cleanup(func() { close(done) })
	code, log, last, _ := container(t, settings{
		"PRELOADER_GPU": "preflight", "PRELOADER_GPU_FAIL": "true", "FAKE_CUDA_FAIL": "cuMemcpyDtoHAsync_v2=214",
		"AWS_ENDPOINT_URL": store.URL, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret-key-text",
		"AWS_EC2_METADATA_DISABLED": "true", "S3_READ_TIMEOUT": "600",
	}, "s3://models/m", t.TempDir())
	if code != int(preloader.ExitGPU) ||
		!strings.Contains(last, "EccUncorrectable") && !strings.Contains(last, "ECC_UNCORRECTABLE") {
		t.Errorf("code %d\n%s\n%s", code, last, log)
	}
}

func TestGPUProgramGetsNoCredentials(t *testing.T) {
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	script := "#!/bin/sh\nenv > " + seen + "\necho '{\"verdict\":\"healthy\",\"summary\":\"GPU preflight: healthy.\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "preloader-gpu"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	code, log, _, _ := container(t, settings{
		"alone": dir, "PRELOADER_GPU": "preflight", "AWS_SECRET_ACCESS_KEY": "secret-key-text", "AWS_ACCESS_KEY_ID": "id",
		"STORAGE_CONFIG": `{"type":"s3","secret_access_key":"secret-key-text"}`, "PATH": "/usr/bin:/bin",
	}, modelDir(t, threeShards(), nil), filepath.Join(t.TempDir(), "models"))
	if code != 0 {
		t.Fatalf("code %d\n%s", code, log)
	}
	raw, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("secret-key-text")) || bytes.Contains(raw, []byte("AWS_")) {
		t.Errorf("the GPU program sees\n%s", raw)
	}
	if !bytes.Contains(raw, []byte("PRELOADER_GPU_LINK=1Mi")) {
		t.Errorf("the GPU program does not see its settings\n%s", raw)
	}
}

func TestPreloaderHandsCommandsOver(t *testing.T) {
	must(t, program)
	path := must(t, preloaderProgram)
	run := func(path string, args ...string) (int, string) {
		command := exec.Command(path, args...)
		command.Env = []string{"LD_LIBRARY_PATH=" + must(t, fakes), "FAKE_CUDA_FAIL=cuInit=803"}
		out, _ := command.CombinedOutput()
		return command.ProcessState.ExitCode(), string(out)
	}
	if code, out := run(path, "preflight", "--fail"); code != int(ExitGPU) || !strings.Contains(out, "DriverMismatch") {
		t.Errorf("code %d\n%s", code, out)
	}
	crashing := exec.Command(path, "preflight")
	crashing.Env = []string{"LD_LIBRARY_PATH=" + must(t, fakes), "FAKE_CUDA_CRASH=cuInit"}
	out, _ := crashing.CombinedOutput()
	if code := crashing.ProcessState.ExitCode(); code != int(ExitGPU) || bytes.Count(out, []byte("\n")) != 2 ||
		!bytes.Contains(out, []byte("the driver is broken")) {
		t.Errorf("a driver that crashes: code %d\n%s", code, out)
	}
	alone := filepath.Join(t.TempDir(), "preloader")
	if err := os.Link(path, alone); err != nil {
		t.Fatal(err)
	}
	if code, out := run(
		alone,
		"load",
		"/mnt/models",
	); code != int(ExitConfig) ||
		!strings.Contains(out, "use the image preloader-gpu") {
		t.Errorf("code %d\n%s", code, out)
	}
}
