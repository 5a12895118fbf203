// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers every question for an IPv4 address with the same ones. The
// returned resolver asks nobody else.
func nameServer(t *testing.T, addresses ...[4]byte) *net.Resolver {
	t.Helper()
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				for _, a := range addresses {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{
							Name:  q.Name,
							Class: q.Class,
							TTL:   1,
						},
						Body: &dnsmessage.AResource{A: a},
					})
				}
			}
			if out, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func TestPullUsesAllAddressesOfTheEndpoint(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 60*mebibyte)
	s.put("m/model", data)
	s.faults(slowly)
	at, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	asked := map[string]int{}
	for _, host := range []string{"127.0.0.2", "127.0.0.3"} {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(host, at.Port()))
		if err != nil {
			t.Skipf("this machine has no further loopback addresses: %v", err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			asked[host]++
			mu.Unlock()
			s.serve(w, r)
		})}
		go server.Serve(listener)
		t.Cleanup(func() { _ = server.Close() })
	}
	before := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = before })
	// Nobody listens at the third.
	net.DefaultResolver = nameServer(t, [4]byte{127, 0, 0, 2}, [4]byte{127, 0, 0, 3}, [4]byte{127, 0, 0, 4})
	dir := t.TempDir()
	env := with(serverSettings(s), settings{"AWS_ENDPOINT_URL": "http://store.test:" + at.Port(), "PRELOADER_CONNS": "4"})
	out := run(t, env, "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
	if asked["127.0.0.2"] == 0 || asked["127.0.0.3"] == 0 {
		t.Errorf("requests by address: %v, want some at each", asked)
	}
	if out.report.Retries != 0 {
		t.Errorf("%d requests were made again, want none for an address where nobody listens", out.report.Retries)
	}
}

func TestAddressesTakeTurns(t *testing.T) {
	parse := func(texts ...string) []netip.Addr {
		var all []netip.Addr
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	cases := map[string]struct {
		all, failed []netip.Addr
		want        [][]netip.Addr
	}{
		"one": {all: parse("10.0.0.1"), want: [][]netip.Addr{parse("10.0.0.1"), parse("10.0.0.1")}},
		"each in turn": {all: parse("10.0.0.1", "10.0.0.2", "10.0.0.3"), want: [][]netip.Addr{
			parse("10.0.0.1", "10.0.0.2", "10.0.0.3"), parse("10.0.0.2", "10.0.0.3", "10.0.0.1"),
			parse("10.0.0.3", "10.0.0.1", "10.0.0.2"), parse("10.0.0.1", "10.0.0.2", "10.0.0.3"),
		}},
		"the other family only after the first": {
			all: parse("fd00::1", "10.0.0.1", "fd00::2"), want: [][]netip.Addr{
				parse("fd00::1", "fd00::2", "10.0.0.1"), parse("fd00::2", "fd00::1", "10.0.0.1"),
			},
		},
		"those that failed come last": {
			all: parse("10.0.0.1", "10.0.0.2"), failed: parse("10.0.0.1"), want: [][]netip.Addr{
				parse("10.0.0.2", "10.0.0.1"), parse("10.0.0.2", "10.0.0.1"),
			},
		},
		"all have failed": {all: parse("10.0.0.1"), failed: parse("10.0.0.1"), want: [][]netip.Addr{parse("10.0.0.1")}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			a := &addresses{all: tc.all, failed: map[netip.Addr]bool{}}
			for _, f := range tc.failed {
				a.failed[f] = true
			}
			for i, want := range tc.want {
				if diff := cmp.Diff(want, a.turns(), cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
					t.Errorf("turn %d (-want +got):\n%s", i, diff)
				}
			}
		})
	}
}
