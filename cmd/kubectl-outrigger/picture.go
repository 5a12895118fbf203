// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/duration"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// barWidth is how many characters a share of 100 percent takes, and leastBar the least that is worth drawing.
const (
	barWidth = 40
	leastBar = 10
)

// picture draws a rollout within a width in characters; 0 is any.
func (r report) picture(out io.Writer, now time.Time, width int) {
	write := func(first, rest string, words []string, space string) {
		for i, line := range fold(words, space, width-utf8.RuneCountInString(rest)) {
			indent := first
			if i > 0 {
				indent = rest
			}
			_, _ = fmt.Fprintln(out, strings.TrimRight(indent+line, " "))
		}
	}
	write("", "  ", append([]string{r.Namespace + "/" + r.Name + " "}, r.headline(now)...), " ")
	r.drawSides(out, width)
	lines := r.lines(now)
	labels := 0
	for _, line := range lines {
		labels = max(labels, utf8.RuneCountInString(line.label))
	}
	for _, line := range lines {
		write(fmt.Sprintf("  %-*s  ", labels, line.label), strings.Repeat(" ", labels+4), line.words, line.space)
	}
	r.drawVerdicts(out, width)
}

// drawSides draws the shares.
func (r report) drawSides(out io.Writer, width int) {
	sides := []struct {
		role string
		sideReport
	}{{"stable", r.Stable}, {"canary", r.Canary}}
	names, shares := 0, 0
	for _, side := range sides {
		names = max(names, utf8.RuneCountInString(side.name()))
		shares = max(shares, utf8.RuneCountInString(share(side.sideReport)))
	}
	bars := barWidth
	if width > 0 {
		bars = min(barWidth, width-len("  stable      ")-names-shares)
	}
	for _, side := range sides {
		line := fmt.Sprintf("  %s  %-*s  %-*s  ", side.role, names, side.name(), shares, share(side.sideReport))
		if bars >= leastBar {
			line += bar(side.Applied, bars)
		}
		_, _ = fmt.Fprintln(out, strings.TrimRight(line, " "))
	}
}

// labelled is a line of a picture: words, and what is between two of them.
type labelled struct {
	label string
	words []string
	space string
}

// lines are what there is to tell of a rollout beside its shares and verdicts.
func (r report) lines(now time.Time) []labelled {
	var lines []labelled
	tell := func(label, text string) {
		if words := strings.Fields(text); len(words) > 0 {
			lines = append(lines, labelled{label, words, " "})
		}
	}
	if steps := r.Phase.steps(now); len(steps) > 0 {
		lines = append(lines, labelled{"steps", steps, "  "})
	}
	route := r.Provider
	if route != "" && r.Host != "" {
		route += " for " + r.Host
	}
	tell("route", route)
	tell("colours", strings.Join(r.Colours, ", "))
	if r.Phase != nil {
		tell("why", r.Phase.Message)
	}
	if !r.Ready || r.Phase == nil {
		tell("ready", r.Message)
	}
	if r.MaxSafe != nil && *r.MaxSafe < 100 {
		tell("limit", fmt.Sprintf("%d %% at most, by capacity and warm-up", *r.MaxSafe))
	}
	for _, note := range r.Notes {
		tell("note", note)
	}
	if r.Drift != nil {
		tell("drift", r.Drift.text())
	}
	return lines
}

// drawVerdicts draws what the metrics say, and from what: as a table, or metric by metric where that is too wide.
func (r report) drawVerdicts(out io.Writer, width int) {
	if len(r.Verdicts) == 0 {
		return
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "  METRIC\tVERDICT\tMEASURED\tTRUTH WITHIN\tBOUND\tSAMPLES\tWHY NOT")
	for _, v := range r.Verdicts {
		_, _ = fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\t%d\t%s\n", v.Metric, verdict(v),
			orDash(v.Estimate), orDash(v.Interval), orDash(v.Bound), v.Samples, oneLine(v.Message))
	}
	_ = table.Flush()
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	widest := 0
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
		widest = max(widest, utf8.RuneCountInString(lines[i]))
	}
	if width > 0 && widest > width {
		lines = r.stackedVerdicts(width)
	}
	_, _ = fmt.Fprintln(out)
	for _, line := range lines {
		_, _ = fmt.Fprintln(out, line)
	}
}

func (r report) stackedVerdicts(width int) []string {
	var lines []string
	for _, v := range r.Verdicts {
		lines = append(lines, "  "+v.Metric+"  "+verdict(v))
		facts := make([]string, 0, 5)
		for _, fact := range []struct{ label, value string }{
			{"measured ", v.Estimate}, {"truth within ", v.Interval}, {"bound ", v.Bound},
		} {
			if fact.value != "" {
				facts = append(facts, fact.label+fact.value)
			}
		}
		facts = append(facts, fmt.Sprintf("%d samples", v.Samples))
		if v.Message != "" {
			facts = append(facts, v.Message)
		}
		for _, line := range fold(strings.Fields(strings.Join(facts, "; ")), " ", width-4) {
			lines = append(lines, "    "+line)
		}
	}
	return lines
}

func verdict(v v1alpha1.MetricVerdict) string {
	if v.DryRun {
		return string(v.Result) + " (dry run)"
	}
	return string(v.Result)
}

// fold puts words into lines of at most a width; one that is wider has a line of its own. A width of 0 or less makes
// one line.
func fold(words []string, space string, width int) []string {
	var lines []string
	line := ""
	for i, word := range words {
		switch {
		case i == 0:
			line = word
		case width > 0 && utf8.RuneCountInString(line+space+word) > width:
			lines, line = append(lines, line), word
		default:
			line += space + word
		}
	}
	return append(lines, line)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return oneLine(text)
}

// oneLine keeps a text in its cell of a table.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// steps tells the steps: those that are done, the one that the rollout is at and what it still waits for, and those to
// come.
func (p *phaseReport) steps(now time.Time) []string {
	if p == nil || len(p.Plan) == 0 {
		return nil
	}
	words := make([]string, 0, len(p.Plan)+1)
	for i, step := range p.Plan {
		text := "pause"
		if step.Percent != nil {
			text = fmt.Sprintf("%d %%", *step.Percent)
		}
		switch at := int(p.Step) - 1; {
		case i < at:
			text = "✓ " + text
		case i == at && p.active():
			text = "▶ " + text + step.waits(p, now)
		default:
			text = "· " + text
		}
		words = append(words, text)
	}
	if p.Bake != "" {
		mark := "· "
		switch p.Name {
		case string(v1alpha1.PhaseBaking):
			mark = "▶ "
		case string(v1alpha1.PhaseSucceeded):
			mark = "✓ "
		}
		words = append(words, mark+"bake "+short(p.Bake)+left(p.Bake, p.StepSince, now, p.Name == string(v1alpha1.PhaseBaking)))
	}
	return words
}

// active reports whether the rollout is at one of its steps, and not on the way back.
func (p *phaseReport) active() bool {
	switch v1alpha1.RolloutPhase(p.Name) {
	case v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding:
		return true
	default:
		return false
	}
}

// waits tells what a step that the rollout is at still waits for.
func (s stepReport) waits(p *phaseReport, now time.Time) string {
	var words []string
	if rest := left(s.Hold, p.StepSince, now, true); rest != "" {
		words = append(words, strings.TrimPrefix(rest, ", "))
	}
	if s.MinSamples > 0 && p.Samples < s.MinSamples {
		words = append(words, fmt.Sprintf("%d of %d samples", p.Samples, s.MinSamples))
	}
	if len(words) == 0 {
		return ""
	}
	return " (" + strings.Join(words, ", ") + ")"
}

// left tells how much of a time that began at a moment is left, "" if nothing.
func left(text string, since *time.Time, now time.Time, running bool) string {
	total, err := time.ParseDuration(text)
	if err != nil || !running || total <= 0 {
		return ""
	}
	rest := total
	if since != nil {
		rest = total - now.Sub(*since)
	}
	if rest <= 0 {
		return ""
	}
	return ", " + duration.HumanDuration(rest) + " left"
}

// short writes a duration without its zeros.
func short(text string) string {
	d, err := time.ParseDuration(text)
	if err != nil {
		return text
	}
	return duration.HumanDuration(d)
}

// headline tells the state in a few words.
func (r report) headline(now time.Time) []string {
	var words []string
	if r.Phase != nil {
		phase := r.Phase.Name
		if r.Phase.Step <= r.Phase.Steps && r.Phase.Step > 0 {
			phase += fmt.Sprintf(", step %d of %d", r.Phase.Step, r.Phase.Steps)
		}
		if r.Phase.StepSince != nil && r.Phase.Step <= r.Phase.Steps {
			phase += " for " + duration.HumanDuration(now.Sub(*r.Phase.StepSince))
		}
		words = append(words, phase)
	}
	switch {
	case !r.Current:
		words = append(words, "waiting for the operator")
	case r.Stalled:
		words = append(words, "STALLED: "+oneLine(r.Reason))
	case r.Ready:
		words = append(words, "Ready")
	default:
		words = append(words, "not ready: "+oneLine(r.Reason))
	}
	if r.Suspended {
		words = append(words, "suspended")
	}
	if r.DryRun {
		words = append(words, "dry run")
	}
	for i := range words[1:] {
		words[i+1] = "· " + words[i+1]
	}
	return words
}

func share(s sideReport) string {
	switch {
	case s.Applied == nil && s.Desired == nil:
		return "-"
	case s.Applied == nil:
		return fmt.Sprintf("- (asked %d %%)", *s.Desired)
	case s.Desired != nil && *s.Desired != *s.Applied:
		return fmt.Sprintf("%d %% (asked %d %%)", *s.Applied, *s.Desired)
	default:
		return fmt.Sprintf("%d %%", *s.Applied)
	}
}

// bar draws a share. One that is not 0 is seen, and so is what is left beside one that is not all.
func bar(percent *int32, width int) string {
	if percent == nil {
		return ""
	}
	full := int(*percent) * width / 100
	if full == 0 && *percent > 0 {
		full = 1
	}
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

func (d driftReport) text() string {
	who := "somebody who deleted the route"
	if d.Manager != "" {
		who = "field manager " + d.Manager
	}
	if d.Held {
		return fmt.Sprintf("left as %s made it, after %d repairs", who, d.Repairs)
	}
	return fmt.Sprintf("%d repairs lately, of what %s did", d.Repairs, who)
}
