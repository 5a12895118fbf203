// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"serverless.xyz/outrigger/preloader/crc"
	"serverless.xyz/outrigger/preloader/nodecache"
)

// nodeModel is a model with files on both sides of what is kept.
func nodeModel(s *faultServer) map[string][]byte {
	model := map[string][]byte{
		"large": noise(1, 20*mebibyte+77), "middle": noise(2, 3*mebibyte), "config.json": noise(3, 1000), "empty": nil,
	}
	for k, v := range model {
		s.put("m/"+k, v)
	}
	return model
}

// keptFiles returns the paths of the cache's files, without their records.
func keptFiles(t *testing.T, cache string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(cache, "objects", "*", "????????????????????????????????"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestNextPodTakesFilesFromTheNode(t *testing.T) {
	cases := map[string]struct {
		cache func(t *testing.T) string
		links bool
	}{
		"by a link":  {cache: func(t *testing.T) string { t.Helper(); return t.TempDir() }, links: true},
		"by copying": {cache: func(t *testing.T) string { t.Helper(); return mountMemory(t, "200m") }},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			model := nodeModel(s)
			cache := tc.cache(t)
			env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": cache})
			first, second := t.TempDir(), t.TempDir()
			wantCode(t, run(t, env, "s3://models/m", first), ExitOK, "Completed")
			if kept := keptFiles(t, cache); len(kept) != 2 {
				t.Fatalf("%d files are kept, want 2", len(kept))
			}
			s.forget()
			out := run(t, env, "s3://models/m", second)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, second, model)
			if want := int64(23*mebibyte + 77); out.report.Reused != want || out.report.Fetched != 1000 {
				t.Errorf("reused %d bytes and fetched %d, want %d and 1000", out.report.Reused, out.report.Fetched, want)
			}
			if s.count("Get m/large")+s.count("Get m/middle") > 0 {
				t.Error("what the node had was fetched again")
			}
			if got := out.report.Evidence[EvidenceChecksum]; got != 3 { // and of nothing there is only an MD5
				t.Errorf("%d files met the store's checksum, want 3: %v", got, out.report.Evidence)
			}
			if got := links(t, filepath.Join(second, "large")); (got == 3) != tc.links {
				t.Errorf("the file has %d names, want links: %t", got, tc.links)
			}
			if out := run(t, env, "verify", second); out.code != ExitOK {
				t.Errorf("verify ends with %d; log:\n%s", out.code, out.log)
			}
			s.forget()
			wantCode(t, run(t, env, "s3://models/m", second), ExitOK, "Completed")
			if s.count("Get")+s.count("Head") > 0 {
				t.Error("a tree that is in place was looked at again")
			}
		})
	}
}

func links(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Nlink
}

func TestWrongBytesOfTheNodeAreNeverServed(t *testing.T) {
	flip := func(t *testing.T, path string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], 1_234_567); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], 1_234_567); err != nil {
			t.Fatal(err)
		}
	}
	forge := func(t *testing.T, path string) {
		t.Helper()
		flip(t, path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		record := map[string]any{}
		raw, err := os.ReadFile(path + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &record); err != nil {
			t.Fatal(err)
		}
		record["sum"] = crc.NVME.Encode(crc.NVME.Update(0, data))
		if raw, err = json.Marshal(record); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".json", raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	memory := func(t *testing.T) string { t.Helper(); return mountMemory(t, "200m") }
	disk := func(t *testing.T) string { t.Helper(); return t.TempDir() }
	cases := map[string]struct {
		spoil func(t *testing.T, path string)
		cache func(t *testing.T) string
		put   func(s *faultServer, key string, data []byte)
	}{
		"a flipped bit in a copy":        {spoil: flip, cache: memory},
		"a flipped bit in a linked file": {spoil: flip, cache: disk},
		"a record that was made to fit":  {spoil: forge, cache: disk},
		"a flipped bit where the store has no checksum": {
			spoil: flip,
			cache: disk,
			put:   func(s *faultServer, key string, data []byte) { s.putWith(key, data, nil) },
		},
		"a flipped bit where the store has one of the parts": {
			spoil: forge, cache: memory,
			put: func(s *faultServer, key string, data []byte) {
				s.putParts(key, data[:6*mebibyte], data[6*mebibyte:12*mebibyte], data[12*mebibyte:])
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			data := noise(1, 13*mebibyte)
			put := tc.put
			if put == nil {
				put = (*faultServer).put
			}
			put(s, "m/model", data)
			cache := tc.cache(t)
			env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": cache})
			first := t.TempDir()
			wantCode(t, run(t, env, "s3://models/m", first), ExitOK, "Completed")
			tc.spoil(t, keptFiles(t, cache)[0])
			before, err := os.ReadFile(filepath.Join(first, "model"))
			if err != nil {
				t.Fatal(err)
			}
			second := t.TempDir()
			out := run(t, env, "s3://models/m", second)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, second, map[string][]byte{"model": data})
			if out.report.Reused != 0 || !strings.Contains(out.log, "wrong bytes") {
				t.Errorf("reused %d bytes; log:\n%s", out.report.Reused, out.log)
			}
			if after, err := os.ReadFile(filepath.Join(first, "model")); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the other pod's file has changed (%v)", err)
			}
			third := t.TempDir()
			out = run(t, env, "s3://models/m", third)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, third, map[string][]byte{"model": data})
			if out.report.Reused != int64(len(data)) {
				t.Errorf("reused %d bytes after the cache was mended, want all", out.report.Reused)
			}
		})
	}
}

func TestPodsOfOneNodeFetchOnce(t *testing.T) {
	s := newFaultServer(t)
	model := nodeModel(s)
	var sent atomic.Int64
	s.faults(func(a asked) fault {
		if a.op == "Get" {
			sent.Add(a.n)
		}
		return slowly(a)
	})
	// One connection, so that none is idle and asks anew for what comes slowly.
	env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": t.TempDir(), "PRELOADER_CONNS": "1"})
	var pods []*program
	var dirs []string
	for range 3 {
		dirs = append(dirs, t.TempDir())
		pods = append(pods, start(t, env, "s3://models/m", dirs[len(dirs)-1]))
	}
	var reused int64
	for i, p := range pods {
		out := p.outcome(t)
		wantCode(t, out, ExitOK, "Completed")
		wantTree(t, dirs[i], model)
		reused += out.report.Reused
	}
	if want := int64(23*mebibyte + 77 + 3*1000); sent.Load() != want {
		t.Errorf("%d bytes were asked for, want %d", sent.Load(), want)
	}
	if want := int64(2 * (23*mebibyte + 77)); reused != want {
		t.Errorf("%d bytes were reused, want %d", reused, want)
	}
}

func TestPodWaitsForNobodyForEver(t *testing.T) {
	for name, wait := range map[string]string{"after a while": "100ms", "at once": "0"} {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			model := nodeModel(s)
			dir, dest := t.TempDir(), t.TempDir()
			cache, err := nodecache.Open(dir, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer cache.Close()
			// Somebody holds the lock and does nothing.
			lock, err := cache.Lock(t.Context(), s.URL+" s3://models/m", nodecache.Wait{})
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Release()
			env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": dir, "PRELOADER_NODE_CACHE_WAIT": wait})
			out := run(t, env, "s3://models/m", dest)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dest, model)
			if !strings.Contains(out.log, "Fetching beside another pod") {
				t.Errorf("the log does not tell:\n%s", out.log)
			}
			if kept := keptFiles(t, dir); len(kept) != 2 {
				t.Errorf("%d files are kept, want 2", len(kept))
			}
		})
	}
}

func TestPodThatFetchesForOthersTellsThatItComesOn(t *testing.T) {
	s := newFaultServer(t)
	nodeModel(s)
	dir := t.TempDir()
	started, goOn := make(chan struct{}), make(chan struct{})
	s.faults(func(a asked) fault {
		if a.key == "m/large" && a.op == "Get" && a.off == 0 {
			return fault{trickle: time.Millisecond, before: func() {
				close(started)
				<-goOn
			}}
		}
		return fault{}
	})
	env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": dir, "PRELOADER_CONNS": "1"})
	start(t, env, "s3://models/m", t.TempDir())
	<-started
	locks, err := filepath.Glob(filepath.Join(dir, "locks", "????????????????????????????????"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("locks %v, %v", locks, err)
	}
	long := time.Unix(1_000_000_000, 0)
	if err := os.Chtimes(locks[0], long, long); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	eventually(t, "a sign of the one that fetches shows", func() bool {
		info, err := os.Stat(locks[0])
		return err == nil && !info.ModTime().Equal(long)
	})
}

func TestPodGoesOnWhereAnotherWasKilled(t *testing.T) {
	s := newFaultServer(t)
	model := map[string][]byte{"a": noise(1, 9*mebibyte), "b": noise(2, 40*mebibyte)}
	for k, v := range model {
		s.put("m/"+k, v)
	}
	var sent atomic.Int64
	s.faults(func(a asked) fault {
		if a.op == "Get" {
			sent.Add(a.n)
		}
		f := fault{}
		// Its end, every time that it is asked for: the first keeps a, and cannot finish b.
		if a.op == "Get" && a.key == "m/b" && a.off+a.n == 40*mebibyte {
			f.stall = true
		}
		return f
	})
	cache := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": cache, "PRELOADER_CONNS": "2", "PRELOADER_PARTSIZE": "8Mi"})
	dirs := []string{t.TempDir(), t.TempDir()}
	first := start(t, env, "s3://models/m", dirs[0])
	eventually(t, "one file is kept", func() bool { return len(keptFiles(t, cache)) == 1 })
	second := start(t, env, "s3://models/m", dirs[1])
	eventually(t, "the second waits", func() bool {
		holders, _ := os.ReadDir(filepath.Join(cache, "locks"))
		return len(holders) > 0 && s.count("List") >= 2
	})
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	s.faults(func(a asked) fault {
		if a.op == "Get" {
			sent.Add(a.n)
		}
		return fault{}
	})
	out := second.outcome(t)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dirs[1], model)
	if out.report.Reused != 9*mebibyte {
		t.Errorf("reused %d bytes, want the file that the first had finished", out.report.Reused)
	}
	// And the first, started again, goes on with its own, or takes what is there by now.
	s.forget()
	out = run(t, env, "s3://models/m", dirs[0])
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dirs[0], model)
	if left, _ := os.ReadDir(filepath.Join(cache, "temp")); len(left) > 0 {
		t.Errorf("%d temporary files are left", len(left))
	}
}

// TestKilledWhileKeeping kills pods at many moments. Whatever they leave, the next
// pod's tree is right.
func TestKilledWhileKeeping(t *testing.T) {
	s := newFaultServer(t)
	model := nodeModel(s)
	cache := mountMemory(t, "200m") // so that files are copied
	env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": cache})
	for i := range 12 {
		dir := t.TempDir()
		p := start(t, env, "s3://models/m", dir)
		time.Sleep(time.Duration(i*i) * 4 * time.Millisecond)
		_ = p.Process.Signal(syscall.SIGKILL)
		_ = p.Wait()
		if i%3 == 2 {
			next := t.TempDir()
			wantCode(t, run(t, env, "s3://models/m", next), ExitOK, "Completed")
			wantTree(t, next, model)
		}
	}
}

func TestNodeCacheTroubleFailsNothing(t *testing.T) {
	cases := map[string]struct {
		env  func(t *testing.T) settings
		want string // in the log
	}{
		"no such directory": {
			env:  func(*testing.T) settings { return settings{"PRELOADER_NODE_CACHE": "/nonexistent/cache"} },
			want: "without the node's cache",
		},
		"a file": {
			env:  func(*testing.T) settings { return settings{"PRELOADER_NODE_CACHE": os.Args[0]} },
			want: "without the node's cache",
		},
		"a limit below the files": {
			env: func(t *testing.T) settings {
				t.Helper()
				return settings{"PRELOADER_NODE_CACHE": t.TempDir(), "PRELOADER_NODE_CACHE_SIZE": "2Mi"}
			},
			want: "not kept",
		},
		"a disk too small": {
			env: func(t *testing.T) settings {
				t.Helper()
				return settings{"PRELOADER_NODE_CACHE": mountMemory(t, "4m"), "PRELOADER_NODE_CACHE_SIZE": "1Gi"}
			},
			want: "not kept",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			model := nodeModel(s)
			env := with(serverSettings(s), tc.env(t))
			for range 2 {
				dir := t.TempDir()
				out := run(t, env, "s3://models/m", dir)
				wantCode(t, out, ExitOK, "Completed")
				wantTree(t, dir, model)
				if !strings.Contains(out.log, tc.want) {
					t.Errorf("the log lacks %q:\n%s", tc.want, out.log)
				}
			}
		})
	}
}

func TestNodeCacheKnowsVersions(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 3*mebibyte))
	env := with(serverSettings(s), settings{"PRELOADER_NODE_CACHE": t.TempDir()})
	wantCode(t, run(t, env, "s3://models/m", t.TempDir()), ExitOK, "Completed")
	changed := noise(2, 3*mebibyte)
	s.put("m/model", changed)
	dir := t.TempDir()
	out := run(t, env, "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": changed})
	if out.report.Reused > 0 {
		t.Errorf("%d bytes of another version were reused", out.report.Reused)
	}
	// Nor does what the node has help whoever the store refuses.
	s.faults(func(asked) fault { return fault{status: http.StatusForbidden, code: "AccessDenied"} })
	wantCode(t, run(t, env, "s3://models/m", t.TempDir()), ExitDenied, "AccessDenied")
}
