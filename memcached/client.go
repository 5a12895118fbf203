// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultTimeout is how long a request waits for a server when nothing else is asked for.
	DefaultTimeout = 20 * time.Millisecond
	// DefaultMaxBufferedBytes bounds requests and values in memory when nothing else is asked for.
	DefaultMaxBufferedBytes = 32 << 20
	// retireAfter is how long the connection to a server that left the ring serves requests that were already on it.
	retireAfter = time.Second
)

// ErrNotStored is a value that was not stored, because its server is down, refused it, or there is none.
var ErrNotStored = errors.New("the value was not stored")

// ClientOptions are the choices for a Client. The zero value is a good one.
type ClientOptions struct {
	// Timeout bounds each request, from its start to its last answer; 0 means DefaultTimeout.
	Timeout time.Duration
	// ConnectionsPerServer spreads requests over so many connections to each server; 0 means 1, which carries some
	// 100,000 requests a second.
	ConnectionsPerServer int
	// MaxBufferedBytes bounds the bytes of values that are on their way at one time; a value that does not fit is a
	// miss, or is not stored. 0 means DefaultMaxBufferedBytes.
	MaxBufferedBytes int64
	// Logger is told when a server goes down and comes up; nil means nobody is.
	Logger *slog.Logger
}

// Client reads and writes through a ring of memcached servers, all that a request needs at the same time. A read whose
// server is down, slow or talks nonsense is a miss. It is safe for concurrent use.
type Client struct {
	options ClientOptions
	budget  *budget
	// missed bounds what is remembered of changes that servers missed.
	missed  *budget
	connect func(addr string) (net.Conn, error)
	route   atomic.Pointer[route]
	// ringErrors counts the documents that Follow could not use.
	ringErrors atomic.Uint64

	// mu is held while the ring changes.
	mu    sync.Mutex
	ended bool
}

// route is a ring and the way to its servers. A request uses one route to its end.
type route struct {
	epoch int64
	ring  *Ring
	// peers[i] are the connections to server i of the ring, at least one.
	peers [][]*peer
	// former are the rings by which others may still go until settled.
	former  []*Ring
	settled time.Time
}

// NewClient returns a client with an empty ring. Its connections end with the context.
func NewClient(ctx context.Context, options ClientOptions) *Client {
	if options.Timeout <= 0 {
		options.Timeout = DefaultTimeout
	}
	if options.ConnectionsPerServer <= 0 {
		options.ConnectionsPerServer = 1
	}
	if options.MaxBufferedBytes <= 0 {
		options.MaxBufferedBytes = DefaultMaxBufferedBytes
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	c := &Client{
		options: options,
		budget:  newBudget(options.MaxBufferedBytes),
		missed:  newBudget(missedBytes),
		connect: func(addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) },
	}
	c.route.Store(&route{ring: &Ring{}})
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = true
		closePeers(c.route.Load(), nil)
	})
	return c
}

// SetRing makes the client follow the document. Servers that stay keep their connections; requests on the way to
// servers that left are answered. After an error the ring is as it was.
func (c *Client) SetRing(d *Document) error {
	ring, err := d.Ring()
	if err != nil {
		return fmt.Errorf("setting ring: %w", err)
	}
	former, err := d.formerRings()
	if err != nil {
		return fmt.Errorf("setting ring: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return errors.New("setting ring: the client has ended")
	}
	old := c.route.Load()
	next := &route{
		epoch: d.Epoch, ring: ring, peers: make([][]*peer, ring.Len()), former: former, settled: time.Now().Add(SettleTime),
	}
	if old.epoch == next.epoch {
		next.settled = old.settled
	}
	kept := make(map[Server][]*peer, old.ring.Len())
	for i, s := range old.ring.servers {
		kept[s] = old.peers[i]
	}
	for i, s := range ring.servers {
		next.peers[i] = kept[s]
		delete(kept, s)
		for len(next.peers[i]) < c.options.ConnectionsPerServer {
			next.peers[i] = append(next.peers[i], newPeer(s, c))
		}
	}
	c.route.Store(next)
	if len(kept) > 0 {
		time.AfterFunc(retireAfter, func() { closePeers(old, next) })
	}
	return nil
}

// closePeers closes the peers of a route that another does not use.
func closePeers(old, next *route) {
	used := map[*peer]bool{}
	if next != nil {
		for _, peers := range next.peers {
			used[peers[0]] = true
		}
	}
	for _, peers := range old.peers {
		if used[peers[0]] {
			continue
		}
		for _, p := range peers {
			p.close()
		}
	}
}

// Get returns the value of the key; false is a miss.
func (c *Client) Get(ctx context.Context, key string) ([]byte, bool) {
	value, ok := c.GetMulti(ctx, key)[key]
	return value, ok
}

// GetMulti returns the values that were found, by key. It asks all servers at once and waits for the timeout of the
// client or the deadline of the context, whichever is earlier. A key that memcached does not allow is a miss.
func (c *Client) GetMulti(ctx context.Context, keys ...string) map[string][]byte {
	r := request{cmd: cmdGet}
	for _, key := range keys {
		if validKey([]byte(key)) {
			r.keys = append(r.keys, []byte(key))
		}
	}
	found := make(map[string][]byte, len(r.keys))
	var x exchange
	if !c.run(ctx, &x, &r, nil) {
		return found
	}
	defer x.release()
	for i := range x.parts {
		call := x.parts[i].call
		if call == nil {
			continue
		}
		for _, v := range call.values {
			key, data := call.item(v)
			found[string(key)] = bytes.Clone(data)
		}
	}
	return found
}

// Set stores the value for the key until it expires: after the given time of at most 30 days, in whole seconds and at
// least one, or never with 0. It returns ErrNotStored when the value did not reach a server that took it.
func (c *Client) Set(ctx context.Context, key string, value []byte, expire time.Duration) error {
	const longest = 30 * 24 * time.Hour
	if expire < 0 || expire > longest {
		return fmt.Errorf("storing %q: it cannot expire after %v; use 0 to %v", key, expire, longest)
	}
	r := request{cmd: cmdSet, exptime: int64((expire + time.Second - 1) / time.Second), size: len(value)}
	answer, err := c.write(ctx, &r, key, value)
	if err != nil {
		return fmt.Errorf("storing %q: %w", key, err)
	}
	if answer != "STORED" {
		return fmt.Errorf("storing %q: %w: %s", key, ErrNotStored, answer)
	}
	return nil
}

// Delete removes the key. That there was no such key is no error; that nobody knows is one.
func (c *Client) Delete(ctx context.Context, key string) error {
	answer, err := c.write(ctx, &request{cmd: cmdDelete}, key, nil)
	if err != nil {
		return fmt.Errorf("deleting %q: %w", key, err)
	}
	if answer != "DELETED" && answer != string(wordNotFound) {
		return fmt.Errorf("deleting %q: %s", key, answer)
	}
	return nil
}

func (c *Client) write(ctx context.Context, r *request, key string, data []byte) (string, error) {
	if !validKey([]byte(key)) {
		return "", errors.New("not a key: use 1 to 250 bytes without spaces, line ends and zeros")
	}
	r.keys = [][]byte{[]byte(key)}
	var x exchange
	if !c.run(ctx, &x, r, data) {
		return "", context.Cause(ctx)
	}
	defer x.release()
	return string(x.status()), nil
}

// run sends the request and waits for the answers. It reports false, and has sent nothing, when the context is over.
func (c *Client) run(ctx context.Context, x *exchange, r *request, data []byte) bool {
	if ctx.Err() != nil {
		return false
	}
	now := time.Now()
	deadline := now.Add(c.options.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline, x.hasty = d, true
	}
	x.begin(c, r, 0)
	if call := x.data(); call != nil && r.cmd.stores() {
		call.req = append(append(call.req, data...), lineEnd...)
	}
	x.submit(now)
	x.flush()
	timer := time.NewTimer(0)
	defer timer.Stop()
	x.await(deadline, timer)
	return true
}
