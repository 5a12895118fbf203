// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// TestPurgeForgetsWhatOthersOwn: every server holds every key, and keeps its own.
func TestPurgeForgetsWhatOthersOwn(t *testing.T) {
	servers := memcachedtest.StartRing(t, 3)
	d := documentOf(servers...)
	ring, err := d.Ring()
	if err != nil {
		t.Fatal(err)
	}
	const keys = 5000
	var script bytes.Buffer
	for i := range keys {
		// What a dump escapes is among them, and what looks like its words.
		_, _ = fmt.Fprintf(&script, "set k%%20/+é%d=exp 0 0 1 noreply\r\nx\r\n", i)
	}
	for i, server := range servers {
		converse(t, server.Addr, script.String())
		purged, err := Purge(t.Context(), d.Servers[i], ring)
		if err != nil {
			t.Fatal(err)
		}
		owned := 0
		for k := range keys {
			key := fmt.Sprintf("k%%20/+é%d=exp", k)
			owner, _ := ring.Owner([]byte(key))
			own := owner.Name == d.Servers[i].Name
			if own {
				owned++
			}
			if k%50 == 0 && strings.HasPrefix(converse(t, server.Addr, "get "+key+"\r\n"), "VALUE") != own {
				t.Errorf("server %d holds %q: %v, want the opposite", i, key, !own)
			}
		}
		stats, err := ReadStats(t.Context(), server.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if stats.CurrItems != int64(owned) || purged != keys-owned {
			t.Errorf("server %d: %d items are left and %d purged, want %d, %d", i, stats.CurrItems, purged, owned, keys-owned)
		}
	}
}

func TestPurgeIsForItsServerOnly(t *testing.T) {
	server := memcachedtest.Start(t)
	d := documentOf(server, server)
	d.Servers[0].Identity = "cache-0,other"
	ring, err := d.Ring()
	if err != nil {
		t.Fatal(err)
	}
	key := keysOf(t, d, 1, 1)[0]
	converse(t, server.Addr, "set "+key+" 0 0 1\r\nx\r\n")
	if _, err := Purge(t.Context(), d.Servers[0], ring); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("error = %v, want another server", err)
	}
	if got := converse(t, server.Addr, "get "+key+"\r\n"); !strings.HasPrefix(got, "VALUE") {
		t.Errorf("another server was purged: %q", got)
	}
}

// TestPurgeUnderstandsNewerServers: from 1.6.43 on a dump begins with OK; a refusal is an error.
func TestPurgeUnderstandsNewerServers(t *testing.T) {
	tests := map[string]struct{ answer, wantErr string }{
		"nothing to purge": {"OK\r\nEND\r\n", ""},
		"busy":             {"BUSY currently processing crawler request\r\n", "BUSY"},
		"dumps are off":    {"CLIENT_ERROR metadump not allowed\r\n", "not allowed"},
		"cut short":        {"key=a exp=-1 la=1 cas=1 fetch=no cls=1 size=60\r\n", "EOF"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := Server{Name: "a", Address: answering(t, tc.answer)}
			_, err := Purge(t.Context(), s, &Ring{servers: []Server{s}})
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error = %v, want %q", err, tc.wantErr)
			}
		})
	}
}
