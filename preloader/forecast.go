// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"serverless.xyz/outrigger/preloader/quantity"
)

// Forecast is how fast a pull may be, and what would hold it back. It rests on
// one request of at most 8 MiB, on the time that answers took, and on what
// moving bytes costs a processor; the network is taken to give every connection
// what it gave the one.
type Forecast struct {
	// Bottleneck is cpu, connections or requests: what would be used up first.
	// A disk slower than BytesPerSecond would take its place.
	Bottleneck string `json:"bottleneck"`
	// Seconds is how long fetching would take.
	Seconds float64 `json:"seconds"`
	// BytesPerSecond is the rate that comes to.
	BytesPerSecond float64 `json:"bytesPerSecond"`
	// CPUBytesPerSecond is what the processors allow, and ConnectionBytesPerSecond
	// what the connections do; 0 if that could not be measured.
	CPUBytesPerSecond        float64 `json:"cpuBytesPerSecond"`
	ConnectionBytesPerSecond float64 `json:"connectionBytesPerSecond"`
	// RequestSeconds is the time between a request and its answer.
	RequestSeconds float64 `json:"requestSeconds"`
	CPUs           float64 `json:"cpus"`
	Connections    int     `json:"connections"`
}

// cpuSecondsPerByte is what receiving, checking and writing costs, rounded up
// from what the benchmarks show on current machines.
const cpuSecondsPerByte = 0.6e-9

// pace is what was measured while planning.
type pace struct {
	answers []time.Duration
	// perConnection is in bytes a second; 0 if no file was large enough to tell.
	perConnection float64
}

const (
	longestProbe  = 8 * mebibyte
	shortestProbe = mebibyte
)

// measure fetches the first bytes of the largest file and throws them away.
func (p *pace) measure(ctx context.Context, src source, files []*file) error {
	largest := slices.MaxFunc(files, func(a, b *file) int { return compareInt64(a.object.size, b.object.size) })
	if largest.object.size < shortestProbe {
		return nil
	}
	start := time.Now()
	b, err := src.get(ctx, largest.object, span{n: min(largest.object.size, longestProbe)})
	if err != nil {
		if retryable(err) {
			return nil // passing trouble spoils the forecast, not the plan
		}
		return err
	}
	defer b.Close() //nolint:errcheck // only read
	n, err := io.Copy(io.Discard, b)
	if took := time.Since(start).Seconds(); err == nil && took > 0 {
		p.perConnection = max(p.perConnection, float64(n)/took)
	}
	return nil // a broken connection spoils the forecast, not the plan
}

// forecast predicts the time of a plan; nil if it fetches nothing.
func (p *pace) forecast(plan *Plan, opts Options) *Forecast {
	var todo Amount
	for _, pair := range plan.Pairs {
		todo.Files += pair.Fetch.Files
		todo.Bytes += pair.Fetch.Bytes
	}
	if todo.Files == 0 || len(p.answers) == 0 {
		return nil
	}
	slices.Sort(p.answers)
	conns := opts.Conns
	if p.answers[0] >= farAnswer || p.perConnection > 0 && p.perConnection < fastConnection {
		conns += opts.more
	}
	f := &Forecast{
		CPUs: opts.cpus, Connections: conns, CPUBytesPerSecond: opts.cpus / cpuSecondsPerByte,
		ConnectionBytesPerSecond: p.perConnection * float64(conns),
		RequestSeconds:           p.answers[len(p.answers)/2].Seconds(),
	}
	bytes := float64(todo.Bytes)
	f.longer("cpu", bytes/f.CPUBytesPerSecond)
	if f.ConnectionBytesPerSecond > 0 {
		f.longer("connections", bytes/f.ConnectionBytesPerSecond)
	}
	f.longer("requests", float64(todo.Files)*f.RequestSeconds/float64(conns))
	f.BytesPerSecond = bytes / f.Seconds
	return f
}

// longer keeps the bottleneck that takes the most time.
func (f *Forecast) longer(bottleneck string, seconds float64) {
	if f.Bottleneck == "" || seconds > f.Seconds {
		f.Bottleneck, f.Seconds = bottleneck, seconds
	}
}

// String says it in one line, with what to do about it.
func (f *Forecast) String() string {
	held := map[string]string{
		"cpu":         fmt.Sprintf("held back by the processor (%.3g CPUs); raise the container's CPU limit", f.CPUs),
		"connections": fmt.Sprintf("held back by %d connections of what one gave; raise PRELOADER_CONNS", f.Connections),
		"requests": fmt.Sprintf("held back by the time of %.0f ms a request; pack small files into an archive",
			f.RequestSeconds*1000),
	}[f.Bottleneck]
	took := time.Duration(f.Seconds * float64(time.Second)).Round(10 * time.Millisecond)
	return fmt.Sprintf("about %v at %s/s, %s; a disk slower than that would hold it back instead",
		took, quantity.FormatBytes(int64(f.BytesPerSecond)), held)
}
