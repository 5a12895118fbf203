// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"serverless.xyz/outrigger/memcached"
	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// patience bounds what takes milliseconds.
const patience = 20 * time.Second

// TestMain lets the test binary stand in for featurecache, so that signals and exit codes are those of a process.
func TestMain(m *testing.M) {
	if os.Getenv("BE_FEATURECACHE") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// process is a running featurecache.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	lines  *bufio.Scanner
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0], args...), stderr: new(bytes.Buffer)}
	p.cmd.Env = append(os.Environ(), "BE_FEATURECACHE=1")
	pipe, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(io.TeeReader(pipe, p.stderr))
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// waitFor reads the log up to a message and returns its entry.
func (p *process) waitFor(message string) map[string]any {
	p.t.Helper()
	for p.lines.Scan() {
		var entry map[string]any
		if json.Unmarshal(p.lines.Bytes(), &entry) == nil && entry["msg"] == message {
			return entry
		}
	}
	p.t.Fatalf("no %q in the log: %s", message, p.stderr)
	return nil
}

// exit waits for the end of the process and returns its exit code.
func (p *process) exit() int {
	p.t.Helper()
	for p.lines.Scan() {
	}
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ask sends a line over the connection and returns the first line of the answer.
func ask(t *testing.T, conn net.Conn, line string) string {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "%s\r\n", line); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return strings.TrimSpace(answer)
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func writeRing(t *testing.T, path string, epoch int64, servers ...*memcachedtest.Server) {
	t.Helper()
	d := &memcached.Document{Epoch: epoch, Hash: memcached.HashKetamaMD5}
	for i, s := range servers {
		d.Servers = append(d.Servers, memcached.Server{Name: fmt.Sprintf("cache-%d", i), Address: s.Addr})
	}
	data, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".next", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
}

// TestFeaturecacheThroughItsLife starts it before there is a ring, gives it one, uses it, and stops it while it has a
// client.
func TestFeaturecacheThroughItsLife(t *testing.T) {
	dir := t.TempDir()
	ring, socket := filepath.Join(dir, "ring.json"), filepath.Join(dir, "mc.sock")
	p := start(t, "--listen=127.0.0.1:0,unix:"+socket, "--ring-file="+ring, "--metrics-address=127.0.0.1:0", "--timeout=5s")
	status := "http://" + p.waitFor("Serving metrics and health")["address"].(string)
	tcp := p.waitFor("Serving clients")["address"].(string)
	p.waitFor("Ring set")

	client := dial(t, "unix", socket)
	if got := ask(t, client, "set a 0 0 1\r\nx"); got != "NOT_STORED" {
		t.Errorf("set without a ring = %q", got)
	}
	writeRing(t, ring, 1, memcachedtest.StartRing(t, 2)...)
	p.waitFor("Ring set")
	if got := ask(t, client, "set a 0 0 1\r\nx"); got != "STORED" {
		t.Errorf("set = %q", got)
	}
	other := dial(t, "tcp", tcp)
	if got := ask(t, other, "get a"); got != "VALUE a 0 1" {
		t.Errorf("get by TCP = %q", got)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/healthz": "", "/readyz": "", "/metrics": `featurecache_keys_total{result="hit"} 1`,
	} {
		if code, body := get(t, status+path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s = %d %s, want 200 with %q", path, code, body, want)
		}
	}

	p.signal(syscall.SIGTERM)
	p.waitFor("Draining")
	if code, _ := get(t, status+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz while draining = %d", code)
	}
	if got := ask(t, client, "delete a"); got != "DELETED" {
		t.Errorf("delete while draining = %q", got)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if code := p.exit(); code != exitOK {
		t.Errorf("exit code = %d, want %d: %s", code, exitOK, p.stderr)
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestDrainEndsWithItsTimeout(t *testing.T) {
	p := start(t, "--listen=127.0.0.1:0", "--ring-file=/nothing", "--metrics-address=", "--drain-timeout=1ms")
	conn := dial(t, "tcp", p.waitFor("Serving clients")["address"].(string))
	if got := ask(t, conn, "get a"); got != "END" {
		t.Errorf("get = %q", got)
	}
	p.signal(os.Interrupt)
	if code := p.exit(); code != exitOK {
		t.Errorf("exit code = %d, want %d: %s", code, exitOK, p.stderr)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	p := start(t, "--listen=127.0.0.1:0", "--ring-file=/nothing", "--metrics-address=", "--drain-timeout=1h")
	conn := dial(t, "tcp", p.waitFor("Serving clients")["address"].(string))
	ask(t, conn, "get a")
	p.signal(syscall.SIGTERM)
	p.waitFor("Draining")
	p.signal(syscall.SIGTERM)
	p.exit()
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Errorf("it ended with %v, want by the signal", p.cmd.ProcessState)
	}
}

// TestSocketOfAKilledProcessIsReplaced leaves a socket behind, as a container that was out of memory does.
func TestSocketOfAKilledProcessIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "mc.sock")
	args := []string{"--listen=unix:" + socket, "--ring-file=/nothing", "--metrics-address=", "--drain-timeout=0s"}
	killed := start(t, args...)
	killed.waitFor("Serving clients")

	second := start(t, args...)
	if code := second.exit(); code != exitFailed || !strings.Contains(second.stderr.String(), "in use") {
		t.Errorf("a second one on the same socket: exit code = %d, want %d: %s", code, exitFailed, second.stderr)
	}
	killed.signal(syscall.SIGKILL)
	killed.exit()
	next := start(t, args...)
	next.waitFor("Serving clients")
	if got := ask(t, dial(t, "unix", socket), "get a"); got != "END" {
		t.Errorf("get = %q", got)
	}
	next.signal(syscall.SIGTERM)
	next.exit()
}

func TestExitCodes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args     []string
		want     int
		wantText string
	}{
		"version":        {[]string{"version"}, exitOK, "featurecache "},
		"help":           {[]string{"-h"}, exitOK, "Usage"},
		"bad flag":       {[]string{"--timeout=0"}, exitUsage, "--timeout"},
		"address in use": {[]string{"--listen=" + taken.Addr().String()}, exitFailed, "address already in use"},
		"metrics port in use": {
			[]string{"--listen=127.0.0.1:0", "--metrics-address=" + taken.Addr().String()},
			exitFailed,
			"listening for metrics",
		},
		"socket path is a file": {[]string{"--listen=unix:" + file}, exitFailed, "no socket"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var output strings.Builder
			if got := run(t.Context(), tc.args, env{}.lookup, &output, &output); got != tc.want {
				t.Errorf("exit code = %d, want %d", got, tc.want)
			}
			if !strings.Contains(output.String(), tc.wantText) {
				t.Errorf("output = %q, want %q in it", output.String(), tc.wantText)
			}
		})
	}
}
