// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"sync"
	"sync/atomic"
	"time"
)

// progress counts what the pull of one pair has done so far. Its counters may be
// read and changed from any goroutine.
type progress struct {
	// total and done count bytes of files; done are those that have arrived, and
	// what was resumed.
	total, done atomic.Int64
	// resumed counts bytes that an earlier run had brought.
	resumed atomic.Int64
	// reused counts bytes that came from the node's cache.
	reused atomic.Int64
	// fetched counts bytes that came over the network, also those that were
	// thrown away.
	fetched atomic.Int64
	// wanted counts the files of the model, files those finished by this run, and
	// skipped those found in place.
	wanted, files, skipped atomic.Int64
	retries                atomic.Int64
	// overtaken counts spans that another connection took over.
	overtaken atomic.Int64
	// kept counts bytes that were copied for other pods of the node.
	kept atomic.Int64
	// moving is true while bytes are being brought.
	moving atomic.Bool
}

// moved changes whenever the run comes on.
func (p *progress) moved() int64 {
	return p.fetched.Load() + p.reused.Load() + p.kept.Load() + p.files.Load() + p.done.Load()
}

// Status is where a run stands, over all its pairs so far.
type Status struct {
	// Files and Bytes count what the models come to, ReadyFiles what is in place.
	Files, ReadyFiles int64
	Bytes, ReadyBytes int64
	// FetchedBytes came over the network, ResumedBytes were there from an earlier
	// run, of files that it had not finished, and ReusedBytes came from the node's cache.
	FetchedBytes, ResumedBytes, ReusedBytes int64
	// Retries counts requests that were made again.
	Retries int64
	// Moving is true while bytes are being brought.
	Moving bool
}

// Meter adds up what a run does, for whoever watches it while it runs. Its
// methods may be called from any goroutine; a nil Meter counts nothing.
type Meter struct {
	mu    sync.Mutex
	pairs []*progress
}

func (m *Meter) watch(p *progress) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pairs = append(m.pairs, p)
}

// Status returns where the run stands now.
func (m *Meter) Status() Status {
	var s Status
	if m == nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pairs {
		s.Files += p.wanted.Load()
		s.ReadyFiles += p.files.Load() + p.skipped.Load()
		s.Bytes += p.total.Load()
		s.ReadyBytes += p.done.Load()
		s.FetchedBytes += p.fetched.Load()
		s.ResumedBytes += p.resumed.Load()
		s.ReusedBytes += p.reused.Load()
		s.Retries += p.retries.Load()
		s.Moving = s.Moving || p.moving.Load()
	}
	return s
}

// speed tells how fast a counter has grown lately.
type speed struct {
	samples []speedSample
}

type speedSample struct {
	at    time.Time
	bytes int64
}

// lately is how far back speed looks: long enough that an estimate does not jump.
const lately = 15 * time.Second

// add takes a reading of the counter and returns bytes a second since the oldest
// reading that is not too old, or 0 if there is none before.
func (s *speed) add(at time.Time, bytes int64) float64 {
	for len(s.samples) > 1 && at.Sub(s.samples[1].at) >= lately {
		s.samples = s.samples[1:]
	}
	s.samples = append(s.samples, speedSample{at, bytes})
	first := s.samples[0]
	if took := at.Sub(first.at).Seconds(); took > 0 {
		return float64(bytes-first.bytes) / took
	}
	return 0
}

// left estimates how long the rest takes at this rate; false if that cannot be told.
func (s Status) left(rate float64) (time.Duration, bool) {
	if rate <= 0 {
		return 0, false
	}
	seconds := float64(s.Bytes-s.ReadyBytes) / rate
	return time.Duration(seconds * float64(time.Second)).Round(time.Second), seconds < 1e8
}

func percent(part, whole int64) int64 {
	if whole <= 0 {
		return 100
	}
	return int64(float64(part) / float64(whole) * 100)
}
