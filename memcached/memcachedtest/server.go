// SPDX-License-Identifier: Apache-2.0

// Package memcachedtest starts real memcached servers for tests. It needs Debian's memcached package, or another
// memcached 1.6 in the PATH.
package memcachedtest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds the start of one server, which takes some 20 ms.
const startTimeout = time.Minute

// Server is a memcached process on a loopback port of its own.
type Server struct {
	// Addr is "127.0.0.1:port". It stays the same over Stop and Start.
	Addr string

	tb     testing.TB
	args   []string
	cmd    *exec.Cmd
	output *bytes.Buffer
}

// Start starts a server that ends with the test. args are added to memcached's command line, such as "-I", "8m".
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	s := &Server{Addr: "127.0.0.1:-1", tb: tb, args: args}
	s.Start()
	tb.Cleanup(s.Stop)
	return s
}

// StartRing starts n servers.
func StartRing(tb testing.TB, n int, args ...string) []*Server {
	tb.Helper()
	servers := make([]*Server, n)
	for i := range servers {
		servers[i] = Start(tb, args...)
	}
	return servers
}

// Start starts a stopped server again, empty, on the port that it had.
func (s *Server) Start() {
	s.tb.Helper()
	binary, err := exec.LookPath("memcached")
	if err != nil {
		s.tb.Fatalf("finding memcached: %v; install Debian's package memcached", err)
	}
	// memcached picks a free port for -1 and writes it to this file, so that two tests never race for one.
	portFile := filepath.Join(s.tb.TempDir(), "port")
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		s.tb.Fatal(err)
	}
	args := append([]string{"-l", host, "-p", port, "-U", "0", "-t", "2"}, s.args...)
	if os.Geteuid() == 0 {
		// A server that runs as another user could not write the file into the test's folder.
		args = append(args, "-u", "root")
	}
	s.output = new(bytes.Buffer)
	s.cmd = exec.Command(binary, args...)
	s.cmd.Env = append(os.Environ(), "MEMCACHED_PORT_FILENAME="+portFile)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatalf("starting memcached: %v", err)
	}
	s.Addr = s.waitForPort(portFile)
}

// Stop kills the server at once, as a lost node would go. It does nothing to a stopped one.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Freeze stops the process without closing its connections: clients see a server that never answers.
func (s *Server) Freeze() {
	s.tb.Helper()
	s.signal(syscall.SIGSTOP)
	// The signal reaches one thread after the other; the wait ends when all have stopped.
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(s.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		s.tb.Fatalf("waiting for memcached to stop: %v, status %v", err, status)
	}
}

// Thaw lets a frozen process go on.
func (s *Server) Thaw() {
	s.signal(syscall.SIGCONT)
}

func (s *Server) signal(sig syscall.Signal) {
	s.tb.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.tb.Fatalf("sending %v to memcached: %v", sig, err)
	}
}

// waitForPort returns the address once the server has written it and accepts connections.
func (s *Server) waitForPort(portFile string) string {
	s.tb.Helper()
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		if addr, ok := readPort(portFile); ok {
			if conn, err := net.Dial("tcp", addr); err == nil {
				_ = conn.Close()
				return addr
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.Stop()
	s.tb.Fatalf("memcached did not start within %v: %s", startTimeout, s.output)
	return ""
}

// readPort reads lines such as "TCP INET: 40001".
func readPort(file string) (string, bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(data)) {
		if port, ok := strings.CutPrefix(strings.TrimSpace(line), "TCP INET: "); ok {
			return "127.0.0.1:" + port, true
		}
	}
	return "", false
}
