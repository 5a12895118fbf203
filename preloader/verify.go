// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"crypto/md5"  //nolint:gosec // what S3 stores is checked with what S3 used
	"crypto/sha1" //nolint:gosec // what S3 stores is checked with what S3 used
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
)

// Evidence says why the bytes of a file are believed. The ladder, best first;
// [VerifyRequire] accepts all but the last.
type Evidence string

const (
	// EvidenceChecksum means that the store's checksum of the whole object was
	// met, by combining the checks of the pieces or by one pass.
	EvidenceChecksum Evidence = "object-checksum"
	// EvidenceMD5 means that the MD5 in the ETag of a single upload was met.
	EvidenceMD5 Evidence = "md5-etag"
	// EvidenceSize means that size and version were met, and nothing else was
	// at hand or wanted.
	EvidenceSize Evidence = "size-and-version"
)

// rank orders evidence; less is better.
func (e Evidence) rank() int {
	switch e {
	case EvidenceChecksum:
		return 1
	case EvidenceMD5:
		return 3
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
	crc *crcKind
	// wantCRC is the value to meet if evidence comes from crc.
	wantCRC uint64
	checked bool
	// digest, if not nil, needs a pass over the finished file.
	digest     func() hash.Hash
	wantDigest []byte
}

// choose picks the best proof that the mode pays for. A pass over the file is
// made where the store's own checksum needs it; for an MD5 in an ETag only if
// asked for, or if the file is small enough to be still in the cache.
func choose(mode VerifyMode, o object, small bool) (proof, error) {
	p := proof{evidence: EvidenceSize, crc: crc64NVME}
	if mode == VerifyOff {
		return p, nil
	}
	sum := o.sum
	if kind := crcByName(sum.algorithm); kind != nil && !sum.composite {
		want, err := kind.decode(sum.value)
		if err != nil {
			return p, err
		}
		return proof{evidence: EvidenceChecksum, crc: kind, wantCRC: want, checked: true}, nil
	}
	if make := digestByName(sum.algorithm); make != nil && !sum.composite {
		want, err := base64.StdEncoding.DecodeString(sum.value)
		if err != nil {
			return p, fmt.Errorf("decoding %s checksum %q: %w", sum.algorithm, sum.value, err)
		}
		p.evidence, p.digest, p.wantDigest = EvidenceChecksum, make, want
		return p, nil
	}
	if want, ok := etagMD5(o); ok && (mode == VerifyRequire || small) {
		p.evidence, p.digest, p.wantDigest = EvidenceMD5, md5.New, want
	}
	return p, nil
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

// etagMD5 returns the MD5 that the ETag of a single, unencrypted upload is.
func etagMD5(o object) ([]byte, bool) {
	if o.encrypted || len(o.etag) != 2*md5.Size || strings.Contains(o.etag, "-") {
		return nil, false
	}
	sum, err := hex.DecodeString(o.etag)
	return sum, err == nil
}

// corruptError says that bytes did not meet their proof.
type corruptError struct{ text string }

func (c *corruptError) Error() string { return c.text }

// check compares a whole file with its proof. crc is that of all its bytes; r
// is read only if the proof needs another pass.
func (p proof) check(crc uint64, r io.Reader, buf []byte) error {
	if p.checked && crc != p.wantCRC {
		return &corruptError{fmt.Sprintf("its %s is %s, the store says %s",
			p.crc.name, p.crc.encode(crc), p.crc.encode(p.wantCRC))}
	}
	if p.digest == nil {
		return nil
	}
	h := p.digest()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{r}, buf); err != nil {
		return fmt.Errorf("reading the file back: %w", err)
	}
	if got := h.Sum(nil); string(got) != string(p.wantDigest) {
		return &corruptError{fmt.Sprintf("its digest is %x, the store says %x", got, p.wantDigest)}
	}
	return nil
}

// crcOf returns the check of everything that r still holds.
func crcOf(kind *crcKind, r io.Reader, buf []byte) (uint64, int64, error) {
	var crc uint64
	var total int64
	for {
		n, err := r.Read(buf)
		crc = kind.update(crc, buf[:n])
		total += int64(n)
		if err == io.EOF { //nolint:errorlint // io.Reader promises the bare value
			return crc, total, nil
		}
		if err != nil {
			return crc, total, err
		}
	}
}
