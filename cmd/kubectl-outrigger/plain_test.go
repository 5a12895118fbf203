// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// hostile is what somebody writes into an object to have a terminal set its title, change colour, clear itself and turn
// letters around; in both forms of control characters, over two lines.
const hostile = "\x1b]0;owned\a\x1b[31m \u009b2J \u202etxt.exe\r\nfraud  Ready \x7f\U000e0041"

// hostileReport has it wherever it is told freely.
func hostileReport() report {
	r := busyRollout()
	s := &r.Status
	s.Host, s.PhaseMessage, s.Drift.Manager = hostile, hostile, hostile
	s.Conditions[0].Message, s.Conditions[0].Reason = hostile, hostile
	v := &s.Verdicts[0]
	v.Estimate, v.Interval, v.Bound, v.Message = hostile, hostile, hostile, hostile
	return reportOf(r)
}

// TestClusterDoesNotCommandTheTerminal: in whatever form it is shown.
func TestClusterDoesNotCommandTheTerminal(t *testing.T) {
	r := hostileReport()
	var added, printed, planned, told strings.Builder
	(&app{out: &added}).add(r, noon)
	must(t, (&app{out: &printed, output: "json"}).print(r, nil))
	plan := planReport{Name: "fraud", Why: hostile}
	must(t, (&app{out: &planned}).print(plan, plan.text))
	s := &screen{out: &told, size: func() (int, int) { return 70, 40 }}
	s.show(news{report: &r}, noon)
	s.show(news{lost: errors.New(hostile)}, noon)
	for what, text := range map[string]string{
		"text": added.String(), "JSON": printed.String(), "a plan": planned.String(),
		"a screen": strings.Join(frame(t, told.String()), "\n"),
	} {
		for _, c := range text {
			if c != '\n' && !unicode.IsPrint(c) {
				t.Errorf("%s has %U:\n%q", what, c, text)
				break
			}
		}
		if strings.Contains(text, "\nfraud  Ready") {
			t.Errorf("%s has a line that somebody made up:\n%s", what, text)
		}
	}
	var read report
	must(t, json.Unmarshal([]byte(printed.String()), &read))
	if diff := cmp.Diff(r, read); diff != "" {
		t.Errorf("JSON lost something (-want +got):\n%s", diff)
	}
}
