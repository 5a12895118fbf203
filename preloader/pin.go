// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
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
	if p.pin == "" || p.pin == digest {
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
	if err != nil || marker == nil || !slices.Contains(marker.Sources, p.pair.Source) {
		return false, err
	}
	for i := range p.others.having(noted) {
		if r := p.others.record(i); p.from(r.Object) && (!p.enough(r) || !p.inPlace(r)) {
			return false, nil
		}
	}
	p.adopt()
	if p.digest() != p.pin {
		return false, nil
	}
	p.tally()
	p.report.Digests = []string{p.pin}
	p.log.Info("What is pinned is in place already", "files", p.files.len())
	p.believeFromNowOn(marker)
	p.measureCache()
	return true, nil
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
