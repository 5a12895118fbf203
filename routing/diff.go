// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// diffContext is how many equal lines are shown around a change.
const diffContext = 3

// Diff returns a unified diff of what decides where requests go in two states of a route, empty if that is the same. Either may be nil, for
// a route that does not exist.
func Diff(before, after *unstructured.Unstructured) (string, error) {
	from, err := routedLines(before)
	if err != nil {
		return "", err
	}
	to, err := routedLines(after)
	if err != nil {
		return "", err
	}
	edits := compare(from, to)
	if hunks := unified(edits); hunks != "" {
		return title("---", before) + title("+++", after) + hunks, nil
	}
	return "", nil
}

func title(mark string, route *unstructured.Unstructured) string {
	if route == nil {
		return mark + " nothing\n"
	}
	return fmt.Sprintf("%s %s %s/%s\n", mark, route.GetKind(), route.GetNamespace(), route.GetName())
}

// routedLines returns the routed part of a spec as lines of YAML, in which keys are sorted.
func routedLines(route *unstructured.Unstructured) ([]string, error) {
	if route == nil {
		return nil, nil
	}
	raw, err := yaml.Marshal(map[string]any{"spec": routedPart(kindOf(route), specOf(route))})
	if err != nil {
		return nil, fmt.Errorf("encoding %s %q: %w", route.GetKind(), route.GetName(), err)
	}
	return strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n"), nil
}

// edit is one line of a diff: kept (' '), removed ('-') or added ('+').
type edit struct {
	sign byte
	line string
}

// maxCompared bounds the table that shortest makes, in entries: some thousand lines on each side.
const maxCompared = 1 << 22

// compare returns a way from one text to another: the shortest, unless the texts differ over so many lines that finding
// it would take too much memory. The lines that are equal at both ends cost nothing, and of a route they are nearly all.
func compare(from, to []string) []edit {
	head := 0
	for head < len(from) && head < len(to) && from[head] == to[head] {
		head++
	}
	tail := 0
	for tail < len(from)-head && tail < len(to)-head && from[len(from)-1-tail] == to[len(to)-1-tail] {
		tail++
	}
	edits := signedAll(' ', from[:head])
	was, is := from[head:len(from)-tail], to[head:len(to)-tail]
	if len(was)*len(is) > maxCompared {
		edits = append(append(edits, signedAll('-', was)...), signedAll('+', is)...)
	} else {
		edits = append(edits, shortest(was, is)...)
	}
	return append(edits, signedAll(' ', from[len(from)-tail:])...)
}

func signedAll(sign byte, lines []string) []edit {
	edits := make([]edit, 0, len(lines))
	for _, line := range lines {
		edits = append(edits, edit{sign, line})
	}
	return edits
}

// shortest returns the shortest way from one text to another, by the longest common subsequence.
func shortest(from, to []string) []edit {
	common := make([][]int, len(from)+1) // of the texts from i and j on
	for i := range common {
		common[i] = make([]int, len(to)+1)
	}
	for i, one := range slices.Backward(from) {
		for j, other := range slices.Backward(to) {
			if one == other {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var edits []edit
	i, j := 0, 0
	for i < len(from) || j < len(to) {
		switch {
		case i < len(from) && j < len(to) && from[i] == to[j]:
			edits = append(edits, edit{' ', from[i]})
			i, j = i+1, j+1
		case j == len(to) || i < len(from) && common[i+1][j] >= common[i][j+1]:
			edits = append(edits, edit{'-', from[i]})
			i++
		default:
			edits = append(edits, edit{'+', to[j]})
			j++
		}
	}
	return edits
}

// unified returns the changed lines with those around them, in hunks.
func unified(edits []edit) string {
	var text strings.Builder
	fromLine, toLine := 1, 1
	for start := 0; start < len(edits); {
		end, changed := hunk(edits, start)
		if !changed {
			break
		}
		skip := max(0, firstChange(edits, start)-diffContext-start)
		fromLine, toLine, start = fromLine+skip, toLine+skip, start+skip
		var lines strings.Builder
		fromCount, toCount := 0, 0
		for _, e := range edits[start:end] {
			if e.sign != '+' {
				fromCount++
			}
			if e.sign != '-' {
				toCount++
			}
			_, _ = fmt.Fprintf(&lines, "%c%s\n", e.sign, e.line)
		}
		_, _ = fmt.Fprintf(&text, "@@ -%d,%d +%d,%d @@\n%s", min(fromLine, fromLine*fromCount), fromCount,
			min(toLine, toLine*toCount), toCount, lines.String())
		fromLine, toLine, start = fromLine+fromCount, toLine+toCount, end
	}
	return text.String()
}

// firstChange returns the index of the first changed line from start on, or the end.
func firstChange(edits []edit, start int) int {
	for i := start; i < len(edits); i++ {
		if edits[i].sign != ' ' {
			return i
		}
	}
	return len(edits)
}

// hunk returns where the hunk with the next change ends, and whether there is a change.
func hunk(edits []edit, start int) (int, bool) {
	at := firstChange(edits, start)
	if at == len(edits) {
		return at, false
	}
	end := at
	for at < len(edits) {
		end = at + 1
		next := firstChange(edits, end)
		if next == len(edits) || next-end > 2*diffContext {
			break
		}
		at = next
	}
	return min(len(edits), end+diffContext), true
}
