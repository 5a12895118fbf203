// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"slices"
	"testing"
	"time"
)

func TestGrowthAddsConnectionsWhileTheyBringMore(t *testing.T) {
	// seen is what a stretch of time brought and took of the processors.
	type seen struct {
		bytes int64
		spent time.Duration
	}
	const (
		second = time.Second
		idle   = second / 10
	)
	cases := map[string]struct {
		seen []seen
		cpus float64
		want []int
	}{
		"fast connections are enough": {
			seen: []seen{{bytes: 900e6, spent: idle}}, cpus: 4, want: []int{0},
		},
		"slow ones are doubled until that brings no more": {
			seen: []seen{
				{bytes: 360e6, spent: idle},
				{bytes: 720e6, spent: idle},
				{bytes: 760e6, spent: idle},
				{bytes: 3e9, spent: idle},
			},
			cpus: 4,
			want: []int{4, 8, 0, 0},
		},
		"a busy processor would not serve more": {
			seen: []seen{{bytes: 360e6, spent: 6 * second / 10}}, cpus: 1, want: []int{0},
		},
		"the same work keeps few of many processors busy": {
			seen: []seen{{bytes: 360e6, spent: 6 * second / 10}}, cpus: 2, want: []int{4},
		},
		"a store that stands still gets no more requests": {
			seen: []seen{{spent: idle}, {bytes: 40e6, spent: idle}}, cpus: 2, want: []int{0, 4},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1, 0)
			var g growth
			g.begin(now, 0, tc.cpus)
			conns := 4
			var fetched int64
			var spent time.Duration
			var got []int
			for _, s := range tc.seen {
				now = now.Add(second)
				fetched += s.bytes
				spent += s.spent
				add := 0
				if g.due(now) {
					add = g.look(now, fetched, spent, conns)
				}
				got = append(got, add)
				conns += add
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("added %v, want %v", got, tc.want)
			}
		})
	}
}
