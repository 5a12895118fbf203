// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// sources makes a repository with one small program, pause, and returns a builder of it.
func sources(t *testing.T, progress *bytes.Buffer) *builder {
	t.Helper()
	root, cache := t.TempDir(), t.TempDir()
	for file, content := range map[string]string{
		"go.mod":                     "module serverless.xyz/outrigger\n\ngo 1.26\n",
		"test/testbed/pause/main.go": "package main\n\nfunc main() {}\n",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &builder{root: root, cache: cache, progress: progress}
}

func TestInstallBuildsOnce(t *testing.T) {
	var said bytes.Buffer
	b := sources(t, &said)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			mine := *b
			mine.progress = &bytes.Buffer{}
			have, err := mine.install(t.Context(), []program{pauseProgram}, nil)
			if err != nil || !exists(have.programs["pause"]) {
				t.Errorf("installed %v, error %v", have, err)
			}
		})
	}
	both.Wait()
	if _, err := b.install(t.Context(), []program{pauseProgram}, nil); err != nil || said.Len() > 0 {
		t.Errorf("a third install printed %q, error %v, want neither", said.String(), err)
	}
}

func TestInstallBuildsAnewWhenSourcesChange(t *testing.T) {
	var said bytes.Buffer
	b := sources(t, &said)
	before, err := b.install(t.Context(), []program{pauseProgram}, nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := []byte("package main\n\nfunc main() { println() }\n")
	if err := os.WriteFile(filepath.Join(b.root, "test", "testbed", "pause", "main.go"), changed, 0o600); err != nil {
		t.Fatal(err)
	}
	after, err := b.install(t.Context(), []program{pauseProgram}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if before.programs["pause"] == after.programs["pause"] {
		t.Error("a changed source has the same place in the cache")
	}
}

func TestFailedBuildLeavesNothingInPlace(t *testing.T) {
	var said bytes.Buffer
	b := sources(t, &said)
	broken := []byte("package main\n\nfunc main() { undefined() }\n")
	if err := os.WriteFile(filepath.Join(b.root, "test", "testbed", "pause", "main.go"), broken, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := b.install(t.Context(), []program{pauseProgram}, nil)
	if err == nil || !strings.Contains(err.Error(), "undefined") {
		t.Errorf("error %v, want the compiler's words in it", err)
	}
	target, err := b.target(pauseProgram)
	if err != nil {
		t.Fatal(err)
	}
	if exists(target) || exists(target+".new") {
		t.Error("the failed build left a program")
	}
}

func TestPinnedVersion(t *testing.T) {
	goMod := filepath.Join(t.TempDir(), "go.mod")
	content := "module m\n\nrequire a.example/one v1.2.3\n\nrequire (\n\ta.example/two v0.4.0 // indirect\n)\n"
	if err := os.WriteFile(goMod, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for module, want := range map[string]string{"a.example/one": "v1.2.3", "a.example/two": "v0.4.0"} {
		if got, err := pinnedVersion(goMod, module); err != nil || got != want {
			t.Errorf("%s: %q, error %v, want %s", module, got, err, want)
		}
	}
	if _, err := pinnedVersion(goMod, "a.example/three"); err == nil {
		t.Error("no error for a module that is not required")
	}
}

func TestKubernetesProgramsCarryTheirVersion(t *testing.T) {
	args := strings.Join(buildArgs(apiServerProgram, "v1.36.3", "out"), " ")
	for _, want := range []string{"gitVersion=v1.36.3", "gitMajor=1", "gitMinor=36"} {
		if !strings.Contains(args, want) {
			t.Errorf("%s lacks %s", args, want)
		}
	}
}
