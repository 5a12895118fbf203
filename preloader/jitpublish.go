// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"serverless.xyz/outrigger/preloader/jitcache"
	"serverless.xyz/outrigger/preloader/quantity"
)

// Publication is what publishing came to.
type Publication struct {
	// State is published, there (somebody had published one for the key) or same (it held
	// the same already).
	State string `json:"state"`
	// URI is the folder of the key, and Key the key itself.
	URI string       `json:"uri"`
	Key jitcache.Key `json:"key"`
	// SHA256 and Size are the archive's, in bytes; absent if none was made.
	SHA256 string `json:"sha256,omitempty"`
	Size   int64  `json:"size,omitempty"`
	jitcache.Contents
	Trees   []jitcache.Tree `json:"trees,omitempty"`
	Seconds float64         `json:"seconds"`
}

// States of a Publication.
const (
	published      = "published"
	publishedAhead = "there"
	publishedSame  = "same"
)

// String says it in a sentence.
func (p *Publication) String() string {
	switch p.State {
	case publishedAhead:
		return "Compiled kernels for this key were published before; nothing was changed. --replace=true puts new ones in their place"
	case publishedSame:
		return "The very same kernels are published already"
	}
	return fmt.Sprintf(
		"Published %s, %s, as %s",
		countOf(p.Files, "file"),
		quantity.FormatBytes(p.Bytes),
		quantity.FormatBytes(p.Size),
	)
}

const (
	// packTimes is how often trees are packed that change meanwhile.
	packTimes = 5
	// manifestTimes is how often a manifest is read anew because another one came between.
	manifestTimes = 5
	// orphanAge is when an archive that no manifest names is given up by its publisher.
	orphanAge = time.Hour
)

// PublishCache packs the trees and puts them into the store under the key. The manifest
// comes last, and by a conditional request, so that of publishers at once only one
// counts, and a reader sees all or nothing. The error is an *ExitError or the cause of
// the context's end.
func PublishCache(
	ctx context.Context,
	opts Options,
	trees []jitcache.Tree,
	replace bool,
	log *slog.Logger,
) (*Publication, error) {
	start := time.Now()
	opts = opts.settled()
	c, err := openCaches(ctx, opts, opts.JIT.Models, log)
	if err != nil {
		return nil, err
	}
	source, ok := c.src.source.(*s3Source)
	if !ok {
		return nil, configFailure("", "only S3 can be written to")
	}
	p := &publisher{
		caches: c, trees: trees, log: log, to: &uploader{src: source, repeat: c.src.repeat},
		done: &Publication{URI: c.uri(c.home()), Key: c.key, Trees: trees},
	}
	slices.SortFunc(trees, func(a, b jitcache.Tree) int { return strings.Compare(a.Name, b.Name) })
	log.Info("Publishing compiled kernels", "key", c.key.String(), "to", p.done.URI)
	err = p.publish(ctx, replace)
	p.done.Seconds = time.Since(start).Seconds()
	return p.done, err
}

type publisher struct {
	*caches
	trees []jitcache.Tree
	log   *slog.Logger
	to    *uploader
	done  *Publication
}

func (p *publisher) publish(ctx context.Context, replace bool) error {
	before, version, err := p.current(ctx)
	if err != nil {
		return err
	}
	if version != "" && !replace {
		p.done.State = publishedAhead
		return nil
	}
	m, err := p.archive(ctx, before)
	if err != nil {
		return err
	}
	p.done.SHA256, p.done.Size, p.done.Contents = m.SHA256, m.Size, m.Contents
	if before != nil && before.SHA256 == m.SHA256 {
		p.done.State = publishedSame
		return nil
	}
	if err := p.name(ctx, m, version, replace); err != nil {
		return err
	}
	if p.done.State == published {
		// Another publisher may have swept the archive away before it had this name.
		if err := p.packFailure(ctx, p.ensure(ctx, m, 0)); err != nil {
			return err
		}
	}
	p.sweep(ctx, m)
	return nil
}

// ensure sends the archive unless it is there and, if youngerThan is not 0, not so old that
// another publisher may sweep it away before it has been named.
func (p *publisher) ensure(ctx context.Context, m *jitcache.Manifest, youngerThan time.Duration) error {
	at := p.home() + m.ArchiveName()
	o, err := p.src.head(ctx, at)
	switch {
	case err != nil && !isNotFound(err):
		return err
	case err == nil && o.size == m.Size && (youngerThan == 0 || o.age(time.Now()) < youngerThan):
		return nil
	}
	return p.send(ctx, at, m)
}

// current returns the manifest that is there and its version. One that cannot be read
// has only a version: it may be replaced.
func (p *publisher) current(ctx context.Context) (*jitcache.Manifest, string, error) {
	m, version, err := p.manifest(ctx)
	if f, ok := errors.AsType[*ExitError](err); ok && f.Reason == "BadCache" {
		p.log.Warn("What is published for this key cannot be used and is replaced", "cause", f.Error())
		o, err := p.src.head(ctx, p.home()+jitcache.ManifestName)
		return nil, o.etag, err
	}
	return m, version, err
}

// archive packs the trees twice: once to know the archive's name, which is its digest,
// and once to send it. That takes no disk, and both give the same bytes unless the trees
// change.
func (p *publisher) archive(ctx context.Context, before *jitcache.Manifest) (*jitcache.Manifest, error) {
	for n := 1; ; n++ {
		m, err := p.packAndSend(ctx, before)
		if !errors.Is(err, jitcache.ErrChanging) || n == packTimes {
			return m, p.packFailure(ctx, err)
		}
		p.log.Info("The trees changed while they were packed, starting over", "cause", err.Error())
		if err := sleep(ctx, time.Duration(n)*200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (p *publisher) packFailure(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, jitcache.ErrChanging):
		return &ExitError{
			Code: ExitTransient, Reason: "Changing", Cause: "the trees kept changing while they were packed", Err: err,
			Advice: "Publish when the engine has compiled what it needs, after its first requests.",
		}
	case errors.Is(err, jitcache.ErrTooMany):
		return &ExitError{
			Code: ExitConfig, Reason: "TooLarge", Cause: "the trees cannot be published", Err: err,
			Advice: "Name the folders that hold compiled kernels, as NAME=PATH.",
		}
	case errors.Is(err, fs.ErrPermission):
		return &ExitError{
			Code: ExitDenied, Reason: "CannotRead", Cause: "the trees cannot be read", Err: err,
			Advice: "Run as the user that the engine runs as.",
		}
	}
	return err
}

func (p *publisher) packAndSend(ctx context.Context, before *jitcache.Manifest) (*jitcache.Manifest, error) {
	first := &digest{hash: sha256.New()}
	contents, err := jitcache.Pack(ctx, first, p.trees)
	if err != nil {
		return nil, err
	}
	if contents.Files == 0 {
		return nil, &ExitError{
			Code: ExitNotFound, Reason: "Empty", Cause: "there is no file to publish in the trees",
			Advice: "Publish after the engine has compiled something; check that its variables name these folders.",
		}
	}
	m := &jitcache.Manifest{
		Key: p.key, SHA256: first.sum(), Size: first.n, Contents: contents, Trees: p.trees, Made: time.Now().UTC(), By: Version(),
	}
	p.log.Info(
		"Packed",
		"files",
		m.Files,
		"bytes",
		byteCount(m.Bytes),
		"packed",
		byteCount(m.Size),
		"leftOut",
		m.LeftOut,
	)
	if before != nil && before.SHA256 == m.SHA256 {
		return m, p.ensure(ctx, m, 0)
	}
	return m, p.ensure(ctx, m, orphanAge/2) // an earlier run may have been killed before it could name it
}

// digest takes note of what passes.
type digest struct {
	hash interface {
		io.Writer
		Sum(b []byte) []byte
	}
	n int64
}

func (d *digest) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	return d.hash.Write(p)
}

func (d *digest) sum() string { return hex.EncodeToString(d.hash.Sum(nil)) }

// send packs once more, into the store.
func (p *publisher) send(ctx context.Context, at string, m *jitcache.Manifest) error {
	object, err := p.to.begin(ctx, at, m.Size)
	if err != nil {
		return err
	}
	second := &digest{hash: sha256.New()}
	_, err = jitcache.Pack(ctx, io.MultiWriter(second, object), p.trees)
	if err == nil && second.sum() != m.SHA256 {
		err = jitcache.ErrChanging
	}
	if err == nil {
		err = object.finish() //nolint:contextcheck // it has the context that it began with
		if isNotFound(err) {
			// The answer to an earlier try may have been lost.
			if o, headErr := p.src.head(ctx, at); headErr == nil && o.size == m.Size {
				err = nil
			}
		}
	}
	if err == nil {
		return nil
	}
	if abortErr := object.abort(); abortErr != nil { //nolint:contextcheck // it outlives the context
		p.log.Warn("Parts of an upload could not be removed", "object", p.uri(at), "cause", abortErr.Error())
	}
	return err
}

// name writes the manifest, which makes the archive visible.
func (p *publisher) name(ctx context.Context, m *jitcache.Manifest, version string, replace bool) error {
	raw, err := m.Encode()
	if err != nil {
		return err
	}
	at := p.home() + jitcache.ManifestName
	for n := 1; ; n++ {
		when := condition{absent: version == "", etag: version}
		err := p.to.put(ctx, at, raw, "application/json", when)
		if f, ok := errors.AsType[*ExitError](err); ok && f.Reason == reasonNoConditions {
			p.log.Warn("The store takes no conditional requests, so another publisher could be overtaken", "cause", err.Error())
			err = p.to.put(ctx, at, raw, "application/json", condition{})
		}
		if !errors.Is(err, errChanged) || n == manifestTimes {
			p.done.State = published
			return err
		}
		var other *jitcache.Manifest
		if other, version, err = p.current(ctx); err != nil {
			return err
		}
		if other != nil && (!replace || other.SHA256 == m.SHA256) {
			// Another publisher was first, unless it was this one and its answer was lost.
			if p.done.State = publishedAhead; other.SHA256 == m.SHA256 {
				p.done.State = published
			}
			return nil
		}
	}
}

// sweep removes archives of this key that no manifest names, once their publishers must
// have come to their end.
func (p *publisher) sweep(ctx context.Context, m *jitcache.Manifest) {
	var found []object
	err := each(ctx, p.src, p.home(), false, func(o object) bool {
		found = append(found, o)
		return true
	})
	for _, o := range found {
		if !strings.HasSuffix(o.key, ".tar.zst") || o.key == p.home()+m.ArchiveName() || o.age(time.Now()) < orphanAge {
			continue
		}
		var named *jitcache.Manifest
		if named, _, err = p.manifest(ctx); err != nil || named != nil && o.key == p.home()+named.ArchiveName() {
			break // somebody else has published since
		}
		if err = p.to.remove(ctx, o.key); err != nil {
			break
		}
		p.log.Info("Removed an archive that is not used any more", "object", p.uri(o.key))
	}
	if err != nil {
		p.log.Warn("Archives that are not used any more could not be removed", "cause", err.Error())
	}
}

// publishCache packs and publishes.
func (c *Command) publishCache(ctx context.Context, flags map[string]string, args []string) ExitCode {
	opts, err := c.options()
	log := c.logger(opts.JSONLogs)
	var done *Publication
	idle, idleErr := quantity.ParseSeconds(firstOf(flags["when-idle"], "0"))
	switch {
	case err != nil:
	case idleErr != nil:
		err = usageFailure("flag --when-idle: %v", idleErr)
	case opts.JIT.URI == "":
		err = configFailure("Set it to a folder in S3, such as s3://bucket/jit.", "PRELOADER_JIT_CACHE_URI is not set")
	case flags["replace"] != "" && !isTrue(flags["replace"]) && !isFalse(flags["replace"]):
		err = usageFailure("flag --replace is %q, want true or false", flags["replace"])
	case idle > 0:
		done, err = c.publishWhenIdle(ctx, opts, flags, args, idle, log)
	default:
		done, err = c.publishTrees(ctx, opts, flags, args, log)
	}
	if done == nil {
		done = &Publication{}
	}
	word := struct {
		Code   ExitCode `json:"code"`
		Reason string   `json:"reason"`
		*Publication
	}{0, "Completed", done}
	text := done.String() + "."
	if err != nil {
		f := failureOf(err)
		word.Code, word.Reason, text = f.Code, f.Reason, sentence(f)
		log.Error(text, "reason", f.Reason, "code", int(f.Code))
	} else {
		log.Info(done.String(), "uri", done.URI)
	}
	line, _ := json.Marshal(word) //nolint:errchkjson // numbers and strings
	last := firstOf(opts.TerminationLog, c.Getenv("PRELOADER_TERMINATION_LOG"), DefaultTerminationLog)
	if err := writeTermination(last, text+"\n"+string(line)); err != nil {
		log.Warn("The termination message could not be left", "cause", err.Error())
	}
	return word.Code
}

// publishWhenIdle waits until there are trees to which nothing was written for a while,
// publishes them, and waits for its end: as a container beside an engine, it must not
// end before the engine does. Trouble is logged and tried again.
func (c *Command) publishWhenIdle(
	ctx context.Context, opts Options, flags map[string]string, args []string, idle time.Duration, log *slog.Logger,
) (*Publication, error) {
	log.Info("Waiting until engines have compiled, and for " + idle.String() + " nothing more")
	for still := (stillness{idle: idle}); ; {
		trees, err := jitcache.FindTrees(args, opts.JIT.Dir, c.Getenv)
		if err != nil {
			trees = nil
		}
		if still.long(time.Now(), jitcache.Look(trees)) {
			done, err := c.publishTrees(ctx, opts, flags, args, log)
			if err == nil {
				log.Info(done.String(), "uri", done.URI)
				<-ctx.Done()
				return done, nil
			}
			f := failureOf(err)
			log.Warn(sentence(f), "reason", f.Reason)
			still.since = time.Now()
		}
		if err := sleep(ctx, min(idle/4, 10*time.Second)); err != nil {
			return nil, err
		}
	}
}

// stillness tells when nothing was written to trees for a while.
type stillness struct {
	idle  time.Duration
	last  jitcache.Activity
	since time.Time
}

// long takes a look at trees, and reports whether there are files of which none has
// changed for long enough.
func (s *stillness) long(now time.Time, seen jitcache.Activity) bool {
	if seen != s.last || seen.Files == 0 {
		s.last, s.since = seen, now
	}
	return now.Sub(s.since) >= s.idle
}

func (c *Command) publishTrees(
	ctx context.Context, opts Options, flags map[string]string, args []string, log *slog.Logger,
) (*Publication, error) {
	trees, err := jitcache.FindTrees(args, opts.JIT.Dir, c.Getenv)
	if err != nil {
		return nil, &ExitError{
			Code: ExitNotFound, Reason: "NoTree", Cause: "the trees to publish cannot be found", Err: err,
			Advice: "Name folders as NAME=PATH, or one folder that holds them.",
		}
	}
	if len(trees) == 0 {
		return nil, &ExitError{
			Code: ExitNotFound, Reason: "NoTree", Cause: "there is no tree to publish in " + opts.JIT.Dir,
			Advice: "Name folders as NAME=PATH, or one folder that holds them.",
		}
	}
	return PublishCache(ctx, opts, trees, isTrue(flags["replace"]), log)
}
