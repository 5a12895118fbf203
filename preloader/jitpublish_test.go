// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"errors"
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

// wantPulled fails unless a pull of the model brings these kernels.
func wantPulled(t *testing.T, s *faultServer, want map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	out := run(t, jitSettings(s, dir), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitOK, "Completed")
	if got := out.report.JITCache; got == nil || got.State != CacheReady {
		t.Errorf("report %+v\n%s", got, out.log)
	}
	wantTree(t, dir, want)
}

// storeWithModel returns a store with a model, and the directory into which it was pulled.
func storeWithModel(t *testing.T) (*faultServer, string) {
	t.Helper()
	s := newFaultServer(t)
	s.put("m/model", noise(1, 1000))
	models := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", models), ExitOK, "Completed")
	return s, models
}

func TestPublishTwice(t *testing.T) {
	s, models := storeWithModel(t)
	dir := compiled(t, kernels)
	out := publishKernels(t, s, dir, models)
	if !strings.Contains(out.last, "Published 4 files, 9.5 MB, as 9.5 MB.") ||
		!strings.Contains(out.last, `"state":"published"`) {
		t.Errorf("message %s", out.last)
	}
	puts := s.count("Put") + s.count("Begin")
	if out = publishKernels(t, s, dir, models); !strings.Contains(out.last, `"state":"there"`) {
		t.Errorf("message %s", out.last)
	}
	if out = publishKernels(t, s, dir, models, "--replace=true"); !strings.Contains(out.last, `"state":"same"`) {
		t.Errorf("message %s", out.last)
	}
	if now := s.count("Put") + s.count("Begin"); now != puts {
		t.Errorf("%d writes for nothing", now-puts)
	}
	_, old := cacheObjects(t, s)
	s.age(old, 2*orphanAge)
	other := map[string][]byte{"vllm/other": []byte("other")}
	publishKernels(t, s, compiled(t, other), models, "--replace=true")
	if _, there := s.object(old); there {
		t.Error("the archive that was replaced is still there")
	}
	wantPulled(t, s, other)
}

// age makes an object older.
func (s *faultServer) age(key string, by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[key].modified = time.Now().Add(-by)
}

func TestPublishersAtOnceLeaveOneCache(t *testing.T) {
	for _, flag := range []string{"--replace=false", "--replace=true"} {
		t.Run(flag, func(t *testing.T) {
			s, models := storeWithModel(t)
			trees := []map[string][]byte{kernels, {"vllm/second": noise(5, 3*mebibyte)}, {"triton/third": noise(6, mebibyte)}}
			// All of them look before any of them writes.
			var all sync.WaitGroup
			all.Add(len(trees))
			s.faults(func(a asked) fault {
				if a.op == "Put" && a.seen < len(trees) && strings.HasSuffix(a.key, jitcache.ManifestName) {
					return fault{before: func() { all.Done(); all.Wait() }}
				}
				return fault{}
			})
			var running []*program
			for _, files := range trees {
				env := with(jitSettings(s, compiled(t, files)), settings{"PRELOADER_JIT_CACHE_MODEL": models})
				running = append(running, start(t, env, "publish-cache", flag))
			}
			won := 0
			for _, p := range running {
				out := p.outcome(t)
				wantCode(t, out, ExitOK, "Completed")
				won += strings.Count(out.last, `"state":"published"`)
			}
			if won == 0 || flag == "--replace=false" && won != 1 {
				t.Errorf("%d publishers say that theirs is the cache", won)
			}
			s.faults(nil)
			dir := t.TempDir()
			out := run(t, jitSettings(s, dir), "s3://models/m", t.TempDir())
			if got := out.report.JITCache; got == nil || got.State != CacheReady {
				t.Errorf("report %+v\n%s", got, out.log)
			}
			got := tree(t, dir)
			if !slices.ContainsFunc(trees, func(files map[string][]byte) bool { return len(files) == len(got) }) {
				t.Errorf("a mixture: %d files", len(got))
			}
		})
	}
}

// TestPublisherKilledAtEachStep kills it before each of its requests takes effect, and
// then before its answer arrives.
func TestPublisherKilledAtEachStep(t *testing.T) {
	for _, op := range []string{"Begin", "Part", "Complete", "Put"} {
		for _, applied := range []bool{false, true} {
			t.Run(op+map[bool]string{false: " before", true: " after"}[applied], func(t *testing.T) {
				s, models := storeWithModel(t)
				dir := compiled(t, kernels)
				env := with(jitSettings(s, dir), settings{"PRELOADER_JIT_CACHE_MODEL": models})
				asks, killed := make(chan struct{}), make(chan struct{})
				var first sync.Once
				s.saw = nil
				s.faults(func(a asked) fault {
					if a.op != op {
						return fault{}
					}
					f := fault{}
					first.Do(func() {
						f.before = func() { close(asks); <-killed }
						if !applied {
							f.status = http.StatusServiceUnavailable
						}
					})
					return f
				})
				p := start(t, env, "publish-cache")
				<-asks
				if err := p.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				_ = p.Wait()
				close(killed)
				s.faults(nil)
				if op == "Put" && applied {
					eventually(t, "the manifest is there", func() bool { return len(s.keys("jit/")) == 2 })
					wantPulled(t, s, kernels)
				} else {
					out := run(t, jitSettings(s, t.TempDir()), "s3://models/m", t.TempDir())
					wantCode(t, out, ExitOK, "Completed")
					if got := out.report.JITCache; got.State != CacheAbsent {
						t.Errorf("report %+v", got)
					}
				}
				publishKernels(t, s, dir, models)
				wantPulled(t, s, kernels)
			})
		}
	}
}

func TestPublishStopsAtOnceAndLeavesNoParts(t *testing.T) {
	s, models := storeWithModel(t)
	env := with(jitSettings(s, compiled(t, kernels)), settings{"PRELOADER_JIT_CACHE_MODEL": models})
	asks := make(chan struct{})
	var first sync.Once
	s.faults(func(a asked) fault {
		if a.op == "Part" {
			first.Do(func() { close(asks) })
			return fault{status: http.StatusServiceUnavailable}
		}
		return fault{}
	})
	p := start(t, env, "publish-cache")
	<-asks
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantCode(t, p.outcome(t), ExitTerminated, "Stopped")
	if s.count("Abort") != 1 || len(s.keys("jit/")) != 0 {
		t.Errorf("%d aborts, left %v", s.count("Abort"), s.keys("jit/"))
	}
}

func TestPublishSaysWhatIsWrong(t *testing.T) {
	tests := map[string]struct {
		env    settings
		args   []string
		faults func(asked) fault
		want   ExitCode
		reason string
		text   string
	}{
		"no URI": {
			env:    settings{"PRELOADER_JIT_CACHE_URI": ""},
			want:   ExitConfig,
			reason: "Configuration",
			text:   "PRELOADER_JIT_CACHE_URI",
		},
		"a URI of a file": {
			env:    settings{"PRELOADER_JIT_CACHE_URI": "/tmp"},
			want:   ExitConfig,
			reason: "Configuration",
			text:   "s3://bucket/path",
		},
		"no engine": {
			env:    settings{"PRELOADER_JIT_CACHE_KEY": "gpu=none"},
			want:   ExitConfig,
			reason: "Configuration",
			text:   "engine=IMAGE",
		},
		"a broken key": {
			env:    settings{"PRELOADER_JIT_CACHE_KEY": "vllm"},
			want:   ExitConfig,
			reason: "Configuration",
			text:   "name=value",
		},
		"no such tree": {args: []string{"vllm=/nonexistent"}, want: ExitNotFound, reason: "NoTree", text: "/nonexistent"},
		"no tree at all": {
			env:    settings{"PRELOADER_JIT_CACHE_DIR": "/nonexistent"},
			want:   ExitNotFound,
			reason: "NoTree",
			text:   "NAME=PATH",
		},
		"an empty tree": {
			args:   []string{"vllm=" + t.TempDir()},
			want:   ExitNotFound,
			reason: "Empty",
			text:   "no file to publish",
		},
		"nowhere to publish to, though it was to wait": {
			env:    settings{"PRELOADER_JIT_CACHE_URI": ""},
			args:   []string{"--when-idle=1h"},
			want:   ExitConfig,
			reason: "Configuration",
			text:   "PRELOADER_JIT_CACHE_URI is not set",
		},
		"an unknown flag":  {args: []string{"--force=true"}, want: ExitUsage},
		"a flag half said": {args: []string{"--replace=perhaps"}, want: ExitUsage, reason: "Usage", text: "want true or false"},
		"no right to write": {
			faults: func(a asked) fault {
				if a.op == "Begin" {
					return fault{status: http.StatusForbidden, code: "AccessDenied"}
				}
				return fault{}
			},
			want: ExitDenied, reason: "AccessDenied", text: "s3:PutObject",
		},
		"a store that knows no conditions": {
			faults: func(a asked) fault {
				if a.op == "Put" && a.seen == 0 {
					return fault{status: http.StatusNotImplemented, code: "NotImplemented"}
				}
				return fault{}
			},
			want: ExitOK, reason: "Completed", text: "Published",
		},
		"passing trouble at every step": {
			faults: func(a asked) fault {
				if a.seen == 0 {
					return fault{status: http.StatusInternalServerError}
				}
				return fault{}
			},
			want: ExitOK, reason: "Completed", text: "Published",
		},
		"another write of the manifest under way": {
			faults: func(a asked) fault {
				if a.op == "Put" && a.seen == 0 {
					return fault{status: http.StatusConflict, code: "ConditionalRequestConflict"}
				}
				return fault{}
			},
			want: ExitOK, reason: "Completed", text: "Published",
		},
	}
	dir := compiled(t, kernels)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.faults(tc.faults)
			out := run(t, with(jitSettings(s, dir), tc.env), append([]string{"publish-cache"}, tc.args...)...)
			if out.code != tc.want || out.report.Reason != tc.reason || !strings.Contains(out.last, tc.text) {
				t.Errorf(
					"code %d, reason %s, want %d, %s and %q\n%s\n%s",
					out.code,
					out.report.Reason,
					tc.want,
					tc.reason,
					tc.text,
					out.last,
					out.log,
				)
			}
		})
	}
}

func TestPublishReplacesWhatIsBroken(t *testing.T) {
	s, models := storeWithModel(t)
	dir := compiled(t, kernels)
	publishKernels(t, s, dir, models)
	at, _ := cacheObjects(t, s)
	s.put(at, []byte("torn"))
	publishKernels(t, s, dir, models, "--replace=true")
	wantPulled(t, s, kernels)
}

func TestKernelsTakeBoundedMemory(t *testing.T) {
	g := newMemoryGroup(t, 80*mebibyte)
	s, models := storeWithModel(t)
	big := map[string][]byte{}
	for i := range 20 {
		big["vllm/"+string(rune('a'+i))] = noise(uint64(i), 8*mebibyte)
	}
	dir := compiled(t, big)
	env := with(jitSettings(s, dir), settings{"PRELOADER_JIT_CACHE_MODEL": models})
	wantCode(t, g.within(t, env, "publish-cache"), ExitOK, "Completed")
	to := diskDir(t)
	out := g.within(t, jitSettings(s, to), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitOK, "Completed")
	if out.report.JITCache.State != CacheReady {
		t.Errorf("report %+v", out.report.JITCache)
	}
	wantTree(t, to, big)
}

func TestPublisherBesideAnEngineWaits(t *testing.T) {
	s, models := storeWithModel(t)
	dir := filepath.Join(t.TempDir(), "jit")
	env := with(jitSettings(s, dir), settings{"PRELOADER_JIT_CACHE_MODEL": models})
	lists := s.count("List")
	p := start(t, env, "publish-cache", "--when-idle=0.4")
	// The engine starts later.
	time.Sleep(600 * time.Millisecond)
	if len(s.keys("jit/")) > 0 {
		t.Fatal("published before there was anything")
	}
	compiling := t.TempDir()
	for i := range 8 {
		if err := os.WriteFile(filepath.Join(compiling, string(rune('a'+i))), []byte("kernel"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Rename(compiling, filepath.Join(dir, "vllm"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the kernels are published", func() bool { return len(s.keys("jit/")) == 2 })
	eventually(t, "it looks for what is not used any more", func() bool { return s.count("List") > lists })
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	out := p.outcome(t)
	wantCode(t, out, ExitOK, "Completed")
	if !strings.Contains(out.last, "Published 8 files") {
		t.Errorf("message %s", out.last)
	}
}

// TestStillnessBeginsAnewWithEachChange looks at trees at chosen times.
func TestStillnessBeginsAnewWithEachChange(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	s := stillness{idle: 10 * time.Second}
	for i, look := range []struct {
		at   time.Duration
		seen jitcache.Activity
		want bool
	}{
		{at: 0},
		{at: time.Hour},
		{at: time.Hour + time.Second, seen: jitcache.Activity{Files: 1, Bytes: 5, Newest: start}},
		{at: time.Hour + 10*time.Second, seen: jitcache.Activity{Files: 1, Bytes: 5, Newest: start}},
		{at: time.Hour + 11*time.Second, seen: jitcache.Activity{Files: 1, Bytes: 6, Newest: start}},
		{at: time.Hour + 20*time.Second, seen: jitcache.Activity{Files: 1, Bytes: 6, Newest: start.Add(1)}},
		{at: time.Hour + 29*time.Second, seen: jitcache.Activity{Files: 1, Bytes: 6, Newest: start.Add(1)}},
		{at: time.Hour + 30*time.Second, seen: jitcache.Activity{Files: 1, Bytes: 6, Newest: start.Add(1)}, want: true},
		{at: time.Hour + 99*time.Second},
	} {
		if got := s.long(start.Add(look.at), look.seen); got != look.want {
			t.Errorf("look %d: still for long is %t, want %t", i, got, look.want)
		}
	}
}

// TestPublishBringsBackAnArchiveThatIsGone: what somebody removed, or a rule of the bucket, comes back with the same trees.
func TestPublishBringsBackAnArchiveThatIsGone(t *testing.T) {
	s, models := storeWithModel(t)
	kernels := map[string][]byte{"vllm/x": noise(5, 3*mebibyte)}
	x := compiled(t, kernels)
	publishKernels(t, s, x, models)
	_, archive := cacheObjects(t, s)
	s.drop(archive, false)
	publishKernels(t, s, x, models, "--replace=true")
	wantPulled(t, s, kernels)
}

// TestASweepTakesNothingThatIsAboutToBeNamed: one publisher finds the old archive of a run that was killed, another
// publishes something else meanwhile and tidies up. Whoever is named last, its archive is there.
func TestASweepTakesNothingThatIsAboutToBeNamed(t *testing.T) {
	s, models := storeWithModel(t)
	kernels := map[string][]byte{"vllm/x": noise(5, 3*mebibyte)}
	x, y := compiled(t, kernels), compiled(t, map[string][]byte{"vllm/y": noise(6, 3*mebibyte)})
	publishKernels(t, s, x, models)
	manifest, archive := cacheObjects(t, s)
	s.drop(manifest, false)
	s.age(archive, 2*time.Hour)
	var once sync.Once
	s.faults(func(a asked) (f fault) {
		if a.op == "Put" {
			once.Do(func() {
				f.before = func() {
					env := with(jitSettings(s, y), settings{"PRELOADER_JIT_CACHE_MODEL": models})
					if out := start(t, env, "publish-cache", "--replace=true").outcome(t); out.code != ExitOK {
						t.Errorf("the other publisher ends with %d: %s", out.code, out.log)
					}
				}
			})
		}
		return f
	})
	publishKernels(t, s, x, models, "--replace=true")
	wantPulled(t, s, kernels)
}
