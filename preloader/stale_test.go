// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (s *faultServer) remove(keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		delete(s.objects, k)
		s.sorted = nil
	}
}

func TestPullRemovesWhatTheSourceNoLongerHas(t *testing.T) {
	s := newFaultServer(t)
	old := map[string][]byte{
		"config.json": []byte("{}"), "shard-1-of-2": noise(1, 1000), "shard-2-of-2": noise(2, 1000),
		"sub/deep/only": noise(3, 10),
	}
	for rel, data := range old {
		s.put("m/"+rel, data)
	}
	s.put("other/kept", []byte("of another source"))
	s.put("m-sibling/x", []byte("beside"))
	dir := t.TempDir()
	pull := func(env settings, source string) outcome {
		t.Helper()
		out := run(t, with(serverSettings(s), env), source, dir)
		wantCode(t, out, ExitOK, "Completed")
		return out
	}
	pull(nil, "s3://models/other")
	pull(nil, "s3://models/m/sub/deep") // the same object as a file of another source
	pull(nil, "s3://models/m")
	if err := os.WriteFile(filepath.Join(dir, "by-hand"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}

	s.remove("m/shard-1-of-2", "m/shard-2-of-2", "m/sub/deep/only")
	s.put("m/shard-1-of-1", noise(4, 2000))
	// What is only filtered out stays, for whoever else wants it.
	got := pull(settings{"STORAGE_IGNORE_PATTERNS": "config.json"}, "s3://models/m")
	want := map[string][]byte{
		"config.json": []byte("{}"), "shard-1-of-1": noise(4, 2000), "kept": []byte("of another source"),
		"only": noise(3, 10), "by-hand": []byte("not ours"),
	}
	wantTree(t, dir, want)
	if _, err := os.Stat(filepath.Join(dir, "sub")); !os.IsNotExist(err) {
		t.Errorf("an empty folder stays: %v", err)
	}
	fresh := run(t, with(serverSettings(s), settings{"STORAGE_IGNORE_PATTERNS": "config.json"}), "s3://models/m", t.TempDir())
	if diff := cmp.Diff(fresh.report.Digests, got.report.Digests); diff != "" {
		t.Errorf("digests after a fresh pull and after one over an older version differ (-fresh +got):\n%s", diff)
	}
	// Nothing new to fetch, but something to remove.
	s.remove("m/config.json")
	delete(want, "config.json")
	pull(nil, "s3://models/m")
	wantTree(t, dir, want)
}

// TestWhatIsLeftOutIsNotStale has files of a model in two forms, of which a later pull
// asks for one only.
func TestWhatIsLeftOutIsNotStale(t *testing.T) {
	s := newFaultServer(t)
	want := map[string][]byte{
		"a.bin": noise(
			1,
			10,
		),
		"b.bin":             noise(2, 10),
		"model.safetensors": noise(3, 10),
		"z.bin":             noise(4, 10),
		"zz.json":           noise(5, 10),
	}
	for rel, data := range want {
		s.put("m/"+rel, data)
	}
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_LINT": "off"})
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	s.put("m/zz.json", noise(6, 10))
	want["zz.json"] = noise(6, 10)
	env["PRELOADER_SELECT"] = "safetensors"
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, want)
	s.remove("m/b.bin")
	delete(want, "b.bin")
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, want)
}

func TestPullRemovesWhatAnOlderArchiveHeld(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model.tar", tarOf(t, member{name: "a", body: "1"}, member{name: "gone", body: "2"}))
	dir := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	s.put("m/model.tar", tarOf(t, member{name: "a", body: "3"}, member{name: "new", body: "4"}))
	got := run(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, got, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"a": []byte("3"), "new": []byte("4")})
	fresh := run(t, serverSettings(s), "s3://models/m", t.TempDir())
	if diff := cmp.Diff(fresh.report.Digests, got.report.Digests); diff != "" {
		t.Errorf("digests differ (-fresh +got):\n%s", diff)
	}
}

// TestAPullThatBelievesNothingMarksNothing looks at a directory in the middle of a pull
// that fetches all anew.
func TestAPullThatBelievesNothingMarksNothing(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 20*mebibyte))
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_RESUME": "off"})
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	s.faults(func(a asked) fault {
		if a.op == "Get" {
			if _, err := os.Stat(filepath.Join(dir, markerName)); !os.IsNotExist(err) {
				t.Errorf("the tree counts as complete while it changes: %v", err)
			}
		}
		return fault{}
	})
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
}

func TestRequireTakesEmptyFiles(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", []byte("data"))
	s.putWith("m/__init__.py", nil, nil)
	s.mu.Lock()
	s.objects["m/__init__.py"].etag = "no-md5"
	s.mu.Unlock()
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"PRELOADER_VERIFY": "require"})
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	marked, err := os.Stat(filepath.Join(dir, markerName))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond)
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	if again, err := os.Stat(filepath.Join(dir, markerName)); err != nil || !again.ModTime().Equal(marked.ModTime()) {
		t.Errorf("the second run did something: %v", err)
	}
}

// TestAnArchiveMayHoldNamesThatAreNotUTF8 has a name in Latin-1, as old archives do.
func TestAnArchiveMayHoldNamesThatAreNotUTF8(t *testing.T) {
	s := newFaultServer(t)
	const name = "mod\xe8le"
	s.put("m/model.zip", zipOf(t, member{name: name, body: "1"}))
	dir := t.TempDir()
	for _, gets := range []int{1, 0} {
		s.forget()
		wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
		wantTree(t, dir, map[string][]byte{name: []byte("1")})
		if got := s.count("Get"); got != gets {
			t.Errorf("%d requests for data, want %d", got, gets)
		}
	}
	if out := run(t, serverSettings(s), "verify", dir); out.code != ExitOK {
		t.Errorf("verify ends with %d:\n%s", out.code, out.log)
	}
}
