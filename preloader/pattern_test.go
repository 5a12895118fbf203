// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// TestFnmatchAgreesWithPython reads pairs of pattern and name with the answer
// that Python 3.11's fnmatch.fnmatchcase gave: the cases of its documentation,
// and random ones made of the characters that matter.
func TestFnmatchAgreesWithPython(t *testing.T) {
	raw, err := os.ReadFile("testdata/fnmatch.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases [][]any
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		pattern, name, want := c[0].(string), c[1].(string), c[2].(bool)
		if got := fnmatch(pattern, name); got != want {
			t.Errorf("fnmatch(%q, %q) = %t, want %t", pattern, name, got, want)
		}
	}
}

func TestParsePatterns(t *testing.T) {
	cases := map[string]struct {
		text string
		want []string
	}{
		"empty":                      {"  ", nil},
		"one":                        {"*.json", []string{"*.json"}},
		"commas":                     {"*.json, *.txt,,", []string{"*.json", "*.txt"}},
		"a JSON array":               {`["*.json", " a,b ", ""]`, []string{"*.json", "a,b"}},
		"a JSON array of numbers":    {`[1, 2]`, []string{"1", "2"}},
		"an empty JSON array":        {`[]`, nil},
		"a JSON string":              {`"*.json"`, []string{"*.json"}},
		"a set that looks like JSON": {"[ab]*", []string{"[ab]*"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, parsePatterns(tc.text)); diff != "" {
				t.Errorf("patterns (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzFnmatch(f *testing.F) {
	f.Add("*.safetensors", "model/a.safetensors")
	f.Add("[!a-c-e]*[", "x[")
	f.Add("[z-a-", "\xff")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		fnmatch(pattern, name)
		if !strings.ContainsAny(name, "*?[") && utf8.ValidString(name) && !fnmatch(name, name) {
			t.Errorf("the name %q does not match itself", name)
		}
		if len(pattern) > 40 || len(name) > 40 { // where the plain way takes for ever
			return
		}
		if !strings.Contains(pattern, "[") && fnmatch(pattern, name) != matchesPlainly([]rune(pattern), []rune(name)) {
			t.Errorf("pattern %q matches %q: %t", pattern, name, fnmatch(pattern, name))
		}
		for _, p := range []string{"*" + pattern, pattern + "*", "**" + pattern + "**"} {
			if fnmatch(pattern, name) && !fnmatch(p, name) {
				t.Errorf("pattern %q matches %q, but %q does not", pattern, name, p)
			}
		}
	})
}

// matchesPlainly is fnmatch without sets, by trying everything.
func matchesPlainly(pattern, name []rune) bool {
	switch {
	case len(pattern) == 0:
		return len(name) == 0
	case pattern[0] == '*':
		return matchesPlainly(pattern[1:], name) || len(name) > 0 && matchesPlainly(pattern, name[1:])
	case len(name) == 0:
		return false
	}
	return (pattern[0] == '?' || pattern[0] == name[0]) && matchesPlainly(pattern[1:], name[1:])
}
