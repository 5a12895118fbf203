// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"serverless.xyz/outrigger/preloader/safetensors"
)

const (
	// firstHeader holds most headers whole.
	firstHeader = 128 << 10
	// largestHeader bounds what is held in memory of a header; one that is longer
	// is only checked to fit its file.
	largestHeader = 16 * mebibyte
	// largestIndex bounds what is read of an index; the largest known has 9 MB.
	largestIndex = 64 * mebibyte
)

// indexSuffix ends the names of files that say which file holds which tensor.
const indexSuffix = ".safetensors.index.json"

// shape is what a model says about itself, as far as a pull cares.
type shape struct {
	// dropped are the paths of objects of the source that are not fetched, if there is
	// an index that may name them.
	dropped *catalog
	// shards are the files that each index names, by the index's path.
	shards map[string][]string
}

// leaveOut drops what the selection makes superfluous and says so.
func (p *pull) leaveOut(ctx context.Context) error {
	if p.opts.Select != SelectSafetensors {
		return nil
	}
	if err := p.readIndexes(ctx); err != nil {
		return err
	}
	why := superfluous(p.files.paths(), p.shape.shards)
	left := map[string]*Amount{}
	total := &Amount{}
	p.files.drop(func(i int) bool {
		reason := why(string(p.files.path(i)))
		if reason == "" {
			return false
		}
		if left[reason] == nil {
			left[reason] = &Amount{}
		}
		left[reason].add(p.files.size(i))
		total.add(p.files.size(i))
		p.shape.dropped.add(entry{rel: string(p.files.path(i))})
		if p.files.standing(i) == noted {
			p.others.put(p.files.record(i), noted)
		}
		return true
	})
	p.shape.dropped.sort()
	p.others.settle()
	for _, reason := range slices.Sorted(maps.Keys(left)) {
		p.log.Info(
			"Leaving files out",
			"because",
			reason,
			"files",
			left[reason].Files,
			"bytes",
			byteCount(left[reason].Bytes),
		)
	}
	if total.Files > 0 {
		p.report.LeftOut = total
	}
	return nil
}

// readIndexes fills the shape with what the indexes of the model name, once.
func (p *pull) readIndexes(ctx context.Context) error {
	if p.shape.shards != nil {
		return nil
	}
	p.shape.shards = map[string][]string{}
	for i := range p.files.len() {
		if !bytes.HasSuffix(p.files.path(i), []byte(indexSuffix)) || p.files.size(i) > largestIndex {
			continue
		}
		e := p.files.entry(i)
		shards, err := p.readIndex(ctx, e)
		if err != nil {
			return wrongFile(e.uri, err)
		}
		p.shape.shards[e.rel] = shards
	}
	return nil
}

// readIndex returns what an index names.
func (p *pull) readIndex(ctx context.Context, e entry) (shards []string, err error) {
	err = p.readWhole(ctx, e, func(r io.Reader) (err error) {
		shards, err = safetensors.IndexFiles(r)
		return err
	})
	return shards, err
}

// readWhole reads a small file where it is: in place, or in the store.
func (p *pull) readWhole(ctx context.Context, e entry, take func(io.Reader) error) error {
	if p.current(e) {
		f, err := p.store.root.Open(e.rel)
		if err == nil {
			defer f.Close() //nolint:errcheck // only read
			return take(f)
		}
	}
	return p.src.read(ctx, e.object, span{n: e.object.size}, func(r io.Reader, answered object) error {
		o := e.object
		o.answer = answered.answer
		proof, err := choose(VerifyAuto, o, true)
		if err != nil {
			return err
		}
		sum := newSummed(r, proof)
		verdict := take(sum)
		if _, err := io.Copy(io.Discard, sum); err != nil {
			return err
		}
		// Bytes that were damaged on the way say nothing about the file.
		return cmp.Or(sum.meets(), verdict)
	})
}

// summed computes the check that a proof wants of what is read through it.
type summed struct {
	r     io.Reader
	proof proof
	crc   uint64
	hash  hash.Hash
}

func newSummed(r io.Reader, p proof) *summed {
	s := &summed{r: r, proof: p}
	if p.digest != nil {
		s.hash = p.digest()
	}
	return s
}

// Read reads on.
func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.hash != nil {
		_, _ = s.hash.Write(p[:n])
	} else {
		s.crc = s.proof.crc.Update(s.crc, p[:n])
	}
	return n, err
}

// meets compares with the proof, if that is of the whole.
func (s *summed) meets() error {
	got := s.proof.crc.BytesOf(s.crc)
	if s.hash != nil {
		got = s.hash.Sum(nil)
	}
	if s.proof.want == nil || s.proof.cut > 0 || bytes.Equal(got, s.proof.want) {
		return nil
	}
	return &protocolError{"an answer does not match the object's checksum"}
}

// lint reads the headers of the safetensors files that are about to be fetched,
// so that a broken one shows before bandwidth is spent.
func (p *pull) lint(ctx context.Context) error {
	if !p.opts.Lint {
		return nil
	}
	var suspects []entry
	for i := range p.files.having(missing) {
		if !bytes.HasSuffix(p.files.path(i), []byte(".safetensors")) {
			continue
		}
		if f := p.file(i); f.saved == nil {
			suspects = append(suspects, f.entry)
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	if err := p.readIndexes(ctx); err != nil {
		return err
	}
	if missing := missingShards(p.listed, p.shape.shards); len(missing) > 0 {
		return &ExitError{
			Code: ExitIntegrity, Reason: "MissingShard",
			Cause: fmt.Sprintf("%s lacks %s that its index names, such as %s",
				p.pair.Source, countOf(len(missing), "file"), strconv.Quote(missing[0])),
			Advice: "Upload the model again, whole, or set PRELOADER_LINT to off.",
		}
	}
	var large sync.Mutex
	return eachOf(ctx, p.opts.Conns, slices.Values(suspects), func(ctx context.Context, e entry) error {
		err := p.lintHeader(ctx, e, &large)
		if errors.Is(err, safetensors.ErrMalformed) {
			err = p.lintHeader(ctx, e, &large) // it may have been damaged on the way
		}
		if errors.Is(err, errChanged) {
			return nil // the download will see to it
		}
		return wrongFile(e.uri, err)
	})
}

// listed reports whether the source has a file, whether or not it is fetched.
func (p *pull) listed(rel string) bool {
	_, found := p.files.find(rel)
	if !found {
		_, found = p.shape.dropped.find(rel)
	}
	return found
}

// wrongFile words an error of a file's format; others stay as they are.
func wrongFile(name string, err error) error {
	if !errors.Is(err, safetensors.ErrMalformed) {
		return err
	}
	return &ExitError{
		Code: ExitIntegrity, Reason: "BadSafetensors",
		Cause:  name + " is not what its name says",
		Advice: "Upload the file again, whole, or set PRELOADER_LINT to off.", Err: err,
	}
}

// lintHeader reads and checks one header. Only one that is large is held at a time.
func (p *pull) lintHeader(ctx context.Context, e entry, large *sync.Mutex) error {
	size := e.object.size
	var start []byte
	err := p.src.read(ctx, e.object, span{n: min(size, firstHeader)}, func(r io.Reader, _ object) error {
		var err error
		start, err = io.ReadAll(r)
		return err
	})
	if err != nil {
		return err
	}
	if bytes.HasPrefix(start, []byte("version https://git-lfs.github.com/spec/")) {
		return fmt.Errorf("%w: it is a Git LFS pointer, not the file that it points to", safetensors.ErrMalformed)
	}
	var prefix [safetensors.PrefixBytes]byte
	if copy(prefix[:], start) < len(prefix) {
		return cut(size, int64(len(prefix)))
	}
	n, err := safetensors.HeaderBytes(prefix)
	if err != nil {
		return err
	}
	end := safetensors.PrefixBytes + n
	if end > size {
		return cut(size, end)
	}
	if end <= int64(len(start)) {
		return checkHeader(start[safetensors.PrefixBytes:end], size)
	}
	if n > largestHeader {
		return nil
	}
	large.Lock()
	defer large.Unlock()
	return p.src.read(ctx, e.object, span{safetensors.PrefixBytes, n}, func(r io.Reader, _ object) error {
		raw, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return checkHeader(raw, size)
	})
}

// checkHeader compares a header with itself and with the length of its file.
func checkHeader(raw []byte, size int64) error {
	h, err := safetensors.Parse(raw)
	if err != nil {
		return err
	}
	if want := h.FileBytes(); size != want {
		return cut(size, want)
	}
	return nil
}

func cut(size, want int64) error {
	return fmt.Errorf("%w: it has %d bytes, its header asks for %d", safetensors.ErrMalformed, size, want)
}

// lintTree checks the headers of the safetensors files of a tree. A shard that
// an index names and that is not there may have been left out on purpose, so
// that is only said.
func lintTree(ctx context.Context, dir string, log *slog.Logger) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return diskFailure(dir, err)
	}
	defer root.Close() //nolint:errcheck // only read
	shards := map[string][]string{}
	var failure error
	_, err = loadMarker(root, func(r *FileRecord) {
		if failure != nil || ctx.Err() != nil {
			return
		}
		named, err := lintFile(root, r)
		if err != nil {
			failure = wrongFile(strconv.Quote(r.Path)+" in "+dir, err)
		}
		if named != nil {
			shards[r.Path] = named
		}
	})
	if err := cmp.Or(context.Cause(ctx), failure, err); err != nil || len(shards) == 0 {
		return err
	}
	have := &catalog{}
	defer have.free()
	if _, err := loadMarker(root, func(r *FileRecord) { have.add(entry{rel: r.Path}) }); err != nil {
		return err
	}
	have.sort()
	has := func(rel string) bool {
		_, found := have.find(rel)
		return found
	}
	if missing := missingShards(has, shards); len(missing) > 0 {
		log.Warn("An index names files that are not there", "files", len(missing), "first", missing[0])
	}
	return nil
}

// lintFile checks a header, or reads an index and returns what it names.
func lintFile(root *os.Root, r *FileRecord) ([]string, error) {
	isIndex := strings.HasSuffix(r.Path, indexSuffix)
	if !isIndex && !strings.HasSuffix(r.Path, ".safetensors") {
		return nil, nil
	}
	f, err := root.Open(r.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	if isIndex {
		return safetensors.IndexFiles(bufio.NewReader(f))
	}
	_, err = safetensors.Read(f, r.Size)
	return nil, err
}

// read asks for a span and hands it to take, from its beginning again while
// trouble passes. A *protocolError of take counts as such trouble.
func (p patient) read(ctx context.Context, o object, s span, take func(r io.Reader, answered object) error) error {
	if s.n == 0 {
		return take(strings.NewReader(""), o)
	}
	var verdict error
	err := p.repeat(ctx, "reading the beginning of "+path.Base(o.key), func() error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		watchdog := time.AfterFunc(p.stall, func() { cancel(errStalled) })
		defer watchdog.Stop()
		b, err := p.get(ctx, o, s)
		if err != nil {
			return stallOr(ctx, err)
		}
		defer b.Close() //nolint:errcheck // only read
		w := &watched{r: b, left: s.n, watchdog: watchdog, stall: p.stall}
		verdict = take(w, b.object)
		if _, ok := errors.AsType[*protocolError](verdict); ok {
			return verdict
		}
		return stallOr(ctx, w.err)
	})
	return cmp.Or(err, verdict)
}

// watched reads a body of known length and keeps the watchdog quiet while bytes come.
type watched struct {
	r        io.Reader
	left     int64
	watchdog *time.Timer
	stall    time.Duration
	err      error
}

func (w *watched) Read(p []byte) (int, error) {
	if w.left == 0 {
		return 0, io.EOF
	}
	n, err := w.r.Read(p[:min(int64(len(p)), w.left)])
	w.left -= int64(n)
	if n > 0 {
		w.watchdog.Reset(w.stall)
	}
	if errors.Is(err, io.EOF) && w.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && w.left > 0 {
		w.err = err
	}
	return n, err
}
