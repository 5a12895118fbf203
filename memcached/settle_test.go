// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// TestNothingOutlivesAnUnsettledRing: while others may go by the ring before, what is written to the new owner of a key
// expires when they no longer do, and nothing else does.
func TestNothingOutlivesAnUnsettledRing(t *testing.T) {
	servers := memcachedtest.StartRing(t, 2)
	d := documentOf(servers...)
	d.Former = [][]string{{d.Servers[1].Name, d.Servers[0].Name}, {d.Servers[0].Name}}
	stays, moves := keysOf(t, d, 0, 1)[0], keysOf(t, d, 1, 1)[0]
	const most, never = int64(SettleTime / time.Second), int64(-1)
	now := time.Now().Unix()
	changes := map[string]struct {
		script string
		// want is the time left of the key that moved, up to 10 seconds less on a slow machine; asIs that of the other.
		want, asIs int64
	}{
		"for ever":          {"set KEY 0 0 1\r\nx\r\n", most, never},
		"for an hour":       {"set KEY 0 3600 1\r\nx\r\n", most, 3600},
		"for a minute":      {"set KEY 0 60 1\r\nx\r\n", 60, 60},
		"until a time":      {fmt.Sprintf("set KEY 0 %d 1\r\nx\r\n", now+3600), most, 3600},
		"until a time soon": {fmt.Sprintf("set KEY 0 %d 1\r\nx\r\n", now+60), 60, 60},
		"by touch":          {"set KEY 0 60 1\r\nx\r\ntouch KEY 3600\r\n", most, 3600},
		"by gat":            {"set KEY 0 60 1\r\nx\r\ngat 3600 KEY\r\n", most, 3600},
	}
	for name, tc := range changes {
		t.Run(name, func(t *testing.T) {
			c := startClient(t, d, ClientOptions{})
			_, addr := startProxy(t, c, ProxyOptions{})
			for server, want := range map[int]int64{0: tc.asIs, 1: tc.want} {
				key := []string{stays, moves}[server]
				converse(t, addr, strings.ReplaceAll(tc.script, "KEY", key))
				if left := secondsLeft(t, servers[server], key); left > want || left < want-10 {
					t.Errorf("%s expires after %d seconds, want %d", key, left, want)
				}
			}
			settled := *c.route.Load()
			settled.settled = time.Now()
			c.route.Store(&settled)
			converse(t, addr, strings.ReplaceAll(tc.script, "KEY", moves))
			if left := secondsLeft(t, servers[1], moves); left > tc.asIs || left < tc.asIs-10 {
				t.Errorf("when the ring has settled, it expires after %d seconds, want %d", left, tc.asIs)
			}
		})
	}
}

// TestFirstRingIsUnsettled: those who have not heard of any ring delete nothing.
func TestFirstRingIsUnsettled(t *testing.T) {
	server := memcachedtest.Start(t)
	d := documentOf(server)
	d.Former = [][]string{nil}
	data, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if d, err = ParseDocument(data); err != nil {
		t.Fatal(err)
	}
	c := startClient(t, d, ClientOptions{})
	if err := c.Set(t.Context(), "k", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if left := secondsLeft(t, server, "k"); left < 0 || left > int64(SettleTime/time.Second) {
		t.Errorf("it expires after %d seconds, want %v at most", left, SettleTime)
	}
	// The same ring again is settling no longer for that.
	before := c.route.Load().settled
	if err := c.SetRing(d); err != nil {
		t.Fatal(err)
	}
	if after := c.route.Load().settled; !after.Equal(before) {
		t.Errorf("the ring has settled at %v, before %v", after, before)
	}
}

// secondsLeft is after how long the server says that the key expires, -1 for never.
func secondsLeft(t *testing.T, server *memcachedtest.Server, key string) int64 {
	t.Helper()
	var left int64
	answer := converse(t, server.Addr, "mg "+key+" t\r\n")
	if _, err := fmt.Sscanf(answer, "HD t%d", &left); err != nil {
		t.Errorf("%s is not there: %q", key, answer)
	}
	return left
}
