// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/minio/crc64nvme"
)

// lab is where clients are measured.
type lab struct {
	store     *store
	plain     string
	secure    string
	authority string
	workloads []workload
	// disk and memory are folders for destinations, home one for settings.
	disk, memory, home string
	// done are destinations that have been measured.
	done []string
	self string // this program
	say  func(format string, args ...any)
}

func (l *lab) job(c cell) (job, error) {
	parent := l.disk
	if c.memory {
		parent = l.memory
	}
	j := job{endpoint: l.plain, authority: l.authority, workload: workloadNamed(l.workloads, c.workload), home: l.home}
	if c.tls {
		j.endpoint = l.secure
	}
	var err error
	j.dest, err = os.MkdirTemp(parent, "preloader-bench-")
	return j, err
}

// rounds measures all clients in a cell, one after the other in each round, each round beginning with another one, so
// that what the machine does besides hits all alike. Whoever fails is left out from then on, and the failure told.
func (l *lab) rounds(ctx context.Context, c cell, clients []client, rounds int) (map[string][]sample, map[string]string, error) {
	samples, failed := map[string][]sample{}, map[string]string{}
	for round := range rounds {
		for i := range clients {
			client := clients[(i+round)%len(clients)]
			if failed[client.name] != "" {
				continue
			}
			s, err := l.once(ctx, c, client, round == 0)
			if ctx.Err() != nil {
				return nil, nil, context.Cause(ctx)
			}
			if err != nil {
				l.say("%s: %v", c.id(), err)
				failed[client.name] = err.Error()
				continue
			}
			l.say("%-34s %-16s %6.2f s  %5.2f CPU-s  %4d MB", c.id(), client.name, s.Wall, s.CPU, s.RSS/1e6)
			samples[client.name] = append(samples[client.name], s)
		}
	}
	return samples, failed, nil
}

// once measures one run, and looks at what it left.
func (l *lab) once(ctx context.Context, c cell, client client, thorough bool) (s sample, err error) {
	j, err := l.job(c)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.discard(j.dest)) }()
	var g *groups
	if c.limited {
		if g, err = newGroups(); err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, g.close()) }()
	}
	l.store.far.Store(c.far)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	p, err := begin(ctx, l.self, client, j, g)
	if err != nil {
		return s, err
	}
	if s, err = p.end(); err != nil {
		return s, err
	}
	return s, l.inspect(j, client, thorough)
}

// discard empties the files of a destination, which are removed at the end: ext4 does not give inodes out again that
// were freed in the last minutes, and whoever makes a file after thousands were removed pays for the search.
func (l *lab) discard(dest string) error {
	l.done = append(l.done, dest)
	return filepath.WalkDir(dest, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return os.Truncate(path, 0)
	})
}

// inspect fails unless every file is there, at its length, and if thorough with its bytes.
func (l *lab) inspect(j job, c client, thorough bool) error {
	buf := make([]byte, mebibyte)
	for _, o := range l.store.objects {
		if filepath.Dir(o.Key) != j.workload.name {
			continue
		}
		path := filepath.Join(j.dest, o.name())
		info, err := os.Stat(path)
		if err == nil && info.Size() != o.Size {
			err = fmt.Errorf("%d bytes, want %d", info.Size(), o.Size)
		}
		if err == nil && thorough {
			err = l.store.compare(o, path, buf)
		}
		if err != nil {
			return fmt.Errorf("%s left a wrong %s: %w", c.name, o.name(), err)
		}
	}
	return nil
}

func (s *store) compare(o object, path string, buf []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := crc64nvme.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
		return err
	}
	if got := encodeSum(h.Sum64()); got != o.crc {
		return fmt.Errorf("its checksum is %s, want %s", got, o.crc)
	}
	return nil
}

// killed starts a client, kills it with SIGKILL when the server has sent nine tenths, starts it again on what is left,
// and returns how much more than the model the server sent altogether, as a share of the model.
func (l *lab) killed(ctx context.Context, c cell, client client) (share float64, err error) {
	j, err := l.job(c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.discard(j.dest)) }()
	l.store.far.Store(c.far)
	before := l.store.sent.Load()
	most := j.workload.bytes() * 9 / 10
	p, err := begin(ctx, l.self, client, j, nil)
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := p.end()
		ended <- err
	}()
	for l.store.sent.Load()-before < most {
		select {
		case err := <-ended:
			return 0, errors.Join(errors.New("it ended before it could be killed"), err)
		case <-time.After(time.Millisecond):
		}
	}
	if err := p.kill(); err != nil {
		return 0, err
	}
	<-ended
	if p, err = begin(ctx, l.self, client, j, nil); err != nil {
		return 0, err
	}
	if _, err := p.end(); err != nil {
		return 0, err
	}
	if err := l.inspect(j, client, true); err != nil {
		return 0, err
	}
	return float64(l.store.sent.Load()-before)/float64(j.workload.bytes()) - 1, nil
}

// fileSystem names what a folder is on, as the kernel does.
func fileSystem(dir string) string {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "unknown"
	}
	best, kind := "", "unknown"
	for line := range bytes.Lines(raw) {
		words := bytes.Fields(line)
		if len(words) < 3 {
			continue
		}
		at := string(words[1])
		if rel, err := filepath.Rel(at, dir); err == nil && filepath.IsLocal(rel) && len(at) >= len(best) {
			best, kind = at, string(words[2])
		}
	}
	return kind
}
