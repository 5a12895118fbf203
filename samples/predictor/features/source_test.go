// SPDX-License-Identifier: Apache-2.0

package features

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	view  = "digits:v1"
	width = 784

	patient   = 10 * time.Second
	impatient = 20 * time.Millisecond
)

func openStore(t *testing.T) *Store {
	t.Helper()
	store, err := OpenStore("../model/v1/features.safetensors", width)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// newSource gives a cache that should answer the time to do so on a busy machine, and others the product's default.
func newSource(t *testing.T, addr string, timeout time.Duration) *Source {
	t.Helper()
	cache, err := NewCache(CacheOptions{Address: addr, View: view, Width: width, TTL: time.Minute, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return &Source{Store: openStore(t), Cache: cache}
}

// lookUp checks that the rows are the store's, whatever the cache did, and returns where they came from.
func lookUp(t *testing.T, source *Source, ids ...string) Stats {
	t.Helper()
	rows, stats, err := source.Lookup(ids)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(ids) {
		t.Fatalf("%d rows for %d ids", len(rows), len(ids))
	}
	for i, id := range ids {
		if want, _ := source.Store.Get(id); !bytes.Equal(want, rows[i]) {
			t.Fatalf("row %d is not that of %s: %v", i, id, rows[i])
		}
	}
	return stats
}

func wantStats(t *testing.T, got, want Stats) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateErrors()); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

func TestLookupWithoutCache(t *testing.T) {
	source := &Source{Store: openStore(t)}
	wantStats(t, lookUp(t, source, "digit-17", "digit-3"), Stats{})
}

func TestLookupFillsTheCache(t *testing.T) {
	server := startMemcached(t)
	source := newSource(t, server.addr(), patient)
	wantStats(t, lookUp(t, source, "digit-1", "digit-2"), Stats{Cached: true, Misses: 2})
	wantStats(t, lookUp(t, source, "digit-2", "digit-3", "digit-1", "digit-2"), Stats{Cached: true, Hits: 2, Misses: 1})

	item, err := server.client().Get("digits:v1:digit-3")
	if err != nil {
		t.Fatalf("the key that operators look for is not there: %v", err)
	}
	row, _ := source.Store.Get("digit-3")
	if len(item.Value) != width+checksumSize || !bytes.Equal(item.Value[:width], row) {
		t.Errorf("stored value of %d bytes is not the row and its checksum", len(item.Value))
	}
	// A second process with other features under the same ids must not see these.
	other := newSource(t, server.addr(), patient)
	other.Cache.prefix = "digits:v2:"
	wantStats(t, lookUp(t, other, "digit-3"), Stats{Cached: true, Misses: 1})
}

func TestLookupAsksOnce(t *testing.T) {
	server := startMemcached(t)
	source := newSource(t, server.addr(), patient)
	ids := make([]string, 300)
	for i := range ids {
		ids[i] = fmt.Sprintf("digit-%d", i)
	}
	lookUp(t, source, ids...)
	before := stat(t, server, "get_hits")
	wantStats(t, lookUp(t, source, ids...), Stats{Cached: true, Hits: 300})
	if got := stat(t, server, "get_hits"); got-before != 300 {
		t.Errorf("memcached counted %d hits for 300 ids", got-before)
	}
	// One connection was enough for all, besides the one of this test.
	if got := stat(t, server, "total_connections"); got > 10 {
		t.Errorf("memcached saw %d connections", got)
	}
}

// stat reads one counter of memcached.
func stat(t *testing.T, server *cacheServer, name string) int {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", server.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "stats\r\nquit\r\n"); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "STAT "+name+" ")
	var value int
	if _, err := fmt.Sscanf(rest, "%d", &value); !found || err != nil {
		t.Fatalf("memcached reports no %s: %v", name, err)
	}
	return value
}

func TestLookupRefusesWrongBytes(t *testing.T) {
	server := startMemcached(t)
	source := newSource(t, server.addr(), patient)
	row, _ := source.Store.Get("digit-5")
	flipped := seal(row)
	flipped[400] ^= 1
	cases := map[string][]byte{
		"a bit flipped":       flipped,
		"no checksum":         row,
		"cut short":           seal(row)[:100],
		"empty":               {},
		"someone else's text": []byte(`{"pixels": []}`),
	}
	for name, value := range cases {
		t.Run(name, func(t *testing.T) {
			if err := server.client().Set(&memcache.Item{Key: "digits:v1:digit-5", Value: value}); err != nil {
				t.Fatal(err)
			}
			wantStats(t, lookUp(t, source, "digit-5"), Stats{Cached: true, Misses: 1})
			wantStats(t, lookUp(t, source, "digit-5"), Stats{Cached: true, Hits: 1})
		})
	}
}

func TestCacheDiesAndReturns(t *testing.T) {
	server := startMemcached(t)
	source := newSource(t, server.addr(), patient)
	lookUp(t, source, "digit-1")
	wantStats(t, lookUp(t, source, "digit-1"), Stats{Cached: true, Hits: 1})

	server.kill()
	for range 3 {
		if stats := lookUp(t, source, "digit-1"); stats.Hits != 0 || stats.Misses != 1 || stats.Trouble == nil {
			t.Errorf("stats with a dead cache = %+v, want one miss and its error", stats)
		}
	}
	server.start(t)
	wantStats(t, lookUp(t, source, "digit-1"), Stats{Cached: true, Misses: 1})
	wantStats(t, lookUp(t, source, "digit-1"), Stats{Cached: true, Hits: 1})
}

func TestCacheTroubleIsOnlyAMiss(t *testing.T) {
	cases := map[string]struct {
		serve func(net.Conn)
	}{
		"accepts and never answers": {func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }},
		"closes at once":            {func(net.Conn) {}},
		"answers nonsense":          {func(conn net.Conn) { _, _ = io.WriteString(conn, "HTTP/1.1 400 Bad\r\n\r\n") }},
		"reports an error":          {func(conn net.Conn) { _, _ = io.WriteString(conn, "SERVER_ERROR out of memory\r\n") }},
		"stops inside a value": {func(conn net.Conn) {
			_, _ = io.WriteString(conn, "VALUE digits:v1:digit-1 0 788 1\r\nabc")
		}},
		"answers a key that nobody asked for": {func(conn net.Conn) {
			_, _ = io.WriteString(conn, "VALUE digits:v1:digit-9 0 1 1\r\na\r\n")
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			stats := lookUp(t, newSource(t, fakeServer(t, tc.serve), impatient), "digit-1", "digit-2")
			if stats.Hits != 0 || stats.Misses != 2 || stats.Trouble == nil {
				t.Errorf("stats = %+v, want two misses and an error", stats)
			}
		})
	}
	t.Run("name that does not resolve", func(t *testing.T) {
		if stats := lookUp(t, newSource(t, "cache.invalid:11211", impatient), "digit-1"); stats.Trouble == nil {
			t.Errorf("stats = %+v, want an error", stats)
		}
	})
}

// A cache that has not answered is not sent anything more: that would cost the request another timeout.
func TestNoFillAfterAFailedGet(t *testing.T) {
	commands := make(chan string, 10)
	addr := fakeServer(t, func(conn net.Conn) {
		line, _ := bufio.NewReader(conn).ReadString(' ')
		commands <- line
		_, _ = io.WriteString(conn, "SERVER_ERROR busy\r\n")
	})
	if stats := lookUp(t, newSource(t, addr, patient), "digit-1"); stats.Trouble == nil {
		t.Fatalf("stats = %+v, want an error", stats)
	}
	if got := <-commands; got != "gets " || len(commands) != 0 {
		t.Errorf("the cache was sent %q and %d more commands, want gets alone", got, len(commands))
	}
}

// A cache that answers gets but hangs on sets must not hold the request for one timeout a key.
func TestFillGivesUpAtTheFirstTimeout(t *testing.T) {
	sets := make(chan string, 10)
	addr := fakeServer(t, func(conn net.Conn) {
		buffer := make([]byte, 4096)
		for {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			if strings.HasPrefix(string(buffer[:n]), "gets ") {
				_, _ = io.WriteString(conn, "END\r\n")
			} else {
				sets <- string(buffer[:n])
			}
		}
	})
	// Long enough for the get on a busy machine.
	stats := lookUp(t, newSource(t, addr, 300*time.Millisecond), "digit-1", "digit-2", "digit-3")
	var timeout net.Error
	if !errors.As(stats.Trouble, &timeout) || !timeout.Timeout() {
		t.Fatalf("trouble = %v, want a timeout", stats.Trouble)
	}
	if len(sets) != 1 {
		t.Errorf("%d sets were sent, want one", len(sets))
	}
}

func TestLookupNamesTheIDItCannotFind(t *testing.T) {
	source := &Source{Store: openStore(t)}
	for name, tc := range map[string]struct {
		ids       []string
		wantIndex int
	}{
		"not in the store":         {[]string{"digit-1", "digit-300"}, 1},
		"empty":                    {[]string{""}, 0},
		"with a space":             {[]string{"digit-1", "digit-2", "digit 3"}, 2},
		"with a protocol in it":    {[]string{"x\r\nflush_all\r\n"}, 0},
		"longer than a key":        {[]string{strings.Repeat("x", maxID+1)}, 0},
		"with a letter of Unicode": {[]string{"zéro"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := source.Lookup(tc.ids)
			var unknown *UnknownError
			if !errors.As(err, &unknown) || unknown.Index != tc.wantIndex {
				t.Errorf("Lookup error = %v, want an UnknownError at %d", err, tc.wantIndex)
			}
		})
	}
}

func TestNewCacheRefusesOptions(t *testing.T) {
	good := CacheOptions{Address: "localhost:1", View: view, Width: width, TTL: time.Minute, Timeout: time.Second}
	if _, err := NewCache(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*CacheOptions){
		"no port":                    func(o *CacheOptions) { o.Address = "localhost" },
		"empty path":                 func(o *CacheOptions) { o.Address = "unix:" },
		"no address":                 func(o *CacheOptions) { o.Address = "" },
		"less than a second":         func(o *CacheOptions) { o.TTL = time.Second - 1 },
		"memcached would see a date": func(o *CacheOptions) { o.TTL = MaxTTL + 1 },
		"no time at all":             func(o *CacheOptions) { o.Timeout = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			opts := good
			change(&opts)
			if _, err := NewCache(opts); err == nil {
				t.Errorf("NewCache accepted %+v", opts)
			}
		})
	}
}

func TestExpirationStaysWithinTheTimeToLive(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 10 * time.Second, time.Hour, MaxTTL} {
		cache, err := NewCache(CacheOptions{Address: "localhost:1", TTL: ttl, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			got := time.Duration(cache.expiration()) * time.Second
			if got > ttl || got < ttl-ttl/10 || got < time.Second {
				t.Fatalf("expiration %s for a time to live of %s", got, ttl)
			}
		}
	}
}

func TestOpenStoreRefusesFiles(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path    string
		width   int
		wantSay string
	}{
		"not there":       {filepath.Join(dir, "nope"), width, "no such file"},
		"another width":   {"../model/v1/features.safetensors", 785, "want 785 of U8"},
		"another type":    {"../model/v1/model.safetensors", 10, "of F32, want 10 of U8"},
		"no entities":     {empty, width, "no entity"},
		"not safetensors": {"../model/v1/config.json", width, "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := OpenStore(tc.path, tc.width); err == nil || !strings.Contains(err.Error(), tc.wantSay) {
				t.Errorf("OpenStore error = %v, want one that says %q", err, tc.wantSay)
			}
		})
	}
}
