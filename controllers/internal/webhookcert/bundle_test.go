// SPDX-License-Identifier: Apache-2.0

package webhookcert

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func TestRenew(t *testing.T) {
	first := mustRenew(t, bundle{}, start)
	tests := map[string]struct {
		have                      bundle
		after                     time.Duration
		names                     []string
		wantAuthority, wantServed bool // whether they are new
	}{
		"fresh: nothing changes":                   {have: first, after: day},
		"two thirds of a year: nothing changes":    {have: first, after: 243 * day},
		"a third is left: served certificate only": {have: first, after: 244 * day, wantServed: true},
		"expired: served certificate only":         {have: first, after: 400 * day, wantServed: true},
		"a third of ten years is left: both":       {have: first, after: 2434 * day, wantAuthority: true, wantServed: true},
		"another name: served certificate only":    {have: first, names: []string{"other.svc"}, wantServed: true},
		"key lost: served certificate only": {
			have:       bundle{authorities: first.authorities, authorityKey: first.authorityKey, certificate: first.certificate},
			wantServed: true,
		},
		"authority's key lost: both": {
			have:          bundle{authorities: first.authorities, certificate: first.certificate, key: first.key},
			wantAuthority: true, wantServed: true,
		},
		"garbage: both": {have: bundle{authorities: []byte("x"), key: []byte("y")}, wantAuthority: true, wantServed: true},
		"key of another certificate: served certificate only": {
			have: bundle{
				authorities: first.authorities, authorityKey: first.authorityKey,
				certificate: first.certificate, key: mustRenew(t, bundle{}, start).key,
			},
			wantServed: true,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			names := tc.names
			if names == nil {
				names = []string{"webhook.svc", "10.1.2.3"}
			}
			now := start.Add(tc.after)
			got, changed, err := renew(tc.have, names, now)
			if err != nil {
				t.Fatal(err)
			}
			newAuthority := !bytes.Equal(got.authorityKey, tc.have.authorityKey)
			newServed := !bytes.Equal(got.certificate, tc.have.certificate)
			if newAuthority != tc.wantAuthority || newServed != tc.wantServed || changed != newServed {
				t.Errorf("new authority %v, new certificate %v, changed %v; want %v, %v",
					newAuthority, newServed, changed, tc.wantAuthority, tc.wantServed)
			}
			for _, name := range names {
				verify(t, got, got.authorities, name, now)
			}
		})
	}
}

// TestRotationIsSmooth: at any time in 30 years, a certificate that some replica still shows is trusted by the bundle
// that any other replica has published a moment later.
func TestRotationIsSmooth(t *testing.T) {
	have := mustRenew(t, bundle{}, start)
	for now := start; now.Before(start.Add(30 * 365 * day)); now = now.Add(30 * day) {
		next := mustRenew(t, have, now)
		verify(t, have, next.authorities, "webhook.svc", now)
		verify(t, next, next.authorities, "webhook.svc", now)
		have = next
	}
}

func mustRenew(t *testing.T, have bundle, now time.Time) bundle {
	t.Helper()
	got, _, err := renew(have, []string{"webhook.svc", "10.1.2.3"}, now)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func verify(t *testing.T, b bundle, authorities []byte, name string, now time.Time) {
	t.Helper()
	pair, err := tls.X509KeyPair(b.certificate, b.key)
	if err != nil {
		t.Fatalf("loading the pair: %v", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authorities) {
		t.Fatal("no authority in the bundle")
	}
	options := x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now}
	if _, err := pair.Leaf.Verify(options); err != nil {
		t.Errorf("%s on %s: %v", name, now.Format(time.DateOnly), err)
	}
}
