// SPDX-License-Identifier: Apache-2.0

package features

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// cacheServer is a real memcached on a Unix socket of its own.
type cacheServer struct {
	socket string
	cmd    *exec.Cmd
}

// addr is what FEATURE_CACHE_ADDR would hold.
func (m *cacheServer) addr() string { return "unix:" + m.socket }

// startMemcached runs Debian's memcached until the test ends.
func startMemcached(t *testing.T) *cacheServer {
	t.Helper()
	// Not t.TempDir: the path of a Unix socket may have 107 bytes, and test names are long.
	dir, err := os.MkdirTemp("", "mc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &cacheServer{socket: filepath.Join(dir, "s")}
	m.start(t)
	t.Cleanup(m.kill)
	return m
}

func (m *cacheServer) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command("memcached", "-s", m.socket, "-m", "16", "-u", "root")
	if err := m.cmd.Start(); err != nil {
		t.Fatalf("starting memcached, which the Debian package of that name holds: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", m.socket)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("memcached does not answer: %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// kill ends memcached as an out-of-memory kill would and takes its socket away.
func (m *cacheServer) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	_ = os.Remove(m.socket)
}

// client is a second pair of eyes on what is stored, with time to spare.
func (m *cacheServer) client() *memcache.Client {
	c := memcache.New(m.socket)
	c.Timeout = 10 * time.Second
	return c
}

// fakeServer answers every connection with the function and returns its address.
func fakeServer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				serve(conn)
			}()
		}
	}()
	return listener.Addr().String()
}
