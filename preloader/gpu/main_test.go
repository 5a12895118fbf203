// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// folder holds what the tests build: the program as it is shipped, in fakes the fakes of
// the driver's libraries, in old one of an NVML of some years ago.
var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "preloader-gpu"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// program builds the program, unless PRELOADER_GPU_TEST_PROGRAM names one: a machine with
// a GPU need not have a compiler.
var program = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("PRELOADER_GPU_TEST_PROGRAM"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(folder, "preloader-gpu")
	return path, produce("go", "build", "-o", path, "serverless.xyz/outrigger/cmd/preloader-gpu")
})

// preloaderProgram builds the preloader beside the program.
var preloaderProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(folder, "preloader")
	return path, produce("go", "build", "-o", path, "serverless.xyz/outrigger/cmd/preloader")
})

// fakes builds the fakes. The folder is the value.
var fakes = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(folder, "fakes")
	library := func(name, source string, flags ...string) error {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return err
		}
		return produce(
			"gcc",
			append([]string{"-shared", "-fPIC", "-O1", "-o", filepath.Join(dir, name), source, "-lpthread"}, flags...)...)
	}
	return dir, errors.Join(
		library(cudaLibrary, "testdata/fake_cuda.c"),
		library(nvmlLibrary, "testdata/fake_nvml.c"),
		library("old/"+nvmlLibrary, "testdata/fake_nvml.c", "-DOLD"),
	)
})

func produce(name string, args ...string) error {
	command := exec.Command(name, args...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, out)
	}
	return nil
}

// must returns what a builder gives, or fails the test.
func must(t *testing.T, builder func() (string, error)) string {
	t.Helper()
	path, err := builder()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// settings are environment variables. Without LD_LIBRARY_PATH among them, the fakes are
// used.
type settings map[string]string

// outcome is what a run left.
type outcome struct {
	code           int
	stdout, stderr string
	report         Report
	// journal is what the fake noted.
	journal []string
}

// prepare makes the command of a run with the fakes.
func prepare(t *testing.T, env settings, args ...string) (command *exec.Cmd, journal string) {
	t.Helper()
	journal = filepath.Join(t.TempDir(), "journal")
	command = exec.Command(must(t, program), args...)
	if _, own := env["LD_LIBRARY_PATH"]; !own {
		command.Env = append(command.Env, "LD_LIBRARY_PATH="+must(t, fakes))
	}
	command.Env = append(command.Env, "FAKE_JOURNAL="+journal)
	for k, v := range env {
		command.Env = append(command.Env, k+"="+v)
	}
	return command, journal
}

// run runs the program with the fakes and reads its report.
func run(t *testing.T, env settings, args ...string) outcome {
	t.Helper()
	command, journal := prepare(t, env, args...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	out := outcome{code: command.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	if strings.HasPrefix(out.stdout, "{") {
		if err := json.Unmarshal(stdout.Bytes(), &out.report); err != nil {
			t.Fatalf("the report is no JSON: %v\n%s", err, out.stdout)
		}
	}
	raw, err := os.ReadFile(journal)
	if err == nil {
		out.journal = strings.Split(strings.TrimSpace(string(raw)), "\n")
	}
	return out
}

// balanced fails the test if the fake noted a misuse, or if not all was given back.
func (o outcome) balanced(t *testing.T) {
	t.Helper()
	taken := map[string]int{}
	for _, line := range o.journal {
		switch line[0] {
		case '+':
			taken[line[1:]]++
		case '-':
			taken[line[1:]]--
		case '!':
			t.Errorf("the driver was misused: %s", line)
		}
	}
	for kind, n := range taken {
		if n != 0 {
			t.Errorf("%d of kind %q were not given back", n, kind)
		}
	}
}

// finding returns the finding with that reason.
func (o outcome) finding(t *testing.T, reason string) Finding {
	t.Helper()
	for _, f := range o.report.Findings {
		if f.Reason == reason {
			return f
		}
	}
	t.Fatalf("no finding %s; code %d\n%s%s", reason, o.code, o.stdout, o.stderr)
	return Finding{}
}
