// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	const want = `--- VirtualService ml/digits
+++ VirtualService ml/digits
@@ -10,9 +10,9 @@
         host: v1-predictor.ml.svc.cluster.local
         port:
           number: 80
-      weight: 90
+      weight: 70
     - destination:
         host: v2-predictor.ml.svc.cluster.local
         port:
           number: 80
-      weight: 10
+      weight: 30
`
	before, after := render(t, DefaultDomain.VirtualServices(), owned(10)), render(t, DefaultDomain.VirtualServices(), owned(30))
	got, err := Diff(before, after)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("diff of two weights (-want +got):\n%s", diff)
	}
	after.SetLabels(map[string]string{"a": "b"})
	if got, err = Diff(after, after); got != "" || err != nil {
		t.Errorf("diff of a route with itself: %q, %v", got, err)
	}
	const fresh = "--- nothing\n+++ VirtualService ml/digits\n@@ -0,0 +1,"
	if got, err = Diff(nil, before); err != nil || !strings.HasPrefix(got, fresh) || strings.Contains(got, "\n-") {
		t.Errorf("diff of a new route: %v\n%s", err, got)
	}
	if got, err = Diff(before, nil); err != nil || !strings.Contains(got, "+++ nothing\n") {
		t.Errorf("diff of a route that goes: %v\n%s", err, got)
	}
}

// TestDiffOfLongTexts: texts that have nothing in common are compared in bounded memory.
func TestDiffOfLongTexts(t *testing.T) {
	from, to := make([]string, 50_000), make([]string, 50_000)
	for i := range from {
		from[i], to[i] = fmt.Sprint("a", i), fmt.Sprint("b", i)
	}
	from[0], to[0] = "same", "same"
	edits := compare(from, to)
	if len(edits) != 1+2*49_999 || edits[0].sign != ' ' || edits[1].sign != '-' || edits[len(edits)-1].sign != '+' {
		t.Errorf("%d edits, the first %v, the last %v", len(edits), edits[:2], edits[len(edits)-1])
	}
}

// TestDiffIsAPatch has patch(1) make one random text from another by the diff.
func TestDiffIsAPatch(t *testing.T) {
	patch, err := exec.LookPath("patch")
	if err != nil {
		t.Skip("no patch(1) on this machine")
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		var from []string
		for i := range random.IntN(40) {
			from = append(from, fmt.Sprintf("line %d", i%7))
		}
		to := slices.Clone(from)
		for range random.IntN(5) {
			at := random.IntN(len(to) + 1)
			if random.IntN(2) == 0 || at == len(to) {
				to = slices.Insert(to, at, fmt.Sprintf("new %d", random.IntN(3)))
			} else {
				to = slices.Delete(to, at, at+1)
			}
		}
		hunks := unified(compare(from, to))
		if slices.Equal(from, to) != (hunks == "") {
			t.Fatalf("from %q to %q the diff is %q", from, to, hunks)
		}
		if hunks == "" {
			continue
		}
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(join(from)), 0o600); err != nil {
			t.Fatal(err)
		}
		command := exec.CommandContext(t.Context(), patch, "-s", "--fuzz=0", "-o", file+".new", file)
		command.Stdin = strings.NewReader("--- a\n+++ b\n" + hunks)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("patch: %v: %s\n%s", err, out, hunks)
		}
		if got, _ := os.ReadFile(file + ".new"); string(got) != join(to) {
			t.Fatalf("patched to %q, want %q, by\n%s", got, join(to), hunks)
		}
	}
}

func join(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}
