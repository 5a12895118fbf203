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
	// measurers is how many rollouts are measured at once.
	measurers = 8
	// queue is how many may wait for that.
	queue = 1024
	// patience is how long a Prometheus may take for all metrics of a rollout.
	patience = 10 * time.Second
)

// Analyst answers questions about canaries, apart from the reconciler: a Prometheus that hangs delays verdicts and
// nothing else. What it remembers can be lost at any time; it is asked again then.
type Analyst struct {
	fallback string
	connect  func(url string) (Source, error)
	jobs     chan *Question
	answered chan event.GenericEvent

	mu      sync.Mutex
	files   map[types.NamespacedName]*file
	sources map[string]Source
}

// file is what is known of a rollout.
type file struct {
	matter string
	asked  time.Time
	busy   bool
	answer *Answer
}

// NewAnalyst returns an Analyst. Rollouts that name no Prometheus of their own ask the one at url; it may be empty.
func NewAnalyst(url string) *Analyst {
	return &Analyst{
		fallback: url,
		connect:  func(url string) (Source, error) { return prometheus.New(url) },
		jobs:     make(chan *Question, queue),
		answered: make(chan event.GenericEvent, queue),
		files:    map[types.NamespacedName]*file{},
		sources:  map[string]Source{},
	}
}

// Start measures until the context ends.
func (a *Analyst) Start(ctx context.Context) error {
	var workers sync.WaitGroup
	for range measurers {
		workers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case q := <-a.jobs:
					a.work(ctx, q)
				}
			}
		})
	}
	workers.Wait()
	return nil
}

// Ask returns the last answer to a question's matter, nil if there is none yet, and after how long it is to be asked
// again. It never waits.
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
	deadline, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer := Measure(deadline, a.source(q), q)
	if ctx.Err() != nil {
		return
	}
	a.mu.Lock()
	if f := a.files[q.Rollout]; f != nil && f.matter == q.Matter {
		f.answer, f.busy = &answer, false
	}
	a.mu.Unlock()
	wake := event.GenericEvent{Object: &v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{Namespace: q.Rollout.Namespace, Name: q.Rollout.Name},
	}}
	select {
	case a.answered <- wake:
	case <-ctx.Done():
	}
}

// source returns the Prometheus that a question is for.
func (a *Analyst) source(q *Question) Source {
	url := q.Analysis.Prometheus.URL
	if url == "" {
		url = a.fallback
	}
	if url == "" {
		return nowhere("analysis.prometheus.url is not set, and the manager was started without --prometheus-url")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if known := a.sources[url]; known != nil {
		return known
	}
	connected, err := a.connect(url)
	if err != nil {
		return nowhere(err.Error())
	}
	if len(a.sources) >= queue {
		clear(a.sources) // nobody has that many; somebody changes the address all the time
	}
	a.sources[url] = connected
	return connected
}

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
