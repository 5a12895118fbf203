// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// TestProxyAnswersItsOwnWay holds the answers that differ from memcached's on purpose.
func TestProxyAnswersItsOwnWay(t *testing.T) {
	closed := "<closed>"
	tests := map[string]struct {
		script, want string
	}{
		"flush_all is refused": {
			"set a 0 0 1\r\nx\r\nflush_all\r\nget a\r\nflush_all 0 noreply\r\n",
			"STORED\r\nCLIENT_ERROR flush_all not allowed\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
		},
		"version": {"version\r\n", "VERSION 1.6.0 (v1)\r\n"},
		"data of a refused set is no command": {
			"set a\x00 0 0 11\r\ndelete keep\r\nset a -1 0 11 noreply\r\ndelete keep\r\nget keep\r\n",
			"CLIENT_ERROR bad command line format\r\nVALUE keep 0 1\r\nx\r\nEND\r\n",
		},
		"data of a meta set is no command": {
			"ms a 11 T0\r\ndelete keep\r\nget keep\r\n",
			"ERROR\r\nVALUE keep 0 1\r\nx\r\nEND\r\n",
		},
		"data longer than it says": {
			"set a 0 0 1\r\nxyz\r\ndelete keep\r\n",
			"CLIENT_ERROR bad data chunk\r\n" + closed,
		},
		"refused data longer than it says": {
			"set a\x00 0 0 1\r\nxyz\r\ndelete keep\r\n",
			"CLIENT_ERROR bad command line format\r\n" + closed,
		},
		"set of unknown length": {
			"set a 0 0 x\r\ndelete keep\r\n",
			"CLIENT_ERROR bad command line format\r\n" + closed,
		},
		"set with fields missing": {"set a 0 0\r\ndelete keep\r\n", "ERROR\r\n" + closed},
		"answers before the end are given": {
			"get keep\r\nset a 0 0 x\r\n",
			"VALUE keep 0 1\r\nx\r\nEND\r\nCLIENT_ERROR bad command line format\r\n" + closed,
		},
		"quit answers what came before": {"get keep\r\nquit\r\n", "VALUE keep 0 1\r\nx\r\nEND\r\n" + closed},
		"long line that is no get": {
			"delete " + strings.Repeat("k", 9000) + "\r\n",
			"CLIENT_ERROR line too long\r\n" + closed,
		},
		"get without end": {
			"get keep " + strings.Repeat("k ", maxLineBytes),
			"CLIENT_ERROR line too long\r\n" + closed,
		},
		"get of 100,000 keys": {
			"get keep " + strings.Repeat("kkk ", 100000) + "keep\r\n",
			"VALUE keep 0 1\r\nx\r\nVALUE keep 0 1\r\nx\r\nEND\r\n",
		},
		"binary protocol":    {"\x80\x0b" + strings.Repeat("\x00", 22), closed},
		"stats of something": {"stats items\r\n", "ERROR\r\n"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startClient(t, documentOf(memcachedtest.StartRing(t, 2)...), ClientOptions{})
			p, addr := startProxy(t, c, ProxyOptions{Version: "v1"})
			if err := c.Set(t.Context(), "keep", []byte("x"), 0); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, converse(t, addr, tc.script)); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if _, ok := c.Get(t.Context(), "keep"); !ok {
				t.Error("the key was deleted")
			}
			eventually(t, "the client has left", func() bool { return p.Connections() == 0 })
		})
	}
}

func TestProxyWithoutServers(t *testing.T) {
	_, addr := startProxy(t, startClient(t, documentOf(), ClientOptions{}), ProxyOptions{})
	script := "get a b\r\ngets a\r\ngat 1 a\r\nset a 0 0 1\r\nx\r\nset a 0 0 1 noreply\r\nx\r\nadd a 0 0 1\r\nx\r\n" +
		"replace a 0 0 1\r\nx\r\nappend a 0 0 1\r\nx\r\nprepend a 0 0 1\r\nx\r\ncas a 0 0 1 1\r\nx\r\n" +
		"delete a\r\nincr a 1\r\ndecr a 1\r\ntouch a 1\r\nget a\r\n"
	want := strings.Repeat("END\r\n", 3) + strings.Repeat("NOT_STORED\r\n", 5) + strings.Repeat("NOT_FOUND\r\n", 5) + "END\r\n"
	if diff := cmp.Diff(want, converse(t, addr, script)); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

// TestProxyMemoryIsBounded has values that are larger than all memory for values: they are refused, and missed.
func TestProxyMemoryIsBounded(t *testing.T) {
	server := memcachedtest.Start(t)
	direct := startClient(t, documentOf(server), ClientOptions{})
	c := startClient(t, documentOf(server), ClientOptions{MaxBufferedBytes: 10000})
	_, addr := startProxy(t, c, ProxyOptions{})
	big := strings.Repeat("x", 20000)
	set := func(command, key string) string {
		return fmt.Sprintf("%s %s 0 0 %d\r\n%s\r\n", command, key, len(big), big)
	}

	t.Run("a value that is too large is refused, and a set takes the old value with it", func(t *testing.T) {
		script := "set a 0 0 1\r\nx\r\n" + set("set", "a") + "get a\r\nset b 0 0 1\r\nx\r\n" + set("replace", "b") + "get b\r\n"
		want := "STORED\r\nSERVER_ERROR object too large for cache\r\nEND\r\n" +
			"STORED\r\nSERVER_ERROR object too large for cache\r\nVALUE b 0 1\r\nx\r\nEND\r\n"
		if diff := cmp.Diff(want, converse(t, addr, script)); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
	t.Run("a value that is too large is a miss", func(t *testing.T) {
		for _, key := range []string{"big", "small"} {
			value := map[string]string{"big": big, "small": "s"}[key]
			if err := direct.Set(t.Context(), key, []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
		want := "VALUE small 0 1\r\ns\r\nEND\r\n"
		if diff := cmp.Diff(want, converse(t, addr, "get big small\r\n")); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
	t.Run("a line that is too long is refused", func(t *testing.T) {
		want := "SERVER_ERROR out of memory reading request\r\n<closed>"
		if diff := cmp.Diff(want, converse(t, addr, "get "+strings.Repeat("kkk ", 10000)+"\r\n")); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
}

func TestProxyTurnsAwayTooManyClients(t *testing.T) {
	p, addr := startProxy(t, startClient(t, documentOf(), ClientOptions{}), ProxyOptions{MaxConnections: 2})
	conns := []net.Conn{dial(t, addr), dial(t, addr)}
	eventually(t, "two clients are in", func() bool { return p.Connections() == 2 })
	answer, _ := io.ReadAll(dial(t, addr))
	if got := string(answer); got != "ERROR Too many open connections\r\n" {
		t.Errorf("answer to one too many = %q", got)
	}
	hangUp(t, conns[0])
	eventually(t, "one client has left", func() bool { return p.Connections() == 1 })
	if got := converse(t, addr, "get a\r\n"); got != "END\r\n" {
		t.Errorf("answer to the next = %q", got)
	}
}

// TestProxyCutsOffSlowClients has clients that stop in the middle, and one that is only idle.
func TestProxyCutsOffSlowClients(t *testing.T) {
	c := startClient(t, documentOf(memcachedtest.Start(t)), ClientOptions{})
	_, addr := startProxy(t, c, ProxyOptions{ClientTimeout: 300 * time.Millisecond})
	idle := dial(t, addr)
	for name, start := range map[string]string{
		"in a line":          "get a",
		"in a long line":     "get " + strings.Repeat("k ", 8000),
		"in data":            "set a 0 0 10\r\nabc",
		"in data to discard": "set a\x00 0 0 10\r\nabc",
	} {
		t.Run("stops "+name, func(t *testing.T) {
			conn := dial(t, addr)
			say(t, conn, "get b\r\n%s", start)
			answer, _ := io.ReadAll(conn)
			if got := string(answer); !strings.HasPrefix(got, "END\r\n") {
				t.Errorf("answer to the request before = %q", got)
			}
		})
	}
	t.Run("does not take its answers", func(t *testing.T) {
		if err := c.Set(t.Context(), "big", make([]byte, 1<<20-1000), 0); err != nil {
			t.Fatal(err)
		}
		conn := dial(t, addr)
		for {
			if _, err := io.WriteString(conn, "get big\r\n"); err != nil {
				break
			}
		}
	})
	say(t, idle, "get b\r\n")
	if line := newAnswerReader(idle).line(t); line != "END" {
		t.Errorf("answer to the idle client = %q", line)
	}
}

func TestProxyStats(t *testing.T) {
	c := startClient(t, documentOf(memcachedtest.StartRing(t, 2)...), ClientOptions{})
	p, addr := startProxy(t, c, ProxyOptions{})
	answer := converse(t, addr, "set a 0 0 1\r\nx\r\nget a b\r\nget c\r\nadd a 0 0 1\r\nx\r\n")
	if !strings.HasPrefix(answer, "STORED") {
		t.Fatalf("answer = %q", answer)
	}
	eventually(t, "the client has left", func() bool { return p.Connections() == 0 })
	answer = converse(t, addr, "stats\r\n")
	for _, want := range []string{
		"STAT version 1.6.0", "STAT curr_connections 1", "STAT total_connections 2", "STAT rejected_connections 0",
		"STAT cmd_get 3", "STAT get_hits 1", "STAT get_misses 2", "STAT cmd_set 2", "STAT ring_epoch 1",
		"STAT ring_servers 2",
	} {
		if !strings.Contains(answer, want+"\r\n") {
			t.Errorf("stats lack %q: %s", want, answer)
		}
	}
}

// TestShutdown stops a proxy whose clients leave, and one whose clients stay.
func TestShutdown(t *testing.T) {
	serve := func(t *testing.T) (*Proxy, net.Listener, chan error) {
		t.Helper()
		c := startClient(t, documentOf(memcachedtest.Start(t)), ClientOptions{})
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p, served := NewProxy(c, ProxyOptions{}), make(chan error, 1)
		go func() { served <- p.Serve(listener) }()
		return p, listener, served
	}
	shutdown := func(ctx context.Context, p *Proxy) chan struct{} {
		done := make(chan struct{})
		go func() {
			p.Shutdown(ctx)
			close(done)
		}()
		return done
	}
	ask := func(t *testing.T, conn net.Conn) {
		t.Helper()
		say(t, conn, "get a\r\n")
		if line := newAnswerReader(conn).line(t); line != "END" {
			t.Errorf("answer = %q", line)
		}
	}

	t.Run("no client: it ends at once", func(t *testing.T) {
		p, _, served := serve(t)
		p.Shutdown(t.Context())
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Run("it serves until the last client leaves", func(t *testing.T) {
		p, listener, served := serve(t)
		first := dial(t, listener.Addr().String())
		ask(t, first)
		done := shutdown(t.Context(), p)
		eventually(t, "the proxy drains", func() bool { return isClosed(p.draining) })
		ask(t, first)
		second := dial(t, listener.Addr().String())
		ask(t, second)
		hangUp(t, first)
		ask(t, second)
		if isClosed(done) {
			t.Error("it ended with a client")
		}
		hangUp(t, second)
		<-done
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Run("its time is over: idle clients are hung up on", func(t *testing.T) {
		p, listener, served := serve(t)
		idle, halfway := dial(t, listener.Addr().String()), dial(t, listener.Addr().String())
		ask(t, idle)
		say(t, halfway, "get b\r\nset a 0 0 10\r\nabc")
		if line := newAnswerReader(halfway).line(t); line != "END" {
			t.Errorf("answer = %q", line)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		<-shutdown(ctx, p)
		if err := <-served; err != nil {
			t.Error(err)
		}
		for _, conn := range []net.Conn{idle, halfway} {
			if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
				t.Errorf("the connection ended with %q, %v", rest, err)
			}
		}
		if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
			hangUp(t, conn)
			t.Error("it still takes clients")
		}
	})
}

// FuzzSession sends anything to a proxy over a ring with one server that is up and one that is not.
func FuzzSession(f *testing.F) {
	for _, script := range []string{
		"get a b\r\nset a 0 0 1\r\nx\r\nget a\r\n", "set a 0 0 5 noreply\r\nhello\r\ngets a\r\n", "ms a 5\r\nhello\r\n",
		"cas a 0 0 1 5\r\nx\r\n", "incr a 1\r\ndecr a 1\r\ntouch a 1\r\ndelete a\r\n", "stats\r\nversion\r\nverbosity 1\r\nquit\r\n",
		"\x80", "get " + strings.Repeat("k ", 5000) + "\r\n", "flush_all\r\n", "set a 0 0 -1\r\n",
	} {
		f.Add([]byte(script))
	}
	d := documentOf(memcachedtest.Start(f))
	d.Servers = append(d.Servers, Server{Name: "cache-1.cache.ns.svc", Address: "127.0.0.1:1"})
	c := startClient(f, d, ClientOptions{MaxBufferedBytes: 1 << 16})
	_, addr := startProxy(f, c, ProxyOptions{})
	f.Fuzz(func(t *testing.T, script []byte) {
		conn := dial(t, addr)
		go func() {
			_, _ = conn.Write(script)
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		answers, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the session does not end")
		}
		if len(answers) > 0 && !strings.HasSuffix(string(answers), "\r\n") {
			t.Fatalf("the last answer is cut: %q", answers)
		}
	})
}
