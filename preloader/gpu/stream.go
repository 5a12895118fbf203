// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
)

// chunk is what fits one buffer: a stretch of a file and where it goes in GPU memory.
type chunk struct {
	shard  *shard
	offset int64
	n      int
	there  uintptr
	// sum is the check of the bytes, as they were in the buffer that was sent.
	sum uint64
}

// slot is a page-locked buffer with the event that tells when it may be used again.
type slot struct {
	*pinned
	event uintptr
	chunk *chunk
}

// streamer moves chunks from files through page-locked buffers into one GPU. Readers
// fill the buffers and check their bytes; the GPU's own goroutine sends them, on one
// stream, and gives a buffer back when its copy is done. So files are read while
// earlier buffers are on their way, and no buffer is written to while the GPU reads it.
type streamer struct {
	device *device
	slots  []*slot
	stream uintptr
}

// newStreamer takes the buffers and the stream.
func (d *device) newStreamer(ctx context.Context, buffers int, size int64) (*streamer, error) {
	s := &streamer{device: d}
	var err error
	if s.stream, err = d.stream(ctx); err != nil {
		return nil, err
	}
	for range buffers {
		p, err := d.allocPinned(ctx, int(size))
		if err != nil {
			return nil, err
		}
		event, err := d.event(ctx)
		if err != nil {
			return nil, err
		}
		s.slots = append(s.slots, &slot{pinned: p, event: event})
	}
	return s, nil
}

// load moves all chunks and notes their checks. After an error, copies may still be on
// their way.
func (s *streamer) load(ctx context.Context, chunks []*chunk, readers int) error {
	// The group's end stops waiting, but no call into the driver: one that was given up
	// would cost the thread, and with it the means to free anything.
	group, ended := errgroup.WithContext(ctx)
	// Both channels hold every slot, so that nobody waits to give one back.
	free, full := make(chan *slot, len(s.slots)), make(chan *slot, len(s.slots))
	for _, b := range s.slots {
		free <- b
	}
	jobs := make(chan *chunk)
	group.Go(func() error {
		defer close(jobs)
		for _, c := range chunks {
			select {
			case jobs <- c:
			case <-ended.Done():
				return context.Cause(ended)
			}
		}
		return nil
	})
	for range readers {
		group.Go(func() error { return readChunks(ended, jobs, free, full) })
	}
	group.Go(func() error { return s.send(ctx, ended, len(chunks), free, full) })
	return group.Wait()
}

// readChunks fills free buffers until there are no more jobs.
func readChunks(ended context.Context, jobs <-chan *chunk, free <-chan *slot, full chan<- *slot) error {
	for {
		var b *slot
		select {
		case b = <-free:
		case <-ended.Done():
			return context.Cause(ended)
		}
		c, ok := <-jobs
		if !ok {
			return nil
		}
		if err := c.read(b.bytes[:c.n]); err != nil {
			return err
		}
		b.chunk = c
		full <- b
	}
}

// readStep is how much is read at once: little enough to be still in the processor's
// cache when it is checked.
const readStep = 1 << 20

// read reads the chunk's bytes and notes their check.
func (c *chunk) read(into []byte) error {
	c.sum = 0
	for at := 0; at < len(into); at += readStep {
		step := into[at:min(at+readStep, len(into))]
		if _, err := c.shard.file.ReadAt(step, c.offset+int64(at)); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%s became shorter while it was read", c.shard.path)
			}
			return unreadable(err)
		}
		c.sum = c.shard.check.Update(c.sum, step)
	}
	return nil
}

// send sends full buffers to the GPU until all chunks are there.
func (s *streamer) send(ctx, ended context.Context, chunks int, free chan<- *slot, full <-chan *slot) error {
	var flying []*slot
	land := func() error {
		if err := s.device.wait(ctx, flying[0].event); err != nil {
			return err
		}
		free <- flying[0]
		flying = flying[1:]
		return nil
	}
	for sent := 0; sent < chunks; {
		var b *slot
		select {
		case b = <-full:
		default:
			// Nothing to send: the oldest copy is what the readers wait for.
			if len(flying) > 0 {
				if err := land(); err != nil {
					return err
				}
				continue
			}
			select {
			case b = <-full:
			case <-ended.Done():
				return context.Cause(ended)
			}
		}
		if err := s.device.send(ctx, b.chunk.there, b.pinned, b.chunk.n, s.stream, b.event); err != nil {
			return err
		}
		flying = append(flying, b)
		sent++
	}
	for len(flying) > 0 {
		if err := land(); err != nil {
			return err
		}
	}
	return nil
}

// readBack copies chunks back from the GPU and compares their checks. It returns how
// many bytes it compared.
func (s *streamer) readBack(ctx context.Context, chunks []*chunk) (int64, error) {
	var compared int64
	for _, c := range chunks {
		b := s.slots[0]
		if err := s.device.fetch(ctx, b.pinned, c.there, c.n, s.stream, b.event); err != nil {
			return compared, err
		}
		if err := s.device.wait(ctx, b.event); err != nil {
			return compared, err
		}
		compared += int64(c.n)
		if c.shard.check.Update(0, b.bytes[:c.n]) != c.sum {
			return compared, &modelError{
				code: ExitGPU, reason: "MemoryChangedBytes",
				err: fmt.Errorf("%d bytes of %s at %d are not in GPU memory as they were sent",
					c.n, c.shard.path, c.offset),
				advice: drainAndReport,
			}
		}
	}
	return compared, nil
}

// sample picks the chunks to compare: sixteen, spread over all, with the first and the
// last among them.
func sample(chunks []*chunk, how ReadBack) []*chunk {
	const enough = 16
	switch {
	case how == ReadBackOff:
		return nil
	case how == ReadBackAll || len(chunks) <= enough:
		return chunks
	}
	var some []*chunk
	for i := range enough {
		some = append(some, chunks[i*(len(chunks)-1)/(enough-1)])
	}
	return some
}

// timed runs f and returns how long it took, in seconds.
func timed(f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return since(start), err
}
