// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// maxPooledBytes is the largest buffer that is kept for reuse: one huge value must not stay in memory for good.
const maxPooledBytes = 64 << 10

// maxPooledKeys is the same for what is kept by key.
const maxPooledKeys = 4 << 10

// call is one command to one server and the answer to it. It belongs to the caller until it is sent, to the link until
// it is complete, and then to the caller again; a caller that has waited long enough abandons it to the link.
type call struct {
	cmd command
	// req is the command as sent, data block included.
	req []byte
	// keys are the places in req of the keys that a read asks for, in their order.
	keys []span

	// reply is the answer: the blocks of values, or one line without its end.
	reply  []byte
	values []value
	err    *serverError

	state atomic.Uint32
	done  chan struct{}

	budget *budget
	held   int64
}

// span is a piece of a buffer.
type span struct{ start, end int }

// value is one value block in a reply, from "VALUE" to the end of its data line, and the key that it answers.
type value struct {
	span

	key int
}

const (
	callPending uint32 = iota
	callDone
	callAbandoned
)

var callPool = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

// newCall returns an empty call whose memory counts against the budget.
func newCall(cmd command, b *budget) *call {
	c := callPool.Get().(*call) // The pool holds nothing else.
	c.cmd, c.budget = cmd, b
	return c
}

// release takes the call back. Nobody may use it, or its reply, from then on.
func (c *call) release() {
	c.budget.give(c.held)
	c.req, c.reply = reusable(c.req), reusable(c.reply)
	if c.keys, c.values = c.keys[:0], c.values[:0]; cap(c.keys) > maxPooledKeys {
		c.keys, c.values = nil, nil
	}
	c.err, c.budget, c.held = nil, nil, 0
	c.state.Store(callPending)
	callPool.Put(c)
}

func reusable(buffer []byte) []byte {
	if cap(buffer) > maxPooledBytes {
		return nil
	}
	return buffer[:0]
}

// complete hands the answered or failed call to its caller. It reports false when the caller has left, and takes the
// call back then.
func (c *call) complete(err *serverError) bool {
	c.err = err
	if c.state.CompareAndSwap(callPending, callDone) {
		c.done <- struct{}{}
		return true
	}
	c.release()
	return false
}

// await waits until the call is complete or the deadline has passed; the timer is for its use. After nil, the call is
// the caller's, with its reply. After an error it is not.
func (c *call) await(deadline time.Time, timer *time.Timer) *serverError {
	select {
	case <-c.done:
	default:
		timer.Reset(time.Until(deadline))
		select {
		case <-c.done:
		case <-timer.C:
			if c.state.CompareAndSwap(callPending, callAbandoned) {
				return errTimeout
			}
			<-c.done
		}
	}
	err := c.err
	if err != nil {
		c.release()
	}
	return err
}

// abandoned reports whether nobody waits for the answer.
func (c *call) abandoned() bool {
	return c.state.Load() == callAbandoned
}

// hold takes memory from the budget until the call is released; false when there is not so much left.
func (c *call) hold(bytes int) bool {
	if !c.budget.take(int64(bytes)) {
		return false
	}
	c.held += int64(bytes)
	return true
}

// budget bounds the bytes of requests and values that are in memory at one time.
type budget struct {
	left atomic.Int64
}

func newBudget(bytes int64) *budget {
	b := &budget{}
	b.left.Store(bytes)
	return b
}

func (b *budget) take(bytes int64) bool {
	if b.left.Add(-bytes) >= 0 {
		return true
	}
	b.left.Add(bytes)
	return false
}

// unlimited is the budget of calls that need no bounds.
var unlimited = newBudget(math.MaxInt64)

func (b *budget) give(bytes int64) {
	b.left.Add(bytes)
}
