// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func resultsOf(patience time.Duration) *results {
	r := newResults(map[string]program{
		nameOutrigger: {version: "of this tree"}, nameArgo: {version: "v1"}, nameFlagger: {version: "v2"},
	}, options{patience: patience, rollouts: 2, rounds: 1})
	for _, cell := range []string{cellEdit, cellDrift, cellStorm} {
		for i := range 100 {
			r.add(nameOutrigger, cell, time.Duration(i+1)*time.Millisecond)
			r.add(nameArgo, cell, time.Duration(i+1)*2*time.Millisecond)
			r.add(nameFlagger, cell, never)
		}
	}
	r.count(nameOutrigger, cost{wishes: 2, routes: 2, writes: 6, processor: 10 * time.Millisecond})
	return r
}

// TestQuantiles: what never came is worse than whatever came.
func TestQuantiles(t *testing.T) {
	r := resultsOf(time.Second)
	r.add(nameOutrigger, cellEdit, never)
	for share, want := range map[float64]string{.5: "51 ms", .99: "100 ms", 1: "not within 1s"} {
		if got := r.milliseconds(nameOutrigger, cellEdit, share); got != want {
			t.Errorf("%g of 101 take %s, want %s", share, got, want)
		}
	}
	if got := r.milliseconds(nameOutrigger, cellWhole, .5); got != "-" {
		t.Errorf("nothing measured is shown as %s", got)
	}
	if r.gaveUp(nameOutrigger, cellEdit) || !r.gaveUp(nameFlagger, cellEdit) || r.gaveUp(nameFlagger, cellWhole) {
		t.Error("it is not known who gave up")
	}
}

func TestLines(t *testing.T) {
	lines, why := resultsOf(time.Second).lines()
	for _, want := range []string{
		"bench rollout-edit-p99 99.00ms <=250ms pass\n", "bench rollout-edit-p99-against-argo 0.50x <=1x pass\n",
		"bench rollout-drift-p99-against-flagger 0.00x <=1x pass\n", "bench rollout-route-writes-per-wish 1.00 <=1 pass\n",
		"bench rollout-edit-p50 50.00ms <=50ms pass\n",
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("there is no line %q in\n%s", want, lines)
		}
	}
	if why != "" {
		t.Errorf("nothing falls short, and the reasons are %q", why)
	}
	// What was not measured does not pass.
	lines, why = newResults(nil, options{}).lines()
	if strings.Contains(lines, "pass") || strings.Count(why, "\n") != strings.Count(lines, "\n") {
		t.Errorf("of nothing measured the lines are\n%s\nand the reasons\n%s", lines, why)
	}
}

// TestPage: nothing of the page is left to be filled in.
func TestPage(t *testing.T) {
	r := resultsOf(25 * time.Second)
	path := filepath.Join(t.TempDir(), "page.md")
	r.options.out = path
	if err := r.report(r.options, io.Discard); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"MACHINE", "BUSY", "COUNT", "ROUNDS", "PATIENCE", "TABLE", "LINES", "WHY"} {
		if strings.Contains(string(raw), word) {
			t.Errorf("%s is left in the page:\n%s", word, raw)
		}
	}
	if !strings.Contains(string(raw), "| Outrigger of this tree | Argo Rollouts v1 | Flagger v2 |") {
		t.Errorf("the page has no table:\n%s", raw)
	}
}

// TestForeignEdit: the edit moves the weights, and nothing else.
func TestForeignEdit(t *testing.T) {
	route := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"http": []any{map[string]any{
		"name": "split", "route": []any{
			map[string]any{"destination": map[string]any{"host": "a"}, "weight": int64(80)},
			map[string]any{"destination": map[string]any{"host": "b"}, "weight": int64(20)},
		},
	}}}}}
	want := `{"spec":{"http":[{"name":"split","route":[{"destination":{"host":"a"},"weight":23},` +
		`{"destination":{"host":"b"},"weight":77}]}]}}`
	if got := moved(route, foreign); got != want {
		t.Errorf("the edit is %s, want %s", got, want)
	}
	if canaryShare(route) != 20 || canaryShare(nil) != 0 {
		t.Error("the route itself was changed, or its share is not read")
	}
}
