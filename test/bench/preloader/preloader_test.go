// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test binary be the floor and the process above a client, as the benchmark's own binary is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == floorVerb || os.Args[1] == clientVerb) {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestBenchWorks runs the preloader and the floor on small workloads, in cells that need no root.
func TestBenchWorks(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := builder{cache: t.TempDir()}.ours(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	clients := []client{floorClient(self), ours}
	o := options{disk: t.TempDir(), memory: t.TempDir(), rounds: 1}
	l, closeLab, err := newLab(t.Context(), o, tiny)
	if err != nil {
		t.Fatal(err)
	}
	defer closeLab()
	l.self, l.say = self, t.Logf
	r := newResults()
	for _, c := range []cell{
		{workload: "shards"}, {workload: "small", tls: true}, {workload: "many-small"}, {workload: "small", far: true},
	} {
		if err := l.measure(t.Context(), o, c, clients, r); err != nil {
			t.Fatal(err)
		}
		for name, why := range r.Failed[c.id()] {
			t.Errorf("%s: %s failed: %s", c.id(), name, why)
		}
	}
	share, err := l.killed(t.Context(), cell{workload: "one-large"}, ours)
	if err != nil || share < 0 || share > 1 {
		t.Errorf("after a kill, %g of the model came twice (%v), want a share", share, err)
	}
	lines := 0
	for _, target := range r.targets() {
		if !strings.HasPrefix(target.line(), "bench preloader.") {
			t.Errorf("line %q", target.line())
		}
		lines++
	}
	if lines != 4 { // the floor in three cells, and memory
		t.Errorf("%d targets are judged, want 4", lines)
	}
	var report bytes.Buffer
	r.print(&report, tiny)
	for _, want := range []string{"## shards.plain.disk", "| floor |", "| preloader |", "## Targets"} {
		if !strings.Contains(report.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, report.String())
		}
	}
	closeLab()
	left, err := filepath.Glob(filepath.Join(o.disk, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left on the disk (%v)", left, err)
	}
}

func TestTargetLine(t *testing.T) {
	cases := map[string]struct {
		target target
		want   string
	}{
		"a bound kept":   {target{id: "x", figure: 1.1, bound: 1.15, unit: "x"}, "bench x 1.10x <=1.15x pass"},
		"a bound missed": {target{id: "x", figure: 1.2, bound: 1.15, unit: "x"}, "bench x 1.20x <=1.15x short"},
		"a least kept":   {target{id: "x", figure: 6, bound: 5, atLeast: true, unit: "x"}, "bench x 6.00x >=5x pass"},
		"a least missed": {target{id: "x", figure: 4, bound: 5, atLeast: true, unit: "x"}, "bench x 4.00x >=5x short"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := tc.target.line(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestReasonIsTheClosestOne(t *testing.T) {
	losses := "- floor: all are checked\n- floor.many: each is named\n"
	cases := map[string]string{
		"floor.many-small": "each is named",
		"floor.one-large":  "all are checked",
		"peak-rss":         "not looked into yet",
	}
	for id, want := range cases {
		if got := reason(losses, id); got != want {
			t.Errorf("%s falls short because %q, want %q", id, got, want)
		}
	}
}
