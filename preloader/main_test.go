// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/preloader/crc"
)

// asPreloader makes the test binary behave as the preloader, so that tests can
// kill a process and look at what is left.
const asPreloader = "PRELOADER_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asConfined) != "" {
		fmt.Fprintln(os.Stderr, confine())
		os.Exit(1)
	}
	if os.Getenv(asPreloader) == "" {
		os.Exit(m.Run())
	}
	syscall.Umask(0o022)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	command := Command{Args: os.Args[1:], Getenv: os.Getenv, Stdout: os.Stdout, Stderr: os.Stderr}
	code := command.RunUntil(context.Background(), signals)
	os.Exit(int(code))
}

// outcome is what a finished run left.
type outcome struct {
	code   ExitCode
	log    string
	last   string // the termination message
	report lastWordRead
}

// lastWordRead is the machine's line of a termination message.
type lastWordRead struct {
	Code   ExitCode `json:"code"`
	Reason string   `json:"reason"`
	Report
}

// settings are environment variables.
type settings map[string]string

func serverSettings(s *faultServer) settings {
	return settings{
		"AWS_ENDPOINT_URL":          s.URL,
		"AWS_ACCESS_KEY_ID":         "id",
		"AWS_SECRET_ACCESS_KEY":     "secret-key-text",
		"AWS_DEFAULT_REGION":        "us-east-1",
		"AWS_EC2_METADATA_DISABLED": "true",
		// Whatever the developer's own shell has.
		"AWS_CA_BUNDLE":               "",
		"AWS_SESSION_TOKEN":           "",
		"AWS_PROFILE":                 "",
		"AWS_REGION":                  "",
		"HTTP_PROXY":                  "",
		"http_proxy":                  "",
		"AWS_CONFIG_FILE":             os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"S3_VERIFY_SSL":               "",
		"NO_PROXY":                    "",
		"no_proxy":                    "",
	}
}

// run runs the command line in this process.
func run(t *testing.T, env settings, args ...string) outcome {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, v)
	}
	log := &bytes.Buffer{}
	last := filepath.Join(t.TempDir(), "last")
	getenv := func(name string) string {
		if name == "PRELOADER_TERMINATION_LOG" {
			return last
		}
		return os.Getenv(name)
	}
	command := Command{Args: args, Getenv: getenv, Stdout: log, Stderr: log}
	return readOutcome(t, command.Run(t.Context()), log.String(), last)
}

func readOutcome(t *testing.T, code ExitCode, log, last string) outcome {
	t.Helper()
	out := outcome{code: code, log: log}
	raw, err := os.ReadFile(last)
	if err != nil || code < 0 { // killed, perhaps while it was writing
		return out
	}
	out.last = string(raw)
	lines := strings.Split(out.last, "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &out.report); err != nil {
		t.Fatalf("the termination message does not end in JSON: %v\n%s", err, out.last)
	}
	return out
}

// program is the preloader as a process of its own.
type program struct {
	*exec.Cmd
	log  *bytes.Buffer
	last string
}

// start starts the preloader.
func start(t *testing.T, env settings, args ...string) *program {
	t.Helper()
	p := command(t, env, args...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	return p
}

// end ends it, if it has not ended, and waits until it writes nothing more.
func (p *program) end() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// command prepares the preloader's process.
func command(t *testing.T, env settings, args ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(os.Args[0], args...), log: &bytes.Buffer{}, last: filepath.Join(t.TempDir(), "last")}
	p.Env = append(os.Environ(), asPreloader+"=1", "PRELOADER_TERMINATION_LOG="+p.last)
	for k, v := range env {
		p.Env = append(p.Env, k+"="+v)
	}
	p.Stdout, p.Stderr = p.log, p.log
	return p
}

func (p *program) outcome(t *testing.T) outcome {
	t.Helper()
	_ = p.Wait()
	return readOutcome(t, ExitCode(p.ProcessState.ExitCode()), p.log.String(), p.last)
}

// eventually waits for a condition that another process or goroutine brings about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); {
		looked := time.Now()
		if holds() {
			return
		}
		time.Sleep(max(2*time.Millisecond, 2*time.Since(looked))) // to leave the processor to what is waited for
	}
	t.Fatalf("waited in vain until %s", what)
}

// noise returns bytes that differ for each seed.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	out := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(out)
	return out
}

// tree reads all files below dir but the preloader's own.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dir, path)
		switch {
		case err != nil || relErr != nil:
			return err
		case rel == workDir:
			return fs.SkipDir
		case d.IsDir() || rel == markerName || rel == lockName || rel == cacheMarkerName:
			return nil
		}
		raw, err := os.ReadFile(path)
		found[rel] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// wantTree fails unless dir holds exactly these files.
func wantTree(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	got := tree(t, dir)
	short := func(s string) string {
		if len(s) > 40 {
			return s[:40] + "… " + crc.NVME.Encode(crc.NVME.Update(0, []byte(s)))
		}
		return s
	}
	gotShort, wantShort := map[string]string{}, map[string]string{}
	for k, v := range got {
		gotShort[k] = short(v)
	}
	for k, v := range want {
		wantShort[k] = short(string(v))
	}
	if diff := cmp.Diff(wantShort, gotShort); diff != "" {
		t.Errorf("files in %s (-want +got):\n%s", dir, diff)
	}
}

func wantCode(t *testing.T, out outcome, code ExitCode, reason string) {
	t.Helper()
	if out.code != code || out.report.Reason != reason {
		t.Fatalf("exit code %d for %q, want %d for %q; log:\n%s", out.code, out.report.Reason, code, reason, out.log)
	}
}
