// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The floor is the least that a program can do to bring objects to files: plain connections, ranges of 16 MiB, receive
// into one buffer of 1 MiB, write it at its place. It signs nothing, checks nothing, retries nothing, and knows names
// and sizes beforehand. What it needs, everybody needs.

const (
	floorConns  = 4
	floorRange  = 16 * mebibyte
	floorBuffer = mebibyte
)

// floorOrder is what the floor is told, as JSON on its standard input.
type floorOrder struct {
	Endpoint  string
	Authority string // a PEM file, for TLS
	Files     []file
	Dest      string // empty: throw the bytes away
}

// piece is one range of one file.
type piece struct {
	out    *floorFile
	path   string
	off, n int64
}

// floorFile is a file that pieces still have to be written to.
type floorFile struct {
	*os.File
	left atomic.Int64
	// writing spares the kernel's own wait for a file's lock, which turns on a processor.
	writing sync.Mutex
}

// runFloor is the floor's program.
func runFloor(ctx context.Context, in io.Reader) error {
	var order floorOrder
	if err := json.NewDecoder(in).Decode(&order); err != nil {
		return fmt.Errorf("reading the order: %w", err)
	}
	dial, err := order.dialer()
	if err != nil {
		return err
	}
	pieces := make(chan piece)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for range floorConns {
		group.Go(func() {
			if err := floorConn(ctx, dial, pieces); err != nil {
				cancel(err)
			}
		})
	}
	err = order.feed(ctx, pieces)
	close(pieces)
	group.Wait()
	return errors.Join(err, context.Cause(ctx))
}

func (o floorOrder) dialer() (func(context.Context) (net.Conn, error), error) {
	at, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, err
	}
	port := at.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[at.Scheme]
	}
	host := net.JoinHostPort(at.Hostname(), port)
	if at.Scheme == "http" {
		return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", host) }, nil
	}
	pem, err := os.ReadFile(o.Authority)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	d := &tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", host) }, nil
}

func (o floorOrder) feed(ctx context.Context, pieces chan<- piece) error {
	for _, f := range o.Files {
		t, err := o.open(f)
		if err != nil {
			return err
		}
		for off := int64(0); off < f.Size; off += floorRange {
			p := piece{out: t, path: "/" + bucket + "/" + f.Key, off: off, n: min(floorRange, f.Size-off)}
			select {
			case pieces <- p:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// open makes a file, and reserves its blocks if it is on disk and more than one write makes it up: that is the
// cheapest way to write parts in any order.
func (o floorOrder) open(f file) (*floorFile, error) {
	if o.Dest == "" {
		return nil, nil
	}
	out, err := os.OpenFile(filepath.Join(o.Dest, f.name()), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	t := &floorFile{File: out}
	t.left.Store((f.Size + floorRange - 1) / floorRange)
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(out.Fd()), &st); err != nil || st.Type == unix.TMPFS_MAGIC || f.Size <= floorBuffer {
		return t, err
	}
	return t, unix.Fallocate(int(out.Fd()), 0, 0, f.Size)
}

func floorConn(ctx context.Context, dial func(context.Context) (net.Conn, error), pieces <-chan piece) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 4096)
	buf := make([]byte, floorBuffer)
	for p := range pieces {
		_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n", p.path, p.off, p.off+p.n-1)
		if err != nil {
			return err
		}
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		if answer.StatusCode != http.StatusPartialContent || answer.ContentLength != p.n {
			return fmt.Errorf("answer %s of %d bytes", answer.Status, answer.ContentLength)
		}
		if err := p.store(answer.Body, buf); err != nil {
			return err
		}
	}
	return nil
}

func (p piece) store(body io.Reader, buf []byte) error {
	for off, left := p.off, p.n; left > 0; {
		n, err := io.ReadFull(body, buf[:min(int64(len(buf)), left)])
		if err != nil {
			return err
		}
		if p.out != nil {
			p.out.writing.Lock()
			_, err = p.out.WriteAt(buf[:n], off)
			p.out.writing.Unlock()
			if err != nil {
				return err
			}
		}
		off += int64(n)
		left -= int64(n)
	}
	if p.out != nil && p.out.left.Add(-1) == 0 {
		return p.out.Close()
	}
	return nil
}
