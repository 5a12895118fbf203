// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// slots returns n servers named as the pods of a StatefulSet, on the given port.
func slots(n, port int) []Server {
	servers := make([]Server, n)
	for i := range servers {
		servers[i].Name = fmt.Sprintf("cache-%d.cache.ns.svc:%d", i, port)
	}
	return servers
}

func mustRing(tb testing.TB, hashTag string, servers []Server) *Ring {
	tb.Helper()
	r, err := NewRing(hashTag, servers)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestRingPointsMatchKetama(t *testing.T) {
	var got []string
	for _, p := range appendPoints(nil, "cache-0.cache.ns.svc", 0)[:4] {
		got = append(got, fmt.Sprintf("%08x", p.value))
	}
	if diff := cmp.Diff([]string{"ab25a6b5", "aaf27227", "9e2d7206", "ffd56a49"}, got); diff != "" {
		t.Errorf("points of cache-0.cache.ns.svc-0 (-want +got):\n%s", diff)
	}
	if got := fmt.Sprintf("%08x", keyPoint([]byte("foo"))); got != "db18bdac" {
		t.Errorf("point of foo = %s, want db18bdac", got)
	}
}

func TestRingMatchesPublishedVectors(t *testing.T) {
	tests := map[string]struct {
		servers []Server
		want    string
	}{
		"1 server":               {slots(1, 11211), "bb8f46ab69cec98e"},
		"3 servers":              {slots(3, 11211), "535ca9426dedf54e"},
		"4 servers":              {slots(4, 11211), "fa90593d5abb3f3d"},
		"5 servers":              {slots(5, 11211), "16a8673525e41246"},
		"4 servers, other port":  {slots(4, 22001), "725d2efceb56849b"},
		"no port is 11211":       {[]Server{{Name: "cache-0.cache.ns.svc"}}, "bb8f46ab69cec98e"},
		"addresses do not count": {[]Server{{Name: "cache-0.cache.ns.svc", Address: "10.0.0.1:4000"}}, "bb8f46ab69cec98e"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var lines strings.Builder
			for _, p := range mustRing(t, "", tc.servers).points {
				fmt.Fprintf(&lines, "%d:%d\n", p.value, p.server)
			}
			sum := sha256.Sum256([]byte(lines.String()))
			if got := hex.EncodeToString(sum[:8]); got != tc.want {
				t.Errorf("sha256 of the points = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestRingOwners(t *testing.T) {
	keys := []string{"foo", "user:42", "feat:user:1000", "driver_hourly_stats:1001"}
	tests := map[string]struct {
		servers int
		want    []int
	}{
		"4 servers": {4, []int{2, 3, 0, 0}},
		"5 servers": {5, []int{2, 4, 0, 4}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			servers := slots(tc.servers, 11211)
			r := mustRing(t, "", servers)
			for i, key := range keys {
				got, ok := r.Owner([]byte(key))
				if want := servers[tc.want[i]]; !ok || got != want {
					t.Errorf("owner of %s = %v, %v, want %v", key, got, ok, want)
				}
			}
		})
	}
}

func TestRingWithoutServersOwnsNothing(t *testing.T) {
	r := mustRing(t, "{}", nil)
	if s, ok := r.Owner([]byte("foo")); ok {
		t.Errorf("owner = %v, want none", s)
	}
}

func TestRingIgnoresListOrder(t *testing.T) {
	servers := slots(12, 11211)
	want := mustRing(t, "", servers)
	for seed := range uint64(20) {
		shuffled := slices.Clone(servers)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		if !slices.Equal(want.points, mustRing(t, "", shuffled).points) {
			t.Fatalf("order %v gives another ring", shuffled)
		}
	}
}

// TestRingTiesFallByName builds a point that two servers share, which the names at hand never do by chance.
func TestRingTiesFallByName(t *testing.T) {
	r := mustRing(t, "", slots(2, 11211))
	key := []byte("foo")
	r.points = []point{{keyPoint(key), 0}, {keyPoint(key), 1}}
	if got := r.owner(key); got != 0 {
		t.Errorf("owner of a shared point = %d, want 0", got)
	}
}

// TestRingMovesKeysOnlyToTheNewServer holds invariant I5: one more server takes about its share, and from no key that
// it does not take itself does the owner change.
func TestRingMovesKeysOnlyToTheNewServer(t *testing.T) {
	const keys = 6000
	for n := 1; n <= 20; n++ {
		t.Run(fmt.Sprintf("%d to %d servers", n, n+1), func(t *testing.T) {
			servers := slots(n+1, 11211)
			before, after := mustRing(t, "", servers[:n]), mustRing(t, "", servers)
			moved := 0
			for i := range keys {
				key := fmt.Appendf(nil, "feat:user:%d", i)
				from, _ := before.Owner(key)
				to, _ := after.Owner(key)
				if from == to {
					continue
				}
				moved++
				if to != servers[n] {
					t.Fatalf("%s moved from %s to %s, not to the new server", key, from.Name, to.Name)
				}
			}
			if share := float64(moved) / keys; share > 1/float64(n+1)+0.03 || share < 0.5/float64(n+1) {
				t.Errorf("%.3f of the keys moved, want about %.3f", share, 1/float64(n+1))
			}
		})
	}
}

func TestRingHashTag(t *testing.T) {
	tests := map[string]struct {
		tag, key, want string
	}{
		"no tag set: the whole key":          {"", "a{b}c", "a{b}c"},
		"text between the characters":        {"{}", "a{user:1}b", "user:1"},
		"first tag wins":                     {"{}", "{x}{y}", "x"},
		"empty tag: the whole key":           {"{}", "a{}b{c}", "a{}b{c}"},
		"no closing character":               {"{}", "a{b", "a{b"},
		"closing before opening":             {"{}", "}a{b", "}a{b"},
		"closing before opening, then a tag": {"{}", "}a{b}", "b"},
		"inner opening belongs to the tag":   {"{}", "{a{b}c}", "a{b"},
		"one character for both ends":        {"$$", "a$b$c", "b"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := mustRing(t, tc.tag, slots(3, 11211))
			if got := string(r.hashed([]byte(tc.key))); got != tc.want {
				t.Errorf("hashed part of %q = %q, want %q", tc.key, got, tc.want)
			}
		})
	}
}

func TestNewRingRefusesWhatADocumentRefuses(t *testing.T) {
	if _, err := NewRing("{", nil); err == nil {
		t.Error("hash tag of one character: no error")
	}
	if _, err := NewRing("", []Server{{Name: "a"}, {Name: "a:11211"}}); err == nil {
		t.Error("two servers with one ring name: no error")
	}
}

func BenchmarkRingOwner(b *testing.B) {
	r := mustRing(b, "{}", slots(16, 11211))
	key := []byte("driver_hourly_stats:v3:1001")
	b.ReportAllocs()
	for b.Loop() {
		r.owner(key)
	}
}
