// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/nodecache"
)

// smallestKept is the size from which files go through the node's cache. Asking
// for the head of a smaller one takes as long as fetching it.
const smallestKept = mebibyte

// shelf is the node's cache as one pull sees it. A nil shelf has nothing and
// keeps nothing. Trouble with it is logged and fails nothing.
type shelf struct {
	cache  *nodecache.Cache
	bucket string
	// store names the endpoint.
	store string
}

// openShelf opens the node's cache if there is one, and waits while another pull
// on this node fetches the same source, but not for one that takes too long or does
// not come on: then both fetch. The function that it returns lets the next one in.
func (p *pull) openShelf(ctx context.Context) (*shelf, func(), error) {
	nothing := func() {}
	if p.opts.NodeCache == "" {
		return nil, nothing, nil
	}
	cache, err := nodecache.Open(p.opts.NodeCache, p.opts.NodeCacheSize)
	if err != nil {
		p.log.Warn("Going on without the node's cache", "cause", err.Error())
		return nil, nothing, nil
	}
	s := &shelf{cache: cache, bucket: p.at.bucket, store: firstOf(p.opts.Endpoint, p.opts.Region)}
	lock, err := cache.Lock(ctx, s.store+" s3://"+p.at.bucket+"/"+p.at.path, p.turnWait())
	switch {
	case err == nil:
		stop := p.beat(lock)
		return s, func() {
			stop()
			lock.Release()
			cache.Close()
		}, nil
	case ctx.Err() != nil:
		cache.Close()
		return nil, nothing, err
	case errors.Is(err, nodecache.ErrBusy):
		// What the other one has kept so far is still taken.
		p.log.Warn("Fetching beside another pod of this node, for which this one waits no longer", "cause", err.Error())
		return s, cache.Close, nil
	}
	cache.Close()
	p.log.Warn("Going on without the node's cache", "cause", err.Error())
	return nil, nothing, nil
}

// mostStill is how long the pod that fetches for others may bring nothing: more
// than its own watchdog and a pause before the next try take.
const mostStill = 30 * time.Second

// turnWait bounds the wait for another pod that fetches the same.
func (p *pull) turnWait() nodecache.Wait {
	longest := p.opts.NodeCacheWait
	if longest <= 0 {
		return nodecache.Wait{Longest: -1}
	}
	return nodecache.Wait{Longest: longest, Still: mostStill, Begun: func() {
		p.log.Info("Waiting for another pod of this node that fetches the same source", "longest", longest.String())
	}}
}

// beatEvery is how often a pull looks whether it has something to tell those who wait.
const beatEvery = 2 * time.Second

// beat tells other pods that this one comes on, as long as it does, until the
// function that it returns is called.
func (p *pull) beat(lock *nodecache.Lock) (stop func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(beatEvery)
		defer ticker.Stop()
		for last := p.progress.moved(); ; {
			select {
			case <-ended:
				return
			case <-ticker.C:
			}
			if now := p.progress.moved(); now != last {
				lock.Beat()
				last = now
			}
		}
	}()
	return func() {
		close(ended)
		<-done
	}
}

// takes reports whether files like this one go through the cache.
func (s *shelf) takes(f *file) bool {
	return s != nil && f.object.size >= smallestKept && f.object.etag != ""
}

// shares reports whether a file is in the cache, on the file system of the
// destination, where it may well need no room.
func (s *shelf) shares(f *file, into *store) bool {
	if !s.takes(f) {
		return false
	}
	hit, err := s.cache.Get(s.identity(f))
	if hit == nil || err != nil {
		return false
	}
	defer hit.Close()
	var a, b unix.Stat_t
	return unix.Fstat(int(hit.File.Fd()), &a) == nil && unix.Fstat(int(into.lock.Fd()), &b) == nil && a.Dev == b.Dev
}

func (s *shelf) identity(f *file) nodecache.Identity {
	return nodecache.Identity{
		Store: s.store, Bucket: s.bucket, Key: f.object.key, Version: f.object.version(), Size: f.object.size,
	}
}

// reuse takes a file from the node's cache and reports whether it did. Its bytes
// are read and must meet the proof that they would have to meet had they come
// from the store.
func (e *engine) reuse(ctx context.Context, w *worker, f *file) (bool, error) {
	if !e.shelf.takes(f) || f.saved != nil || f.restarts > 0 {
		return false, nil
	}
	id := e.shelf.identity(f)
	hit, err := e.shelf.cache.Get(id)
	if err != nil {
		e.log.Warn("The node's cache cannot be read", "cause", err.Error())
	}
	if hit == nil {
		return false, nil
	}
	defer hit.Close()
	err = e.take(ctx, w, f, hit)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err == nil {
		f.reused = true
		e.progress.reused.Add(f.object.size)
		return true, nil
	}
	var lost int64
	for _, s := range f.segments {
		lost += s.n
	}
	e.progress.done.Add(-lost)
	_ = f.close()
	f.segments = nil
	if _, wrong := errors.AsType[*corruptError](err); wrong {
		e.log.Warn("The node's cache holds wrong bytes, which are dropped", "object", f.uri, "cause", err.Error())
		err = e.shelf.cache.Drop(id)
	}
	if err != nil {
		e.log.Warn("A file could not be taken from the node's cache", "object", f.uri, "cause", err.Error())
	}
	return false, nil
}

// take makes the gathering file of f from an entry: a clone, another name, or a
// copy, whichever is possible first.
func (e *engine) take(ctx context.Context, w *worker, f *file, hit *nodecache.Hit) error {
	var err error
	shares := false
	if f.temp, shares, err = e.store.shareTemp(f.rel, hit); err != nil {
		return err
	}
	if !shares {
		if f.temp, err = e.store.openTemp(f.rel, f.object.size, true); err != nil {
			return err
		}
	}
	crc, err := e.readThrough(ctx, w, f, hit.File, !shares)
	if err != nil {
		return err
	}
	if hit.CRC == f.proof.crc.Name && hit.Sum != f.proof.crc.Encode(crc) {
		return &corruptError{"it has another checksum than it was kept with"}
	}
	return f.proof.check(f.segments, f.object.size, f.temp, w.buf)
}

// shareTemp makes the gathering file of rel a clone of an entry, or another name
// for its file, and reports whether it did.
func (s *store) shareTemp(rel string, hit *nodecache.Hit) (*os.File, bool, error) {
	name := tempName(rel)
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, diskFailure(s.dir, err)
	}
	f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, false, diskFailure(s.dir, err)
	}
	if hit.Clone(f) == nil {
		return f, true, nil
	}
	_ = f.Close()
	if err := s.root.Remove(name); err != nil {
		return nil, false, diskFailure(s.dir, err)
	}
	dir, err := s.root.Open(workDir)
	if err != nil {
		return nil, false, diskFailure(s.dir, err)
	}
	defer dir.Close() //nolint:errcheck // only read
	if hit.Link(dir, path.Base(name)) != nil {
		return nil, false, nil
	}
	f, err = s.root.Open(name)
	return f, err == nil, err
}

// readThrough reads an entry, writes it to the gathering file if that does not
// share its bytes, and notes the checks of its pieces. It returns that of the whole.
func (e *engine) readThrough(ctx context.Context, w *worker, f *file, from *os.File, writes bool) (uint64, error) {
	var whole uint64
	piece := segment{}
	f.segments = nil
	for off := int64(0); off < f.object.size; {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		n := min(int64(len(w.buf)), f.object.size-off, f.proof.untilCut(off))
		p := w.buf[:n]
		if _, err := from.ReadAt(p, off); err != nil {
			return 0, fmt.Errorf("reading the node's cache: %w", err)
		}
		if writes {
			if err := e.writeCopy(f, from, p, off); err != nil {
				return 0, err
			}
		}
		whole = f.proof.crc.Update(whole, p)
		piece.crc = f.proof.crc.Update(piece.crc, p)
		piece.n += n
		off += n
		if off == f.object.size || f.proof.untilCut(off) == f.proof.cut {
			f.segments = append(f.segments, piece)
			e.progress.done.Add(piece.n)
			piece = segment{span: span{off: off}}
		}
	}
	return whole, nil
}

// writeCopy writes to the gathering file, and forgets the pages that were read:
// a model server reads those of the copy.
func (e *engine) writeCopy(f *file, from *os.File, p []byte, off int64) error {
	if _, err := f.temp.WriteAt(p, off); err != nil {
		return diskFailure(e.store.dir, err)
	}
	if e.back != nil {
		if err := e.back.wrote(f.temp, span{off, int64(len(p))}); err != nil {
			return diskFailure(e.store.dir, err)
		}
	}
	_ = unix.Fadvise(int(from.Fd()), off, int64(len(p)), unix.FADV_DONTNEED)
	return nil
}

// keep puts a file that was fetched and proven into the node's cache.
func (e *engine) keep(ctx context.Context, w *worker, f *file, r *FileRecord) {
	if !e.shelf.takes(f) || f.reused {
		return
	}
	err := e.keepFile(ctx, w, f, r)
	switch {
	case err == nil, ctx.Err() != nil:
	case errors.Is(err, nodecache.ErrNoRoom):
		e.log.Info("A file was not kept for other pods of this node", "object", f.uri, "because", err.Error())
	default:
		e.log.Warn("A file could not be kept for other pods of this node", "object", f.uri, "cause", err.Error())
	}
}

func (e *engine) keepFile(ctx context.Context, w *worker, f *file, r *FileRecord) error {
	final, err := e.store.root.Open(f.rel)
	if err != nil {
		return err
	}
	defer final.Close() //nolint:errcheck // only read
	folder, err := e.store.root.Open(path.Dir(f.rel))
	if err != nil {
		return err
	}
	defer folder.Close() //nolint:errcheck // only read
	return e.shelf.cache.Put(ctx, nodecache.Record{Identity: e.shelf.identity(f), CRC: r.CRC, Sum: r.Sum}, nodecache.Source{
		File: final, Folder: folder, Name: path.Base(f.rel),
		Copy: func(into *os.File) error { return copyOut(ctx, into, final, w.buf, &e.progress.kept) },
	})
}

// copyOut copies a file, counting bytes, and keeps no page of the copy, which nobody
// here reads.
func copyOut(ctx context.Context, into, from *os.File, buf []byte, count *atomic.Int64) error {
	back := newWriteback(smallestWindow, 1)
	var at, handed int64
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := from.ReadAt(buf, at)
		if n > 0 {
			if _, err := into.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
			count.Add(int64(n))
		}
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return err
		}
		if at-handed >= back.stretch || end {
			if err := back.wrote(into, span{handed, at - handed}); err != nil {
				return err
			}
			handed = at
		}
		if end {
			return back.finish(into)
		}
	}
}
