// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// request is what a route decides by.
type request map[string]string

// reading says how a kind of route is obeyed, by its specification: which rule takes a request, and what share each host
// gets of it, in percent.
type reading struct {
	rules func(route *unstructured.Unstructured) []map[string]any
	// fits returns how strongly a rule wants a request, 0 for not at all; of the strongest, the first takes it.
	fits func(rule map[string]any, r request) int
	// shares returns the share of each host.
	shares func(rule map[string]any) map[string]int64
}

// readings are the two specifications in code: Istio's list order, and the Gateway API's precedence by the number of
// headers.
var readings = map[v1alpha1.RoutingProvider]reading{
	v1alpha1.ProviderVirtualService: {
		rules: func(route *unstructured.Unstructured) []map[string]any { return mapsAt(specOf(route), "http") },
		fits: func(rule map[string]any, r request) int {
			matches := mapsAt(rule, "match")
			for _, match := range matches {
				headers, _ := match["headers"].(map[string]any)
				all := true
				for name, want := range headers {
					value, present := r[name]
					all = all && present && stringMatch(want.(map[string]any), value)
				}
				if all {
					return 1
				}
			}
			if len(matches) == 0 {
				return 1
			}
			return 0
		},
		shares: func(rule map[string]any) map[string]int64 {
			shares, entries := map[string]int64{}, mapsAt(rule, "route")
			for _, entry := range entries {
				destination, _ := entry["destination"].(map[string]any)
				weight := numberAt(entry, "weight", 0)
				if len(entries) == 1 {
					weight = 100
				}
				shares[stringAt(destination, "host")] += weight
			}
			return shares
		},
	},
	v1alpha1.ProviderHTTPRoute: {
		rules: func(route *unstructured.Unstructured) []map[string]any { return mapsAt(specOf(route), "rules") },
		fits: func(rule map[string]any, r request) int {
			best := 0
			for _, match := range mapsAt(rule, "matches") {
				headers, seen := mapsAt(match, "headers"), map[string]bool{}
				all := true
				for _, want := range headers {
					name := strings.ToLower(stringAt(want, "name"))
					if seen[name] {
						continue // only the first entry of a name counts
					}
					seen[name] = true
					value, present := r[name]
					kind := map[any]string{"Exact": "exact", "RegularExpression": "regex"}[want["type"]]
					all = all && present && stringMatch(map[string]any{kind: want["value"]}, value)
				}
				if all {
					best = max(best, 1+len(seen))
				}
			}
			return best
		},
		shares: func(rule map[string]any) map[string]int64 {
			shares, sum := map[string]int64{}, int64(0)
			for _, ref := range mapsAt(rule, "backendRefs") {
				shares[httpRoutes{DefaultDomain}.backendHost(ref, "ml")] += numberAt(ref, "weight", 1)
				sum += numberAt(ref, "weight", 1)
			}
			for host := range shares {
				shares[host] = shares[host] * 100 / sum
			}
			return shares
		},
	},
}

func stringMatch(want map[string]any, value string) bool {
	switch {
	case want["exact"] != nil:
		return value == want["exact"]
	case want["prefix"] != nil:
		return strings.HasPrefix(value, want["prefix"].(string))
	default:
		return regexp.MustCompile("^(?:" + want["regex"].(string) + ")$").MatchString(value)
	}
}

func (read reading) route(route *unstructured.Unstructured, r request) map[string]int64 {
	best, taken := 0, map[string]any(nil)
	for _, rule := range read.rules(route) {
		if strength := read.fits(rule, r); strength > best {
			best, taken = strength, rule
		}
	}
	return read.shares(taken)
}

// wanted is what a rollout means, without any kind of route: the first colour with a mark that fits decides, and
// everything else is shared by the weights.
func wanted(o Owned, r request) map[string]int64 {
	for _, colour := range o.Colours {
		if slices.ContainsFunc(colour.marks, func(mark v1alpha1.ColourMark) bool { return marked(mark, r) }) {
			return map[string]int64{o.side(colour.To).Host: 100}
		}
	}
	return map[string]int64{o.Stable.Host: int64(o.Weights.Stable), o.Canary.Host: int64(o.Weights.Canary)}
}

func marked(mark v1alpha1.ColourMark, r request) bool {
	if header := mark.Header; header != nil {
		value, present := r[header.Name]
		if !present || !stringMatch(headerMatch(header), value) {
			return false
		}
	}
	if mark.Cookie == nil {
		return true
	}
	for cookie := range strings.SplitSeq(r["cookie"], ";") {
		if strings.TrimSpace(cookie) == mark.Cookie.Name+"="+mark.Cookie.Value {
			return true
		}
	}
	return false
}

// TestProvidersMeanTheSame draws colours and requests at random, and wants every kind of route, read by its own
// specification, to send each request where the rollout means it to go.
func TestProvidersMeanTheSame(t *testing.T) {
	for _, p := range DefaultDomain.Providers() {
		t.Run(string(p.Name()), func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			coloured := 0
			for range 4000 {
				o := owned(int32(random.IntN(101)))
				o.Colours = randomColours(random)
				route := render(t, p, o)
				for range 5 {
					r := randomRequest(random)
					want := wanted(o, r)
					if len(want) == 1 {
						coloured++
					}
					if got := readings[p.Name()].route(route, r); !sameShares(got, want) {
						t.Fatalf("request %v goes to %v, want %v, by the colours %+v", r, got, want, o.Colours)
					}
				}
			}
			if coloured < 1000 {
				t.Errorf("only %d requests were coloured: the test has lost its sense", coloured)
			}
		})
	}
}

// sameShares compares without regard to hosts that get nothing.
func sameShares(a, b map[string]int64) bool {
	for _, pair := range [][2]map[string]int64{{a, b}, {b, a}} {
		for host, share := range pair[0] {
			if share != pair[1][host] {
				return false
			}
		}
	}
	return true
}

func randomColours(random *rand.Rand) []Colour {
	colours := make([]Colour, random.IntN(4))
	for i := range colours {
		colours[i] = Colour{Name: strconv.Itoa(i), To: v1alpha1.SideStable}
		if random.IntN(2) == 0 {
			colours[i].To = v1alpha1.SideCanary
		}
		for range 1 + random.IntN(3) {
			colours[i].marks = append(colours[i].marks, randomMark(random))
		}
	}
	return colours
}

func randomMark(random *rand.Rand) v1alpha1.ColourMark {
	var mark v1alpha1.ColourMark
	which := random.IntN(3)
	if which != 0 {
		mark.Header = &v1alpha1.HeaderMark{Name: fmt.Sprintf("x-%d", random.IntN(2))}
		value := strconv.Itoa(random.IntN(2))
		switch random.IntN(3) {
		case 0:
			mark.Header.Exact = value
		case 1:
			mark.Header.Prefix = value
		default:
			mark.Header.Regex = value + ".?"
		}
	}
	if which != 1 {
		mark.Cookie = &v1alpha1.CookieMark{Name: fmt.Sprintf("c%d", random.IntN(2)), Value: strconv.Itoa(random.IntN(2))}
	}
	return mark
}

func randomRequest(random *rand.Rand) request {
	r := request{}
	for i := range 2 {
		if random.IntN(3) > 0 {
			r[fmt.Sprintf("x-%d", i)] = strconv.Itoa(random.IntN(2)) + strings.Repeat("0", random.IntN(3))
		}
	}
	var cookies []string
	for i := range 2 {
		if random.IntN(3) > 0 {
			prefix := strings.Repeat("x", random.IntN(2)) // a cookie that only looks alike
			cookies = append(cookies, fmt.Sprintf("%sc%d=%d", prefix, i, random.IntN(2)))
		}
	}
	if cookies != nil {
		r["cookie"] = strings.Join(cookies, "; ")
	}
	return r
}

// TestNoRuleHasALoneSideWithoutWeight: Istio sends everything to a lone destination whatever its weight, the Gateway API
// nothing, so that a rule of one destination must give it a weight, and the split must have two.
func TestNoRuleHasALoneSideWithoutWeight(t *testing.T) {
	for _, p := range DefaultDomain.Providers() {
		for _, canary := range []int32{0, 1, 100} {
			o := owned(canary)
			o.Colours = []Colour{{Name: "qa", To: v1alpha1.SideCanary, marks: []v1alpha1.ColourMark{header("a", "b")}}}
			for _, rule := range readings[p.Name()].rules(render(t, p, o)) {
				list := append(mapsAt(rule, "route"), mapsAt(rule, "backendRefs")...)
				sum := int64(0)
				for _, entry := range list {
					sum += numberAt(entry, "weight", -1)
				}
				if wantCount := map[bool]int{true: 2, false: 1}[rule["name"] == SplitRoute]; sum != 100 ||
					len(list) != wantCount {
					t.Errorf(
						"%s, canary %d: rule %v has %d destinations with %d percent",
						p.Name(),
						canary,
						rule["name"],
						len(list),
						sum,
					)
				}
			}
		}
	}
}

// TestRenderedRoutesComeBack: what was rendered is recognised, by every provider in the same way.
func TestRenderedRoutesComeBack(t *testing.T) {
	for _, p := range DefaultDomain.Providers() {
		o := owned(30)
		route := render(t, p, o)
		if !p.Mentions(route, o.Stable) || !p.Mentions(route, o.Canary) ||
			p.Mentions(route, Destination{Host: "x.ml.svc.cluster.local"}) {
			t.Errorf("%s: the route does not mention exactly its two sides", p.Name())
		}
		if got := p.Hosts(route); !slices.Equal(got, o.Hosts) {
			t.Errorf("%s: hosts %v, want %v", p.Name(), got, o.Hosts)
		}
		if got, want := p.Claims(route, "ml"), hostClaims(o.Hosts, nil, "ml"); !slices.Equal(got, want) {
			t.Errorf("%s: claims %v, want %v", p.Name(), got, want)
		}
		if strangers, err := p.Strangers(route, route); strangers != nil || err != nil {
			t.Errorf("%s: strangers %s, %v in a route that was just rendered", p.Name(), strangers, err)
		}
		binding, err := p.Bind(route, SplitRoute, o.Stable, o.Canary)
		if err != nil || binding.Weights() != o.Weights {
			t.Errorf("%s: binding the split: %v", p.Name(), err)
		}
	}
}
