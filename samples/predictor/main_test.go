// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asPredictor makes the test binary be the program, so that signals and exit codes are the real ones.
const asPredictor = "OUTRIGGER_TEST_AS_PREDICTOR"

func TestMain(m *testing.M) {
	if os.Getenv(asPredictor) != "" {
		main()
	}
	os.Exit(m.Run())
}

// process is a running predictor and its log.
type process struct {
	cmd  *exec.Cmd
	logs *bufio.Scanner
	base string
}

func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), asPredictor+"=1", "FEATURE_CACHE_ADDR=", "FEATURE_STORE="), env...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return &process{cmd: cmd, logs: bufio.NewScanner(stderr)}
}

// waitFor reads the log up to a message and returns that entry.
func (p *process) waitFor(t *testing.T, message string) map[string]any {
	t.Helper()
	var seen []string
	for p.logs.Scan() {
		var entry map[string]any
		if json.Unmarshal(p.logs.Bytes(), &entry) == nil && entry["msg"] == message {
			return entry
		}
		seen = append(seen, p.logs.Text())
	}
	t.Fatalf("the log ended before %q:\n%s", message, strings.Join(seen, "\n"))
	return nil
}

// serve starts the program on a free port and returns once the model is ready.
func serve(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := start(t, env, append([]string{"--port=0", "--model_dir=model/v1", "--model_name=mnist"}, args...)...)
	address, _ := p.waitFor(t, "Listening")["address"].(string)
	p.base = "http://localhost" + address[strings.LastIndex(address, ":"):]
	return p
}

// exit waits for the end and returns the exit code.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	for p.logs.Scan() { // the pipe must be read to its end before Wait
	}
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func request(t *testing.T, method, url string, body io.Reader) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

func TestStartLogsWhatIsServed(t *testing.T) {
	p := serve(t, nil)
	entry := p.waitFor(t, "Model ready")
	for key, want := range map[string]any{
		"model": "mnist", "version": "v1", "heldOutAccuracy": 0.912, "entities": 300.0, "kind": "softmax regression",
	} {
		if entry[key] != want {
			t.Errorf("%s is %v, want %v", key, entry[key], want)
		}
	}
	if entry["loadTime"] == nil {
		t.Error("no load time in the log")
	}
}

func TestSIGTERMDrains(t *testing.T) {
	p := serve(t, nil, "--drain=2s")
	p.waitFor(t, "Model ready")
	body, writer := io.Pipe()
	answered := inFlight(t, p.base+"/v1/models/mnist:predict", body)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.waitFor(t, "Draining")
	if response, text := request(t, http.MethodGet, p.base+"/v2/health/ready", http.NoBody); response.StatusCode != 503 {
		t.Errorf("ready while draining: %d %s", response.StatusCode, text)
	}
	p.waitFor(t, "Closing the port")
	if _, err := io.WriteString(writer, `{"instances":[{"id":"digit-17"}]}`); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	if got := <-answered; !strings.Contains(got, `"predictions":[4]`) {
		t.Errorf("request in flight was answered with %s", got)
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// inFlight sends a request and returns once the server has asked for its body; the answer comes when the body ends.
func inFlight(t *testing.T, url string, body io.Reader) <-chan string {
	t.Helper()
	wanted, answered := make(chan struct{}), make(chan string, 1)
	trace := &httptrace.ClientTrace{Got100Continue: func() { close(wanted) }}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Expect", "100-continue")
	go func() {
		response, err := (&http.Transport{ExpectContinueTimeout: time.Minute}).RoundTrip(r)
		if err != nil {
			answered <- err.Error()
			return
		}
		text, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		answered <- string(text)
	}()
	select {
	case <-wanted:
	case text := <-answered:
		t.Fatalf("the request did not wait for its body: %s", text)
	}
	return answered
}

func TestExitCodes(t *testing.T) {
	taken := serve(t, nil)
	port := taken.base[strings.LastIndex(taken.base, ":")+1:]
	cut := filepath.Join(t.TempDir(), "model")
	if err := os.CopyFS(cut, os.DirFS("model/v1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(cut, "model.safetensors"), 1000); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		env         []string
		args        []string
		wantCode    int
		wantMessage string
		wantError   string
	}{
		"no such flag": {nil, []string{"--model=x"}, 2, "Wrong flags", "flag provided but not defined: -model"},
		"an argument":  {nil, []string{"x"}, 2, "Wrong flags", `unexpected argument "x"`},
		"no name":      {nil, []string{"--model_name="}, 2, "Wrong flags", "--model_name"},
		"slash name":   {nil, []string{"--model_name=a/b"}, 2, "Wrong flags", "--model_name"},
		"port":         {nil, []string{"--http_port=65536"}, 2, "Wrong flags", "--port is 65536"},
		"drain":        {nil, []string{"--drain=-1s"}, 2, "Wrong flags", "--drain"},
		"ttl":          {nil, []string{"--feature_ttl=1ms"}, 2, "Wrong flags", "--feature_ttl"},
		"timeout":      {nil, []string{"--feature_timeout=0"}, 2, "Wrong flags", "--feature_timeout"},
		"port taken":   {nil, []string{"--port=" + port}, 1, "Cannot listen", "address already in use"},
		"empty model directory": {
			nil, []string{"--port=0", "--model_dir=" + t.TempDir()}, 3, "Model cannot be served", "config.json: no such file",
		},
		"cut weights": {
			nil, []string{"--port=0", "--model_dir=" + cut}, 3, "Model cannot be served", "malformed safetensors file",
		},
		"a feature store that is not there": {
			[]string{"FEATURE_STORE=/nope"},
			[]string{"--port=0", "--model_dir=model/v1"},
			3,
			"Model cannot be served", "reading feature store: open /nope",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, tc.env, tc.args...)
			entry := p.waitFor(t, tc.wantMessage)
			if text, _ := entry["error"].(string); !strings.Contains(text, tc.wantError) {
				t.Errorf("error %q, want %q", text, tc.wantError)
			}
			if code := p.exit(t); code != tc.wantCode {
				t.Errorf("exit code %d, want %d", code, tc.wantCode)
			}
		})
	}
}

// An address that makes no sense is reported, and the model served all the same.
func TestCacheAddressesAreNoReasonNotToServe(t *testing.T) {
	p := serve(t, []string{"FEATURE_CACHE_ADDR=nonsense"})
	p.waitFor(t, "Feature cache ignored")
	p.waitFor(t, "Model ready")
	response, text := request(t, http.MethodPost, p.base+"/v1/models/mnist:predict",
		strings.NewReader(`{"instances":[{"id":"digit-17"}]}`))
	if response.StatusCode != http.StatusOK || response.Header.Get("X-Feature-Cache") != "off" {
		t.Errorf("%d %s, X-Feature-Cache %q", response.StatusCode, text, response.Header.Get("X-Feature-Cache"))
	}
}

// A store from the environment goes before the one of the model directory, and a directory may have none.
func TestFeatureStores(t *testing.T) {
	bare := filepath.Join(t.TempDir(), "model")
	if err := os.CopyFS(bare, os.DirFS("model/v1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(bare, "features.safetensors")); err != nil {
		t.Fatal(err)
	}
	p := serve(t, nil, "--model_dir="+bare)
	if entry := p.waitFor(t, "Model ready"); entry["entities"] != 0.0 {
		t.Errorf("entities %v, want 0", entry["entities"])
	}
	p = serve(t, []string{"FEATURE_STORE=model/v2/features.safetensors"}, "--model_dir="+bare)
	if entry := p.waitFor(t, "Model ready"); entry["entities"] != 300.0 {
		t.Errorf("entities %v, want 300", entry["entities"])
	}
}
