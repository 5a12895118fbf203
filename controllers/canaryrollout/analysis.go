// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/prometheus"
	"serverless.xyz/outrigger/routing"
)

// Question is what is to be found out about the weights in force.
type Question struct {
	// Rollout tells whose question it is.
	Rollout types.NamespacedName
	// Matter changes with everything that makes earlier answers worthless: the spec, the attempt, the weights, the stable
	// side.
	Matter string
	// Analysis is that of the rollout, and Holds the number of its steps that set a weight.
	Analysis v1alpha1.RolloutAnalysis
	Holds    int
	// StableService and CanaryService are the Deployments of the sides, named like their Services but in Knative mode.
	StableService, CanaryService string
	// From is since when requests count, and At until when.
	From, At time.Time
	// Cold are the canary's pods whose warm-up has not ended, of which no request counts, and Late those whose warm-up
	// ended after From; their requests count since LateFrom.
	Cold, Late []string
	LateFrom   time.Time
	// StableFrom and StableTo are the time of stable's requests: the same, or an earlier one if stable has none now.
	StableFrom, StableTo time.Time
	// Overdue tells that a metric without any data should have had some by now.
	Overdue bool
}

// Answer is what was found out.
type Answer struct {
	// Verdicts are those of the metrics, in their order.
	Verdicts []v1alpha1.MetricVerdict
	// Samples is the least number of the canary's requests that a metric counted, of those that are no dry run.
	Samples int64
}

// Source gives numbers. It is a Prometheus.
type Source interface {
	// Number evaluates an expression that gives one number, and reports false if it gives none.
	Number(ctx context.Context, query string, at time.Time) (float64, bool, error)
	// Buckets evaluates an expression that gives a number for every value of the label le.
	Buckets(ctx context.Context, query string, at time.Time) (map[float64]float64, error)
	// Series evaluates an expression at every step from one time to another.
	Series(ctx context.Context, query string, from, to time.Time, step time.Duration) ([]prometheus.Point, error)
}

// Measure asks a source for all metrics at once. One that cannot be read makes its verdict an Error, and takes no time
// from the others.
func Measure(ctx context.Context, source Source, q *Question) Answer {
	return q.answer(func(m *measurement) v1alpha1.MetricVerdict { return m.verdict(ctx, source) })
}

// answer puts an answer together from the verdicts that judge gives, each in a goroutine of its own.
func (q *Question) answer(judge func(*measurement) v1alpha1.MetricVerdict) Answer {
	metrics := q.Analysis.Metrics
	answer := Answer{Verdicts: make([]v1alpha1.MetricVerdict, len(metrics))}
	var all sync.WaitGroup
	for i := range metrics {
		all.Go(func() {
			answer.Verdicts[i] = judge(&measurement{Question: q, metric: &metrics[i], probe: probeOf(&metrics[i])})
		})
	}
	all.Wait()
	counted := false
	for i, verdict := range answer.Verdicts {
		if probeOf(&metrics[i]).value == nil && !verdict.DryRun && (!counted || verdict.Samples < answer.Samples) {
			answer.Samples, counted = verdict.Samples, true
		}
	}
	return answer
}

// overdueIntervals is after how many intervals a metric should have had some data.
const overdueIntervals = 5

// questionOf is what is to be found out about a rollout now, nil if nothing.
func questionOf(rollout *v1alpha1.CanaryRollout, seen observed, now time.Time) *Question {
	s, analysis := &rollout.Status, rollout.Spec.Analysis
	switch s.Phase {
	case v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding, v1alpha1.PhaseBaking:
	default:
		return nil
	}
	if s.Weights.Applied == nil || s.Weights.Applied.Canary == 0 || s.Weights.LastAppliedTime == nil || s.Step == nil {
		return nil
	}
	since := s.Weights.LastAppliedTime
	if s.Attempt.RecountTime != nil && since.Before(s.Attempt.RecountTime) {
		since = s.Attempt.RecountTime
	}
	q := &Question{
		Rollout: types.NamespacedName{Namespace: rollout.Namespace, Name: rollout.Name},
		Matter: fmt.Sprintf("%s/%d/%d/%d/%d", rollout.UID, rollout.Generation, s.Attempt.Number,
			since.Unix(), s.Weights.Applied.Canary),
		Analysis:      *analysis,
		StableService: seen.stable.workload,
		CanaryService: seen.canary.workload,
		From:          since.Add(analysis.Settle.Duration),
		At:            now,
	}
	q.StableFrom, q.StableTo = q.From, q.At
	if s.Weights.Applied.Stable == 0 {
		q.StableFrom, q.StableTo = lastShared(s.History, analysis.Settle.Duration)
	}
	hold := time.Duration(0)
	for i, step := range rollout.Spec.Strategy.Steps {
		if step.SetPercent != nil {
			q.Holds++
		}
		if i == int(s.Step.Index) && step.Hold != nil && step.Hold.Duration != nil {
			hold = step.Hold.Duration.Duration
		}
	}
	q.leaveOut(seen.warmth.Counts)
	q.Overdue = now.Sub(q.From) >= max(hold, overdueIntervals*analysis.Interval.Duration)
	return q
}

// leaveOut has no warm-up request count, given since when the canary's pods have had others. A moment is told like that of
// weights: a scrape must have passed.
func (q *Question) leaveOut(warmed map[string]time.Time) {
	for _, pod := range slices.Sorted(maps.Keys(warmed)) {
		since := warmed[pod].Add(q.Analysis.Settle.Duration)
		switch {
		case warmed[pod].IsZero():
			q.Cold = append(q.Cold, pod)
		case since.After(q.From):
			q.Late = append(q.Late, pod)
			if since.After(q.LateFrom) {
				q.LateFrom = since
			}
		}
	}
}

// lastShared is the last time at which stable had requests, too: what a canary with all of them is compared with.
func lastShared(history []v1alpha1.WeightPeriod, settle time.Duration) (from, to time.Time) {
	for _, period := range slices.Backward(history) {
		if period.Percent < 100 && period.From != nil && period.To != nil {
			return period.From.Add(settle), period.To.Time
		}
	}
	return time.Time{}, time.Time{}
}

// evidence is what an answer comes to.
func (a *Answer) evidence() routing.Evidence {
	e := routing.Evidence{Verdicts: a.Verdicts, Samples: a.Samples}
	var results []routing.Result
	for _, verdict := range a.Verdicts {
		if !verdict.DryRun {
			results = append(results, verdict.Result)
		}
	}
	e.Result = routing.Combine(results...)
	for _, verdict := range a.Verdicts {
		if !verdict.DryRun && verdict.Result == e.Result && e.Result != routing.ResultPass {
			e.Why = fmt.Sprintf("Metric %s: %s.", verdict.Metric, strings.TrimSuffix(verdict.Message, "."))
			break
		}
	}
	return e
}

// measurement is one metric being measured.
type measurement struct {
	*Question
	metric *v1alpha1.AnalysisMetric
	probe  probe
	source Source
}

// finding is what a measurement found.
type finding struct {
	interval routing.Interval
	// bound is the most that is tolerated; where too little is bad, both are negated.
	bound float64
	// samples is the number of the canary's requests or intervals.
	samples float64
	// enough is how many samples it takes to pass, and enoughToFail to fail.
	enough, enoughToFail float64
	// unit writes the interval's numbers.
	unit unit
	// about says what is measured, and caveat what keeps it from being told better.
	about, caveat string
}

func (m *measurement) verdict(ctx context.Context, source Source) v1alpha1.MetricVerdict {
	m.source = source
	v := v1alpha1.MetricVerdict{Metric: m.metric.Name, DryRun: m.metric.DryRun}
	var found finding
	err := m.outOfReach(ctx)
	switch {
	case err != nil:
	case m.metric.BurnRate != nil:
		found, err = m.burnRate(ctx)
	case m.probe.share != nil:
		found, err = m.share(ctx)
	case m.probe.histogram != nil:
		found, err = m.histogram(ctx)
	case m.probe.value != nil:
		found, err = m.value(ctx)
	default:
		err = fmt.Errorf("builtin %q is unknown to this release", m.metric.Builtin)
	}
	if err != nil {
		v.Result, v.Message = routing.ResultError, clip(err.Error())
		return v
	}
	v.Samples = int64(found.samples)
	v.Bound = found.unit.write(found.bound)
	if found.samples > 0 {
		v.Estimate = found.unit.write(found.interval.Estimate)
		v.Interval = found.unit.write(found.interval.Low) + " to " + found.unit.write(found.interval.High)
	}
	v.Result, v.Message = m.judge(found)
	return v
}

// outOfReach tells why nothing could be read, while no request counts yet and so nothing else is asked: an address that is
// wrong is told when the first weights are in force, not minutes later.
func (m *measurement) outOfReach(ctx context.Context) error {
	if m.At.Sub(m.From) >= time.Second {
		return nil
	}
	_, _, err := m.source.Number(ctx, "vector(0)", m.At)
	return err //nolint:wrapcheck // it is told as it is, like those of the metrics.
}

// judge turns a finding into a verdict.
func (m *measurement) judge(found finding) (routing.Result, string) {
	if found.samples <= 0 {
		switch {
		case m.Overdue && m.Analysis.OnNoData == v1alpha1.NoDataPass:
			return routing.ResultPass, ""
		case m.Overdue && m.Analysis.OnNoData == v1alpha1.NoDataFail:
			return routing.ResultFail, "there is no data of the canary, and onNoData says Fail"
		default:
			return routing.ResultInconclusive, "there is no data of the canary"
		}
	}
	result := routing.Judge(found.interval, found.bound)
	switch {
	case result == routing.ResultFail && found.samples >= found.enoughToFail:
		return result, fmt.Sprintf("%s is %s, proved to be beyond %s", found.about,
			found.unit.write(found.interval.Estimate), found.unit.write(found.bound))
	case result == routing.ResultPass && found.samples >= found.enough:
		return result, ""
	case found.samples < found.enough:
		return routing.ResultInconclusive, fmt.Sprintf("%.0f of %.0f samples", found.samples, found.enough)
	default:
		return routing.ResultInconclusive, fmt.Sprintf(
			"%s may be on either side of %s%s", found.about, found.unit.write(found.bound), found.caveat)
	}
}

// alpha is the part of alpha that one metric has in one hold.
func (m *measurement) alpha() float64 {
	tests := 0
	for i := range m.Analysis.Metrics {
		if one := &m.Analysis.Metrics[i]; one.BurnRate == nil && !one.DryRun {
			tests++
		}
	}
	return routing.ShareOfAlpha(number(m.Analysis.Alpha), tests, m.Holds)
}

func (m *measurement) share(ctx context.Context) (finding, error) {
	canary, err := m.counts(ctx, m.CanaryService, m.From, m.At)
	if err != nil {
		return finding{}, err
	}
	found := finding{samples: canary.Total, enough: float64(m.Analysis.MinSamples), unit: percent, about: "the share"}
	if t := m.metric.Threshold; t != nil {
		found.interval, found.bound = against(routing.Rate(canary, m.alpha()), t)
		return found.signed(t), nil
	}
	stable, err := m.counts(ctx, m.StableService, m.StableFrom, m.StableTo)
	if err != nil {
		return finding{}, err
	}
	found.interval, found.bound = routing.RateDifference(stable, canary, m.alpha()), number(m.metric.Compare.MaxIncrease)
	found.unit, found.about = points, "the difference from stable"
	return found, nil
}

// counts asks for the requests of a side, and those that are events.
func (m *measurement) counts(ctx context.Context, service string, from, to time.Time) (routing.Counts, error) {
	window := to.Sub(from).Truncate(time.Second) // a query tells seconds
	if window < time.Second {
		return routing.Counts{}, nil
	}
	to = from.Add(window)
	ask := func(selector string) (float64, error) {
		count, _, err := m.source.Number(ctx, "sum("+m.growth(selector, service, from, to)+")", to)
		return count, err
	}
	total, err := ask(m.probe.share.Total)
	if err != nil {
		return routing.Counts{}, err
	}
	events, err := ask(m.probe.share.Events)
	if err == nil && m.probe.also != "" {
		more, failed := ask(m.probe.also)
		events, err = events+more, failed
	}
	if m.probe.apart {
		total += events
	}
	return routing.Counts{Events: events, Total: total}, err
}

func (m *measurement) histogram(ctx context.Context) (finding, error) {
	canary, err := m.buckets(ctx, m.CanaryService, m.From, m.At)
	if err != nil {
		return finding{}, err
	}
	of := number(m.probe.histogram.Quantile)
	found := finding{
		samples: canary.Total(), enough: float64(m.Analysis.MinSamples), unit: plain,
		about: fmt.Sprintf("the %s quantile", m.probe.histogram.Quantile),
	}
	if t := m.metric.Threshold; t != nil {
		found.interval, found.bound = against(routing.Quantile(canary, of, m.alpha()), t)
		return found.signed(t), nil
	}
	stable, err := m.buckets(ctx, m.StableService, m.StableFrom, m.StableTo)
	if err != nil {
		return finding{}, err
	}
	found.unit, found.bound = percent, float64(*m.metric.Compare.MaxIncreasePercent)/100
	if m.metric.Compare.Test == v1alpha1.TestMannWhitney {
		found.interval, found.about = routing.MannWhitney(stable, canary, m.alpha()), "the growth over stable"
		found.enoughToFail = fewRanks
		return found, nil
	}
	found.interval = routing.QuantileIncrease(stable, canary, of, m.alpha())
	found.about += "'s growth over stable"
	return found, nil
}

// fewRanks is how many requests the normal approximation of MannWhitney takes.
const fewRanks = 50

func (m *measurement) buckets(ctx context.Context, service string, from, to time.Time) (routing.Histogram, error) {
	window := to.Sub(from).Truncate(time.Second)
	if window < time.Second {
		return routing.Histogram{}, nil
	}
	to = from.Add(window)
	growth := m.growth(m.probe.histogram.Buckets, service, from, to)
	buckets, err := m.source.Buckets(ctx, "sum by (le) ("+growth+")", to)
	if err != nil {
		return routing.Histogram{}, err
	}
	return routing.NewHistogram(buckets), nil
}

// value compares interval by interval: in how many of them the canary was beyond the bound, against one half.
func (m *measurement) value(ctx context.Context) (finding, error) {
	canary, err := m.series(ctx, m.CanaryService, m.From, m.At)
	if err != nil {
		return finding{}, err
	}
	var stable []prometheus.Point
	if m.metric.Compare != nil {
		if stable, err = m.series(ctx, m.StableService, m.StableFrom, m.StableTo); err != nil {
			return finding{}, err
		}
	}
	var at [4]float64
	for _, point := range canary {
		at[m.place(point, stable)]++
	}
	// Where nobody can tell, the truth is between none of them being beyond the bound, and all.
	least := routing.Counts{Events: at[beyond], Total: at[within] + at[beyond] + at[undecided]}
	greatest := routing.Counts{Events: at[beyond] + at[undecided], Total: least.Total}
	low, high := routing.Rate(least, m.alpha()), routing.Rate(greatest, m.alpha())
	found := finding{
		interval: routing.Interval{Estimate: high.Estimate, Low: low.Low, High: high.High},
		bound:    0.5,
		samples:  least.Total,
		unit:     whole,
		about:    "the share of intervals beyond the bound",
	}
	if at[undecided] > 0 {
		found.caveat = fmt.Sprintf("; in %.0f of them stable's value is 0, of which there is no percentage: give a threshold",
			at[undecided])
	}
	return found, nil
}

// place is where a value is.
type place int

const (
	// unknown is where there is nothing to compare a value with.
	unknown place = iota
	// within and beyond are the two sides of the bound.
	within
	beyond
	// undecided is where the value differs, and the bound is a percentage of nothing.
	undecided
)

// place tells on which side of the bound a value is.
func (m *measurement) place(point prometheus.Point, stable []prometheus.Point) place {
	if t := m.metric.Threshold; t != nil {
		if t.Max != "" {
			return beyondIf(point.Value > number(t.Max))
		}
		return beyondIf(point.Value < number(t.Min))
	}
	base, ok := baseline(point.At, stable)
	change := point.Value - base
	if m.metric.Compare.MaxDecreasePercent != nil {
		change = -change
	}
	switch {
	case !ok:
		return unknown
	case change <= 0:
		return within
	case !(base > 0):
		return undecided
	case m.metric.Compare.MaxDecreasePercent != nil:
		return beyondIf(change > base*float64(*m.metric.Compare.MaxDecreasePercent)/100)
	default:
		return beyondIf(change > base*float64(*m.metric.Compare.MaxIncreasePercent)/100)
	}
}

func beyondIf(is bool) place {
	if is {
		return beyond
	}
	return within
}

// baseline is stable's value at a time, or the mean of its values if they are from another time.
func baseline(at time.Time, stable []prometheus.Point) (float64, bool) {
	sum := 0.0
	for _, point := range stable {
		if point.At.Equal(at) {
			return point.Value, true
		}
		sum += point.Value
	}
	if len(stable) == 0 || !stable[len(stable)-1].At.Before(at) {
		return 0, false
	}
	return sum / float64(len(stable)), true
}

// maxPoints is how many values of a series are asked for at most. Prometheus refuses to give more than 11000, which a bake
// of two days has.
const maxPoints = 10_000

func (m *measurement) series(ctx context.Context, service string, from, to time.Time) ([]prometheus.Point, error) {
	interval := m.Analysis.Interval.Duration
	step := interval * (1 + to.Sub(from)/(interval*maxPoints))
	if to.Sub(from) < step {
		return nil, nil
	}
	return m.source.Series(ctx, m.expand(m.probe.value.Query, service, "", rateWindow(interval)), from.Add(step), to, step)
}

// rateWindow is what $window stands for in a value's query.
func rateWindow(interval time.Duration) time.Duration { return max(4*interval, time.Minute) }

// burnRate finds the lowest of the windows' burn rates, and proves nothing.
func (m *measurement) burnRate(ctx context.Context) (finding, error) {
	b := m.metric.BurnRate
	found := finding{
		enough: float64(m.Analysis.MinSamples), enoughToFail: float64(m.Analysis.MinSamples),
		bound: number(b.Max), unit: times, about: "the burn rate",
	}
	lowest := math.Inf(1)
	for _, text := range b.Windows {
		window, err := time.ParseDuration(text)
		if err != nil {
			return finding{}, fmt.Errorf("window %q is no duration", text)
		}
		from := m.At.Add(-window)
		if from.Before(m.From) {
			from = m.From
		}
		c, err := m.counts(ctx, m.CanaryService, from, m.At)
		if err != nil {
			return finding{}, err
		}
		found.samples = max(found.samples, c.Total)
		if c.Total <= 0 {
			return finding{bound: found.bound, unit: found.unit}, nil
		}
		lowest = min(lowest, c.Events/c.Total/(1-number(b.Objective)))
	}
	found.interval = routing.Interval{Estimate: lowest, Low: lowest, High: lowest}
	return found, nil
}

// against turns an interval so that more is worse.
func against(i routing.Interval, t *v1alpha1.ThresholdBound) (routing.Interval, float64) {
	if t.Max != "" {
		return i, number(t.Max)
	}
	return i.Negate(), -number(t.Min)
}

// signed has the numbers of a finding that was turned be written as they are.
func (f finding) signed(t *v1alpha1.ThresholdBound) finding {
	f.unit.sign = 1
	if t.Max == "" {
		f.unit.sign = -1
	}
	f.unit.plus = false
	return f
}

// growth is a PromQL expression for how much the counters of a side have grown from one time to another, at the other.
// What warm-up requests added is left out.
func (m *measurement) growth(selector, service string, from, to time.Time) string {
	window := to.Sub(from)
	if service != m.CanaryService || len(m.Cold)+len(m.Late) == 0 {
		return grown(m.expand(selector, service, "", window), window)
	}
	others := grown(m.expand(selector, service, m.pods("!~", append(slices.Clone(m.Cold), m.Late...)), window), window)
	since := m.LateFrom
	if since.Before(from) {
		since = from
	}
	late := to.Sub(since).Truncate(time.Second)
	if len(m.Late) == 0 || late < time.Second {
		return others
	}
	return others + " or " + grown(m.expand(selector, service, m.pods("=~", m.Late), late), late)
}

// pods is a further matcher of labels, for some pods or for all others.
func (m *measurement) pods(operator string, names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	return fmt.Sprintf(`,%s%s%q`, m.Analysis.Prometheus.PodLabel, operator, strings.Join(quoted, "|"))
}

// memory is how far before a window a series is looked for that has no value at its beginning, such as one whose target
// could not be scraped then.
const memory = "15m"

// grown is a PromQL expression for how much counters have grown over a window. It is exact for series that were there
// before and have not been reset, and for those that began within the window, which increase() would count only from
// their second sample on; of the others it takes what increase() makes of them. A series is taken for one that began only
// if Prometheus knows what there was at that time: one that had not yet come, was down, or has deleted it since, would
// have all that was ever counted be of this window.
func grown(selector string, window time.Duration) string {
	return fmt.Sprintf("((%[1]s - %[1]s offset %[2]s) >= 0)"+
		" or (%[1]s unless last_over_time(%[1]s["+memory+"] offset %[2]s) and on() (absent(up) or count(up offset %[2]s)))"+
		" or increase(%[1]s[%[2]s])", selector, seconds(window))
}

// expand fills in what stands for a side, with a further matcher of its pods.
func (m *measurement) expand(query, service, pods string, window time.Duration) string {
	p := m.Analysis.Prometheus
	side := fmt.Sprintf(`%s=%q,%s=~"%s-[a-z0-9]+-[a-z0-9]{5}"`, p.NamespaceLabel, m.Rollout.Namespace, p.PodLabel, service)
	return strings.NewReplacer(
		"$side", side+pods, "$pods", pods, "$service", service, "$namespace", m.Rollout.Namespace, "$window", seconds(window),
	).Replace(query)
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second)) + "s" }

// number reads a number that the API server has checked.
func number(text string) float64 {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return n
}

// clip bounds a message.
func clip(text string) string {
	const most = 240
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}

// unit writes numbers.
type unit struct {
	factor float64
	suffix string
	plus   bool
	sign   float64
}

var (
	percent = unit{factor: 100, suffix: "%", plus: true, sign: 1}
	points  = unit{factor: 100, suffix: " points", plus: true, sign: 1}
	whole   = unit{factor: 100, suffix: "%", sign: 1}
	plain   = unit{factor: 1, sign: 1}
	times   = unit{factor: 1, suffix: "x", sign: 1}
)

func (u unit) write(n float64) string {
	n *= u.factor * u.sign
	switch {
	case math.IsNaN(n):
		return "unknown"
	case math.IsInf(n, 0):
		return "unbounded"
	case u.plus && n >= 0:
		return "+" + strconv.FormatFloat(n, 'g', 3, 64) + u.suffix
	default:
		return strconv.FormatFloat(n, 'g', 3, 64) + u.suffix
	}
}
