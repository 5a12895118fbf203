// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/prometheus"
)

// Bounds of measuring.
const (
	// measurers is how many metrics are measured at once by one Prometheus, of all rollouts.
	measurers = 8
	// queue is how many may wait for that.
	queue = 1024
	// patience is how long a Prometheus may take for one metric of a rollout.
	patience = 10 * time.Second
)

// Analyst answers questions about canaries, apart from the reconciler: a Prometheus that hangs delays its own verdicts and
// nothing else. What it remembers can be lost at any time; it is asked again then.
type Analyst struct {
	fallback string
	connect  func(url string) (Source, error)
	jobs     chan *Question
	answered chan event.GenericEvent

	mu      sync.Mutex
	files   map[types.NamespacedName]*file
	sources map[string]asked
}

// asked is a Prometheus, and the turns of those that ask it.
type asked struct {
	Source

	turns chan struct{}
}

// file is what is known of a rollout.
type file struct {
	matter string
	asked  time.Time
	busy   bool
	answer *Answer
	// answered is the time that the answer speaks of.
	answered time.Time
}

// NewAnalyst returns an Analyst. Rollouts that name no Prometheus of their own ask the one at url; it may be empty.
func NewAnalyst(url string) *Analyst {
	return &Analyst{
		fallback: url,
		connect:  func(url string) (Source, error) { return prometheus.New(url) },
		jobs:     make(chan *Question, queue),
		answered: make(chan event.GenericEvent, queue),
		files:    map[types.NamespacedName]*file{},
		sources:  map[string]asked{},
	}
}

// Start measures until the context ends.
func (a *Analyst) Start(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-a.jobs: // one at a time of each rollout
			workers.Go(func() { a.work(ctx, q) })
		}
	}
}

// Ask returns the last answer to a question's matter, nil if there is none yet or only one of long ago, and after how long
// it is to be asked again. It never waits.
func (a *Analyst) Ask(q *Question) (*Answer, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.files[q.Rollout]
	if f == nil || f.matter != q.Matter {
		a.tidy(q.At)
		f = &file{matter: q.Matter}
		a.files[q.Rollout] = f
	}
	interval := q.Analysis.Interval.Duration
	if q.At.Sub(f.answered) > 2*interval+time.Minute {
		f.answer = nil
	}
	if wait := f.asked.Add(interval).Sub(q.At); !f.asked.IsZero() && wait > 0 || f.busy {
		return f.answer, max(wait, time.Second)
	}
	select {
	case a.jobs <- q:
		f.asked, f.busy = q.At, true
	default: // too many are waiting
	}
	return f.answer, interval
}

// tidy drops what nobody has asked for in an hour.
func (a *Analyst) tidy(now time.Time) {
	for rollout, f := range a.files {
		if now.Sub(f.asked) > time.Hour {
			delete(a.files, rollout)
		}
	}
}

// work answers a question and wakes its rollout.
func (a *Analyst) work(ctx context.Context, q *Question) {
	source := a.source(q)
	answer := q.answer(func(m *measurement) v1alpha1.MetricVerdict {
		select {
		case source.turns <- struct{}{}:
		case <-ctx.Done():
			return v1alpha1.MetricVerdict{}
		}
		defer func() { <-source.turns }()
		deadline, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return m.verdict(deadline, source)
	})
	if ctx.Err() != nil {
		return
	}
	a.mu.Lock()
	if f := a.files[q.Rollout]; f != nil && f.matter == q.Matter {
		f.answer, f.answered, f.busy = &answer, q.At, false
	}
	a.mu.Unlock()
	wake := event.GenericEvent{Object: &v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{Namespace: q.Rollout.Namespace, Name: q.Rollout.Name},
		Status:     v1alpha1.CanaryRolloutStatus{RolloutProgress: v1alpha1.RolloutProgress{Verdicts: answer.Verdicts}},
	}}
	select {
	case a.answered <- wake:
	case <-ctx.Done():
	}
}

// source returns the Prometheus that a question is for.
func (a *Analyst) source(q *Question) asked {
	url := q.Analysis.Prometheus.URL
	if url == "" {
		url = a.fallback
	}
	if url == "" {
		return unasked("analysis.prometheus.url is not set, and the manager was started without --prometheus-url")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if known, ok := a.sources[url]; ok {
		return known
	}
	connected, err := a.connect(url)
	if err != nil {
		return unasked(err.Error())
	}
	if len(a.sources) >= queue {
		clear(a.sources) // nobody has that many; somebody changes the address all the time
	}
	a.sources[url] = asked{connected, make(chan struct{}, measurers)}
	return a.sources[url]
}

func unasked(why string) asked { return asked{nowhere(why), make(chan struct{}, measurers)} }

// nowhere is a source that cannot be asked, and says why.
type nowhere string

// Error implements error.
func (n nowhere) Error() string { return string(n) }

// Number implements Source.
func (n nowhere) Number(context.Context, string, time.Time) (float64, bool, error) {
	return 0, false, n
}

// Buckets implements Source.
func (n nowhere) Buckets(context.Context, string, time.Time) (map[float64]float64, error) {
	return nil, n
}

// Series implements Source.
func (n nowhere) Series(context.Context, string, time.Time, time.Time, time.Duration) ([]prometheus.Point, error) {
	return nil, n
}
