// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// TestForeignServerIsNotAsked: whoever got the address of a server that is gone is neither read nor written.
func TestForeignServerIsNotAsked(t *testing.T) {
	server := memcachedtest.Start(t, "-l", "127.0.0.2")
	d := documentOf(server)
	d.Servers[0].Identity = "127.0.0.1,127.0.0.2"
	c := NewClient(t.Context(), ClientOptions{Timeout: patient})
	var dials atomic.Int32
	connect := c.connect
	c.connect = func(addr string) (net.Conn, error) {
		dials.Add(1)
		return connect(addr)
	}
	if err := c.SetRing(d); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), "k", []byte("ours"), 0); err != nil {
		t.Fatal(err)
	}

	server.Stop()
	_, port, _ := net.SplitHostPort(server.Addr)
	foreign := memcachedtest.Start(t, "-p", port, "-l", "127.0.0.3")
	converse(t, server.Addr, "set k 0 0 6\r\ntheirs\r\n")
	before := dials.Load()
	eventually(t, "the address is dialled again and again", func() bool {
		if value, ok := c.Get(t.Context(), "k"); ok {
			t.Fatalf("read %q of another cache", value)
		}
		return dials.Load() >= before+3
	})
	if err := c.Set(t.Context(), "k", []byte("ours"), 0); err == nil {
		t.Error("set: no error")
	}
	if got := converse(t, server.Addr, "get k\r\n"); !strings.Contains(got, "theirs") {
		t.Errorf("the other cache holds %q", got)
	}

	foreign.Stop()
	server.Start()
	eventually(t, "the server itself is asked again", func() bool {
		return c.Set(t.Context(), "k", []byte("ours"), 0) == nil
	})
}

// TestSilentStrangerIsNotAsked: a server that does not say who it is costs its callers nothing.
func TestSilentStrangerIsNotAsked(t *testing.T) {
	for name, answer := range map[string]string{
		"it does not answer": "", "it answers nonsense": "HTTP/1.1 400 Bad Request\r\n", "it has no identity": "END\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan string, 100)
			addr := faultyServer(t, func(conn *net.TCPConn) {
				line := make([]byte, 100)
				n, _ := conn.Read(line)
				asked <- string(line[:n])
				_, _ = fmt.Fprint(conn, answer)
				n, _ = conn.Read(line)
				asked <- string(line[:n])
			})
			d := &Document{Hash: HashKetamaMD5, Servers: []Server{{Name: "cache-0", Address: addr, Identity: "cache-0"}}}
			c := startClient(t, d, ClientOptions{Timeout: 500 * time.Millisecond})
			if err := c.Set(t.Context(), "k", []byte("secret"), 0); err == nil {
				t.Error("set: no error")
			}
			if got := <-asked; got != "stats settings\r\n" {
				t.Errorf("asked %q first", got)
			}
			if answer == "" {
				return
			}
			if got := <-asked; got != "" && got != "stats settings\r\n" {
				t.Errorf("told the stranger %q", got)
			}
		})
	}
}

func TestEmptyIsForItsServerOnly(t *testing.T) {
	server := memcachedtest.Start(t)
	converse(t, server.Addr, "set k 0 0 1\r\nx\r\n")
	s := Server{Name: "cache-0", Address: server.Addr, Identity: "cache-0,other"}
	if err := Empty(t.Context(), s); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("error = %v, want another server", err)
	}
	if got := converse(t, server.Addr, "get k\r\n"); !strings.Contains(got, "VALUE") {
		t.Errorf("the other server was emptied: %q", got)
	}
	s.Identity = "127.0.0.1"
	if err := Empty(t.Context(), s); err != nil {
		t.Error(err)
	}
	if got := converse(t, server.Addr, "get k\r\n"); got != "END\r\n" {
		t.Errorf("after Empty: %q", got)
	}
}
