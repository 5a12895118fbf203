// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func byCookie() *Stickiness { return &Stickiness{Cookie: "digits", TTL: time.Hour, Salt: "v2"} }
func byHeader() *Stickiness { return &Stickiness{Header: "x-session-id", Salt: "v2"} }

// TestSessionsFollowTheWeight: at every weight the canary has that share of the sessions, and keeps those that it had at
// any lower weight, in both kinds of route, read by their specifications.
func TestSessionsFollowTheWeight(t *testing.T) {
	cases := map[string]struct {
		provider Provider
		sticky   *Stickiness
		buckets  int
		request  func(bucket int) request
	}{
		"by cookie in a VirtualService": {DefaultDomain.VirtualServices(), byCookie(), 100, func(bucket int) request {
			return request{"cookie": fmt.Sprintf("theme=dark; digits=%02d", bucket)}
		}},
		"by header in a VirtualService": {DefaultDomain.VirtualServices(), byHeader(), 256, func(bucket int) request {
			return request{"x-session-id": fmt.Sprintf("5b1f9c-%02x", bucket)}
		}},
		"by header in an HTTPRoute, in capitals": {DefaultDomain.HTTPRoutes(), byHeader(), 256, func(bucket int) request {
			return request{"x-session-id": fmt.Sprintf("5B1F9C-%02X", bucket)}
		}},
	}
	for what, tc := range cases {
		t.Run(what, func(t *testing.T) {
			had := map[int]bool{}
			for percent := range int32(101) {
				o := owned(percent)
				o.Sticky = tc.sticky
				route, has := render(t, tc.provider, o), map[int]bool{}
				for bucket := range tc.buckets {
					shares := readings[tc.provider.Name()].route(route, tc.request(bucket))
					switch {
					case shares[o.Canary.Host] == 100:
						has[bucket] = true
					case shares[o.Stable.Host] != 100:
						t.Fatalf("at %d percent the session %d is on both sides: %v", percent, bucket, shares)
					}
					if had[bucket] && !has[bucket] {
						t.Fatalf("at %d percent the canary loses the session %d", percent, bucket)
					}
				}
				if off := 100*len(has) - int(percent)*tc.buckets; off > 50 || off < -50 {
					t.Errorf("at %d percent the canary has %d of %d sessions", percent, len(has), tc.buckets)
				}
				had = has
			}
		})
	}
}

// TestNewSessionsAreDrawnByTheWeight: requests of no session are shared by the weight, and each answer puts the client
// into a session of the side that answered.
func TestNewSessionsAreDrawnByTheWeight(t *testing.T) {
	for _, percent := range []int32{1, 10, 37, 50, 99} {
		o := owned(percent)
		o.Sticky = byCookie()
		route := render(t, DefaultDomain.VirtualServices(), o)
		read := readings[v1alpha1.ProviderVirtualService]
		want := map[string]int64{o.Stable.Host: 100 - int64(percent), o.Canary.Host: int64(percent)}
		for what, r := range map[string]request{
			"none":           {},
			"one like it":    {"cookie": "digits2=07; xdigits=07"},
			"a broken one":   {"cookie": "digits=7"},
			"a foreign one":  {"cookie": "digits=777"},
			"a longer value": {"cookie": "digits=07x"},
		} {
			if diff := cmp.Diff(want, read.route(route, r)); diff != "" {
				t.Errorf("at %d percent, with the cookie %s (-want +got):\n%s", percent, what, diff)
			}
		}
		given := map[string]bool{}
		rules := read.rules(route)
		for _, entry := range mapsAt(rules[len(rules)-1], "route") {
			set := entry["headers"].(map[string]any)["response"].(map[string]any)["add"].(map[string]any)["Set-Cookie"].(string)
			value, attributes, _ := strings.Cut(set, "; ")
			if attributes != "Max-Age=3600; Path=/; HttpOnly; SameSite=Lax" {
				t.Errorf("cookie attributes %q", attributes)
			}
			given[value] = true
			host := entry["destination"].(map[string]any)["host"].(string)
			if shares := read.route(route, request{"cookie": value}); shares[host] != 100 {
				t.Errorf("at %d percent the answer of %s sets %s, which leads to %v", percent, host, value, shares)
			}
		}
		if len(given) != 100 {
			t.Errorf("at %d percent %d different sessions are given, want 100", percent, len(given))
		}
	}
}

// TestSessionsGoWhereTrafficMayGo: a side that gets no traffic keeps no session, whatever it had, and no session needs a
// rule then.
func TestSessionsGoWhereTrafficMayGo(t *testing.T) {
	for _, p := range DefaultDomain.Providers() {
		for _, percent := range []int32{0, 100} {
			o := owned(percent)
			plain := render(t, p, o)
			o.Sticky = byHeader()
			if diff := cmp.Diff(plain.Object, render(t, p, o).Object); diff != "" {
				t.Errorf("%s at %d percent (-without stickiness +with):\n%s", p.Name(), percent, diff)
			}
		}
	}
}

func TestAnotherCanaryTriesOtherSessions(t *testing.T) {
	first, second := byCookie(), byCookie()
	second.Salt = "v3"
	if cmp.Equal(first.buckets(100, 10, true), second.buckets(100, 10, true)) {
		t.Error("two canaries begin with the same sessions")
	}
}

func TestColoursGoBeforeSessions(t *testing.T) {
	for _, p := range DefaultDomain.Providers() {
		o := owned(99)
		o.Sticky = byHeader()
		o.Colours = []Colour{{Name: "vip", To: v1alpha1.SideStable, marks: []v1alpha1.ColourMark{
			{Cookie: &v1alpha1.CookieMark{Name: "tier", Value: "gold"}},
		}}}
		for bucket := range 256 {
			r := request{"x-session-id": fmt.Sprintf("%02x", bucket), "cookie": "tier=gold"}
			if shares := readings[p.Name()].route(render(t, p, o), r); shares[o.Stable.Host] != 100 {
				t.Fatalf("%s: the session %d of a coloured client goes to %v", p.Name(), bucket, shares)
			}
		}
	}
}

func TestAnHTTPRouteHasNoCookiesOfSessions(t *testing.T) {
	o := owned(10)
	o.Sticky = byCookie()
	_, err := DefaultDomain.HTTPRoutes().Render(o)
	refusal, ok := errors.AsType[*RefusedError](err)
	if !ok || refusal.Reason != v1alpha1.ReasonUnsupportedByProvider || !strings.Contains(refusal.Message, "stickiness.header") {
		t.Errorf("rendering gives %v", err)
	}
}

// TestBucketRegex: every set of neighbours is fitted exactly, and in few words: a header of an HTTPRoute may have 4,096
// characters to compare with, and proxies bound the size of a regular expression.
func TestBucketRegex(t *testing.T) {
	for _, radix := range []int{10, 16} {
		n := radix * radix
		for first := 0; first < n; first += 7 {
			for count := 1; count < n; count += 5 {
				of := make([]bool, n)
				for i := range count {
					of[(first+i)%n] = true
				}
				text := bucketRegex(radix, of)
				if len(text) > 200 {
					t.Fatalf("%d characters for %d buckets from %d: %s", len(text), count, first, text)
				}
				fits := regexp.MustCompile("^" + text + "$")
				for bucket, want := range of {
					digits := fmt.Sprintf("%x%x", bucket/radix, bucket%radix)
					if fits.MatchString(digits) != want || fits.MatchString(strings.ToUpper(digits)) != want {
						t.Fatalf("%s and the bucket %s: want %v", text, digits, want)
					}
				}
			}
		}
	}
}

func TestShadow(t *testing.T) {
	for what, tc := range map[string]struct {
		asked, canary, stableReady, canaryReady int32
		want                                    int32
	}{
		"as asked":                         {10, 0, 3, 1, 10},
		"all, of as many pods":             {100, 0, 2, 2, 100},
		"all, of more pods":                {100, 0, 2, 5, 100},
		"bounded by the canary's pods":     {50, 0, 10, 2, 20},
		"of a canary that has traffic":     {10, 1, 3, 1, 0},
		"without a ready canary":           {10, 0, 3, 0, 0},
		"without anything to copy":         {10, 0, 0, 3, 0},
		"of far more stable pods than 100": {10, 0, 500, 1, 0},
	} {
		if got := Shadow(tc.asked, pair(tc.canary), tc.stableReady, tc.canaryReady); got != tc.want {
			t.Errorf("%s: %d percent, want %d", what, got, tc.want)
		}
	}
}
