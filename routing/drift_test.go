// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func TestRepair(t *testing.T) {
	now := epoch
	ago := func(seconds ...int) []time.Time {
		var times []time.Time
		for _, s := range seconds {
			times = append(times, now.Add(-time.Duration(s)*time.Second))
		}
		return times
	}
	policy := func(action v1alpha1.DriftAction, budget int32) v1alpha1.DriftPolicy {
		return v1alpha1.DriftPolicy{Action: action, MaxRepairsPerMinute: budget}
	}
	tests := map[string]struct {
		policy    v1alpha1.DriftPolicy
		repairs   []time.Time
		want      bool
		wantUntil time.Duration // from now, 0 for never
	}{
		"the first":                              {policy("Repair", 3), nil, true, 0},
		"within the budget":                      {policy("Repair", 3), ago(20, 10), true, 0},
		"the budget is spent":                    {policy("Repair", 3), ago(30, 20, 10), false, 590 * time.Second},
		"spent within more than a minute":        {policy("Repair", 3), ago(70, 20, 10), true, 0},
		"spent a while ago":                      {policy("Repair", 3), ago(530, 520, 500), false, 100 * time.Second},
		"spent ten minutes ago":                  {policy("Repair", 3), ago(620, 610, 600), true, 0},
		"spent, and one that came later":         {policy("Repair", 3), ago(530, 520, 500, 10), false, 100 * time.Second},
		"one repair a minute, and it was made":   {policy("Repair", 1), ago(1), false, 599 * time.Second},
		"a policy from before there was a bound": {policy("Repair", 0), ago(1), false, 599 * time.Second},
		"none is wanted":                         {policy("Hold", 60), nil, false, 0},
		"a clock that went back":                 {policy("Repair", 2), ago(-3000, -3001), false, 3601 * time.Second},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			got, until := Repair(tc.policy, tc.repairs, now)
			want := time.Time{}
			if tc.wantUntil > 0 {
				want = now.Add(tc.wantUntil)
			}
			if got != tc.want || !until.Equal(want) {
				t.Errorf("Repair = %t until %s, want %t until %s", got, until, tc.want, want)
			}
		})
	}
}

// TestRepairsAreBounded plays an opponent who answers every repair at once, for a day.
func TestRepairsAreBounded(t *testing.T) {
	policy := v1alpha1.DriftPolicy{Action: v1alpha1.DriftRepair, MaxRepairsPerMinute: 6}
	var repairs []time.Time
	total := 0
	for second := range 24 * 3600 {
		now := epoch.Add(time.Duration(second) * time.Second)
		repairs = Remember(repairs, now)
		if ok, _ := Repair(policy, repairs, now); ok {
			repairs, total = Remember(append(repairs, now), now), total+1
		}
	}
	if most := 6 * (24*6 + 1); total > most || total < 24 {
		t.Errorf("%d repairs in a day against an opponent who never rests, want at most %d", total, most)
	}
}

func TestOpponent(t *testing.T) {
	entry := func(manager, fields string, second int, subresource string) metav1.ManagedFieldsEntry {
		at := metav1.NewTime(epoch.Add(time.Duration(second) * time.Second))
		return metav1.ManagedFieldsEntry{
			Manager: manager, Time: &at, FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)}, Subresource: subresource,
		}
	}
	const http, meta = `{"f:spec":{"f:http":{}}}`, `{"f:metadata":{"f:labels":{}}}`
	tests := map[string]struct {
		entries []metav1.ManagedFieldsEntry
		want    string
	}{
		"nobody":    {nil, ""},
		"ourselves": {[]metav1.ManagedFieldsEntry{entry("us", http, 1, "")}, ""},
		"another": {
			[]metav1.ManagedFieldsEntry{entry("us", meta, 1, ""), entry("argocd", http, 2, "")},
			"argocd",
		},
		"who set labels only": {[]metav1.ManagedFieldsEntry{entry("us", http, 1, ""), entry("kubectl", meta, 2, "")}, ""},
		"who wrote the status": {
			[]metav1.ManagedFieldsEntry{entry("us", http, 1, ""), entry("istiod", http, 2, "status")},
			"",
		},
		"the later of two":           {[]metav1.ManagedFieldsEntry{entry("b", http, 3, ""), entry("a", http, 2, "")}, "b"},
		"hosts, which are routed by": {[]metav1.ManagedFieldsEntry{entry("helm", `{"f:spec":{"f:hosts":{}}}`, 1, "")}, "helm"},
		"an entry of another form":   {[]metav1.ManagedFieldsEntry{entry("x", `{"f:spec":7}`, 1, "")}, ""},
		"an entry without fields":    {[]metav1.ManagedFieldsEntry{{Manager: "x"}}, ""},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			route := NewRoute(DefaultDomain.VirtualServices())
			route.SetManagedFields(tc.entries)
			if got := Opponent(route, "us", DefaultDomain.VirtualServices().Fields()...); got != tc.want {
				t.Errorf("Opponent = %q, want %q", got, tc.want)
			}
		})
	}
}
