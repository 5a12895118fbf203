// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// barWidth is how many characters a share of 100 percent takes.
const barWidth = 40

// picture draws a rollout.
func (r report) picture(out io.Writer, now time.Time) {
	_, _ = fmt.Fprintf(out, "%s/%s  %s\n", r.Namespace, r.Name, r.headline(now))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, side := range []struct {
		role string
		sideReport
	}{{"stable", r.Stable}, {"canary", r.Canary}} {
		_, _ = fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", side.role, side.name(), share(side.sideReport), bar(side.Applied))
	}
	line := func(label, text string) {
		if text != "" {
			_, _ = fmt.Fprintf(table, "  %s\t%s\n", label, text)
		}
	}
	_ = table.Flush()
	route := r.Provider
	if route != "" && r.Host != "" {
		route += " for " + r.Host
	}
	line("steps", r.Phase.steps(now))
	line("route", route)
	line("colours", strings.Join(r.Colours, ", "))
	if r.Phase != nil {
		line("why", r.Phase.Message)
	}
	if !r.Ready || r.Phase == nil {
		line("ready", r.Message)
	}
	if r.MaxSafe != nil && *r.MaxSafe < 100 {
		line("limit", fmt.Sprintf("%d %% at most, by capacity and warm-up", *r.MaxSafe))
	}
	for _, note := range r.Notes {
		line("note", note)
	}
	if r.Drift != nil {
		line("drift", r.Drift.text())
	}
	_ = table.Flush()
	r.drawVerdicts(out)
}

// drawVerdicts draws what the metrics say, and from what.
func (r report) drawVerdicts(out io.Writer) {
	if len(r.Verdicts) == 0 {
		return
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\n  METRIC\tVERDICT\tMEASURED\tTRUTH WITHIN\tBOUND\tSAMPLES\tWHY NOT")
	for _, v := range r.Verdicts {
		result := string(v.Result)
		if v.DryRun {
			result += " (dry run)"
		}
		_, _ = fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\t%d\t%s\n", v.Metric, result,
			orDash(v.Estimate), orDash(v.Interval), orDash(v.Bound), v.Samples, v.Message)
	}
	_ = table.Flush()
	for line := range strings.Lines(text.String()) {
		_, _ = fmt.Fprintln(out, strings.TrimRight(line, " \n"))
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// steps tells the steps in one line: those that are done, the one that the rollout is at and what it still waits for,
// and those to come.
func (p *phaseReport) steps(now time.Time) string {
	if p == nil || len(p.Plan) == 0 {
		return ""
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
	return strings.Join(words, "  ")
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

func (r report) headline(now time.Time) string {
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
		words = append(words, "STALLED: "+r.Reason)
	case r.Ready:
		words = append(words, "Ready")
	default:
		words = append(words, "not ready: "+r.Reason)
	}
	if r.Suspended {
		words = append(words, "suspended")
	}
	if r.DryRun {
		words = append(words, "dry run")
	}
	return strings.Join(words, " · ")
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

func bar(percent *int32) string {
	if percent == nil {
		return ""
	}
	full := int(*percent) * barWidth / 100
	if full == 0 && *percent > 0 {
		full = 1
	}
	return strings.Repeat("█", full) + strings.Repeat("░", barWidth-full)
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
