// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// DefaultPollInterval is how often a FileSource looks at its file when nothing else is asked for.
const DefaultPollInterval = time.Second

// RingSource tells of the ring document in force.
type RingSource interface {
	// Watch calls apply with the document in force, and with every other one that replaces it, until the context ends.
	// A document that cannot be read is an error in its place; the ring before it stays. It returns when the context
	// ends.
	Watch(ctx context.Context, apply func(*Document, error))
}

// FileSource reads the ring document from a file, such as one of a mounted ConfigMap. A file that does not exist is an
// empty ring: the cache is not there yet, or not any more.
//
// It looks at the file every Interval rather than wait for the kernel to tell: the kubelet takes up to a minute to
// bring a new document anyway, and a node has few inotify instances for each user id, which a sidecar in every pod
// would use up for everyone.
type FileSource struct {
	// Path is the file; it may be a symbolic link that is replaced.
	Path string
	// Interval is the time between two looks; 0 means DefaultPollInterval.
	Interval time.Duration
}

// Watch implements RingSource.
func (s *FileSource) Watch(ctx context.Context, apply func(*Document, error)) {
	interval := s.Interval
	if interval <= 0 {
		interval = DefaultPollInterval
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var last state
	for first := true; ; first = false {
		now := s.read()
		if first || !now.equal(last) {
			apply(now.document())
			last = now
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// state is what one look at the file found.
type state struct {
	data    []byte
	missing bool
	err     error
}

func (a state) equal(b state) bool {
	sameError := (a.err == nil) == (b.err == nil) && (a.err == nil || a.err.Error() == b.err.Error())
	return sameError && a.missing == b.missing && bytes.Equal(a.data, b.data)
}

func (a state) document() (*Document, error) {
	switch {
	case a.missing:
		return &Document{Hash: HashKetamaMD5}, nil
	case a.err != nil:
		return nil, a.err
	}
	return ParseDocument(a.data)
}

// read reads the file, of a huge one only enough to see that it is too large.
func (s *FileSource) read() state {
	file, err := os.Open(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{missing: true}
	}
	if err != nil {
		return state{err: fmt.Errorf("reading ring document: %w", err)}
	}
	defer file.Close() //nolint:errcheck // It is only read.
	data, err := io.ReadAll(io.LimitReader(file, MaxDocumentBytes+1))
	if err != nil {
		return state{err: fmt.Errorf("reading ring document: %w", err)}
	}
	return state{data: data}
}

// Follow keeps the client on the ring of the source until the context ends. A document that cannot be read or used is
// logged and counted, and changes nothing.
func (c *Client) Follow(ctx context.Context, source RingSource) {
	source.Watch(ctx, func(d *Document, err error) {
		if err == nil {
			err = c.SetRing(d)
		}
		if err != nil {
			c.ringErrors.Add(1)
			c.options.Logger.Error("Ring document not usable, the ring stays as it was", "error", err)
			return
		}
		c.options.Logger.Info("Ring set", "epoch", d.Epoch, "servers", len(d.Servers))
	})
}
