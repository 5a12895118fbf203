// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"serverless.xyz/outrigger/preloader/jitcache"
)

const testKey = "engine=vllm-0.11.0,gpu=none,tp=1"

// kernels are what an engine has compiled, in two trees. They take two parts to upload.
var kernels = map[string][]byte{
	"vllm/torch_compile_cache/1f/rank_0_0/graph.py": []byte("def graph(): pass"),
	"vllm/torch_compile_cache/1f/rank_0_0/big.so":   noise(11, 9*mebibyte),
	"triton/AB12/kernel.cubin":                      noise(12, 70_000),
	"triton/AB12/__grp__kernel.json":                []byte(`{"child_paths": {}}`),
}

// compiled puts kernels into a cache directory.
func compiled(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "jit")
	for rel, data := range files {
		at := filepath.Join(dir, rel)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, data, 0o644)); err != nil {
			t.Fatal(err)
		}
		built := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
		if err := os.Chtimes(at, built, built); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// jitSettings point at the store's caches and at a directory.
func jitSettings(s *faultServer, dir string) settings {
	return with(serverSettings(s), settings{
		"PRELOADER_JIT_CACHE_URI": "s3://models/jit", "PRELOADER_JIT_CACHE_DIR": dir, "PRELOADER_JIT_CACHE_KEY": testKey,
		"PRELOADER_JIT_CACHE_MODEL": "/nonexistent", "PRELOADER_JIT_CACHE_SIZE": "", "PRELOADER_JIT_CACHE_DEADLINE": "",
	})
}

// publishKernels publishes what dir holds for a model in models.
func publishKernels(t *testing.T, s *faultServer, dir, models string, args ...string) outcome {
	t.Helper()
	env := with(jitSettings(s, dir), settings{"PRELOADER_JIT_CACHE_MODEL": models})
	out := run(t, env, append([]string{"publish-cache"}, args...)...)
	wantCode(t, out, ExitOK, "Completed")
	return out
}

// modelAndKernels returns a store that holds a model, and its kernels.
func modelAndKernels(t *testing.T) *faultServer {
	t.Helper()
	s := newFaultServer(t)
	s.put("m/model", noise(1, 1000))
	models := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", models), ExitOK, "Completed")
	publishKernels(t, s, compiled(t, kernels), models)
	return s
}

func TestPublishedKernelsComeWithTheModel(t *testing.T) {
	s := modelAndKernels(t)
	dir := filepath.Join(t.TempDir(), "new")
	metrics := filepath.Join(t.TempDir(), "run.prom")
	env := with(jitSettings(s, dir), settings{"PRELOADER_METRICS": metrics, "PRELOADER_CONNS": "3"})
	models := t.TempDir()
	out := run(t, env, "s3://models/m", models)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, models, map[string][]byte{"model": noise(1, 1000)})
	wantTree(t, dir, kernels)
	got := out.report.JITCache
	if got == nil || got.State != CacheReady || got.Files != 4 || got.Fetched < 9*mebibyte ||
		!slices.Equal(got.Trees, []string{"triton", "vllm"}) {
		t.Errorf("report %+v\n%s", got, out.log)
	}
	if !strings.Contains(out.last, "compiled kernels ready for triton, vllm (4 files, 9.5 MB)") {
		t.Errorf("message %s", out.last)
	}
	info, err := os.Stat(filepath.Join(dir, "triton/AB12/kernel.cubin"))
	if err != nil || info.ModTime().Nanosecond() != 678 {
		t.Errorf("time %v, %v", info.ModTime(), err)
	}
	page, err := os.ReadFile(metrics)
	if err != nil {
		t.Fatal(err)
	}
	wantValues(t, values(t, string(page)), map[string]float64{
		`jit_cache_info{state="ready",reason=""}`: 1, "jit_cache_bytes": 9_507_220,
		"model_bytes": 1000,
	})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 { // two trees, and where they came from
		t.Errorf("left %v, %v", entries, err)
	}

	// The engine goes on with its trees, and what it made stays.
	if err := os.WriteFile(filepath.Join(dir, "vllm/more"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := s.count("Get")
	out = run(t, env, "s3://models/m", models)
	wantCode(t, out, ExitOK, "Completed")
	if got := out.report.JITCache; got.State != CacheInPlace || s.count("Get") != before+1 {
		t.Errorf("report %+v after %d requests\n%s", got, s.count("Get")-before, out.log)
	}
	if err := os.RemoveAll(filepath.Join(dir, "triton")); err != nil {
		t.Fatal(err)
	}
	out = run(t, env, "s3://models/m", models)
	want := map[string][]byte{"vllm/more": []byte("new")}
	maps.Copy(want, kernels)
	wantTree(t, dir, want)
	if got := out.report.JITCache; got.State != CacheReady || !slices.Equal(got.Trees, []string{"triton"}) {
		t.Errorf("report %+v", got)
	}
}

func TestKernelsOfSomebodyElseAreNotTakenForThePublished(t *testing.T) {
	s, models := modelAndKernels(t), t.TempDir()
	dir := compiled(t, map[string][]byte{"vllm/own": []byte("own"), "triton/own": []byte("own")})
	out := run(t, jitSettings(s, dir), "s3://models/m", models)
	wantCode(t, out, ExitOK, "Completed")
	got := out.report.JITCache
	if got.State != CacheUnused || got.Reason != "Occupied" || !strings.Contains(got.Cause, "triton, vllm in "+dir) {
		t.Errorf("report %+v", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "triton")); err != nil {
		t.Fatal(err)
	}
	out = run(t, jitSettings(s, dir), "s3://models/m", models)
	if got := out.report.JITCache; got.State != CacheReady || !slices.Equal(got.Trees, []string{"triton"}) {
		t.Errorf("report %+v", got)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "vllm/own")); err != nil || string(raw) != "own" {
		t.Errorf("what was there is %q, %v", raw, err)
	}
}

// cacheObjects returns the keys of the manifest and of the archive.
func cacheObjects(t *testing.T, s *faultServer) (manifest, archive string) {
	t.Helper()
	for _, k := range s.keys("jit/") {
		if strings.HasSuffix(k, jitcache.ManifestName) {
			manifest = "jit/" + k
		} else {
			archive = "jit/" + k
		}
	}
	if manifest == "" || archive == "" {
		t.Fatalf("the store has %v", s.keys(""))
	}
	return manifest, archive
}

// reworded replaces what a manifest says.
func reworded(change func(*jitcache.Manifest)) func(t *testing.T, s *faultServer) {
	return func(t *testing.T, s *faultServer) {
		t.Helper()
		at, _ := cacheObjects(t, s)
		o, _ := s.object(at)
		var m jitcache.Manifest
		if err := json.Unmarshal(o.data, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		raw, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.put(at, raw)
	}
}

// onCaches lets a fault befall the requests for caches only.
func onCaches(op, suffix string, f fault) func(t *testing.T, s *faultServer) {
	return func(_ *testing.T, s *faultServer) {
		s.faults(func(a asked) fault {
			if a.op == op && strings.HasPrefix(a.key, "jit/") && strings.HasSuffix(a.key, suffix) {
				return f
			}
			return fault{}
		})
	}
}

// TestNothingThatIsWrongWithKernelsFailsAPull is the promise of the whole.
func TestNothingThatIsWrongWithKernelsFailsAPull(t *testing.T) {
	spoilArchive := func(spoil func([]byte) []byte) func(*testing.T, *faultServer) {
		return func(t *testing.T, s *faultServer) {
			t.Helper()
			_, at := cacheObjects(t, s)
			o, _ := s.object(at)
			s.put(at, spoil(bytes.Clone(o.data)))
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		spoil      func(t *testing.T, s *faultServer)
		env        settings
		wantState  CacheState
		wantReason string
		wantCause  string
	}{
		"no cache at all": {
			spoil:     func(_ *testing.T, s *faultServer) { s.forgetAll("jit/") },
			wantState: CacheAbsent, wantCause: "none is published for ",
		},
		"a cache of another engine": {
			env:       settings{"PRELOADER_JIT_CACHE_KEY": "engine=vllm-0.12.0,gpu=none,tp=1"},
			wantState: CacheAbsent, wantCause: "the closest one has engine=vllm-0.11.0",
		},
		"a cache of another GPU and another size": {
			env:       settings{"PRELOADER_JIT_CACHE_KEY": "engine=vllm-0.11.0,gpu=NVIDIA H100 80GB HBM3,pp=2"},
			wantState: CacheAbsent, wantCause: "the closest one has gpu=none, pp=(not given), tp=1",
		},
		"a key without an engine": {
			env: settings{"PRELOADER_JIT_CACHE_KEY": "gpu=none"}, wantReason: "Configuration", wantCause: "Put engine=IMAGE",
		},
		"a flipped byte": {
			spoil: spoilArchive(
				func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
			),
			wantReason: "BadCache",
			wantCause:  "--replace=true",
		},
		"an archive cut short": {
			spoil: spoilArchive(
				func(b []byte) []byte { return b[:len(b)/2] },
			),
			wantReason: "BadCache",
			wantCause:  "does not match",
		},
		"a page of a proxy for an archive": {
			spoil: spoilArchive(func([]byte) []byte { return []byte("<html>busy</html>") }), wantReason: "BadCache",
		},
		"a manifest without its archive": {
			spoil: func(t *testing.T, s *faultServer) {
				t.Helper()
				_, at := cacheObjects(t, s)
				s.drop(at, false)
			},
			wantReason: "NotFound", wantCause: "its archive is not",
		},
		"a manifest that is none": {
			spoil: func(t *testing.T, s *faultServer) {
				t.Helper()
				at, _ := cacheObjects(t, s)
				s.put(at, []byte("{"))
			},
			wantReason: "BadCache", wantCause: "reading the manifest",
		},
		"a manifest too large to read": {
			spoil: func(t *testing.T, s *faultServer) {
				t.Helper()
				at, _ := cacheObjects(t, s)
				s.put(at, make([]byte, jitcache.LongestManifest+1))
			},
			wantReason: "BadCache", wantCause: "65537 bytes",
		},
		"a manifest of another key": {
			spoil:      reworded(func(m *jitcache.Manifest) { m.Key["engine"] = "sglang" }),
			wantReason: "BadCache", wantCause: "another key",
		},
		"an archive that swells beyond what its manifest says": {
			spoil:      reworded(func(m *jitcache.Manifest) { m.Stream /= 2; m.Bytes /= 2 }),
			wantReason: "BadCache", wantCause: "than announced",
		},
		"a cache beyond the bound": {
			env: settings{"PRELOADER_JIT_CACHE_SIZE": "1Mi"}, wantReason: "TooLarge", wantCause: "PRELOADER_JIT_CACHE_SIZE",
		},
		"a cache that no disk holds": {
			spoil:      reworded(func(m *jitcache.Manifest) { m.Size = 1 << 59 }),
			wantReason: "NoSpace", wantCause: "Give the volume more room",
		},
		"no right to read": {
			spoil:      onCaches("Head", "", fault{status: http.StatusForbidden, code: "AccessDenied"}),
			wantReason: "AccessDenied", wantCause: "Check the secret",
		},
		"a store that fails for caches": {
			spoil: onCaches("Get", ".tar.zst", fault{status: http.StatusInternalServerError}),
			env:   settings{"S3_MAX_ATTEMPTS": "2"}, wantReason: "Unavailable",
		},
		"a store that stands still for caches": {
			spoil: onCaches("Get", ".tar.zst", fault{stall: true, after: 1000}),
			env: settings{
				"PRELOADER_JIT_CACHE_DEADLINE": "0.3",
			},
			wantReason: "DeadlineExceeded",
			wantCause:  "PRELOADER_JIT_CACHE_DEADLINE",
		},
		"a file in the place of the directory": {
			env: settings{"PRELOADER_JIT_CACHE_DIR": file}, wantReason: "InTheWay",
		},
		"a directory that cannot be written": {
			env: settings{"PRELOADER_JIT_CACHE_DIR": "/proc/self/task/jit"}, wantReason: "CannotWrite",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := modelAndKernels(t)
			if tc.spoil != nil {
				tc.spoil(t, s)
			}
			dir, models := t.TempDir(), t.TempDir()
			out := run(t, with(jitSettings(s, dir), tc.env), "s3://models/m", models)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, models, map[string][]byte{"model": noise(1, 1000)})
			got := out.report.JITCache
			if tc.wantState == "" {
				tc.wantState = CacheUnused
			}
			if got == nil || got.State != tc.wantState || got.Reason != tc.wantReason ||
				!strings.Contains(got.Cause, tc.wantCause) {
				t.Errorf("report %+v, want %s %s with %q", got, tc.wantState, tc.wantReason, tc.wantCause)
			}
			if !strings.Contains(out.log, "No compiled kernels: ") || !strings.Contains(out.last, "no compiled kernels: ") {
				t.Errorf("it is not said:\n%s\n%s", out.log, out.last)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("left %v, %v", entries, err)
			}
		})
	}
}

func (s *faultServer) forgetAll(prefix string) {
	for _, k := range s.keys(prefix) {
		s.drop(prefix+k, false)
	}
}

func TestKernelsOntoAFullVolume(t *testing.T) {
	s := modelAndKernels(t)
	// The manifest lies, so that the disk fills while unpacking.
	reworded(func(m *jitcache.Manifest) { m.Stream, m.Bytes = 1<<20, 1<<20-9000 })(t, s)
	dir := mountMemory(t, "12m")
	if err := os.WriteFile(filepath.Join(dir, "vllm-of-another"), make([]byte, mebibyte), 0o644); err != nil {
		t.Fatal(err)
	}
	models := t.TempDir()
	out := run(t, jitSettings(s, dir), "s3://models/m", models)
	wantCode(t, out, ExitOK, "Completed")
	if got := out.report.JITCache; got.State != CacheUnused || got.Reason != "BadCache" && got.Reason != "NoSpace" {
		t.Errorf("report %+v", got)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
}

func TestAReplacedCacheIsReadAnew(t *testing.T) {
	s := modelAndKernels(t)
	var swap sync.Once
	s.faults(func(a asked) fault {
		if a.op == "List" && strings.HasSuffix(a.key, ".tar.zst") {
			swap.Do(func() {
				s.faults(nil)
				_, old := cacheObjects(t, s)
				other := compiled(t, map[string][]byte{"vllm/other": []byte("other")})
				archive := &bytes.Buffer{}
				contents, err := jitcache.Pack(t.Context(), archive, []jitcache.Tree{{Name: "vllm", Path: other + "/vllm"}})
				if err != nil {
					t.Error(err)
				}
				reworded(func(m *jitcache.Manifest) {
					d := &digest{hash: sha256.New()}
					_, _ = d.Write(archive.Bytes())
					m.SHA256, m.Size, m.Contents, m.Trees = d.sum(), d.n, contents, []jitcache.Tree{{Name: "vllm"}}
					s.put(filepath.Dir(old)+"/"+m.ArchiveName(), archive.Bytes())
				})(t, s)
				s.drop(old, false)
			})
		}
		return fault{}
	})
	dir := t.TempDir()
	out := run(t, jitSettings(s, dir), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitOK, "Completed")
	if got := out.report.JITCache; got.State != CacheReady {
		t.Errorf("report %+v\n%s", got, out.log)
	}
	wantTree(t, dir, map[string][]byte{"vllm/other": []byte("other")})
}

func TestKernelsGoOnAfterKillAndSignal(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"kill": syscall.SIGKILL, "stop": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			s := modelAndKernels(t)
			_, archive := cacheObjects(t, s)
			never := make(chan struct{})
			s.faults(func(a asked) fault {
				if a.op == "Get" && a.key == archive && a.off > 0 {
					return fault{hold: never}
				}
				return fault{}
			})
			dir, models := t.TempDir(), t.TempDir()
			env := with(jitSettings(s, dir), settings{"PRELOADER_CONNS": "1", "PRELOADER_PARTSIZE": "4Mi"})
			p := start(t, env, "s3://models/m", models)
			eventually(t, "a part of the archive is there", func() bool { return recorded(filepath.Join(dir, jitFetched)) > 0 })
			if err := p.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			out := p.outcome(t)
			wantTree(t, models, map[string][]byte{"model": noise(1, 1000)})
			if signal == syscall.SIGTERM {
				wantCode(t, out, ExitTerminated, "Stopped")
			}
			_ = os.Remove(filepath.Join(dir, lockName)) // of the one that was killed
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != jitWorkDir {
				t.Errorf("left %v, %v", entries, err)
			}
			// What a kill while unpacking leaves.
			at := filepath.Join(dir, jitUnpacked, "vllm")
			if err := errors.Join(os.MkdirAll(at, 0o755), os.WriteFile(at+"/torn", []byte("x"), 0o644)); err != nil {
				t.Fatal(err)
			}
			s.faults(nil)
			out = run(t, env, "s3://models/m", models)
			wantCode(t, out, ExitOK, "Completed")
			if got := out.report.JITCache; got.State != CacheReady || got.Fetched >= 6*mebibyte {
				t.Errorf("report %+v\n%s", got, out.log)
			}
			wantTree(t, dir, kernels)
		})
	}
}

func TestPlanTellsOfKernels(t *testing.T) {
	s := modelAndKernels(t)
	models, dir := t.TempDir(), t.TempDir()
	show := func(env settings) (CachePlan, string) {
		t.Helper()
		env = with(jitSettings(s, dir), env)
		plan, code, _ := planned(t, env, "s3://models/m", models)
		if code != ExitOK || plan.JITCache == nil {
			t.Fatalf("code %d, plan %+v", code, plan)
		}
		return *plan.JITCache, plan.JITCache.String()
	}
	if got, text := show(nil); got.State != "" || !strings.Contains(text, "once the model is there") {
		t.Errorf("before the model: %s %s", got.State, text)
	}
	wantCode(
		t,
		run(t, with(jitSettings(s, dir), settings{"PRELOADER_JIT_CACHE_URI": ""}), "s3://models/m", models),
		ExitOK,
		"Completed",
	)
	got, text := show(nil)
	if got.State != CacheReady || got.Files != 4 || got.Unpacked != 9_507_220 ||
		!strings.Contains(text, "9.5 MB for triton, vllm, 9.5 MB with 4 files when unpacked into "+dir) {
		t.Errorf("with the model: %+v %s", got, text)
	}
	if got, text := show(
		settings{"PRELOADER_JIT_CACHE_SIZE": "1Mi"},
	); got.State != CacheUnused ||
		!strings.Contains(text, "Raise it") {
		t.Errorf("too large: %+v %s", got, text)
	}
	other := settings{"PRELOADER_JIT_CACHE_KEY": "engine=sglang,gpu=none,tp=1", "PRELOADER_JIT_CACHE_SIZE": ""}
	if got, text := show(other); got.State != CacheAbsent || !strings.Contains(text, "the closest one has engine=vllm-0.11.0") {
		t.Errorf("another engine: %+v %s", got, text)
	}
	wantCode(t, run(t, jitSettings(s, dir), "s3://models/m", models), ExitOK, "Completed")
	if got, text := show(nil); got.State != CacheInPlace || text != "in place for triton, vllm" {
		t.Errorf("after the pull: %+v %s", got, text)
	}
}
