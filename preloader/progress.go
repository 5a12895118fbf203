// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// progress counts what a run has done so far. Its counters may be read and
// changed from any goroutine.
type progress struct {
	// total and done count bytes of files; done includes what was resumed.
	total, done atomic.Int64
	// resumed counts bytes that an earlier run had brought.
	resumed atomic.Int64
	// fetched counts bytes that came over the network, also those that were
	// thrown away.
	fetched atomic.Int64
	// files counts files finished, skipped those found in place.
	files, skipped atomic.Int64
	retries        atomic.Int64
	// overtaken counts spans that another connection took over.
	overtaken atomic.Int64
}

// progressEvery is how often a run says where it stands.
const progressEvery = 5 * time.Second

// report logs a line every few seconds until the context ends.
func (p *progress) report(ctx context.Context, log *slog.Logger) {
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	last, lastTime := p.fetched.Load(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			fetched := p.fetched.Load()
			rate := float64(fetched-last) / now.Sub(lastTime).Seconds()
			last, lastTime = fetched, now
			log.Info("Downloading", p.attrs(rate)...)
		}
	}
}

func (p *progress) attrs(rate float64) []any {
	done, total := p.done.Load(), p.total.Load()
	attrs := []any{
		"done", formatBytes(done), "total", formatBytes(total), "percent", percent(done, total),
		"rate", formatBytes(int64(rate)) + "/s", "files", p.files.Load(), "retries", p.retries.Load(),
	}
	if rate > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		attrs = append(attrs, "left", left.Round(time.Second).String())
	}
	return attrs
}

func percent(part, whole int64) int64 {
	if whole <= 0 {
		return 100
	}
	return int64(float64(part) / float64(whole) * 100)
}
