// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// patient is a timeout that only a server which never answers can exceed.
const patient = time.Minute

// documentOf lists real servers under the names of slots.
func documentOf(servers ...*memcachedtest.Server) *Document {
	d := &Document{Epoch: 1, Hash: HashKetamaMD5, HashTag: "{}"}
	for i, s := range servers {
		d.Servers = append(d.Servers, Server{Name: fmt.Sprintf("cache-%d.cache.ns.svc", i), Address: s.Addr})
	}
	return d
}

func startClient(tb testing.TB, d *Document, options ClientOptions) *Client {
	tb.Helper()
	if options.Timeout == 0 {
		options.Timeout = patient
	}
	c := NewClient(tb.Context(), options)
	if err := c.SetRing(d); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		eventually(tb, "all memory is given back", func() bool {
			return c.budget.left.Load() == c.options.MaxBufferedBytes
		})
	})
	return c
}

// startProxy serves the ring on a loopback port and returns it with its address.
func startProxy(tb testing.TB, c *Client, options ProxyOptions) (*Proxy, string) {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := NewProxy(c, options)
	served := make(chan error, 1)
	go func() { served <- p.Serve(listener) }()
	tb.Cleanup(func() {
		p.Shutdown(tb.Context())
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return p, listener.Addr().String()
}

// eventually waits until the condition holds.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(patient); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited %v in vain until %s", patient, what)
		}
	}
}

func dial(tb testing.TB, addr string) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patient))
	return conn
}

// say sends the text, formatted.
func say(tb testing.TB, conn net.Conn, format string, args ...any) {
	tb.Helper()
	if _, err := fmt.Fprintf(conn, format, args...); err != nil {
		tb.Errorf("sending to %s: %v", conn.RemoteAddr(), err)
	}
}

// hangUp closes the connection.
func hangUp(tb testing.TB, conn net.Conn) {
	tb.Helper()
	if err := conn.Close(); err != nil {
		tb.Errorf("hanging up on %s: %v", conn.RemoteAddr(), err)
	}
}

// converse sends the script over a new connection and returns all answers. The script's last command must leave the
// connection open, or be quit.
func converse(tb testing.TB, addr, script string) string {
	tb.Helper()
	conn := dial(tb, addr)
	go func() { _, _ = io.WriteString(conn, script+strings.Repeat("verbosity\r\n", 2)+"quit\r\n") }()
	var answers bytes.Buffer
	_, _ = io.Copy(&answers, conn)
	text, ok := strings.CutSuffix(answers.String(), strings.Repeat("ERROR\r\n", 2))
	if !ok {
		return answers.String() + "<closed>"
	}
	return text
}

// faultyServer answers every connection by the function. It ends with the test.
func faultyServer(tb testing.TB, serve func(conn *net.TCPConn)) string {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			tb.Cleanup(func() { _ = conn.Close() })
			go serve(conn.(*net.TCPConn))
		}
	}()
	return listener.Addr().String()
}

// keysOf returns n keys that the ring gives to the named slot.
func keysOf(tb testing.TB, d *Document, slot, n int) []string {
	tb.Helper()
	ring, err := d.Ring()
	if err != nil {
		tb.Fatal(err)
	}
	var keys []string
	for i := 0; len(keys) < n; i++ {
		key := fmt.Sprintf("feat:user:%d", i)
		if owner, _ := ring.Owner([]byte(key)); owner.Name == d.Servers[slot].Name {
			keys = append(keys, key)
		}
	}
	return keys
}

// answerReader reads answers line by line.
type answerReader struct {
	lines *bufio.Scanner
}

func newAnswerReader(conn net.Conn) *answerReader {
	return &answerReader{bufio.NewScanner(conn)}
}

// line returns the next line; "" and a failed test when there is none.
func (r *answerReader) line(tb testing.TB) string {
	tb.Helper()
	if !r.lines.Scan() {
		tb.Errorf("no answer: %v", r.lines.Err())
		return "END"
	}
	return r.lines.Text()
}
