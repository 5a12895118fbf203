// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/quantity"
)

// crew is the connections of a run, each with a buffer of its own outside the
// heap. A few suffice where answers begin at once and come fast. Where a store is
// far, or slow on each connection, most of a connection's time is waiting, so more
// are added; they have small buffers, and what they take of memory stays small
// beside the rest.
type crew struct {
	group sync.WaitGroup
	work  func(buf []byte)
	// spare are buffers of connections that may be added; they belong to the
	// engine's lock.
	spare [][]byte
	// size counts the connections; it belongs to the engine's lock.
	size int
	// answers counts answers, and quickest is how long the quickest took to begin,
	// in nanoseconds. A store that is near and busy answers some at once.
	answers, quickest atomic.Int64
}

const (
	// extraBuffer is the buffer of an added connection.
	extraBuffer = mebibyte / 4
	// farAnswer is from when on a store is far.
	farAnswer = 5 * time.Millisecond
)

// run lets so many connections work, each with so large a buffer, and up to so many
// more if they are added, and returns when all are done.
func (c *crew) run(conns, more, buffer int, work func(buf []byte)) error {
	size := conns*buffer + more*extraBuffer
	arena, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("reserving %s of buffers: %w", quantity.FormatBytes(int64(size)), err)
	}
	cut := func(n int) []byte {
		buf := arena[:n:n]
		arena = arena[n:]
		return buf
	}
	whole := arena
	var buffers [][]byte
	for range conns {
		buffers = append(buffers, cut(buffer))
	}
	for range more {
		c.spare = append(c.spare, cut(extraBuffer))
	}
	c.work, c.size = work, conns
	c.quickest.Store(math.MaxInt64)
	for _, buf := range buffers {
		c.group.Go(func() { work(buf) })
	}
	c.group.Wait()
	if err := unix.Munmap(whole); err != nil {
		return fmt.Errorf("giving buffers back: %w", err)
	}
	return nil
}

// answered takes note of how long an answer took to begin; 0 stands for unknown.
func (c *crew) answered(took time.Duration) {
	if took <= 0 {
		return
	}
	c.answers.Add(1)
	for old := c.quickest.Load(); int64(took) < old && !c.quickest.CompareAndSwap(old, int64(took)); {
		old = c.quickest.Load()
	}
}

// isFar reports whether the store is, which shows after so many answers.
func (c *crew) isFar(after int) bool {
	return c.answers.Load() >= int64(after) && c.quickest.Load() >= int64(farAnswer)
}

// add adds a connection. It must be called from one that works.
func (c *crew) add() {
	buf := c.spare[0]
	c.spare = c.spare[1:]
	c.size++
	c.group.Go(func() { c.work(buf) })
}
