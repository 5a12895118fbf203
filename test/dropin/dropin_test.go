// SPDX-License-Identifier: Apache-2.0

package dropin

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const mebibyte = 1 << 20

// TestPreloaderIsADropIn runs both programs on every case. Where `differs` is
// empty, they must leave the same tree, or both fail. Where it is not, it says
// why the preloader does otherwise on purpose, and `ours` what it leaves.
func TestPreloaderIsADropIn(t *testing.T) {
	server := startServer(t)
	weights := noise(1, 9*mebibyte) // above 8 MiB, clients upload in parts
	server.put(t, "bert/config.json", []byte(`{"a":1}`))
	server.put(t, "bert/weights.bin", weights)
	server.put(t, "bert/sub/deep/vocab.txt", []byte("words"))
	server.put(t, "bert/folder/", nil)
	server.put(t, "llama/config.json", []byte("llama"))
	server.put(t, "llama-70b/config.json", []byte("large llama"))
	server.put(t, "llama.md", []byte("about"))
	server.put(t, "python/__init__.py", nil)
	server.put(t, "python/model.py", []byte("pass"))
	server.put(t, "odd/ü ö/漢字.txt", []byte("unicode"))
	server.put(t, "odd/a b+c%20d", []byte("encoded?"))
	server.put(t, "odd/a..b", []byte("dots"))
	server.put(t, "tgz/model.tar.gz", tarball(t))
	server.put(t, "zip/model.zip", zipped(t))
	server.put(t, "mar/model.mar", zipped(t))
	server.put(t, "two/one.zip", zipped(t))
	server.put(t, "two/readme", []byte("not alone"))
	server.put(t, "bad/model.tar.gz", []byte("this is no archive"))
	claim := t.TempDir()
	writeFiles(t, claim, map[string]string{"model.bin": "local", "sub/config.json": "{}", ".hidden": "x"})
	claimArchive := t.TempDir()
	writeFiles(t, claimArchive, map[string]string{"model.zip": string(zipped(t))})

	cases := map[string]struct {
		args    []string // DEST stands for the destination
		env     map[string]string
		differs string
		ours    []string // paths
	}{
		"a folder":                    {args: []string{"s3://models/bert", "DEST"}},
		"a folder with a slash":       {args: []string{"s3://models/bert/", "DEST"}},
		"a folder within":             {args: []string{"s3://models/bert/sub", "DEST"}},
		"an object":                   {args: []string{"s3://models/bert/weights.bin", "DEST"}},
		"an object beside a namesake": {args: []string{"s3://models/llama.md", "DEST"}},
		"several sources": {
			args: []string{"s3://models/bert", "DEST/a", "s3://models/odd", "DEST/b", "s3://models/llama.md", "DEST/a"},
		},
		"odd names":                    {args: []string{"s3://models/odd", "DEST"}},
		"a tar":                        {args: []string{"s3://models/tgz", "DEST"}},
		"a tar by its key":             {args: []string{"s3://models/tgz/model.tar.gz", "DEST"}},
		"a zip":                        {args: []string{"s3://models/zip", "DEST"}},
		"an archive of TorchServe":     {args: []string{"s3://models/mar", "DEST"}},
		"an archive that is not alone": {args: []string{"s3://models/two", "DEST"}},
		"allowed patterns": {
			args: []string{"s3://models/bert", "DEST"},
			env:  map[string]string{"STORAGE_ALLOW_PATTERNS": `["*.json", "*.txt"]`},
		},
		"ignored patterns": {
			args: []string{"s3://models/bert", "DEST"},
			env:  map[string]string{"STORAGE_IGNORE_PATTERNS": "sub/*,*.bin"},
		},
		"patterns that leave nothing": {
			args: []string{"s3://models/bert", "DEST"},
			env:  map[string]string{"STORAGE_IGNORE_PATTERNS": "*"},
		},
		"an archive left by a pattern": {
			args: []string{"s3://models/two", "DEST"},
			env:  map[string]string{"STORAGE_ALLOW_PATTERNS": "*.zip"},
		},
		"a claim":                   {args: []string{claim, "DEST"}},
		"a file of a claim":         {args: []string{claim + "/model.bin", "DEST"}},
		"a file URI":                {args: []string{"file://" + claim, "DEST"}},
		"an archive on a claim":     {args: []string{claimArchive, "DEST"}},
		"a path of the model agent": {args: []string{"/mnt/models/abc", "DEST"}},
		"a claim that is not there": {args: []string{"/mnt/pvc/none", "DEST"}},
		"no such folder":            {args: []string{"s3://models/nothing", "DEST"}},
		"no such bucket":            {args: []string{"s3://nobody/bert", "DEST"}},
		"no archive by content":     {args: []string{"s3://models/bad", "DEST"}},
		"wrong credentials": {
			args: []string{"s3://models/bert", "DEST"},
			env:  map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"},
		},
		"no destination": {args: []string{"s3://models/bert"}},
		"no arguments":   {},
		"a missing CA bundle": {
			args: []string{"s3://models/bert", "DEST"},
			env:  map[string]string{"AWS_CA_BUNDLE": "/none.crt"},
		},
		"a missing CA bundle, unneeded": {
			args: []string{"s3://models/bert", "DEST"},
			env:  map[string]string{"AWS_CA_BUNDLE": "/none.crt", "S3_VERIFY_SSL": "0"},
		},
		"KServe's limits": {args: []string{"s3://models/bert", "DEST"}, env: map[string]string{
			"S3_MAX_FILE_CONCURRENCY": "1", "S3_MAX_ATTEMPTS": "5", "S3_READ_TIMEOUT": "60", "S3_CONNECT_TIMEOUT": "10",
		}},
		"everything from STORAGE_CONFIG": {args: []string{"s3://models/bert", "DEST"}, env: map[string]string{
			"AWS_ENDPOINT_URL":      "http://127.0.0.1:1",
			"AWS_ACCESS_KEY_ID":     "",
			"AWS_SECRET_ACCESS_KEY": "",
			"STORAGE_CONFIG": fmt.Sprintf(
				`{"type":"s3","endpoint_url":%q,"access_key_id":%q,"secret_access_key":"replaced","region":"us-east-1"}`,
				server.endpoint,
				server.key,
			),
			"STORAGE_OVERRIDE_CONFIG": fmt.Sprintf(`{"secret_access_key":%q}`, server.secret),
		}},
		"siblings": {
			args:    []string{"s3://models/llama", "DEST"},
			differs: "KServe matches the text of the prefix, so llama-70b/config.json becomes -70b/config.json, and llama.md becomes .md",
			ours:    []string{"config.json"},
		},
		"siblings in KServe's mode": {
			args: []string{"s3://models/llama", "DEST"},
			env:  map[string]string{"PRELOADER_PREFIX_MODE": "kserve"},
		},
		"empty files": {
			args:    []string{"s3://models/python", "DEST"},
			differs: "KServe skips empty files, which makes a Python package of a folder unimportable",
			ours:    []string{"__init__.py", "model.py"},
		},
	}
	kserve, preloader := kserveInitializer(t), buildPreloader(t)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			env := maps.Clone(server.env())
			maps.Copy(env, tc.env)
			theirs, theirCode := runIn(t, kserve, env, tc.args)
			ours, ourCode := runIn(t, preloader, env, tc.args)
			if (theirCode == 0) != (ourCode == 0) {
				t.Fatalf("exit codes: KServe's %d, ours %d", theirCode, ourCode)
			}
			if theirCode != 0 {
				return // what a failed start leaves, the next one replaces
			}
			if tc.differs == "" {
				if diff := cmp.Diff(theirs, ours); diff != "" {
					t.Errorf("trees (-KServe's +ours):\n%s", diff)
				}
				return
			}
			if cmp.Equal(theirs, ours) {
				t.Errorf("the trees are the same, though %s", tc.differs)
			}
			want := map[string]bool{}
			for _, rel := range tc.ours {
				want[rel] = true
			}
			for rel := range ours {
				if !want[rel] {
					t.Errorf("we left %s", rel)
				}
				delete(want, rel)
			}
			for rel := range want {
				t.Errorf("we did not leave %s", rel)
			}
		})
	}
}

// invocation is a program and what its environment needs beside the case's.
type invocation struct {
	argv []string
	env  map[string]string
}

// runIn runs a program with a fresh destination and returns what it left there.
func runIn(t *testing.T, p invocation, env map[string]string, args []string) (map[string]string, int) {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "models")
	argv := append([]string{}, p.argv...)
	for _, a := range args {
		argv = append(argv, strings.Replace(a, "DEST", dest, 1))
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	for _, vars := range []map[string]string{p.env, env} {
		for k, v := range vars {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s %s: %v\n%s", filepath.Base(p.argv[0]), args, err, lastLines(out))
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return tree(t, dest), cmd.ProcessState.ExitCode()
}

func lastLines(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "\n")
}

// tree describes every file below dir but the preloader's marker: content, or
// where a link leads, and whether it may be executed.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dir, path)
		if os.IsNotExist(err) && path == dir {
			return nil
		}
		switch {
		case d != nil && d.Name() == ".preloader":
			return fs.SkipDir
		case err != nil || relErr != nil || d.IsDir() || d.Name() == ".preloader.json":
			return errors.Join(err, relErr)
		}
		if d.Type()&fs.ModeSymlink != 0 {
			found[rel], err = os.Readlink(path)
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(path)
		found[rel] = fmt.Sprintf("%d bytes %q executable=%t", len(raw), raw[:min(len(raw), 200)], info.Mode()&0o100 != 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
