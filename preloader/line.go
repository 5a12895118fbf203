// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// line is one connection to the store, kept between requests. It belongs to one
// worker, which makes one request at a time: nothing is handed between
// goroutines, and large reads go straight into the worker's buffer.
type line struct {
	conn net.Conn
	// tcp is what conn is on, to say how many bytes are worth waking up for.
	tcp *net.TCPConn
	in  *bufio.Reader
	out []byte
	// used means that an answer has come over it: the store may have closed it
	// since, which says nothing about the store.
	used bool
	// lowWater is what was last asked of the kernel; 0 stands for its default.
	lowWater int
}

// do sends a request and returns the answer, whose body must be closed before
// the next. The context ends both.
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
	if l.conn == nil {
		if err := l.dial(ctx, t, r); err != nil {
			return nil, err
		}
	}
	conn := l.conn
	// Whatever is being read or written then ends at once.
	release := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	answer, err := l.exchange(t, r)
	if err == nil {
		err = ctx.Err() // which may have come before the deadline for the head was lifted
	}
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
func (l *line) exchange(t *http.Transport, r *http.Request) (*http.Response, error) {
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
	if _, err := l.conn.Write(l.out); err != nil {
		return nil, err
	}
	if t.ResponseHeaderTimeout > 0 {
		if err := l.conn.SetReadDeadline(time.Now().Add(t.ResponseHeaderTimeout)); err != nil {
			return nil, err
		}
	}
	answer, err := http.ReadResponse(l.in, r)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && t.ResponseHeaderTimeout > 0 {
		err = l.conn.SetReadDeadline(time.Time{})
	}
	return answer, err
}

// dial connects, with the same settings as the SDK's own connections.
func (l *line) dial(ctx context.Context, t *http.Transport, r *http.Request) error {
	address := r.URL.Host
	if r.URL.Port() == "" {
		address = net.JoinHostPort(r.URL.Hostname(), map[string]string{"http": "80", "https": "443"}[r.URL.Scheme])
	}
	conn, err := t.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	l.conn, l.used, l.lowWater = conn, false, 0
	l.tcp, _ = conn.(*net.TCPConn)
	if r.URL.Scheme == "https" {
		config := t.TLSClientConfig.Clone()
		config.NextProtos = nil // HTTP/1.1
		if config.ServerName == "" {
			config.ServerName = r.URL.Hostname()
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
	l.in.Reset(l.conn)
	return nil
}

// hangUp closes the connection; the next request makes another.
func (l *line) hangUp() {
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.conn, l.tcp = nil, nil
}

// wakeAt asks the kernel to wake the reader only when so many bytes are there,
// or for any if n is 1. It saves a fast connection from being woken for each
// packet. More than what is still to come must never be asked for.
func (l *line) wakeAt(n int) {
	if l.tcp == nil || n == max(l.lowWater, 1) {
		return
	}
	raw, err := l.tcp.SyscallConn()
	if err != nil {
		return
	}
	l.lowWater = n
	// If it fails, the reader is woken more often.
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) })
}

const (
	// lowWater is how many bytes a fast connection collects.
	lowWater = mebibyte / 2
	// fastRate is from how many bytes a second on that does not delay anything.
	fastRate = 10e6
	// lowWaterMargin is what may be in buffers of this process already.
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
	if b.fast && b.left >= lowWater+lowWaterMargin {
		wake = lowWater
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
	return nil
}
