// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

// TestGomemcacheThroughTheProxy has another client, written by others, judge the proxy.
func TestGomemcacheThroughTheProxy(t *testing.T) {
	_, addr := startProxy(t, startClient(t, documentOf(memcachedtest.StartRing(t, 4)...), ClientOptions{}), ProxyOptions{})
	mc := memcache.New(addr)
	mc.Timeout = patient
	check := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: error = %v, want %v", what, got, want)
		}
	}
	want := map[string]string{}
	keys := []string{"nothing"}
	for i := range 500 {
		key := fmt.Sprintf("feat:user:%d", i)
		want[key] = strings.Repeat("v", i*7)
		keys = append(keys, key)
		check("set", mc.Set(&memcache.Item{Key: key, Value: []byte(want[key]), Flags: uint32(i), Expiration: 60}), nil)
	}
	items, err := mc.GetMulti(keys)
	check("get of many", err, nil)
	got := map[string]string{}
	for key, item := range items {
		got[key] = string(item.Value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}

	_, err = mc.Get("nothing")
	check("get", err, memcache.ErrCacheMiss)
	check("add", mc.Add(&memcache.Item{Key: "feat:user:1", Value: []byte("x")}), memcache.ErrNotStored)
	check("replace", mc.Replace(&memcache.Item{Key: "nothing", Value: []byte("x")}), memcache.ErrNotStored)
	check("append", mc.Append(&memcache.Item{Key: "feat:user:1", Value: []byte("!")}), nil)
	check("prepend", mc.Prepend(&memcache.Item{Key: "feat:user:1", Value: []byte("!")}), nil)
	item, err := mc.Get("feat:user:1")
	check("get", err, nil)
	if string(item.Value) != "!vvvvvvv!" || item.Flags != 1 {
		t.Errorf("item = %q with flags %d, want !vvvvvvv! with 1", item.Value, item.Flags)
	}
	check("cas", mc.CompareAndSwap(item), nil)
	check("cas with an old unique", mc.CompareAndSwap(item), memcache.ErrCASConflict)
	check("touch", mc.Touch("feat:user:1", 60), nil)
	check("touch of nothing", mc.Touch("nothing", 60), memcache.ErrCacheMiss)
	check("set", mc.Set(&memcache.Item{Key: "n", Value: []byte("41")}), nil)
	n, err := mc.Increment("n", 1)
	check("incr", err, nil)
	if n != 42 {
		t.Errorf("incr of 41 = %d", n)
	}
	_, err = mc.Decrement("nothing", 1)
	check("decr of nothing", err, memcache.ErrCacheMiss)
	check("delete", mc.Delete("n"), nil)
	check("delete of nothing", mc.Delete("n"), memcache.ErrCacheMiss)
	check("ping", mc.Ping(), nil)
}

// TestPymemcacheThroughTheProxy needs Debian's python3-pymemcache.
func TestPymemcacheThroughTheProxy(t *testing.T) {
	const python = "/usr/bin/python3"
	if err := exec.CommandContext(t.Context(), python, "-c", "import pymemcache").Run(); err != nil {
		t.Skipf("no pymemcache for %s (%v); install Debian's package python3-pymemcache", python, err)
	}
	live := documentOf(memcachedtest.StartRing(t, 3)...)
	dead := documentOf(memcachedtest.Start(t), memcachedtest.Start(t))
	for i := range dead.Servers {
		dead.Servers[i].Address = "127.0.0.1:1"
	}
	tests := map[string]struct {
		document *Document
		mode     string
	}{
		"servers are up":   {live, "up"},
		"servers are dead": {dead, "down"},
		"no servers":       {documentOf(), "down"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, addr := startProxy(t, startClient(t, tc.document, ClientOptions{}), ProxyOptions{})
			output, err := exec.CommandContext(t.Context(), python, "testdata/pymemcache_client.py", addr, tc.mode).
				CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, output)
			}
		})
	}
}

// TestNutcrackerPutsKeysInTheSamePlaces writes 2,000 keys through twemproxy and looks for each where our ring says. It
// needs Debian's nutcracker.
func TestNutcrackerPutsKeysInTheSamePlaces(t *testing.T) {
	binary, err := exec.LookPath("nutcracker")
	if err != nil {
		t.Skipf("no nutcracker (%v); install Debian's package nutcracker", err)
	}
	tests := map[string]struct {
		servers int
		named   bool
		hashTag string
	}{
		"1 server by name":               {1, true, ""},
		"4 servers by name":              {4, true, ""},
		"5 servers by name, a tag":       {5, true, "{}"},
		"3 servers by address and port":  {3, false, ""},
		"11 servers by address and port": {11, false, "<>"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := memcachedtest.StartRing(t, tc.servers)
			d := documentOf(servers...)
			d.HashTag = tc.hashTag
			if !tc.named {
				for i := range d.Servers {
					d.Servers[i].Name = d.Servers[i].Address
				}
			}
			socket := startNutcracker(t, binary, d, tc.named)
			mc := memcache.New(socket)
			mc.Timeout = patient
			c := startClient(t, d, ClientOptions{})
			want := map[string]string{}
			for i := range 2000 {
				key := fmt.Sprintf("feat:{user:%d}:<age:%d>:%d", i/2, i/3, i)
				want[key] = strconv.Itoa(i)
				if err := mc.Set(&memcache.Item{Key: key, Value: []byte(want[key])}); err != nil {
					t.Fatal(err)
				}
			}
			got := map[string]string{}
			for key, value := range c.GetMulti(t.Context(), slices.Collect(maps.Keys(want))...) {
				got[key] = string(value)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("keys found where our ring says (-want +got):\n%s", diff)
			}
		})
	}
}

// startNutcracker starts twemproxy for the servers of the document and returns its Unix socket.
func startNutcracker(t *testing.T, binary string, d *Document, named bool) string {
	t.Helper()
	dir := t.TempDir()
	socket, config := filepath.Join(dir, "socket"), filepath.Join(dir, "config.yml")
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "ring:\n  listen: %s\n  hash: md5\n  distribution: ketama\n  preconnect: true\n", socket)
	if d.HashTag != "" {
		fmt.Fprintf(&yaml, "  hash_tag: %q\n", d.HashTag)
	}
	yaml.WriteString("  servers:\n")
	for _, s := range d.Servers {
		fmt.Fprintf(&yaml, "   - %s:1", s.Address)
		if named {
			fmt.Fprintf(&yaml, " %s", s.Name)
		}
		yaml.WriteString("\n")
	}
	if err := os.WriteFile(config, []byte(yaml.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	// Its figures want a port of their own; an address nobody else has makes one free for sure.
	stats := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
	cmd := exec.CommandContext(t.Context(), binary, "-c", config, "-a", stats)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("nutcracker: %s", output.String())
		}
	})
	eventually(t, "nutcracker listens", func() bool {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	return socket
}
