// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// line is one connection to the store, kept between requests. It belongs to one
// worker, which makes one request at a time: nothing is handed between
// goroutines, and large reads go straight into the worker's buffer.
type line struct {
	conn net.Conn
	// socket is what conn is on, to look at it and to say how many bytes are worth
	// waking up for; nil if it is not known.
	socket syscall.RawConn
	in     *bufio.Reader
	inlet  inlet
	out    []byte
	// used means that an answer has come over it: the store may have closed it
	// since, which says nothing about the store.
	used bool
	// idle is when the last answer was read to its end.
	idle time.Time
	// waited is how long the last answer took to begin.
	waited time.Duration
	// lowWater is what was last asked of the kernel; 0 stands for its default. It
	// never asks for more than most.
	lowWater, most int
	// ahead is where encrypted bytes wait, if the line is encrypted; its owner keeps it.
	ahead []byte
}

const (
	// mostHead bounds the head of an answer.
	mostHead = mebibyte
	// mostIdle is for how long a connection is trusted without use. What stands
	// between may have forgotten it later.
	mostIdle = 30 * time.Second
	// schemeTLS is the scheme of encrypted connections.
	schemeTLS = "https"
	// mostInterim bounds the answers before the answer.
	mostInterim = 5
)

// inlet reads from a connection, and no more than is left to read.
type inlet struct {
	conn net.Conn
	left int64
}

var errHeadTooLong = &protocolError{"the head of an answer is longer than 1 MiB"}

// Read reads from the connection.
func (i *inlet) Read(p []byte) (int, error) {
	if i.left <= 0 {
		return 0, errHeadTooLong
	}
	n, err := i.conn.Read(p[:min(int64(len(p)), i.left)])
	i.left -= int64(n)
	return n, err
}

// do sends a request and returns the answer, whose body must be closed before
// the next. The context ends both. A connection that was used before may have been
// closed meanwhile, so the request is sent once more over a new one.
func (l *line) do(ctx context.Context, t *http.Transport, r *http.Request) (*http.Response, error) {
	for {
		reused := l.used
		answer, err := l.try(ctx, t, r)
		if err == nil {
			return answer, nil
		}
		l.hangUp()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !reused || isTimeout(err) {
			return nil, err
		}
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (l *line) try(ctx context.Context, t *http.Transport, r *http.Request) (*http.Response, error) {
	if l.conn != nil && l.stale() {
		l.hangUp()
	}
	if l.conn == nil {
		if err := l.dial(ctx, t, r); err != nil {
			return nil, err
		}
	}
	conn := l.conn
	// Whatever is being read or written then ends at once.
	release := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	answer, err := l.exchange(ctx, t, r)
	if err != nil {
		release()
		return nil, err
	}
	l.used = true
	answer.Body = &lineBody{
		line: l, body: answer.Body, release: release, left: answer.ContentLength, last: answer.Close, since: time.Now(),
	}
	return answer, nil
}

// exchange writes the request and reads the answer's head.
func (l *line) exchange(ctx context.Context, t *http.Transport, r *http.Request) (*http.Response, error) {
	l.out = append(l.out[:0], "GET "...)
	l.out = append(l.out, r.URL.RequestURI()...)
	l.out = append(l.out, " HTTP/1.1\r\nHost: "...)
	l.out = append(l.out, r.Host...)
	l.out = append(l.out, "\r\nUser-Agent: outrigger-preloader\r\n"...)
	for name, values := range r.Header {
		l.out = append(l.out, name...)
		l.out = append(l.out, ": "...)
		l.out = append(l.out, values[0]...)
		l.out = append(l.out, "\r\n"...)
	}
	l.out = append(l.out, "\r\n"...)
	asked := time.Now()
	if _, err := l.conn.Write(l.out); err != nil {
		return nil, err
	}
	if t.ResponseHeaderTimeout > 0 {
		if err := l.readBy(ctx, time.Now().Add(t.ResponseHeaderTimeout)); err != nil {
			return nil, err
		}
	}
	answer, err := l.head(r)
	l.waited = time.Since(asked)
	if err == nil {
		err = l.readBy(ctx, time.Time{})
	}
	return answer, err
}

// readBy sets the time by which bytes must come, but not after the context has
// ended and set it to the past.
func (l *line) readBy(ctx context.Context, deadline time.Time) error {
	if err := l.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	return ctx.Err()
}

// head reads the head of the answer.
func (l *line) head(r *http.Request) (*http.Response, error) {
	l.inlet.left = mostHead
	defer func() { l.inlet.left = math.MaxInt64 }()
	for range mostInterim {
		answer, err := http.ReadResponse(l.in, r)
		switch {
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case answer.StatusCode >= http.StatusOK, answer.StatusCode == http.StatusSwitchingProtocols:
			return answer, nil
		}
	}
	return nil, &protocolError{"the server keeps answering that an answer will come"}
}

// stale reports whether a connection must not be used again: it has been idle for
// long, the store has closed it, or has sent what nobody asked for, which would
// be taken for the next answer.
func (l *line) stale() bool {
	if !l.used {
		return false
	}
	if l.in.Buffered() > 0 || time.Since(l.idle) > mostIdle {
		return true
	}
	if l.socket == nil {
		return false
	}
	_, secure := l.conn.(*tls.Conn)
	gone := false
	err := l.socket.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err == nil && n > 0 && secure: // such as keys for later, which TLS reads by itself
		default:
			gone = true
		}
	})
	return err != nil || gone
}

// dial connects, with the same settings as the SDK's own connections.
func (l *line) dial(ctx context.Context, t *http.Transport, r *http.Request) error {
	address := r.URL.Host
	if r.URL.Port() == "" {
		address = net.JoinHostPort(r.URL.Hostname(), map[string]string{"http": "80", schemeTLS: "443"}[r.URL.Scheme])
	}
	conn, err := t.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	l.conn, l.used, l.lowWater, l.socket = conn, false, 0, nil
	if tcp, ok := conn.(*net.TCPConn); ok {
		if l.socket, err = tcp.SyscallConn(); err != nil {
			return err
		}
	}
	if r.URL.Scheme == schemeTLS {
		config := t.TLSClientConfig.Clone()
		config.NextProtos = nil // HTTP/1.1
		if config.ServerName == "" {
			config.ServerName = r.URL.Hostname()
		}
		if len(l.ahead) > 0 {
			conn = &aheadConn{Conn: conn, buf: l.ahead}
		}
		secure := tls.Client(conn, config)
		shaking, cancel := context.WithTimeout(ctx, t.TLSHandshakeTimeout)
		defer cancel()
		if err := secure.HandshakeContext(shaking); err != nil {
			return err
		}
		l.conn = secure
	}
	if l.in == nil {
		// Small, so that large reads pass it by.
		l.in = bufio.NewReaderSize(nil, 4096)
	}
	l.inlet = inlet{conn: l.conn, left: math.MaxInt64}
	l.in.Reset(&l.inlet)
	return nil
}

// aheadConn reads in large pieces what is asked for in small ones: crypto/tls asks for
// a record of 16 KiB at a time, and each such read would have the kernel acknowledge it.
type aheadConn struct {
	net.Conn
	buf []byte
	// rest is what of buf has not been asked for yet.
	rest []byte
}

// Read reads from the buffer, and into it when it is empty.
func (c *aheadConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		n, err := c.Conn.Read(c.buf)
		if n == 0 {
			return 0, err
		}
		c.rest = c.buf[:n]
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// hangUp closes the connection; the next request makes another.
func (l *line) hangUp() {
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.conn, l.socket, l.used = nil, nil, false
}

// wakeAt asks the kernel to wake the reader only when so many bytes are there,
// or for any if n is 1. It saves a fast connection from being woken for each
// packet. More than what is still to come must never be asked for.
func (l *line) wakeAt(n int) {
	if l.socket == nil || n == max(l.lowWater, 1) {
		return
	}
	l.lowWater = n
	// If it fails, the reader is woken more often.
	_ = l.socket.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) })
}

// mostWater returns how many bytes a fast connection collects that reads into a buffer
// of so many bytes and counts as stalled after so long without any: one that turns slow
// must not look as if it stood still.
func mostWater(stall time.Duration, buffer int) int {
	water := time.Duration(max(buffer, mebibyte) / 2)
	return int(min(water, water*stall/(20*time.Second)))
}

const (
	// fastRate is from how many bytes a second on that does not delay anything.
	fastRate = 10e6
	// lowWaterMargin is what may be in buffers of this process already, beside those
	// that encrypted bytes wait in.
	lowWaterMargin = 64 << 10
)

// lineBody is the body of an answer.
type lineBody struct {
	line    *line
	body    io.ReadCloser
	release func() bool
	// left is how many bytes are still to come, -1 if unknown, and whole says that
	// none are.
	left  int64
	whole bool
	// last means that the store closes the connection after this answer.
	last bool
	// fast means that the last mebibyte came fast; got bytes have come since then.
	fast  bool
	got   int
	since time.Time

	closed bool
}

// Read reads the body.
func (b *lineBody) Read(p []byte) (int, error) {
	wake := 1
	if b.fast && b.left >= int64(b.line.most+len(b.line.ahead)+lowWaterMargin) {
		wake = max(1, b.line.most)
	}
	b.line.wakeAt(wake)
	n, err := b.body.Read(p)
	if b.left >= 0 {
		b.left -= int64(n)
	}
	b.whole = b.left == 0 || errors.Is(err, io.EOF)
	if b.got += n; b.got >= mebibyte {
		now := time.Now()
		b.fast = now.Sub(b.since).Seconds() < float64(b.got)/fastRate
		b.got, b.since = 0, now
	}
	return n, err
}

// Close keeps the connection for the next request if all of the body was read
// and the store keeps it too.
func (b *lineBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	if idle := b.release(); !idle || !b.whole || b.last {
		b.line.hangUp()
		return nil
	}
	b.line.wakeAt(1)
	b.line.idle = time.Now()
	return nil
}
