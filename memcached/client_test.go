// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

func TestClientReadsWhatItWrote(t *testing.T) {
	for _, connections := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d connections", connections), func(t *testing.T) {
			d := documentOf(memcachedtest.StartRing(t, 3)...)
			c := startClient(t, d, ClientOptions{ConnectionsPerServer: connections})
			want := map[string][]byte{}
			for i := range 300 {
				key := fmt.Sprintf("key:%d", i)
				want[key] = fmt.Appendf(nil, "value of %d", i)
				if err := c.Set(t.Context(), key, want[key], time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			keys := append(slices.Collect(maps.Keys(want)), "nothing", "no key", "", strings.Repeat("k", 251))
			if diff := cmp.Diff(want, c.GetMulti(t.Context(), keys...)); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
			for range 2 {
				if err := c.Delete(t.Context(), "key:7"); err != nil {
					t.Error(err)
				}
			}
			if value, ok := c.Get(t.Context(), "key:7"); ok {
				t.Errorf("deleted key still has %q", value)
			}
		})
	}
}

func TestClientPutsKeysWhereTheRingSays(t *testing.T) {
	servers := memcachedtest.StartRing(t, 4)
	d := documentOf(servers...)
	c := startClient(t, d, ClientOptions{})
	// The last two share a tag.
	for key, slot := range map[string]int{
		"foo": 2, "user:42": 3, "feat:user:1000": 0, "{user:42}:age": 3, "{user:42}:city": 3,
	} {
		if err := c.Set(t.Context(), key, []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		for i, s := range servers {
			found := strings.HasPrefix(converse(t, s.Addr, "get "+key+"\r\n"), "VALUE")
			if found != (i == slot) {
				t.Errorf("%s on server %d: found = %v, want it on %d", key, i, found, slot)
			}
		}
	}
}

func TestClientExpiry(t *testing.T) {
	server := memcachedtest.Start(t)
	c := startClient(t, documentOf(server), ClientOptions{})
	tests := map[string]struct {
		expire time.Duration
		// wantSeconds is what memcached tells of the time left, at most.
		wantSeconds string
		wantErr     bool
	}{
		"never":              {0, "t-1", false},
		"less than a second": {time.Millisecond, "t1", false},
		"an hour":            {time.Hour, "t3600", false},
		"30 days":            {30 * 24 * time.Hour, "t2592000", false},
		"longer":             {30*24*time.Hour + 1, "", true},
		"in the past":        {-1, "", true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			key := strings.ReplaceAll(name, " ", "_")
			began := time.Now()
			err := c.Set(t.Context(), key, []byte("x"), tc.expire)
			if (err != nil) != tc.wantErr {
				t.Fatalf("error = %v, want one: %v", err, tc.wantErr)
			}
			if tc.wantErr {
				return
			}
			got := strings.TrimSpace(converse(t, server.Addr, "mg "+key+" t\r\n"))
			var seconds, want int
			_, _ = fmt.Sscanf(got, "HD t%d", &seconds)
			_, _ = fmt.Sscanf(tc.wantSeconds, "t%d", &want)
			// A second may end between the two commands, or more on a machine that stands still.
			least := want - 1 - int(time.Since(began)/time.Second)
			if got == "EN" && want == 1 {
				return
			}
			if seconds > want || seconds < least {
				t.Errorf("time left = %q, want %s", got, tc.wantSeconds)
			}
		})
	}
}

func TestClientRefusesKeys(t *testing.T) {
	c := startClient(t, documentOf(memcachedtest.Start(t)), ClientOptions{})
	for _, key := range []string{"", "a b", "a\r\nflush_all", strings.Repeat("k", 251)} {
		if err := c.Set(t.Context(), key, nil, 0); err == nil {
			t.Errorf("set of %q: no error", key)
		}
		if err := c.Delete(t.Context(), key); err == nil {
			t.Errorf("delete of %q: no error", key)
		}
	}
}

func TestClientObeysItsContext(t *testing.T) {
	server := memcachedtest.Start(t)
	c := startClient(t, documentOf(server), ClientOptions{})
	if err := c.Set(t.Context(), "a", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := c.Get(ctx, "a"); ok {
		t.Error("a context that is over: got a value")
	}
	if err := c.Set(ctx, "a", nil, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want the cancellation", err)
	}
	// The client would wait much longer.
	server.Freeze()
	ctx, cancel = context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, ok := c.Get(ctx, "a"); ok {
		t.Error("a frozen server: got a value")
	}
	server.Thaw()
}

// TestHastyCallerDisturbsNobody: that a server is too slow for one caller does not make it down for the others.
func TestHastyCallerDisturbsNobody(t *testing.T) {
	var busy sync.Mutex // held while the server does something else
	idle := func() {
		busy.Lock()
		defer busy.Unlock()
	}
	addr := faultyServer(t, func(conn *net.TCPConn) {
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			idle()
			answer := "VERSION 1.6.18\r\n"
			if strings.HasPrefix(lines.Text(), "get ") {
				answer = "VALUE k 0 1\r\nv\r\nEND\r\n"
			}
			if _, err := io.WriteString(conn, answer); err != nil {
				return
			}
		}
	})
	d := &Document{Hash: HashKetamaMD5, Servers: []Server{{Name: "cache-0.cache.ns.svc", Address: addr}}}
	c := startClient(t, d, ClientOptions{})
	eventually(t, "the server is up", func() bool { _, ok := c.Get(t.Context(), "k"); return ok })
	busy.Lock()
	for range 2 * maxTimeouts {
		hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, ok := c.Get(hasty, "k"); ok {
			t.Error("the server is faster than it can be")
		}
		cancel()
	}
	busy.Unlock()
	if _, ok := c.Get(t.Context(), "k"); !ok {
		t.Error("a server that answers is down because some callers were in a hurry")
	}
}

func TestClientWithoutServers(t *testing.T) {
	c := startClient(t, documentOf(), ClientOptions{})
	if _, ok := c.Get(t.Context(), "a"); ok {
		t.Error("got a value")
	}
	if err := c.Set(t.Context(), "a", []byte("x"), 0); !errors.Is(err, ErrNotStored) {
		t.Errorf("error = %v, want ErrNotStored", err)
	}
	if err := c.Delete(t.Context(), "a"); err != nil {
		t.Errorf("deleting from a cache that holds nothing: %v", err)
	}
}

// faults are servers that fail, each in its way, at whatever they are asked.
var faults = map[string]func(conn *net.TCPConn){
	"hangs up at once": func(conn *net.TCPConn) { _ = conn.Close() },
	"resets at once": func(conn *net.TCPConn) {
		_ = conn.SetLinger(0)
		_ = conn.Close()
	},
	"resets after the request": func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0)
		_ = conn.Close()
	},
	"never answers":           func(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) },
	"never reads":             func(*net.TCPConn) {},
	"speaks HTTP":             sayTo("HTTP/1.1 400 Bad Request\r\n\r\n"),
	"speaks without end":      func(conn *net.TCPConn) { _, _ = io.Copy(conn, zeros{}) },
	"has no room for clients": sayTo("ERROR Too many open connections\r\n"),
	"speaks first": func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "END\r\n")
		_, _ = io.Copy(io.Discard, conn)
	},
	"stops in a value":       sayTo("VALUE feat:user:0 0 100\r\nabc"),
	"answers for other keys": sayTo("VALUE other 0 1\r\nx\r\nEND\r\n"),
	"lies about the length":  sayTo("VALUE feat:user:0 0 1\r\nabc\r\nEND\r\n"),
	"drips": func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		for {
			if _, err := io.WriteString(conn, "V"); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	},
}

// zeros is an endless stream.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// sayTo waits for a request, says the text and then nothing more.
func sayTo(text string) func(conn *net.TCPConn) {
	return func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_, _ = io.WriteString(conn, text)
		_, _ = io.Copy(io.Discard, conn)
	}
}

// TestFaultyServerIsAMiss has one server of two fail: its keys are misses, the other's are found, every client stays in
// step, and in the end nobody waits for the server any more.
func TestFaultyServerIsAMiss(t *testing.T) {
	for name, serve := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := documentOf(memcachedtest.Start(t))
			d.Servers = append(d.Servers, Server{Name: "cache-1.cache.ns.svc", Address: faultyServer(t, serve)})
			good, bad := keysOf(t, d, 0, 5), keysOf(t, d, 1, 5)
			c := startClient(t, d, ClientOptions{Timeout: 3 * time.Second}) // the good server is never that slow
			_, addr := startProxy(t, c, ProxyOptions{})
			peer := c.route.Load().peers[1][0]

			var script, want strings.Builder
			for _, key := range good {
				fmt.Fprintf(&script, "set %s 0 0 4\r\ngood\r\n", key)
				fmt.Fprintf(&want, "STORED\r\n")
			}
			fmt.Fprintf(&script, "get %s %s\r\n", strings.Join(bad, " "), strings.Join(good, " "))
			for _, key := range good {
				fmt.Fprintf(&want, "VALUE %s 0 4\r\ngood\r\n", key)
			}
			want.WriteString("END\r\n")
			fmt.Fprintf(&script, "set %[1]s 0 0 1\r\nx\r\nset %[1]s 0 0 1 noreply\r\nx\r\nadd %[1]s 0 0 1\r\nx\r\n"+
				"cas %[1]s 0 0 1 1\r\nx\r\nincr %[1]s 1\r\ntouch %[1]s 1\r\ndelete %[1]s\r\nget %[2]s\r\n", bad[0], good[0])
			fmt.Fprintf(&want, "%s%sSERVER_ERROR delete not confirmed by its server\r\nVALUE %s 0 4\r\ngood\r\nEND\r\n",
				strings.Repeat("NOT_STORED\r\n", 2), strings.Repeat("NOT_FOUND\r\n", 3), good[0])

			eventually(t, "the server counts as down", func() bool {
				if diff := cmp.Diff(want.String(), converse(t, addr, script.String())); diff != "" {
					t.Fatalf("answers (-want +got):\n%s", diff)
				}
				return peer.isDown() && peer.failed[reasonDown].Load() > 0
			})
		})
	}
}

// TestLargeWritesToAFrozenServerDoNotBlock fills all that the kernel takes for a process that does not read.
func TestLargeWritesToAFrozenServerDoNotBlock(t *testing.T) {
	servers := memcachedtest.StartRing(t, 2)
	d := documentOf(servers...)
	c := startClient(t, d, ClientOptions{Timeout: 3 * time.Second}) // the good server is never that slow
	good, bad := keysOf(t, d, 0, 1)[0], keysOf(t, d, 1, 1)[0]
	eventually(t, "the good server answers", func() bool { return c.Set(t.Context(), good, []byte("x"), 0) == nil })
	servers[1].Freeze()
	var wait sync.WaitGroup
	for range 30 {
		wait.Go(func() {
			if err := c.Set(t.Context(), bad, make([]byte, 1<<20), 0); !errors.Is(err, ErrNotStored) {
				t.Errorf("error = %v, want ErrNotStored", err)
			}
		})
	}
	for range 100 {
		if _, ok := c.Get(t.Context(), good); !ok {
			t.Error("the good server's key is a miss")
			break
		}
	}
	wait.Wait()
	servers[1].Stop()
}

// TestServerComesBack has a server die and return, and freeze and thaw.
func TestServerComesBack(t *testing.T) {
	tests := map[string]struct {
		down, up func(s *memcachedtest.Server)
		wantKept bool
	}{
		"killed and started again": {(*memcachedtest.Server).Stop, (*memcachedtest.Server).Start, false},
		"frozen and thawed":        {(*memcachedtest.Server).Freeze, (*memcachedtest.Server).Thaw, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			server := memcachedtest.Start(t)
			c := startClient(t, documentOf(server), ClientOptions{Timeout: time.Second})
			set := func() bool { return c.Set(t.Context(), "a", []byte("x"), 0) == nil }
			eventually(t, "the server takes a value", set)
			tc.down(server)
			eventually(t, "the key is a miss", func() bool {
				_, ok := c.Get(t.Context(), "a")
				return !ok && c.route.Load().peers[0][0].isDown()
			})
			tc.up(server)
			eventually(t, "the server counts as up", func() bool { return !c.route.Load().peers[0][0].isDown() })
			if tc.wantKept {
				eventually(t, "the value is found again", func() bool { _, ok := c.Get(t.Context(), "a"); return ok })
			} else if _, ok := c.Get(t.Context(), "a"); ok {
				t.Error("a server that was killed kept its values")
			}
			eventually(t, "the server takes a value again", set)
		})
	}
}

// TestTooManyRequestsForOneServer fills the queue of a connection: what does not fit fails at once.
func TestTooManyRequestsForOneServer(t *testing.T) {
	server := memcachedtest.Start(t)
	c := startClient(t, documentOf(server), ClientOptions{})
	eventually(t, "the server takes a value", func() bool { return c.Set(t.Context(), "a", []byte("x"), 0) == nil })
	peer := c.route.Load().peers[0][0]
	server.Freeze()
	var wait sync.WaitGroup
	for range maxInFlight + 50 {
		wait.Go(func() { c.Get(t.Context(), "a") })
	}
	// The others wait for the server much longer.
	eventually(t, "what does not fit in the queue has failed", func() bool { return peer.failed[reasonBusy].Load() > 0 })
	server.Thaw()
	wait.Wait()
	eventually(t, "the key is found again", func() bool {
		_, ok := c.Get(t.Context(), "a")
		return ok
	})
}

// TestLateAnswerIsDropped lets requests time out and checks that their answers go to nobody else.
func TestLateAnswerIsDropped(t *testing.T) {
	server := memcachedtest.Start(t)
	c := startClient(t, documentOf(server), ClientOptions{Timeout: 300 * time.Millisecond})
	for i := range 50 {
		key := fmt.Sprint("k", i)
		eventually(t, "the value is stored", func() bool { return c.Set(t.Context(), key, []byte(key), 0) == nil })
	}
	for range 10 {
		server.Freeze()
		var wait sync.WaitGroup
		for i := range 50 {
			wait.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				c.Get(ctx, fmt.Sprint("k", i))
			})
		}
		wait.Wait()
		server.Thaw()
		for i := range 50 {
			key := fmt.Sprint("k", i)
			if value, ok := c.Get(t.Context(), key); ok && string(value) != key {
				t.Fatalf("value of %s = %q", key, value)
			}
		}
	}
}

// TestRingChangesUnderLoad grows and shrinks the ring while clients read and write: nothing fails, nobody reads another
// key's value, and servers that stay keep their connection.
func TestRingChangesUnderLoad(t *testing.T) {
	all := documentOf(memcachedtest.StartRing(t, 5)...)
	c := startClient(t, all, ClientOptions{})
	_, addr := startProxy(t, c, ProxyOptions{})
	first := c.route.Load().peers[0][0]
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for worker := range 6 {
		wait.Go(func() { exercise(t, addr, worker, stop) })
	}
	for epoch := range int64(60) {
		d := &Document{Epoch: epoch, Hash: HashKetamaMD5, Servers: all.Servers[:1+epoch%5]}
		if err := c.SetRing(d); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	wait.Wait()
	if rt := c.route.Load(); rt.peers[0][0] != first || first.isClosed() {
		t.Error("the first server lost its connection to a change of the ring")
	}
}

// exercise writes and reads its own keys until told to stop.
func exercise(t *testing.T, addr string, worker int, stop <-chan struct{}) {
	t.Helper()
	conn := dial(t, addr)
	var keys []string
	for i := range 20 {
		keys = append(keys, fmt.Sprintf("worker:%d:%d", worker, i))
	}
	answers := newAnswerReader(conn)
	for !isClosed(stop) {
		for _, key := range keys {
			say(t, conn, "set %s 0 0 %d\r\n%s\r\n", key, len(key), key)
			if line := answers.line(t); line != "STORED" {
				t.Errorf("answer to set = %q", line)
				return
			}
		}
		say(t, conn, "get %s\r\n", strings.Join(keys, " "))
		for line := answers.line(t); line != "END"; line = answers.line(t) {
			var key string
			if _, err := fmt.Sscanf(line, "VALUE %s", &key); err != nil {
				t.Errorf("answer to get = %q", line)
				return
			}
			if value := answers.line(t); value != key {
				t.Errorf("value of %s = %q", key, value)
				return
			}
		}
	}
}

func TestSetRingRefusesABadDocument(t *testing.T) {
	c := startClient(t, documentOf(memcachedtest.Start(t)), ClientOptions{})
	if err := c.SetRing(&Document{Hash: "Jump"}); err == nil {
		t.Error("unknown hash: no error")
	}
	if err := c.Set(t.Context(), "a", []byte("x"), 0); err != nil {
		t.Errorf("the old ring is gone: %v", err)
	}
}

func TestSetRingAfterTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := NewClient(ctx, ClientOptions{})
	cancel()
	eventually(t, "the client has ended", func() bool {
		return c.SetRing(documentOf()) != nil
	})
}

// TestReplacedPodIsDialledAtItsNewAddress keeps the slot and so its keys, but not the address.
func TestReplacedPodIsDialledAtItsNewAddress(t *testing.T) {
	servers := memcachedtest.StartRing(t, 2)
	before := documentOf(servers[0])
	c := startClient(t, before, ClientOptions{})
	if err := c.Set(t.Context(), "a", []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.SetRing(documentOf(servers[1])); err != nil {
		t.Fatal(err)
	}
	if value, ok := c.Get(t.Context(), "a"); ok {
		t.Errorf("value = %q, want a miss at the new address", value)
	}
	eventually(t, "the old address is left", func() bool {
		s, err := ReadStats(t.Context(), servers[0].Addr)
		return err == nil && s.ActiveConnections() == 0
	})
}
