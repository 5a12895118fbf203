// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"path"
	"strings"
)

// sumsName is a file at the top of a model that lists digests of its files, as sha256sum
// writes them. Where the store itself has no checksum of a file, its digest is evidence.
const sumsName = "SHA256SUMS"

// largestSums bounds what is read of it.
const largestSums = 16 * mebibyte

// sums are SHA-256 digests by path.
type sums map[string][sha256.Size]byte

// parseSums reads lines of a digest and a path, and keeps those of wanted paths. What is
// no such line says nothing, and one that is far too long ends the reading.
func parseSums(r io.Reader, wanted func(rel string) bool) (sums, error) {
	found := sums{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		digest, name, ok := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		raw, err := hex.DecodeString(digest)
		// A space or an asterisk, for text or binary, comes before the name.
		name = strings.TrimLeft(strings.TrimPrefix(strings.TrimLeft(name, " "), "*"), " ")
		if !ok || err != nil || len(raw) != sha256.Size || name == "" {
			continue
		}
		if rel := path.Clean(name); wanted(rel) {
			found[rel] = [sha256.Size]byte(raw)
		}
	}
	if err := lines.Err(); !errors.Is(err, bufio.ErrTooLong) {
		return found, err
	}
	return found, nil
}

// readSums reads the digests that the model brings along, if it does and they may matter.
func (p *pull) readSums(ctx context.Context) (sums, error) {
	i, there := p.files.find(sumsName)
	switch {
	case !there, p.opts.Verify == VerifyOff:
		return nil, nil
	case p.files.size(i) > largestSums:
		p.log.Warn("SHA256SUMS is too long to be read", "bytes", byteCount(p.files.size(i)),
			"longest", byteCount(largestSums))
		return nil, nil
	}
	wanted := func(rel string) bool {
		at, found := p.files.find(rel)
		return found && p.files.standing(at) == missing
	}
	var found sums
	err := p.readWhole(ctx, p.files.entry(i), func(r io.Reader) (err error) {
		found, err = parseSums(r, wanted)
		return err
	})
	return found, err
}

// prove lets a digest take the place of a proof that is none.
func (s sums) prove(p proof, rel string) proof {
	if want, ok := s[rel]; ok && p.evidence == EvidenceSize {
		p.evidence, p.digest, p.want, p.cut = EvidenceSums, sha256.New, want[:], 0
	}
	return p
}
