// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Filter decides by relative path which files of a model are wanted. The rules
// are those of Python's fnmatch, because KServe's are: `*` crosses slashes and
// case matters.
type Filter struct {
	// Allow, if not empty, keeps only paths that match one of its patterns.
	Allow []string
	// Ignore drops paths that match one of its patterns, allowed or not.
	Ignore []string
}

// Wants reports whether the file with this relative path is to be fetched.
func (f Filter) Wants(rel string) bool {
	if len(f.Allow) > 0 && !matchesAny(rel, f.Allow) {
		return false
	}
	return !matchesAny(rel, f.Ignore)
}

func matchesAny(rel string, patterns []string) bool {
	for _, p := range patterns {
		if fnmatch(p, rel) {
			return true
		}
	}
	return false
}

// parsePatterns reads a pattern list as KServe does: a JSON array, or else
// patterns separated by commas. An empty text gives none.
func parsePatterns(text string) []string {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil
	}
	var list []any
	var one any
	var raw []string
	switch {
	case json.Unmarshal([]byte(text), &list) == nil && list != nil:
		for _, v := range list {
			raw = append(raw, jsonText(v))
		}
	case json.Unmarshal([]byte(text), &one) == nil:
		raw = []string{jsonText(one)}
	default:
		raw = strings.Split(text, ",")
	}
	var patterns []string
	for _, p := range raw {
		if p = strings.TrimSpace(p); p != "" {
			patterns = append(patterns, p)
		}
	}
	return patterns
}

// jsonText renders a decoded JSON value as text: strings as they are, numbers
// and booleans as JSON writes them.
func jsonText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

// fnmatch reports whether name matches pattern under the rules of Python's
// fnmatch.fnmatchcase: `*` any characters, `?` one, `[set]` and `[!set]` one of
// or none of a set with ranges, everything else itself.
func fnmatch(pattern, name string) bool {
	items := compilePattern([]rune(pattern))
	text := []rune(name)
	// Each item but a star takes one character, so the usual two-pointer walk
	// suffices: on a mismatch, let the last star take one character more.
	i, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case i < len(items) && items[i].star:
			star, mark = i, t
			i++
		case i < len(items) && items[i].matches(text[t]):
			i++
			t++
		case star >= 0:
			mark++
			i, t = star+1, mark
		default:
			return false
		}
	}
	for i < len(items) && items[i].star {
		i++
	}
	return i == len(items)
}

// patternItem matches one character, or, as a star, any number of them.
type patternItem struct {
	star   bool
	any    bool
	negate bool
	ranges [][2]rune
}

func (p patternItem) matches(r rune) bool {
	if p.any {
		return true
	}
	for _, b := range p.ranges {
		if b[0] <= r && r <= b[1] {
			return !p.negate
		}
	}
	return p.negate
}

func compilePattern(pat []rune) []patternItem {
	var items []patternItem
	for i := 0; i < len(pat); {
		switch c := pat[i]; c {
		case '*':
			if len(items) == 0 || !items[len(items)-1].star {
				items = append(items, patternItem{star: true})
			}
			i++
		case '?':
			items = append(items, patternItem{any: true})
			i++
		case '[':
			end := setEnd(pat, i+1)
			if end < 0 {
				items = append(items, patternItem{ranges: [][2]rune{{c, c}}})
				i++
				continue
			}
			items = append(items, compileSet(pat[i+1:end]))
			i = end + 1
		default:
			items = append(items, patternItem{ranges: [][2]rune{{c, c}}})
			i++
		}
	}
	return items
}

// setEnd returns where the set that starts at i ends, or -1. A `]` in the first
// place, or after a leading `!`, belongs to the set.
func setEnd(pat []rune, i int) int {
	if i < len(pat) && pat[i] == '!' {
		i++
	}
	if i < len(pat) && pat[i] == ']' {
		i++
	}
	for ; i < len(pat); i++ {
		if pat[i] == ']' {
			return i
		}
	}
	return -1
}

// compileSet follows Python's translation step by step, because its treatment
// of hyphens cannot be told in fewer words: pieces are cut at hyphens that may
// form a range, a range whose ends are in the wrong order is dropped, and only
// then does a `!` in the first place negate what is left.
func compileSet(set []rune) patternItem {
	chunks := mendRanges(cutAtHyphens(set))
	var item patternItem
	if len(chunks) > 0 && len(chunks[0]) > 0 && chunks[0][0] == '!' {
		item.negate = true
		chunks[0] = chunks[0][1:]
		switch {
		case len(chunks[0]) > 0:
		case len(chunks) == 1:
			item.any = true
		default:
			// The hyphen has lost its left end and stands for itself.
			chunks[1] = append([]rune{'-'}, chunks[1]...)
			chunks = chunks[1:]
		}
	}
	item.ranges = joinChunks(chunks)
	return item
}

// cutAtHyphens cuts a set where a hyphen may form a range. Python looks for the
// first hyphen only after the first member, and for each next one two members
// further on.
func cutAtHyphens(set []rune) [][]rune {
	var chunks [][]rune
	from, k := 0, 1
	if len(set) > 0 && set[0] == '!' {
		k = 2
	}
	for k < len(set) {
		hyphen := slices.Index(set[k:], '-')
		if hyphen < 0 {
			break
		}
		hyphen += k
		chunks = append(chunks, set[from:hyphen:hyphen])
		from, k = hyphen+1, hyphen+3
	}
	if rest := set[from:]; len(rest) > 0 {
		chunks = append(chunks, slices.Clip(rest))
	} else if len(chunks) > 0 {
		chunks[len(chunks)-1] = append(chunks[len(chunks)-1], '-')
	}
	return chunks
}

// mendRanges drops ranges whose ends are in the wrong order.
func mendRanges(chunks [][]rune) [][]rune {
	for i := len(chunks) - 1; i > 0; i-- {
		left, right := chunks[i-1], chunks[i]
		if left[len(left)-1] > right[0] {
			chunks[i-1] = append(left[:len(left)-1:len(left)-1], right[1:]...)
			chunks = append(chunks[:i], chunks[i+1:]...)
		}
	}
	return chunks
}

// joinChunks turns pieces into ranges: the last of one and the first of the
// next are the ends of a range, all others stand for themselves.
func joinChunks(chunks [][]rune) [][2]rune {
	var ranges [][2]rune
	for i, c := range chunks {
		lo, hi := 0, len(c)
		if i > 0 {
			lo = 1
		}
		if i < len(chunks)-1 {
			hi--
			ranges = append(ranges, [2]rune{c[len(c)-1], chunks[i+1][0]})
		}
		for j := lo; j < hi; j++ {
			ranges = append(ranges, [2]rune{c[j], c[j]})
		}
	}
	return ranges
}
