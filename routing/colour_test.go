// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"errors"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func TestCookieRegex(t *testing.T) {
	tests := map[string]struct {
		name, value string
		header      string
		want        bool
	}{
		"alone":                         {"colour", "canary", "colour=canary", true},
		"first":                         {"colour", "canary", "colour=canary; a=b", true},
		"last":                          {"colour", "canary", "a=b; colour=canary", true},
		"in the middle, without spaces": {"colour", "canary", "a=b;colour=canary;c=d", true},
		"a name that ends alike":        {"colour", "canary", "xcolour=canary", false},
		"a name that begins alike":      {"colour", "canary", "colourx=canary", false},
		"a value that begins alike":     {"colour", "canary", "colour=canary2", false},
		"a value that ends alike":       {"colour", "canary", "colour=xcanary", false},
		"in the value of another":       {"colour", "canary", "a=colour=canary", false},
		"another value":                 {"colour", "canary", "colour=stable", false},
		"another case":                  {"colour", "canary", "Colour=canary", false},
		"a dot is a dot":                {"a.b", "c.d", "axb=cxd", false},
		"a dot that is one":             {"a.b", "c.d", "x=y; a.b=c.d", true},
		"no cookie":                     {"colour", "canary", "", false},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			if got := regexp.MustCompile(CookieRegex(tc.name, tc.value)).MatchString(tc.header); got != tc.want {
				t.Errorf("%q fits %s=%s: %t, want %t", tc.header, tc.name, tc.value, got, tc.want)
			}
		})
	}
}

func header(name, exact string) v1alpha1.ColourMark {
	return v1alpha1.ColourMark{Header: &v1alpha1.HeaderMark{Name: name, Exact: exact}}
}

func TestColoursStandAboveTheSplit(t *testing.T) {
	colours, err := Colours([]v1alpha1.Colour{
		{Name: "qa", To: v1alpha1.SideCanary, Match: v1alpha1.ColourMatch{Any: []v1alpha1.ColourMark{
			header("x-colour", "canary"),
			{Cookie: &v1alpha1.CookieMark{Name: "colour", Value: "canary"}},
			{
				Header: &v1alpha1.HeaderMark{Name: "x-team", Prefix: "ml-"},
				Cookie: &v1alpha1.CookieMark{Name: "beta", Value: "1"},
			},
		}}},
		{Name: "vip", To: v1alpha1.SideStable, Match: v1alpha1.ColourMatch{Any: []v1alpha1.ColourMark{
			{Header: &v1alpha1.HeaderMark{Name: "x-tier", Regex: "gold|platinum"}},
		}}},
	}, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	o := owned(20)
	o.Colours = colours
	want := parse(t, `apiVersion: networking.istio.io/v1
kind: VirtualService
spec:
  http:
  - name: colour-qa
    match:
    - headers: {x-colour: {exact: canary}}
    - headers: {cookie: {regex: '^(.*;\s*)?colour=canary\s*(;.*)?$'}}
    - headers: {x-team: {prefix: ml-}, cookie: {regex: '^(.*;\s*)?beta=1\s*(;.*)?$'}}
    route:
    - destination: {host: v2-predictor.ml.svc.cluster.local, port: {number: 80}}
      weight: 100
  - name: colour-vip
    match:
    - headers: {x-tier: {regex: gold|platinum}}
    route:
    - destination: {host: v1-predictor.ml.svc.cluster.local, port: {number: 80}}
      weight: 100
  - name: split
    route:
    - destination: {host: v1-predictor.ml.svc.cluster.local, port: {number: 80}}
      weight: 80
    - destination: {host: v2-predictor.ml.svc.cluster.local, port: {number: 80}}
      weight: 20
`).Object["spec"].(map[string]any)["http"]
	got := render(t, DefaultDomain.VirtualServices(), o).Object["spec"].(map[string]any)["http"]
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestColoursInForce(t *testing.T) {
	colours := func(fallback v1alpha1.ColourFallback) []v1alpha1.Colour {
		match := v1alpha1.ColourMatch{Any: []v1alpha1.ColourMark{header("x", "y")}}
		return []v1alpha1.Colour{
			{Name: "c", To: v1alpha1.SideCanary, Match: match, Fallback: fallback},
			{Name: "s", To: v1alpha1.SideStable, Match: match, Fallback: fallback},
		}
	}
	tests := map[string]struct {
		fallback       v1alpha1.ColourFallback
		stable, canary int32
		want           []string
	}{
		"both ready":            {v1alpha1.FallbackSplit, 1, 1, []string{"c", "s"}},
		"canary down":           {v1alpha1.FallbackSplit, 1, 0, []string{"s"}},
		"stable down":           {v1alpha1.FallbackSplit, 0, 1, []string{"c"}},
		"both down":             {v1alpha1.FallbackSplit, 0, 0, nil},
		"both down, no way out": {v1alpha1.FallbackNone, 0, 0, []string{"c", "s"}},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			inForce, err := Colours(colours(tc.fallback), tc.stable, tc.canary)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, colour := range inForce {
				got = append(got, colour.Name)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("in force (-want +got):\n%s", diff)
			}
		})
	}
}

func TestColourWithABrokenRegex(t *testing.T) {
	_, err := Colours([]v1alpha1.Colour{{Name: "qa", Match: v1alpha1.ColourMatch{Any: []v1alpha1.ColourMark{
		{Header: &v1alpha1.HeaderMark{Name: "x", Regex: "("}},
	}}}}, 1, 1)
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.Reason != v1alpha1.ReasonInvalidColour {
		t.Errorf("Colours = %v, want a refusal with reason %s", err, v1alpha1.ReasonInvalidColour)
	}
}
