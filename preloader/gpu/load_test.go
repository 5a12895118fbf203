// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"serverless.xyz/outrigger/preloader"
	"serverless.xyz/outrigger/preloader/crc"
)

// safetensorsFile makes a file with tensors of these lengths.
func safetensorsFile(seed uint64, lengths ...int) []byte {
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	at := 0
	for i, n := range lengths {
		header[fmt.Sprintf("layers.%03d.weight", i)] = map[string]any{
			"dtype": "U8", "shape": []int{n}, "data_offsets": []int{at, at + n},
		}
		at += n
	}
	raw, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(raw)))
	file = append(file, raw...)
	data := make([]byte, at)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(data)
	return append(file, data...)
}

// modelDir writes files, and the marker that a pull of them leaves, by the preloader's
// own type.
func modelDir(t *testing.T, files map[string][]byte, kind *crc.Kind) string {
	t.Helper()
	dir := t.TempDir()
	marker := preloader.Marker{Form: 1}
	for name, data := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if kind != nil {
			marker.Files = append(marker.Files, preloader.FileRecord{
				Path: name, Size: int64(len(data)), CRC: kind.Name, Sum: kind.Encode(kind.Update(0, data)),
			})
		}
	}
	if kind == nil {
		return dir
	}
	raw, err := json.Marshal(marker)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, markerName), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const mebibyte = 1 << 20

// threeShards are some 20 MB in tensors of unequal and uneven length.
func threeShards() map[string][]byte {
	return map[string][]byte{
		"model-00001-of-00003.safetensors": safetensorsFile(1, 5*mebibyte+3, 1, 2*mebibyte),
		"model-00002-of-00003.safetensors": safetensorsFile(2, 3*mebibyte-1, 4*mebibyte+1),
		"model-00003-of-00003.safetensors": safetensorsFile(3, 7, 6*mebibyte),
	}
}

func TestLoadStreamsShardsIntoGPUs(t *testing.T) {
	tests := map[string]struct {
		gpus string
		kind *crc.Kind
		args []string
	}{
		"one GPU, and everything compared":    {"1", crc.NVME, []string{"--read-back", "all"}},
		"three GPUs, and everything compared": {"3", crc.NVME, []string{"--read-back", "all"}},
		"buffers that are all in use always": {
			"2",
			crc.NVME,
			[]string{"--read-back", "all", "--buffers", "2", "--readers", "15"},
		},
		"one buffer for a whole file":           {"1", crc.NVME, []string{"--buffer-size", "64Mi"}},
		"a store that keeps another checksum":   {"2", crc.Castagnoli, []string{"--read-back", "all"}},
		"a sample compared, links not measured": {"2", crc.IEEE, []string{"--link", "0"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := modelDir(t, threeShards(), tc.kind)
			args := append([]string{"load", "--json", "--fail", "--link", "2Mi", "--buffer-size", "1Mi"}, tc.args...)
			out := run(t, settings{"FAKE_CUDA_DEVICES": tc.gpus}, append(args, dir)...)
			out.balanced(t)
			l := out.report.Load
			if out.code != 0 || out.report.Verdict != Healthy || l == nil {
				t.Fatalf("code %d\n%s%s", out.code, out.stdout, out.stderr)
			}
			const tensors = 20*mebibyte + 3 + 1 - 1 + 1 + 7
			if l.Files != 3 || l.Bytes != tensors || l.Proven != 3 || l.Unproven != 0 || l.ReadBack == 0 || l.Rate <= 0 {
				t.Errorf("load is %+v", l)
			}
			var loaded int64
			for _, d := range out.report.Devices {
				if d.Loaded == nil || d.Loaded.Bytes == 0 {
					t.Errorf("GPU %d got nothing: %+v", d.Index, d.Loaded)
					continue
				}
				loaded += d.Loaded.Bytes
			}
			if loaded != tensors {
				t.Errorf("the GPUs got %d bytes together, want %d", loaded, tensors)
			}
			if all := strings.Contains(strings.Join(tc.args, " "), "all"); all && l.ReadBack != tensors {
				t.Errorf("%d bytes were read back, want all %d", l.ReadBack, tensors)
			}
		})
	}
}

func TestLoadForPeople(t *testing.T) {
	dir := modelDir(t, threeShards(), crc.NVME)
	out := run(t, settings{"FAKE_NVML_PERSISTENCE": "0"}, "load", "--link", "1Mi", dir)
	for _, want := range []string{
		"GPU load: healthy, after", "model    3 files, 21.0 MB of tensors", "loaded   21.0 MB in ", " that the links carry",
		"checked  3 files against the pull, 0 against nothing; 21.0 MB read back and compared",
		"remains  The GPU memory, the contexts and the page-locked buffers are freed with this process: no weight stays on a GPU.",
		"in the page cache", "persistence mode is off, so the model server initialises it again",
	} {
		if !strings.Contains(out.stdout, want) {
			t.Errorf("no %q in\n%s%s", want, out.stdout, out.stderr)
		}
	}
}

// TestLoadSaysWhatIsWrong takes each way in which a load fails through the whole program.
func TestLoadSaysWhatIsWrong(t *testing.T) {
	shards := threeShards()
	first := "model-00001-of-00003.safetensors"
	change := func(f func(data []byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			path := filepath.Join(dir, first)
			if err := os.WriteFile(path, f(bytes.Clone(shards[first])), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	put := func(name, text string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		env        settings
		spoil      func(t *testing.T, dir string)
		args       []string
		path       string
		wantReason string
		wantCause  string
		wantCode   ExitCode
	}{
		"a bit of a tensor changed on disk": {
			spoil: change(func(data []byte) []byte { data[len(data)-5] ^= 1; return data }), wantReason: "WrongBytes",
			wantCause: first + " does not hold what was pulled: its CRC64NVME is ", wantCode: ExitIntegrity,
		},
		"a bit of the header changed on disk": {
			spoil: change(func(data []byte) []byte {
				return bytes.Replace(data, []byte(`"format":"pt"`), []byte(`"format":"tf"`), 1)
			}), wantReason: "WrongBytes", wantCode: ExitIntegrity,
		},
		"a file cut short": {
			spoil:      change(func(data []byte) []byte { return data[:len(data)-1] }),
			wantReason: "Malformed", wantCause: "its header asks for", wantCode: ExitIntegrity,
		},
		"bits flip on the way to the GPU": {
			env: settings{"FAKE_CUDA_FLIP": "7"}, args: []string{"--read-back", "all"}, wantReason: "MemoryChangedBytes",
			wantCause: "not in GPU memory as they were sent", wantCode: ExitGPU,
		},
		"bits flip on the way to the GPU, in what is sampled": {
			env: settings{"FAKE_CUDA_FLIP": "1"}, wantReason: "MemoryChangedBytes", wantCode: ExitGPU,
		},
		"the model does not fit": {
			env: settings{"FAKE_CUDA_FREE": "8000000", "FAKE_CUDA_DEVICES": "2"}, wantReason: "NotEnoughMemory",
			wantCause: "the model needs 21.0 MB of GPU memory, and 16.0 MB are free", wantCode: ExitGPU,
		},
		"no tensor fits a GPU": {
			env: settings{
				"FAKE_CUDA_FREE":    "5000000",
				"FAKE_CUDA_DEVICES": "8",
			},
			wantReason: "NotEnoughMemory",
			wantCode:   ExitGPU,
		},
		"the driver has less memory than it said": {
			env: settings{"FAKE_CUDA_FAIL": "cuMemAlloc_v2=2@2-2", "FAKE_NVML_PROCESSES": "9:5000"}, wantReason: "OutOfMemory",
			wantCause: "process 9 holds", wantCode: ExitGPU,
		},
		"no model there": {path: "missing", wantReason: "NoModel", wantCause: "no such file", wantCode: ExitNotFound},
		"a folder without safetensors": {
			path: "empty", spoil: func(t *testing.T, dir string) {
				t.Helper()
				if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
					t.Fatal(err)
				}
			}, wantReason: "NoModel", wantCause: "no safetensors file", wantCode: ExitNotFound,
		},
		"an index that names a file that is missing": {
			spoil:      put("model.safetensors.index.json", `{"weight_map":{"a":"other.safetensors"}}`),
			wantReason: "NoModel", wantCause: "other.safetensors", wantCode: ExitNotFound,
		},
		"an index that leaves the folder": {
			spoil:      put("model.safetensors.index.json", `{"weight_map":{"a":"../other.safetensors"}}`),
			wantReason: "Malformed", wantCode: ExitIntegrity,
		},
		"a folder under the name of a file": {
			path: "x.safetensors", spoil: func(t *testing.T, dir string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Join(dir, "x.safetensors", "y.safetensors"), 0o755); err != nil {
					t.Fatal(err)
				}
			}, wantReason: "Unreadable", wantCode: ExitNoInput,
		},
		"a copy hangs": {
			env: settings{"FAKE_CUDA_HANG": "cuMemcpyHtoDAsync_v2"}, args: []string{"--call-timeout", "1s"},
			wantReason: "DriverStuck", wantCause: "cuMemcpyHtoDAsync_v2", wantCode: ExitGPU,
		},
		"a critical event before": {env: settings{"FAKE_NVML_RECOVERY": "1"}, wantReason: "RecoveryNeeded", wantCode: ExitGPU},
		"a critical event meanwhile": {
			env: settings{"FAKE_NVML_XID": "94"}, wantReason: "Xid", wantCause: "Xid 94", wantCode: ExitGPU,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := modelDir(t, shards, crc.NVME)
			if tc.spoil != nil {
				tc.spoil(t, dir)
			}
			args := append([]string{"load", "--json", "--fail", "--link", "0", "--buffer-size", "1Mi"}, tc.args...)
			out := run(t, tc.env, append(args, filepath.Join(dir, tc.path))...)
			f := out.finding(t, tc.wantReason)
			if f.Severity != Failure || !strings.Contains(f.Cause, tc.wantCause) || f.Advice == "" {
				t.Errorf("finding is %+v", f)
			}
			if out.code != int(tc.wantCode) || out.report.Verdict != Unhealthy {
				t.Errorf("code %d, verdict %s; want %d, unhealthy\n%s", out.code, out.report.Verdict, tc.wantCode, out.stderr)
			}
			if tc.wantReason != "DriverStuck" {
				out.balanced(t)
			}
		})
	}
}

func TestLoadWithoutEvidence(t *testing.T) {
	dir := modelDir(t, threeShards(), nil)
	out := run(t, nil, "load", "--json", "--fail", "--link", "0", filepath.Join(dir, "model-00002-of-00003.safetensors"))
	if f := out.finding(
		t,
		"Unproven",
	); f.Severity != Note || out.code != 0 || out.report.Load.Unproven != 1 ||
		out.report.Load.ReadBack == 0 {
		t.Errorf("code %d, finding %+v, load %+v", out.code, f, out.report.Load)
	}
}

func TestLoadFindsTheEvidenceAboveTheFile(t *testing.T) {
	dir := modelDir(t, map[string][]byte{"1/weights/model.safetensors": safetensorsFile(4, 100)}, crc.NVME)
	out := run(t, nil, "load", "--json", "--fail", "--link", "0", filepath.Join(dir, "1", "weights"))
	if out.code != 0 || out.report.Load.Proven != 1 {
		t.Errorf("code %d\n%s", out.code, out.stdout)
	}
}

func TestLoadTakesWhatTheIndexNames(t *testing.T) {
	files := threeShards()
	files["consolidated.safetensors"] = safetensorsFile(9, 1000)
	files["model.safetensors.index.json"] = []byte(
		`{"weight_map":{"a":"model-00001-of-00003.safetensors","b":"model-00003-of-00003.safetensors"}}`,
	)
	out := run(t, nil, "load", "--json", "--fail", "--link", "0", modelDir(t, files, crc.NVME))
	if out.code != 0 || out.report.Load.Files != 2 {
		t.Errorf("code %d\n%s", out.code, out.stdout)
	}
}

// TestEveryCallMayFail fails each function of the driver, one call after the other. It
// must come to a finding, nothing may be misused, and what was taken be given back.
func TestEveryCallMayFail(t *testing.T) {
	// What these do not give back is left, and so is what depends on it.
	releases := []string{
		"cuDevicePrimaryCtxRelease_v2", "cuMemFree_v2", "cuMemFreeHost", "cuStreamDestroy_v2", "cuEventDestroy_v2",
		"cuStreamSynchronize",
	}
	dir := modelDir(t, map[string][]byte{"model.safetensors": safetensorsFile(5, 3*mebibyte, 2*mebibyte)}, crc.NVME)
	for _, name := range sortedKeys((&cuda{}).symbols()) {
		if strings.HasPrefix(name, "cuGetError") || name == "cuDriverGetVersion" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			for _, args := range [][]string{
				{"preflight", "--json", "--fail", "--link", "1Mi"},
				{"load", "--json", "--fail", "--link", "1Mi", "--buffer-size", "1Mi", dir},
			} {
				for call := 1; call <= 3; call++ {
					env := settings{"FAKE_CUDA_FAIL": fmt.Sprintf("%s=999@%d-%d", name, call, call)}
					out := run(t, env, args...)
					if out.code == 0 && out.report.Verdict == Healthy {
						break // it is called less often than that
					}
					if f := out.finding(t, "Unknown"); !strings.Contains(f.Cause, name) || out.code != int(ExitGPU) {
						t.Errorf("%s, call %d: code %d, %+v", args[0], call, out.code, f)
					}
					if !slices.Contains(releases, name) {
						out.balanced(t)
					}
				}
			}
		})
	}
}

func TestLoadStopsOnASignal(t *testing.T) {
	dir := modelDir(t, threeShards(), crc.NVME)
	for name, tc := range map[string]struct {
		signal syscall.Signal
		want   ExitCode
	}{"SIGTERM": {syscall.SIGTERM, ExitTerminated}, "SIGINT": {syscall.SIGINT, ExitInterrupt}} {
		t.Run(name, func(t *testing.T) {
			command, journal := prepare(t, settings{"FAKE_CUDA_HANG": "cuEventSynchronize"}, "load", "--json", "--link", "0", dir)
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = command.Process.Kill() })
			// The copy starts after memory was taken; the wait for it hangs.
			for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
				if raw, err := os.ReadFile(journal); err == nil && bytes.Contains(raw, []byte("+m")) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("nothing was loaded")
				}
			}
			if err := command.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			_ = command.Wait()
			if got := command.ProcessState.ExitCode(); got != int(tc.want) {
				t.Errorf("exit code %d, want %d", got, tc.want)
			}
		})
	}
}

func TestFileThatShrinksWhileItIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &chunk{shard: &shard{path: path, file: f, check: crc.NVME}, offset: 50, n: 100}
	if err := c.read(make([]byte, c.n)); err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Errorf("read gives %v", err)
	}
}

func FuzzBelieve(f *testing.F) {
	f.Add([]byte(`{"form":1,"files":[{"path":"a","size":3,"crc":"CRC32C","sum":"AAAAAA=="}]}`))
	f.Fuzz(func(t *testing.T, marker []byte) {
		s := &shard{size: 3, check: crc.NVME}
		s.believe(marker, "a")
		if s.proven && s.check.Bytes < 8 && s.want>>(8*s.check.Bytes) != 0 {
			t.Errorf("%s is to be %#x", s.check.Name, s.want)
		}
	})
}
