// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialTimeout bounds the set-up of a connection, one lost SYN and its repetition, and then the question who is there.
	dialTimeout = 1500 * time.Millisecond
	// maxTimeouts is how many calls in a row may time out before the server counts as down.
	maxTimeouts = 3
	// minBackoff and maxBackoff bound the mean time between two probes of a server that is down.
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// steadyAfter is how long a server must have been up for its next back-off to start anew.
	steadyAfter = 10 * time.Second
)

// failure says why a server did not answer.
type failure uint8

const (
	// reasonConnect is a connection that could not be made.
	reasonConnect failure = iota
	// reasonConnection is a connection that broke.
	reasonConnection
	// reasonProtocol is an answer that is not memcached's.
	reasonProtocol
	// reasonTimeout is a call that was not answered in time.
	reasonTimeout
	// reasonBusy is a call for which a queue had no room.
	reasonBusy
	// reasonDown is a call that was not tried, because the server counts as down.
	reasonDown
	// reasonForeign is a connection that reached somebody else.
	reasonForeign
	failures
)

var failureNames = [failures]string{"connect", "connection", "protocol", "timeout", "busy", "down", "foreign"}

func (f failure) String() string {
	return failureNames[f]
}

// serverError is a call that a server did not answer.
type serverError struct {
	reason failure
	err    error
}

var (
	errDown    = &serverError{reasonDown, errors.New("the server is down")}
	errTimeout = &serverError{reasonTimeout, errors.New("the server did not answer in time")}
	errBusy    = &serverError{reasonBusy, errors.New("too many requests wait for the server")}
	errStalled = &serverError{reasonTimeout, errors.New("the server has stopped answering")}
	errLeft    = &serverError{reasonDown, errors.New("the server has left the ring")}
)

func (e *serverError) Error() string {
	return e.err.Error()
}

func (e *serverError) Unwrap() error {
	return e.err
}

// answerFailure says what an error while reading an answer means; nil for nil.
func answerFailure(err error) *serverError {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNotMemcached), errors.Is(err, bufio.ErrBufferFull):
		return &serverError{reasonProtocol, err}
	default:
		return &serverError{reasonConnection, err}
	}
}

// peer is one server, reached over one connection. It is down from the moment that the connection ends, or that calls
// time out one after another, until a probe is answered in time; meanwhile calls fail at once, so that a dead server
// costs its callers nothing. Before it is asked again it deletes what it was to change meanwhile and did not.
type peer struct {
	server  Server
	timeout time.Duration
	connect func(addr string) (net.Conn, error)
	log     *slog.Logger

	// failed counts calls without an answer, by reason.
	failed [failures]atomic.Uint64
	// inARow counts the calls that timed out since the last answer.
	inARow atomic.Uint32

	closed chan struct{}

	mu      sync.Mutex
	link    *link
	down    bool
	backoff time.Duration
	upSince time.Time
	missed  missed
	// mending is set while mendSoon is at work.
	mending bool
}

func newPeer(s Server, c *Client) *peer {
	p := &peer{
		server: s, timeout: c.options.Timeout, connect: c.connect, log: c.options.Logger, closed: make(chan struct{}),
		missed: missed{budget: c.missed},
	}
	// Connecting before the first request, so that it does not have to wait for it.
	p.current()
	return p
}

// submit enqueues the call and returns the link to flush. After an error, the call is still the caller's.
func (p *peer) submit(c *call, now time.Time) (*link, *serverError) {
	p.mu.Lock()
	l := p.link
	if p.down || l == nil {
		p.note(c)
		p.mu.Unlock()
		return nil, errDown
	}
	p.mu.Unlock()
	err := l.enqueue(c, now)
	if err != nil {
		p.miss(c)
	}
	return l, err
}

// current returns the link, a new one when there is none.
func (p *peer) current() *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == nil && !p.isClosed() {
		p.link = &link{peer: p}
		go p.link.run()
	}
	return p.link
}

// dial connects to the server, and hangs up on anybody else.
func (p *peer) dial() (net.Conn, *serverError) {
	conn, err := p.connect(p.server.DialAddress())
	if err != nil {
		return nil, &serverError{reasonConnect, err}
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		// What was given up must not be delivered when the network has recovered, over what followed it.
		_ = tcp.SetLinger(0)
	}
	if err = conn.SetDeadline(time.Now().Add(dialTimeout)); err == nil {
		err = identify(conn, p.server.Identity)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err == nil {
		return conn, nil
	}
	_ = conn.Close()
	if errors.Is(err, errForeign) {
		return nil, &serverError{reasonForeign, err}
	}
	return nil, &serverError{reasonConnect, err}
}

// linkEnded takes note of the end of a link and of the calls that it has not answered.
func (p *peer) linkEnded(l *link, calls []*call, err *serverError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range calls {
		p.note(c)
	}
	if p.link == l {
		p.link = nil
	}
	p.trip(err)
}

// succeeded takes note of an answer in time.
func (p *peer) succeeded() {
	if p.inARow.Load() != 0 {
		p.inARow.Store(0)
	}
}

// timedOut takes note of a call that was given up.
func (p *peer) timedOut() {
	if p.inARow.Add(1) >= maxTimeouts {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.trip(errTimeout)
	}
}

// trip declares the server down and starts to probe it. The caller holds the lock.
func (p *peer) trip(err *serverError) {
	if p.down || p.isClosed() {
		return
	}
	p.down = true
	now := time.Now()
	if now.Sub(p.upSince) > steadyAfter {
		p.backoff = minBackoff
	}
	go p.probe(now, err)
}

// probe asks the server for its version, ever more rarely, until it answers in time.
func (p *peer) probe(since time.Time, err *serverError) {
	p.log.Warn("Server down, its keys are misses", "server", p.server.Name, "address", p.server.DialAddress(),
		"reason", err.reason.String(), "error", err)
	for {
		// Jitter keeps the sidecars of a whole cluster from coming back in step.
		pause := p.backoff/2 + rand.N(p.backoff) //nolint:gosec // Nobody gains by guessing it.
		select {
		case <-p.closed:
			return
		case <-time.After(pause):
		}
		p.backoff = min(2*p.backoff, maxBackoff)
		if p.answers() && p.recover() {
			p.log.Info("Server up", "server", p.server.Name, "address", p.server.DialAddress(),
				"after", time.Since(since).String())
			return
		}
	}
}

// answers reports whether the server answers one call in time.
func (p *peer) answers() bool {
	l := p.current()
	if l == nil {
		return false
	}
	now := time.Now()
	if l.stalled(now) {
		l.fail(errStalled)
		return false
	}
	c := newCall(cmdVersion, unlimited)
	c.req = append(c.req, "version\r\n"...)
	if l.enqueue(c, now) != nil {
		c.release()
		return false
	}
	l.flush()
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	if c.await(now.Add(p.timeout), timer) != nil {
		return false
	}
	c.release()
	return true
}

// isDown reports whether calls fail at once.
func (p *peer) isDown() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

// isClosed reports whether the peer is not used any more.
func (p *peer) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// close ends the connection; calls on it fail.
func (p *peer) close() {
	p.mu.Lock()
	if !p.isClosed() {
		close(p.closed)
	}
	p.missed.forget()
	l := p.link
	p.mu.Unlock()
	if l != nil {
		l.fail(errLeft)
	}
}
