// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Bounds of warming.
const (
	// turns is how many pods are warmed at once, and turn how long one may keep others from it: after that it goes on
	// beside them, so that pods which hang hold nobody up. most bounds all of them, stovesEach those of one rollout.
	turns      = 32
	turn       = 2 * time.Second
	most       = 1024
	stovesEach = 4
	// maxReply bounds what is read of an answer, in bytes.
	maxReply = 16 << 20
	// coldFor is how long requests to a pod that is being warmed for the first time may go uncounted: one that hangs must not
	// hide what its callers meet.
	coldFor = time.Minute
	// warmAgain is how long a pod is left alone that did not answer as it should.
	warmAgain = 10 * time.Second
)

// Stove warms pods, apart from the reconciler: a pod that hangs delays its own rollout and nothing else. What it remembers
// can be lost at any time: pods are then asked again, and a share that is in force stays.
type Stove struct {
	client *http.Client
	clock  clock.PassiveClock
	jobs   chan heating
	warmed chan event.GenericEvent

	mu    sync.Mutex
	stock map[types.NamespacedName]*batch
}

// batch is what is known of the pods of a rollout's canary.
type batch struct {
	matter string
	asked  time.Time
	pods   map[Pod]*heat
	// counts is since when requests to a pod are not warm-up requests, also of pods that are not ready any more: one that
	// comes and goes must not hide what it did before.
	counts map[Pod]counting
}

// counting is since when requests to a pod count.
type counting struct {
	since time.Time
	warm  bool
}

// heat is what is known of a pod.
type heat struct {
	warm, busy bool
	failure    string
	seen       time.Time
	again      time.Time
}

// heating is one pod to warm.
type heating struct {
	*Warming

	pod Pod
}

// NewStove returns a Stove. It goes directly to the pods, whatever proxy the environment names.
func NewStove(clk clock.PassiveClock) *Stove {
	return &Stove{
		clock: clk,
		client: &http.Client{
			Transport:     &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		jobs:   make(chan heating, queue),
		warmed: make(chan event.GenericEvent, queue),
		stock:  map[types.NamespacedName]*batch{},
	}
}

// Start warms pods until the context ends.
func (s *Stove) Start(ctx context.Context) error {
	var under sync.WaitGroup
	defer under.Wait()
	room, turned := make(chan struct{}, most), make(chan struct{}, turns)
	for {
		for _, slots := range []chan struct{}{room, turned} {
			select {
			case <-ctx.Done():
				return nil
			case slots <- struct{}{}:
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case job := <-s.jobs:
			under.Go(func() {
				yield := sync.OnceFunc(func() { <-turned })
				late := time.AfterFunc(turn, yield)
				s.work(ctx, job)
				late.Stop()
				yield()
				<-room
			})
		}
	}
}

// Warm implements Warmer. A pod that is not ready any more is forgotten: when it is ready again it may have started anew.
func (s *Stove) Warm(w *Warming) Warmth {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.stock[w.Rollout]
	if b == nil || b.matter != w.Matter {
		s.tidy(w.At)
		b = &batch{matter: w.Matter, counts: map[Pod]counting{}}
		s.stock[w.Rollout] = b
	}
	b.asked = w.At
	known := make(map[Pod]*heat, len(w.Pods))
	busy := 0
	for _, pod := range w.Pods {
		if known[pod] = b.pods[pod]; known[pod] == nil {
			known[pod] = &heat{seen: w.At}
		}
		if known[pod].busy {
			busy++
		}
	}
	b.pods = known
	b.forget()
	told := Warmth{Asked: len(w.Pods) > 0, Counts: make(map[string]time.Time, len(w.Pods))}
	for _, pod := range w.Pods {
		h := known[pod]
		if w.At.Sub(h.seen) >= coldFor {
			b.count(pod, h.warm, w.At)
		}
		told.Counts[pod.Name] = b.counts[pod].since
		if h.warm {
			told.Warm++
			continue
		}
		if told.Failure == "" && h.failure != "" {
			told.Failure = h.failure
		}
		if !h.busy && busy < stovesEach && !w.At.Before(h.again) {
			select {
			case s.jobs <- heating{w, pod}:
				h.busy = true
				busy++
			default: // too many are waiting
			}
		}
		told.Again = warmAgain
	}
	return told
}

// maxCounts is of how many pods it is remembered since when their requests count, of those that are ready and those that
// were.
const maxCounts = 1024

// forget drops pods that have been gone for long, if they are many.
func (b *batch) forget() {
	if len(b.counts) > maxCounts {
		maps.DeleteFunc(b.counts, func(pod Pod, _ counting) bool { return b.pods[pod] == nil })
	}
}

// count has the requests to a pod count from a moment on: when it first was warm or, as long as it never was, when that
// first was known. Requests of callers that such a pod fails are as good a proof as any.
func (b *batch) count(pod Pod, warm bool, at time.Time) {
	if before, known := b.counts[pod]; !known || warm && !before.warm {
		b.counts[pod] = counting{since: at, warm: warm}
	}
}

// tidy drops what nobody has asked for in an hour.
func (s *Stove) tidy(now time.Time) {
	for rollout, b := range s.stock {
		if now.Sub(b.asked) > time.Hour {
			delete(s.stock, rollout)
		}
	}
}

// work warms a pod and wakes its rollout.
func (s *Stove) work(ctx context.Context, job heating) {
	began := s.clock.Now()
	err := s.heat(ctx, job)
	if ctx.Err() != nil {
		return
	}
	ended := job.At.Add(s.clock.Since(began))
	s.mu.Lock()
	if b := s.stock[job.Rollout]; b != nil && b.matter == job.Matter {
		b.count(job.pod, err == nil, ended)
		if h := b.pods[job.pod]; h != nil {
			h.busy, h.warm, h.failure = false, err == nil, ""
			if err != nil {
				h.failure = fmt.Sprintf("Pod %s is not warm: it %s.", job.pod.Name, err)
				h.again = ended.Add(warmAgain)
			}
		}
	}
	s.mu.Unlock()
	wake := event.GenericEvent{Object: &v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{Namespace: job.Rollout.Namespace, Name: job.Rollout.Name},
	}}
	select {
	case s.warmed <- wake:
	case <-ctx.Done():
	}
}

// heat sends a pod its requests. An error says what it did, to follow the word "it".
func (s *Stove) heat(ctx context.Context, job heating) error {
	last := time.Duration(0)
	for range job.Warmup.Count {
		began := s.clock.Now()
		if err := s.ask(ctx, job); err != nil {
			return err
		}
		last = s.clock.Since(began)
	}
	if most := job.Warmup.MaxLatency; most != nil && last > most.Duration {
		return fmt.Errorf("took longer than the %s of maxLatency for its last answer", most.Duration)
	}
	return nil
}

// ask sends one request.
func (s *Stove) ask(ctx context.Context, job heating) error {
	ctx, cancel := context.WithTimeout(ctx, job.Warmup.Timeout.Duration)
	defer cancel()
	url := "http://" + net.JoinHostPort(job.pod.Address, strconv.Itoa(int(job.pod.Port))) + job.Warmup.Request.Path
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(job.Warmup.Request.Body))
	if err != nil {
		return errors.New("cannot be asked: warmup.request.path is no path")
	}
	request.Host = job.Host
	request.Header.Set("Content-Type", job.Warmup.Request.ContentType)
	response, err := s.client.Do(request)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("did not answer within %s; a NetworkPolicy may be in the way", job.Warmup.Timeout.Duration)
	case err != nil:
		return errors.New("cannot be reached by the manager; a NetworkPolicy or the mesh's mTLS may be in the way")
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxReply)); err != nil {
		return errors.New("broke off its answer")
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return fmt.Errorf("answered %d to the warm-up request", response.StatusCode)
	}
	return nil
}
