// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// maxInFlight bounds the calls on one connection; the next one fails at once.
	maxInFlight = 512
	// inlineBytes is how much may wait for answers while callers still write to the socket themselves, which saves a
	// wake-up. Any socket takes so much without blocking; beyond it, a goroutine writes.
	inlineBytes = 32 << 10
	// stallLimit is how long a server may leave a call unanswered before its connection is given up. It is much longer
	// than callers wait: a new connection would overtake writes that still lie in the old one.
	stallLimit = time.Second
	// linkReadBytes is the buffer for the answers of one connection.
	linkReadBytes = 16 << 10
)

var errUnsolicited = errors.New("the server answers what nobody asked")

// link is one connection to a server, from the dial to its end, with any number of calls on it at a time. Answers come
// in the order of the calls. A link that failed is not used again. Only the goroutine in run completes calls: whoever
// else ends the link closes the connection and leaves the rest to it.
type link struct {
	peer *peer

	mu sync.Mutex
	// conn is nil until it is dialled; calls wait in out for it.
	conn net.Conn
	err  *serverError
	// out is what is to be written, spare the buffer that was written last.
	out, spare []byte
	writing    bool
	// queue holds the calls without an answer, oldest first, as a circle of count calls from head.
	queue       [maxInFlight]waiting
	head, count int
	// unanswered are the bytes of the calls in the queue.
	unanswered int
}

// waiting is a call on a link.
type waiting struct {
	call  *call
	bytes int
	since time.Time
}

// enqueue adds the call, to be sent with the next flush. After an error, the call is still the caller's.
func (l *link) enqueue(c *call, now time.Time) *serverError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.count == maxInFlight {
		return errBusy
	}
	l.queue[(l.head+l.count)%maxInFlight] = waiting{c, len(c.req), now}
	l.count++
	l.unanswered += len(c.req)
	l.out = append(l.out, c.req...)
	return nil
}

// flush sends what is enqueued. It does not wait for a slow server.
func (l *link) flush() {
	l.mu.Lock()
	if l.writing || l.conn == nil || l.err != nil || len(l.out) == 0 {
		l.mu.Unlock()
		return
	}
	l.writing = true
	if l.unanswered > inlineBytes {
		l.mu.Unlock()
		go l.writeAll()
		return
	}
	out := l.take()
	l.mu.Unlock()
	// A caller writes once: it must not go on for as long as others enqueue.
	if l.write(out) {
		go l.writeAll()
	}
}

// writeAll writes until nothing is enqueued. Only one goroutine at a time is here or in write.
func (l *link) writeAll() {
	for more := true; more; {
		l.mu.Lock()
		out := l.take()
		l.mu.Unlock()
		more = l.write(out)
	}
}

// take returns what is enqueued and makes room for more.
func (l *link) take() []byte {
	out := l.out
	l.out, l.spare = l.spare[:0], nil
	return out
}

// write sends the bytes and reports whether there are more. After an error there are none.
func (l *link) write(out []byte) bool {
	err := l.conn.SetWriteDeadline(time.Now().Add(stallLimit))
	if err == nil {
		_, err = l.conn.Write(out)
	}
	if err != nil {
		l.fail(&serverError{reasonConnection, err})
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spare = reusable(out)
	l.writing = len(l.out) > 0
	return l.writing
}

// run dials, hands out answers until the connection ends, and tells the peer why it did.
func (l *link) run() {
	conn, failed := l.peer.dial()
	if failed == nil {
		failed = l.serve(conn)
	}
	l.fail(failed)
	l.mu.Lock()
	calls := make([]*call, 0, l.count)
	for l.count > 0 {
		calls = append(calls, l.pop())
	}
	l.mu.Unlock()
	// The first error stands, and no call follows it.
	l.peer.linkEnded(l, calls, l.err)
	for _, c := range calls {
		c.complete(l.err)
	}
}

// serve reads answers until the connection fails.
func (l *link) serve(conn net.Conn) *serverError {
	defer conn.Close() //nolint:errcheck // What failed is known already.
	l.mu.Lock()
	l.conn = conn
	failed := l.err
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	l.flush()
	r := bufio.NewReaderSize(conn, linkReadBytes)
	for {
		if _, err := r.Peek(1); err != nil {
			return &serverError{reasonConnection, err}
		}
		c := l.oldest()
		if c == nil {
			return &serverError{reasonProtocol, errUnsolicited}
		}
		if failed := answerFailure(c.readReply(r)); failed != nil {
			return failed
		}
		l.mu.Lock()
		l.pop()
		l.mu.Unlock()
		if c.complete(nil) {
			l.peer.succeeded()
		}
	}
}

// oldest returns the call that the next answer is for. It stays in the queue while the answer is read, so that an
// answer which stops halfway is seen to stall.
func (l *link) oldest() *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		return nil
	}
	return l.queue[l.head].call
}

// pop takes the oldest call off the queue.
func (l *link) pop() *call {
	w := l.queue[l.head]
	l.queue[l.head] = waiting{}
	l.head = (l.head + 1) % maxInFlight
	l.count--
	l.unanswered -= w.bytes
	return w.call
}

// stalled reports whether a call has been waiting for longer than any caller would.
func (l *link) stalled(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count > 0 && now.Sub(l.queue[l.head].since) > stallLimit
}

// fail ends the link. Only the first reason counts.
func (l *link) fail(err *serverError) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
}
