// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// awaitState waits until the only server of the client is down, or is not.
func awaitState(t *testing.T, c *Client, down bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("down is %v", down), func() bool {
		c.Get(t.Context(), "nothing")
		return c.route.Load().peers[0][0].isDown() == down
	})
}

// TestServerMakesUpForWhatItMissed: a server that was out of reach of one client is asked for no value that this client
// has changed or deleted meanwhile.
func TestServerMakesUpForWhatItMissed(t *testing.T) {
	server := memcachedtest.Start(t)
	c := startClient(t, documentOf(server), ClientOptions{Timeout: 50 * time.Millisecond})
	_, addr := startProxy(t, c, ProxyOptions{})
	changes := map[string]string{
		"deleted": "delete deleted\r\n", "set": "set set 0 0 3\r\nnew\r\n", "incremented": "incr incremented 1\r\n",
		"appended": "append appended 0 0 1\r\nx\r\n", "replaced": "replace replaced 0 0 3\r\nnew\r\n",
		"quietly": "delete quietly noreply\r\n",
	}
	for key := range changes {
		converse(t, server.Addr, fmt.Sprintf("set %s 0 0 1\r\n1\r\n", key))
	}
	converse(t, server.Addr, "set added 0 0 4\r\nkept\r\nset other 0 0 4\r\nkept\r\n")
	server.Freeze()
	awaitState(t, c, true)
	var all strings.Builder
	for _, change := range changes {
		all.WriteString(change)
	}
	converse(t, addr, all.String()+"add added 0 0 3\r\nnew\r\n")
	server.Thaw()
	awaitState(t, c, false)
	for key := range changes {
		if value, ok := c.Get(t.Context(), key); ok {
			t.Errorf("%s: read %q, which is out of date", key, value)
		}
	}
	eventually(t, "nobody else reads old values either", func() bool {
		for key := range changes {
			if converse(t, server.Addr, "get "+key+"\r\n") != "END\r\n" {
				return false
			}
		}
		return true
	})
	if got := converse(t, server.Addr, "get added other\r\n"); strings.Count(got, "kept") != 2 {
		t.Errorf("what did not change: %q", got)
	}
	eventually(t, "nothing has to be remembered", func() bool { return c.missed.left.Load() == missedBytes })
}

// TestServerThatMissedTooMuchIsEmptied: more than can be remembered.
func TestServerThatMissedTooMuchIsEmptied(t *testing.T) {
	server := memcachedtest.Start(t)
	c := startClient(t, documentOf(server), ClientOptions{Timeout: 50 * time.Millisecond})
	left := int64(3 * missedKeyBytes)
	c.missed.left.Store(left)
	converse(t, server.Addr, "set other 0 0 1\r\nx\r\n")
	server.Freeze()
	awaitState(t, c, true)
	for i := range 10 {
		if err := c.Delete(t.Context(), fmt.Sprint("key", i)); err == nil {
			t.Error("delete on a frozen server: no error")
		}
	}
	server.Thaw()
	awaitState(t, c, false)
	if value, ok := c.Get(t.Context(), "other"); ok {
		t.Errorf("read %q of a server that was to be emptied", value)
	}
	eventually(t, "nothing has to be remembered", func() bool { return c.missed.left.Load() == left })
}

// TestUnansweredDeleteIsRepeated: the connection breaks with the delete on it.
func TestUnansweredDeleteIsRepeated(t *testing.T) {
	server := memcachedtest.Start(t)
	var cut atomic.Bool
	relay := faultyServer(t, func(conn *net.TCPConn) {
		upstream, err := net.Dial("tcp", server.Addr)
		if err != nil {
			return
		}
		defer upstream.Close()
		defer conn.Close()
		go func() { _, _ = io.Copy(conn, upstream) }()
		buffer := make([]byte, 4096)
		for {
			n, err := conn.Read(buffer)
			if err != nil || bytes.HasPrefix(buffer[:n], []byte("delete")) && cut.CompareAndSwap(false, true) {
				return
			}
			_, _ = upstream.Write(buffer[:n])
		}
	})
	d := &Document{Hash: HashKetamaMD5, Servers: []Server{{Name: "cache-0", Address: relay}}}
	c := startClient(t, d, ClientOptions{})
	if err := c.Set(t.Context(), "k", []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), "k"); err == nil {
		t.Error("a delete that was lost: no error")
	}
	eventually(t, "the key is deleted", func() bool { return converse(t, server.Addr, "get k\r\n") == "END\r\n" })
}

// TestDeleteWithoutRoomIsMadeUpFor: the server is up, but has too much to do to take a delete.
func TestDeleteWithoutRoomIsMadeUpFor(t *testing.T) {
	server := memcachedtest.Start(t)
	c := startClient(t, documentOf(server), ClientOptions{})
	if err := c.Set(t.Context(), "k", []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	server.Freeze()
	var readers sync.WaitGroup
	for range maxInFlight {
		readers.Go(func() { c.Get(t.Context(), "nothing") })
	}
	peer := c.route.Load().peers[0][0]
	eventually(t, "the queue is full", func() bool {
		l := peer.current()
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.count == maxInFlight
	})
	if err := c.Delete(t.Context(), "k"); err == nil {
		t.Error("delete without room: no error")
	}
	server.Thaw()
	readers.Wait()
	eventually(t, "the key is deleted", func() bool { return converse(t, server.Addr, "get k\r\n") == "END\r\n" })
}
