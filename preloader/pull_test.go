// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestPullLaysFilesOutAsKServeDoes(t *testing.T) {
	objects := []string{
		"llama/config.json", "llama/empty", "llama/sub/deep/vocab.txt", "llama/folder/", "llama-70b/config.json",
		"llama.txt", "other/x", "top",
	}
	cases := map[string]struct {
		source string
		env    settings
		want   []string
	}{
		"a folder brings what is below it, and nothing of its siblings": {
			source: "s3://models/llama", want: []string{"config.json", "empty", "sub/deep/vocab.txt"},
		},
		"a slash at the end changes nothing": {
			source: "s3://models/llama/", want: []string{"config.json", "empty", "sub/deep/vocab.txt"},
		},
		"in KServe's mode siblings come along": {
			source: "s3://models/llama", env: settings{"PRELOADER_PREFIX_MODE": "kserve"},
			want: []string{"config.json", "empty", "sub/deep/vocab.txt", "-70b/config.json", ".txt"},
		},
		"an object's key brings that object": {source: "s3://models/llama.txt", want: []string{"llama.txt"}},
		"a key in a folder loses the folder": {source: "s3://models/llama/sub/deep/vocab.txt", want: []string{"vocab.txt"}},
		"the bucket alone brings everything": {
			source: "s3://models",
			want: []string{
				"llama/config.json",
				"llama/empty",
				"llama/sub/deep/vocab.txt",
				"llama-70b/config.json",
				"llama.txt",
				"other/x",
				"top",
			},
		},
		"allowed patterns cross slashes": {
			source: "s3://models/llama",
			env:    settings{"STORAGE_ALLOW_PATTERNS": `["*.txt"]`},
			want:   []string{"sub/deep/vocab.txt"},
		},
		"ignored patterns win": {
			source: "s3://models/llama",
			env:    settings{"STORAGE_ALLOW_PATTERNS": "*.txt, *.json", "STORAGE_IGNORE_PATTERNS": "sub/*"},
			want:   []string{"config.json"},
		},
		"patterns do not apply to one object": {
			source: "s3://models/llama.txt", env: settings{"STORAGE_ALLOW_PATTERNS": "*.json"}, want: []string{"llama.txt"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.pages = 2 // listings of several pages, in which siblings fill the first
			for _, key := range objects {
				data := []byte("data of " + key)
				if strings.HasSuffix(key, "empty") {
					data = nil
				}
				s.put(key, data)
			}
			env := serverSettings(s)
			maps.Copy(env, tc.env)
			dir := filepath.Join(t.TempDir(), "made", "for it")
			wantCode(t, run(t, env, tc.source, dir), ExitOK, "Completed")
			got := tree(t, dir)
			for _, rel := range tc.want {
				if _, ok := got[rel]; !ok {
					t.Errorf("file %s is missing", rel)
				}
				delete(got, rel)
			}
			for rel := range got {
				t.Errorf("file %s should not be there", rel)
			}
		})
	}
}

func TestPullReportsWhatItCannotFind(t *testing.T) {
	cases := map[string]struct {
		source string
		env    settings
		code   ExitCode
		reason string
		advice string
	}{
		"no bucket": {source: "s3://nobody/llama", code: ExitNotFound, reason: "NoSuchBucket", advice: "bucket's name"},
		"no prefix": {source: "s3://models/lama", code: ExitNotFound, reason: "NoModel", advice: "path in the storage URI"},
		"everything filtered away": {
			source: "s3://models/llama", env: settings{"STORAGE_IGNORE_PATTERNS": "*"},
			code: ExitNotFound, reason: "NoModel", advice: "STORAGE_IGNORE_PATTERNS",
		},
		"another scheme": {
			source: "gs://models/llama", code: ExitConfig, reason: "Configuration", advice: "default storage initializer",
		},
		"no bucket name": {source: "s3:///llama", code: ExitConfig, reason: "Configuration", advice: "s3://bucket/path"},
		"decryption is asked for": {
			source: "s3://models/llama", env: settings{"CONFIDENTIAL_ENABLED": "true"},
			code: ExitConfig, reason: "Configuration", advice: "confidential",
		},
		"a CA bundle that is not there": {
			source: "s3://models/llama", env: settings{"AWS_CA_BUNDLE": "/does/not/exist.crt"},
			code: ExitConfig, reason: "CABundle", advice: "AWS_CA_BUNDLE",
		},
		"a claim that is not mounted": {
			source: "/mnt/pvc/none/such", code: ExitNotFound, reason: "NotFound", advice: "claim is mounted",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("llama/config.json", []byte("{}"))
			env := serverSettings(s)
			maps.Copy(env, tc.env)
			out := run(t, env, tc.source, t.TempDir())
			wantCode(t, out, tc.code, tc.reason)
			if !strings.Contains(out.last, tc.advice) {
				t.Errorf("termination message %q does not say %q", out.last, tc.advice)
			}
		})
	}
}

func TestPullRefusesKeysThatCannotBeFiles(t *testing.T) {
	for _, key := range []string{"m/../../etc/passwd", "m/a/../b", "m/..", "m/.preloader/x", "m/.preloader.json", "m/" + strings.Repeat("x", 256)} {
		t.Run(key, func(t *testing.T) {
			s := newFaultServer(t)
			s.put(key, []byte("evil"))
			s.put("m/fine", []byte("good"))
			parent := t.TempDir()
			dir := filepath.Join(parent, "dest")
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitConfig, "UnsafeKey")
			wantTree(t, parent, map[string][]byte{})
		})
	}
	t.Run("a file where a folder must be", func(t *testing.T) {
		s := newFaultServer(t)
		s.put("m/a", []byte("file"))
		s.put("m/a/b", []byte("below it"))
		wantCode(t, run(t, serverSettings(s), "s3://models/m", t.TempDir()), ExitConfig, "UnsafeKey")
	})
	t.Run("two keys for one path", func(t *testing.T) {
		s := newFaultServer(t)
		s.put("m/a/b", []byte("one"))
		s.put("m/a//b", []byte("other"))
		wantCode(t, run(t, serverSettings(s), "s3://models/m", t.TempDir()), ExitConfig, "UnsafeKey")
	})
	t.Run("a link that leads out of the destination", func(t *testing.T) {
		s := newFaultServer(t)
		s.put("m/out/file", []byte("data"))
		outside, dir := t.TempDir(), t.TempDir()
		if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
			t.Fatal(err)
		}
		out := run(t, serverSettings(s), "s3://models/m", dir)
		if out.code == ExitOK {
			t.Error("the pull followed the link")
		}
		wantTree(t, outside, map[string][]byte{})
	})
}

func TestPullTakesOddButLegalKeys(t *testing.T) {
	s := newFaultServer(t)
	want := map[string][]byte{}
	for i, rel := range []string{"a b", "ü/漢字", "a..b", "...", "a+b%2Fc", "quote'\"", "semi;colon?x=y#z", "-dash", "tab\there"} {
		data := []byte(strconv.Itoa(i))
		want[rel] = data
		s.put("m/"+rel, data)
	}
	dir := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, want)
}

func TestPullFetchesAndChecksLargeFiles(t *testing.T) {
	s := newFaultServer(t)
	large, small := noise(1, 40*mebibyte+12345), noise(2, 300_000)
	s.put("m/model.gguf", large)
	s.put("m/tokenizer.json", small)
	dir := t.TempDir()
	out := run(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model.gguf": large, "tokenizer.json": small})
	if got := out.report.Fetched; got != int64(len(large)+len(small)) {
		t.Errorf("fetched %d bytes, want each once: %d", got, len(large)+len(small))
	}
	if got := out.report.Evidence[EvidenceChecksum]; got != 2 {
		t.Errorf("%d files were checked by checksum, want 2: %v", got, out.report.Evidence)
	}
	if s.count("Get m/model.gguf") < 4 {
		t.Errorf("the large file took %d requests, want several", s.count("Get m/model.gguf"))
	}
	if s.count("Head m/tokenizer.json") != 0 {
		t.Error("a small file took a request besides its one GET")
	}
	for _, rel := range []string{"model.gguf", "tokenizer.json"} {
		info, err := os.Stat(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o644 {
			t.Errorf("%s has mode %v, want 0644", rel, info.Mode())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, workDir)); !os.IsNotExist(err) {
		t.Errorf("the working directory is still there: %v", err)
	}
}

func TestPullAgainAsksOnlyForTheListing(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 9*mebibyte))
	s.put("m/empty", nil)
	dir := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	s.forget()
	out := run(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	if s.count("List") != 1 || s.count("Head") != 0 || s.count("Get") != 0 {
		t.Errorf("%d listings, %d heads, %d gets; want 1, 0, 0", s.count("List"), s.count("Head"), s.count("Get"))
	}
	if out.report.Skipped != 2 || out.report.Files != 2 {
		t.Errorf("report says %d files, %d skipped, want 2, 2", out.report.Files, out.report.Skipped)
	}
}

func TestPullAgainFetchesOnlyWhatChanged(t *testing.T) {
	changes := map[string]func(t *testing.T, s *faultServer, dir string){
		"the object": func(_ *testing.T, s *faultServer, _ string) { s.put("m/b", []byte("new b")) },
		"the file": func(t *testing.T, _ *faultServer, dir string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, "b"), []byte("bad b"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"the file is gone": func(t *testing.T, _ *faultServer, dir string) {
			t.Helper()
			if err := os.Remove(filepath.Join(dir, "b")); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/a", []byte("old a"))
			s.put("m/b", []byte("old b"))
			dir := t.TempDir()
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
			change(t, s, dir)
			s.forget()
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
			want, _ := s.object("m/b")
			wantTree(t, dir, map[string][]byte{"a": []byte("old a"), "b": want.data})
			if s.count("Get m/a") != 0 || s.count("Get m/b") != 1 {
				t.Errorf("%d gets of a and %d of b, want 0 and 1", s.count("Get m/a"), s.count("Get m/b"))
			}
		})
	}
}

func TestPullSeveralPairs(t *testing.T) {
	s := newFaultServer(t)
	s.put("base/weights", []byte("base"))
	s.put("lora/weights", []byte("lora"))
	s.put("extra/tokenizer", []byte("extra"))
	dir := t.TempDir()
	base, lora := filepath.Join(dir, "base"), filepath.Join(dir, "lora")
	args := []string{"s3://models/base", base, "s3://models/lora", lora, "s3://models/extra", base}
	out := run(t, serverSettings(s), args...)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, base, map[string][]byte{"weights": []byte("base"), "tokenizer": []byte("extra")})
	wantTree(t, lora, map[string][]byte{"weights": []byte("lora")})
	s.forget()
	wantCode(t, run(t, serverSettings(s), append([]string{"pull"}, args...)...), ExitOK, "Completed")
	if s.count("Get") != 0 {
		t.Errorf("the second run made %d gets, want none", s.count("Get"))
	}
}

func TestPullLinksLocalPaths(t *testing.T) {
	claim := t.TempDir()
	for _, name := range []string{"model.bin", "config.json", ".hidden"} {
		if err := os.WriteFile(filepath.Join(claim, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, source := range []string{claim, "file://" + claim} {
		dir := t.TempDir()
		for range 2 {
			wantCode(t, run(t, nil, source, dir), ExitOK, "Completed")
			wantTree(t, dir, map[string][]byte{"model.bin": []byte("model.bin"), "config.json": []byte("config.json")})
		}
		if target, err := os.Readlink(
			filepath.Join(dir, "model.bin"),
		); err != nil ||
			target != filepath.Join(claim, "model.bin") {
			t.Errorf("model.bin links to %q (%v)", target, err)
		}
	}
	wantCode(t, run(t, nil, "/mnt/models/served/by/agent", t.TempDir()), ExitOK, "Completed")
}

func TestPullWithoutPairsShowsUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"s3://models/m"}, {"pull"}, {"a", "b", "c"}} {
		out := run(t, nil, args...)
		if out.code != ExitTransient || !strings.Contains(out.log, "Usage:") {
			t.Errorf("arguments %q: exit code %d, want 1 as KServe's, and the usage", args, out.code)
		}
	}
}

func TestVerifyFindsChangedFiles(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 3*mebibyte))
	dir := t.TempDir()
	if out := run(t, nil, "verify", dir); out.code != ExitNotFound {
		t.Errorf("verify of an empty directory: exit code %d, want %d", out.code, ExitNotFound)
	}
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	if out := run(t, nil, "verify", dir); out.code != ExitOK {
		t.Errorf("verify of a good tree: exit code %d; %s", out.code, out.log)
	}
	f, err := os.OpenFile(filepath.Join(dir, "model"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1, 2, 3}, 2*mebibyte); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if out := run(t, nil, "verify", dir); out.code != ExitIntegrity || !strings.Contains(out.log, "model") {
		t.Errorf("verify of a changed tree: exit code %d; %s", out.code, out.log)
	}
}
