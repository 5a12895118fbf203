// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const ringJSON = `{
  "epoch": 7,
  "hash": "KetamaMD5",
  "hashTag": "{}",
  "servers": [
    {
      "name": "features-0.features.ml.svc",
      "address": "10.1.2.3:11211"
    },
    {
      "name": "features-1.features.ml.svc:22001"
    }
  ]
}
`

func ringDocument() *Document {
	return &Document{Epoch: 7, Hash: HashKetamaMD5, HashTag: "{}", Servers: []Server{
		{Name: "features-0.features.ml.svc", Address: "10.1.2.3:11211"},
		{Name: "features-1.features.ml.svc:22001"},
	}}
}

func TestDocumentMarshalIsStable(t *testing.T) {
	d := ringDocument()
	for range 2 {
		data, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ringJSON, string(data)); diff != "" {
			t.Errorf("document (-want +got):\n%s", diff)
		}
		slices.Reverse(d.Servers)
	}
}

func TestDocumentWithoutServersRoundTrips(t *testing.T) {
	data, err := (&Document{Hash: HashKetamaMD5}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDocument(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Document{Hash: HashKetamaMD5, Servers: []Server{}}, d); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}

func TestParseDocument(t *testing.T) {
	d, err := ParseDocument([]byte(ringJSON))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ringDocument(), d); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
	if _, err := ParseDocument([]byte(`{"epoch":1,"hash":"KetamaMD5","servers":[],"gutter":[]}`)); err != nil {
		t.Errorf("unknown field: %v", err)
	}
}

func TestParseDocumentNamesTheFieldAtFault(t *testing.T) {
	tests := map[string]struct {
		json, want string
	}{
		"empty file":           {``, "EOF"},
		"cut short":            {ringJSON[:len(ringJSON)/2], "unexpected EOF"},
		"not an object":        {`[]`, "cannot unmarshal"},
		"null":                 {`null`, "hash"},
		"text behind":          {ringJSON + `{}`, "follows"},
		"too large":            {strings.Repeat(" ", MaxDocumentBytes+1), "more than"},
		"epoch below 0":        {`{"epoch":-1,"hash":"KetamaMD5"}`, "epoch"},
		"epoch too large":      {`{"epoch":9223372036854775808,"hash":"KetamaMD5"}`, "epoch"},
		"unknown hash":         {`{"hash":"Jump"}`, `hash: "Jump" is not known; use "KetamaMD5"`},
		"hash tag of one":      {`{"hash":"KetamaMD5","hashTag":"{"}`, "hashTag"},
		"hash tag not visible": {`{"hash":"KetamaMD5","hashTag":"{ "}`, "hashTag"},
		"no name":              {`{"hash":"KetamaMD5","servers":[{"address":"a:1"}]}`, "servers[0].name"},
		"name with a space":    {`{"hash":"KetamaMD5","servers":[{"name":"a b"}]}`, "servers[0].name"},
		"name too long": {
			`{"hash":"KetamaMD5","servers":[{"name":"` + strings.Repeat("a", 300) + `"}]}`, "servers[0].name",
		},
		"name with a bad port":  {`{"hash":"KetamaMD5","servers":[{"name":"a:0"}]}`, "servers[0].name"},
		"name with a long port": {`{"hash":"KetamaMD5","servers":[{"name":"a:011211"}]}`, "servers[0].name"},
		"address without a port": {
			`{"hash":"KetamaMD5","servers":[{"name":"a"},{"name":"b","address":"10.0.0.1"}]}`, "servers[1].address",
		},
		"address without a host": {`{"hash":"KetamaMD5","servers":[{"name":"a","address":":11211"}]}`, "servers[0].address"},
		"identity too long": {
			`{"hash":"KetamaMD5","servers":[{"name":"a","identity":"` + strings.Repeat("a", 127) + `"}]}`, "servers[0].identity",
		},
		"identity with a space":     {`{"hash":"KetamaMD5","servers":[{"name":"a","identity":"a b"}]}`, "servers[0].identity"},
		"too many former rings":     {`{"hash":"KetamaMD5","former":[[],[],[],[],[],[],[],[],[]]}`, "former"},
		"former ring of a bad name": {`{"hash":"KetamaMD5","former":[["a"],["a b"]]}`, "former[1]"},
		"one name twice": {
			`{"hash":"KetamaMD5","servers":[{"name":"a"},{"name":"b"},{"name":"a:11211"}]}`, "servers[2].name",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseDocument([]byte(tc.json))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestParseDocumentRefusesTooManyServers(t *testing.T) {
	d := &Document{Hash: HashKetamaMD5}
	for i := range MaxServers + 1 {
		d.Servers = append(d.Servers, Server{Name: fmt.Sprintf("cache-%d", i)})
	}
	if _, err := d.Marshal(); err == nil || !strings.Contains(err.Error(), "servers: 1001") {
		t.Errorf("error = %v, want one about the number of servers", err)
	}
	d.Servers = d.Servers[:MaxServers]
	if _, err := d.Ring(); err != nil {
		t.Errorf("ring of %d servers: %v", MaxServers, err)
	}
}

func TestServerDialAddress(t *testing.T) {
	tests := map[string]struct {
		server Server
		want   string
	}{
		"address given":         {Server{Name: "a.svc", Address: "10.0.0.1:4000"}, "10.0.0.1:4000"},
		"name on its own":       {Server{Name: "a.svc"}, "a.svc:11211"},
		"name with a port":      {Server{Name: "a.svc:22001"}, "a.svc:22001"},
		"IPv6 name with a port": {Server{Name: "[::1]:22001"}, "[::1]:22001"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tc.server.DialAddress(); got != tc.want {
				t.Errorf("address = %s, want %s", got, tc.want)
			}
		})
	}
}

// FuzzParseDocument checks that whatever is accepted gives a ring, and that it survives a round trip.
func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(ringJSON))
	f.Add([]byte(`{"epoch":1,"hash":"KetamaMD5","servers":[{"name":"[::1]:1"},{"name":"a%25b"}]}`))
	f.Add([]byte(`{"hash":"KetamaMD5","servers":[{"name":"a:11211"},{"name":"a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDocument(data)
		if err != nil {
			return
		}
		ring, err := d.Ring()
		if err != nil {
			t.Fatalf("parsed document gives no ring: %v", err)
		}
		if _, ok := ring.Owner(data); ok != (len(d.Servers) > 0) {
			t.Fatalf("owner found = %v with %d servers", ok, len(d.Servers))
		}
		first, err := d.Marshal()
		if err != nil {
			t.Fatalf("parsed document cannot be written: %v", err)
		}
		again, err := ParseDocument(first)
		if err != nil {
			t.Fatalf("written document cannot be parsed: %v", err)
		}
		second, err := again.Marshal()
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("second round gives %q, want %q (%v)", second, first, err)
		}
	})
}
