// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/minio/crc64nvme"
)

// crcKind is a cyclic redundancy check that S3 stores with objects. Its value
// for a whole object follows from the values of its pieces, so pieces can be
// fetched in any order, and by any number of connections, and still be checked
// against the one value that the store knows.
type crcKind struct {
	name  string
	bytes int
	// poly is the polynomial with its bits reversed and the leading term left
	// out, which is the form that the table-driven implementations use too.
	poly   uint64
	update func(crc uint64, p []byte) uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	crc64NVME = &crcKind{
		name: "CRC64NVME", bytes: 8, poly: 0x9a6c9329ac4bc9b5,
		// The standard library rebuilds its tables on every write for any
		// polynomial but ISO and ECMA, so it is not used here.
		update: crc64nvme.Update,
	}
	crc32C = &crcKind{
		name: "CRC32C", bytes: 4, poly: crc32.Castagnoli,
		update: func(crc uint64, p []byte) uint64 {
			return uint64(crc32.Update(uint32(crc), castagnoli, p))
		},
	}
	crc32IEEE = &crcKind{
		name: "CRC32", bytes: 4, poly: crc32.IEEE,
		update: func(crc uint64, p []byte) uint64 {
			return uint64(crc32.Update(uint32(crc), crc32.IEEETable, p))
		},
	}
)

// crcByName returns the kind with S3's name for it, or nil.
func crcByName(name string) *crcKind {
	for _, k := range []*crcKind{crc64NVME, crc32C, crc32IEEE} {
		if k.name == name {
			return k
		}
	}
	return nil
}

// combine returns the check of A followed by B, from the check of A, the check
// of B and the length of B in bytes. Appending n zero bytes to A multiplies its
// remainder by x^(8n); the inversions at both ends of the check cancel out.
func (k *crcKind) combine(a, b uint64, lenB int64) uint64 {
	return k.multiply(a, k.powerOfX(uint64(lenB)*8)) ^ b //nolint:gosec // lengths are not negative
}

// multiply returns a·b modulo the polynomial. The highest bit stands for x^0.
func (k *crcKind) multiply(a, b uint64) uint64 {
	var product uint64
	for bit := uint64(1) << (8*k.bytes - 1); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		carry := b & 1
		b = b>>1 ^ k.poly&-carry
	}
	return product
}

// powerOfX returns x^n modulo the polynomial, by squaring.
func (k *crcKind) powerOfX(n uint64) uint64 {
	one := uint64(1) << (8*k.bytes - 1)
	result, square := one, one>>1
	for ; n != 0; n >>= 1 {
		if n&1 != 0 {
			result = k.multiply(result, square)
		}
		square = k.multiply(square, square)
	}
	return result
}

// total returns the check of all segments, one after the other.
func (k *crcKind) total(segments []segment) uint64 {
	var crc uint64
	for _, s := range segments {
		crc = k.combine(crc, s.crc, s.n)
	}
	return crc
}

// bytesOf returns the value as big-endian bytes.
func (k *crcKind) bytesOf(v uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return b[8-k.bytes:]
}

// encode returns the value as S3 writes it: base64 of the big-endian bytes.
func (k *crcKind) encode(v uint64) string {
	return base64.StdEncoding.EncodeToString(k.bytesOf(v))
}

// decode reads what encode writes.
func (k *crcKind) decode(s string) (uint64, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return 0, fmt.Errorf("decoding %s checksum %q: %w", k.name, s, err)
	}
	if len(raw) != k.bytes {
		return 0, fmt.Errorf("decoding %s checksum %q: %d bytes, want %d", k.name, s, len(raw), k.bytes)
	}
	var b [8]byte
	copy(b[8-k.bytes:], raw)
	return binary.BigEndian.Uint64(b[:]), nil
}
