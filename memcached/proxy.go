// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// DefaultMaxConnections bounds the clients of a proxy when nothing else is asked for.
	DefaultMaxConnections = 1024
	// DefaultClientTimeout bounds slow clients when nothing else is asked for.
	DefaultClientTimeout = 10 * time.Second
	// protocolVersion is the version of memcached whose commands the proxy speaks; clients compare it.
	protocolVersion = "1.6.0"
	// acceptPause is the wait after an accept that failed for want of files.
	acceptPause = 50 * time.Millisecond
)

// ProxyOptions are the choices for a Proxy. The zero value is a good one.
type ProxyOptions struct {
	// MaxConnections bounds the clients that are connected at one time; the next one is told so and hung up on. 0 means
	// DefaultMaxConnections.
	MaxConnections int
	// ClientTimeout is how long a client may take to send the rest of a request, or to take an answer; idle clients
	// are never cut off. 0 means DefaultClientTimeout.
	ClientTimeout time.Duration
	// Version is what the version command says behind the version of the protocol.
	Version string
}

// Proxy is a memcached server whose items live in the ring of a Client: one address for any client of the classic text
// protocol. It knows get, gets, gat and gats with any number of keys, set, add, replace, append, prepend, cas, delete,
// touch, incr, decr, noreply, version, verbosity, stats (its own) and quit. flush_all is refused, as memcached -F does:
// the ring is not one client's to empty. Binary and meta commands are not spoken.
//
// Answers come in the order of the requests, and are byte for byte what one memcached with all items would say, with
// these exceptions. When a server is down, reads miss, set, add, replace, append and prepend say NOT_STORED, cas, touch,
// incr and decr say NOT_FOUND, and delete says SERVER_ERROR, because the key may still be there. With an empty ring it
// is the same but for delete, which says NOT_FOUND. Keys with a zero byte, where a server would cut them, are refused;
// the data behind a line that was refused is dropped rather than read as commands; and after a line or data that leave
// it unknown where the next command starts, the connection is closed. A cas unique is good for as long as its key stays
// on its server.
//
// A Proxy is a prometheus.Collector of its own figures.
type Proxy struct {
	client  *Client
	options ProxyOptions
	started time.Time
	figures figures

	mu        sync.Mutex
	sessions  map[*session]struct{}
	listeners []net.Listener
	// draining is closed by Shutdown, drained when the last client has left after that.
	draining, drained chan struct{}
	stopped           bool
	nextID            int
}

// figures are the counters of a proxy.
type figures struct {
	requests [commands]atomic.Uint64
	// hits, misses and failed count keys.
	hits, misses, failed atomic.Uint64
	// accepted and refused count clients.
	accepted, refused atomic.Uint64
	latency           *prometheus.HistogramVec
	reads, writes     prometheus.Observer
}

// NewProxy returns a proxy for the ring of the client.
func NewProxy(client *Client, options ProxyOptions) *Proxy {
	if options.MaxConnections <= 0 {
		options.MaxConnections = DefaultMaxConnections
	}
	if options.ClientTimeout <= 0 {
		options.ClientTimeout = DefaultClientTimeout
	}
	p := &Proxy{
		client:   client,
		options:  options,
		started:  time.Now(),
		sessions: make(map[*session]struct{}),
		draining: make(chan struct{}),
		drained:  make(chan struct{}),
	}
	p.figures.latency = newLatency()
	p.figures.reads = p.figures.latency.WithLabelValues("read")
	p.figures.writes = p.figures.latency.WithLabelValues("write")
	return p
}

// Serve takes clients from the listener until Shutdown, and returns nil then. It may be called for several listeners.
func (p *Proxy) Serve(listener net.Listener) error {
	p.mu.Lock()
	stopped := p.stopped
	p.listeners = append(p.listeners, listener)
	p.mu.Unlock()
	if stopped {
		return listener.Close()
	}
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			p.accept(conn)
		case errors.Is(err, net.ErrClosed):
			return nil
		case isTemporary(err):
			// Out of files: clients that leave give some back.
			time.Sleep(acceptPause)
		default:
			return fmt.Errorf("accepting clients on %s: %w", listener.Addr(), err)
		}
	}
}

func isTemporary(err error) bool {
	var temporary interface{ Temporary() bool }
	return errors.As(err, &temporary) && temporary.Temporary()
}

// accept starts a session, or tells the client that there are too many, in memcached's words.
func (p *Proxy) accept(conn net.Conn) {
	p.mu.Lock()
	full := len(p.sessions) >= p.options.MaxConnections
	if full || p.stopped {
		p.mu.Unlock()
		p.figures.refused.Add(1)
		_ = conn.SetWriteDeadline(time.Now().Add(acceptPause))
		_, _ = conn.Write([]byte("ERROR Too many open connections\r\n"))
		_ = conn.Close()
		return
	}
	s := newSession(p, conn, p.nextID)
	p.nextID++
	p.sessions[s] = struct{}{}
	p.mu.Unlock()
	p.figures.accepted.Add(1)
	go func() {
		defer p.leave(s)
		s.serve()
	}()
}

// leave forgets a session that has ended.
func (p *Proxy) leave(s *session) {
	_ = s.conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s)
	p.noteDrained()
}

// noteDrained closes drained once there is no client left to wait for. The caller holds the lock.
func (p *Proxy) noteDrained() {
	if !isClosed(p.draining) || isClosed(p.drained) || len(p.sessions) > 0 {
		return
	}
	close(p.drained)
}

// Shutdown goes on serving, new clients too, until no client is connected or the context ends, because whoever stops
// the proxy may still be stopping its clients. Then it closes the listeners, answers the requests that have come in,
// and hangs up. It returns when all is done, some two seconds after the context at the latest.
func (p *Proxy) Shutdown(ctx context.Context) {
	p.mu.Lock()
	if !isClosed(p.draining) {
		close(p.draining)
	}
	p.noteDrained()
	p.mu.Unlock()
	select {
	case <-p.drained:
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.stopped = true
	for _, listener := range p.listeners {
		_ = listener.Close()
	}
	for s := range p.sessions {
		s.stop()
	}
	p.mu.Unlock()
	const grace = 2 * time.Second
	select {
	case <-p.drained:
	case <-time.After(grace):
		p.hangUp()
		<-p.drained
	}
}

// hangUp cuts off the clients that are left.
func (p *Proxy) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.sessions {
		_ = s.conn.Close()
	}
}

// Connections returns the number of clients that are connected.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sessions)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
