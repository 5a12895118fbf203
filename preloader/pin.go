// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"sync"

	"serverless.xyz/outrigger/preloader/crc"
)

// A pull tells a digest of what it brought. Whoever pins it gets that content and no
// other, and a tree that has it already needs no request to the store.

var pinForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// parsePins reads digests, one for each pair; an empty one pins nothing.
func parsePins(text string) ([]string, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	pins := strings.Split(text, ",")
	for i := range pins {
		if pins[i] = strings.TrimSpace(pins[i]); pins[i] != "" && !pinForm.MatchString(pins[i]) {
			return nil, fmt.Errorf("%q is no digest as a pull tells it, sha256: and 64 hexadecimal digits", pins[i])
		}
	}
	return pins, nil
}

// pin returns what is pinned of a pair, or nothing.
func (o Options) pin(pair int) string {
	if pair < len(o.Pins) {
		return o.Pins[pair]
	}
	return ""
}

// treeDigest names the content of files: their paths, sizes and checks. They come in
// the order of their paths.
func treeDigest(files iter.Seq[*FileRecord]) string {
	hash := sha256.New()
	for r := range files {
		fmt.Fprintf(hash, "%q %d %s %s\n", r.Path, r.Size, r.CRC, r.Sum)
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil))
}

// digest names what is in place of this source.
func (p *pull) digest() string { return treeDigest(records(p.files, &catalog{})) }

// meetsPin notes the digest of what is in place, and compares it with the one that was
// asked for.
func (p *pull) meetsPin() error {
	digest := p.digest()
	p.report.Digests = []string{digest}
	return p.pinned(digest)
}

// pinned compares a digest of the content, if it is known, with the one that was asked for.
func (p *pull) pinned(digest string) error {
	if p.pin == "" || digest == "" || p.pin == digest {
		return nil
	}
	return &ExitError{
		Code: ExitIntegrity, Reason: "NotPinned",
		Cause:  "the content of " + p.pair.Source + " is " + digest + ", not what PRELOADER_PIN asks for",
		Advice: "Put the pinned content back, or pin this one if it is what you want.",
	}
}

// pinnedInPlace reports whether the directory holds what is pinned, so that the store
// need not be asked.
func (p *pull) pinnedInPlace(ctx context.Context) (bool, error) {
	if p.pin == "" {
		return false, nil
	}
	if err := p.open(ctx); err != nil {
		return false, err
	}
	defer p.store.close()
	marker, err := p.recall(ctx)
	if err != nil || !p.holdsPinned(marker) {
		return false, err
	}
	p.tally()
	p.report.Digests = []string{p.pin}
	p.log.Info("What is pinned is in place already", "files", p.files.len())
	p.believeFromNowOn(marker)
	p.measureCache()
	return true, nil
}

// holdsPinned reports whether what an earlier run left is in place and is what is pinned.
func (p *pull) holdsPinned(marker *Marker) bool {
	if marker == nil || !slices.Contains(marker.Sources, p.pair.Source) {
		return false
	}
	for i := range p.others.having(noted) {
		if r := p.others.record(i); p.from(r.Object) && (!p.enough(r) || !p.inPlace(r)) {
			return false
		}
	}
	p.adopt()
	return p.digest() == p.pin
}

// headWorth is how many bytes a file has to fetch for the question what it holds to cost
// little beside that.
const headWorth = mebibyte

// foreseePin asks the store what the missing files hold, and fails if that is not what is
// pinned: what would be refused in the end need not be fetched. It lets the pull go on
// where it cannot tell, and where asking would take long beside fetching.
func (p *pull) foreseePin(ctx context.Context) error {
	if p.pin == "" || p.toFetch() < headWorth*int64(p.files.count(missing)) {
		return nil
	}
	unclear := errors.New("the store does not tell")
	foreseen := p.foresight()
	err := eachOf(ctx, p.opts.Conns, p.todo(), func(ctx context.Context, f *file) error {
		now, err := p.src.head(ctx, f.object.key)
		if err != nil {
			return err
		}
		if now.version() != f.object.version() || now.size != f.object.size {
			return unclear
		}
		proof, err := choose(p.opts.Verify, now, f.small())
		if err != nil || !foreseen.take(f, proof) {
			return unclear
		}
		return nil
	})
	if err != nil {
		return nil //nolint:nilerr // the pull will meet the trouble too, and knows what to say
	}
	return p.pinned(foreseen.digest())
}

// foresight is what the store says of the content of files that are missing.
type foresight struct {
	pull  *pull
	mu    sync.Mutex
	clear int
}

func (p *pull) foresight() *foresight { return &foresight{pull: p} }

// take notes what a file's proof tells of its content, and reports whether that is all of
// it. Files may be taken while others are looked for: each has a row of its own.
func (s *foresight) take(f *file, by proof) bool {
	r := &FileRecord{Evidence: EvidenceChecksum}
	switch {
	case f.object.size == 0: // for which nothing is asked
		r.CRC, r.Sum = crc.NVME.Name, crc.NVME.Encode(0)
	case by.want == nil || by.digest != nil || by.cut > 0:
		return false
	default:
		r.CRC, r.Sum = by.crc.Name, base64.StdEncoding.EncodeToString(by.want)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pull.files.note(f.at, r, missing) {
		return false
	}
	s.clear++
	return true
}

// digest names what is in place and what the store tells of the rest; it is empty where
// the store does not tell all.
func (s *foresight) digest() string {
	files := s.pull.files
	if s.clear != files.count(missing) {
		return ""
	}
	return treeDigest(func(yield func(*FileRecord) bool) {
		for i := range files.len() {
			if !yield(files.record(i)) {
				return
			}
		}
	})
}

// adopt has files that were noted in place, and those of this source among its own,
// whether or not it was listed.
func (p *pull) adopt() {
	p.files.promote()
	for i := range p.others.having(noted) {
		if r := p.others.record(i); p.from(r.Object) {
			p.files.put(r, ready)
		}
	}
	p.files.settle()
	p.others.promote()
}

// from reports whether an object is of this source.
func (p *pull) from(object string) bool {
	rest, ok := strings.CutPrefix(object, "s3://"+p.at.bucket+"/"+p.at.path)
	return ok && (rest == "" || p.at.path == "" || p.opts.SiblingPrefixes ||
		strings.HasPrefix(rest, "/") || strings.HasSuffix(p.at.path, "/"))
}
