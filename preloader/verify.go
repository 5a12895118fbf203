// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"crypto/md5"  //nolint:gosec // what S3 stores is checked with what S3 used
	"crypto/sha1" //nolint:gosec // what S3 stores is checked with what S3 used
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math"
	"strconv"
	"strings"

	"serverless.xyz/outrigger/preloader/crc"
)

// Evidence says why the bytes of a file are believed. The ladder, best first;
// [VerifyRequire] accepts all but the last.
type Evidence string

const (
	// EvidenceChecksum means that the store's checksum of the whole object was
	// met, by combining the checks of the pieces or by one pass.
	EvidenceChecksum Evidence = "object-checksum"
	// EvidenceParts means that the store's checksum of the checksums of the
	// pieces of an upload was met.
	EvidenceParts Evidence = "part-checksums"
	// EvidenceMD5 means that the MD5 in the ETag was met: that of the object, or
	// of the MD5s of its pieces.
	EvidenceMD5 Evidence = "md5-etag"
	// EvidenceSums means that the digest in the model's own SHA256SUMS was met, where
	// the store has no checksum.
	EvidenceSums Evidence = "sha256sums"
	// EvidenceSize means that size and version were met, and nothing else was
	// at hand or wanted.
	EvidenceSize Evidence = "size-and-version"
)

// rank orders evidence; less is better.
func (e Evidence) rank() int {
	switch e {
	case EvidenceChecksum:
		return 1
	case EvidenceParts:
		return 2
	case EvidenceMD5:
		return 3
	case EvidenceSums:
		return 4
	case EvidenceSize:
		return 5
	}
	return 6
}

// proof is how one file will be checked.
type proof struct {
	evidence Evidence
	// crc is computed while the bytes arrive, whether or not the store knows
	// its value, because resuming and re-checking need it.
	crc *crc.Kind
	// digest, if not nil, needs a pass over the finished file.
	digest func() hash.Hash
	// want is the value to meet, of digest if there is one, else of crc; nil
	// means that there is none.
	want []byte
	// cut is the length of the pieces whose values, one after the other, have
	// the wanted value; 0 means that the whole file has it.
	cut int64
}

// choose picks the best proof that the mode pays for. A pass over the file is
// made where the store's own checksum needs it; for an MD5 in an ETag only if
// asked for, or if the file is small enough to be still in the cache.
func choose(mode VerifyMode, o object, small bool) (proof, error) {
	p := proof{evidence: EvidenceSize, crc: crc.NVME}
	if mode == VerifyOff {
		return p, nil
	}
	if p, ok, err := chooseChecksum(p, o); ok || err != nil {
		return p, err
	}
	if want, parts := etagMD5(o); want != nil && (mode == VerifyRequire || small && parts == 0) {
		if cut, ok := pieces(o, parts); ok {
			p.evidence, p.digest, p.want, p.cut = EvidenceMD5, md5.New, want, cut
		}
	}
	return p, nil
}

// chooseChecksum fills in a proof by the store's own checksum, if that can be
// computed here.
func chooseChecksum(p proof, o object) (proof, bool, error) {
	sum := o.told().sum
	kind, digest := crc.ByName(sum.algorithm), digestByName(sum.algorithm)
	if kind == nil && digest == nil {
		return p, false, nil
	}
	text, count, composite := strings.Cut(sum.value, "-")
	want, err := base64.StdEncoding.DecodeString(text)
	if err == nil && kind != nil && len(want) != kind.Bytes {
		err = fmt.Errorf("%d bytes, want %d", len(want), kind.Bytes)
	}
	if err != nil {
		return p, false, &protocolError{fmt.Sprintf("the server's %s checksum %q is none: %v", sum.algorithm, sum.value, err)}
	}
	parts := 0
	if composite || sum.composite {
		if parts, err = strconv.Atoi(count); err != nil {
			parts = unknownParts
		}
	}
	cut, ok := pieces(o, parts)
	if !ok {
		return p, false, nil
	}
	p.evidence, p.digest, p.want, p.cut = EvidenceChecksum, digest, want, cut
	if kind != nil {
		p.crc = kind
	}
	if cut > 0 {
		p.evidence = EvidenceParts
	}
	return p, true, nil
}

// pieces returns the length of the pieces of an upload in that many parts, if
// it is known and fits the object; parts of unequal length cannot be told.
func pieces(o object, parts int) (int64, bool) {
	if parts == 0 {
		return 0, true
	}
	part := o.told().part
	fits := part > 0 && (o.size+part-1)/part == int64(parts)
	return part, fits
}

// unknownParts stands for a composite checksum that does not say of how many.
const unknownParts = -1

// needsParts reports whether the length of the pieces decides how the object
// can be checked.
func needsParts(mode VerifyMode, o object) bool {
	switch {
	case mode == VerifyOff:
		return false
	case o.told().sum.algorithm != "":
		return o.told().sum.composite
	}
	_, parts := etagMD5(o)
	return mode == VerifyRequire && parts > 0
}

// untilCut returns how many bytes from off on belong to the same piece.
func (p proof) untilCut(off int64) int64 {
	if p.cut == 0 {
		return math.MaxInt64
	}
	return p.cut - off%p.cut
}

func digestByName(name string) func() hash.Hash {
	switch name {
	case "SHA256":
		return sha256.New
	case "SHA512":
		return sha512.New
	case "SHA1":
		return sha1.New
	case "MD5":
		return md5.New
	}
	return nil
}

// etagMD5 returns the MD5 that the ETag of an unencrypted upload is, or nil, and
// the number of pieces that it was made of, 0 for a single upload.
func etagMD5(o object) (sum []byte, parts int) {
	text, count, inParts := strings.Cut(o.etag, "-")
	sum, err := hex.DecodeString(text)
	if o.told().encrypted || err != nil || len(sum) != md5.Size {
		return nil, 0
	}
	if inParts {
		if parts, err = strconv.Atoi(count); err != nil || parts < 1 {
			return nil, 0
		}
	}
	return sum, parts
}

// corruptError says that bytes did not meet their proof.
type corruptError struct{ text string }

func (c *corruptError) Error() string { return c.text }

// check compares a whole file with its proof. segments are all its pieces with
// their checks, cut where the proof wants them cut; r is read only if the proof
// needs another pass.
func (p proof) check(segments []segment, size int64, r io.ReaderAt, buf []byte) error {
	if p.want == nil {
		return nil
	}
	var got []byte
	var err error
	if p.digest != nil {
		got, err = p.digestOf(size, r, buf)
	} else {
		got = p.crcOf(segments)
	}
	if err != nil {
		return fmt.Errorf("reading the file back: %w", err)
	}
	if !bytes.Equal(got, p.want) {
		says := "the store"
		if p.evidence == EvidenceSums {
			says = sumsName
		}
		return &corruptError{fmt.Sprintf("its checksum is %x, %s says %x", got, says, p.want)}
	}
	return nil
}

// crcOf returns the check of the file, or that of the checks of its pieces.
func (p proof) crcOf(segments []segment) []byte {
	if p.cut == 0 {
		return p.crc.BytesOf(total(p.crc, segments))
	}
	var sums []byte
	for _, s := range segments {
		sums = append(sums, p.crc.BytesOf(s.crc)...)
	}
	return p.crc.BytesOf(p.crc.Update(0, sums))
}

// digestOf returns the digest of the file, or that of the digests of its pieces.
func (p proof) digestOf(size int64, r io.ReaderAt, buf []byte) ([]byte, error) {
	pass := func(off, n int64) ([]byte, error) {
		h := p.digest()
		_, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(r, off, n)}, buf)
		return h.Sum(nil), err
	}
	if p.cut == 0 {
		return pass(0, size)
	}
	whole := p.digest()
	for off := int64(0); off < size; off += p.cut {
		sum, err := pass(off, min(p.cut, size-off))
		if err != nil {
			return nil, err
		}
		_, _ = whole.Write(sum)
	}
	return whole.Sum(nil), nil
}

// crcOf returns the check of everything that r still holds.
func crcOf(kind *crc.Kind, r io.Reader, buf []byte) (uint64, int64, error) {
	var sum uint64
	var total int64
	for {
		n, err := r.Read(buf)
		sum = kind.Update(sum, buf[:n])
		total += int64(n)
		if err == io.EOF {
			return sum, total, nil
		}
		if err != nil {
			return sum, total, err
		}
	}
}
