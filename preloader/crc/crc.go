// SPDX-License-Identifier: Apache-2.0

// Package crc computes the cyclic redundancy checks that S3 stores with objects,
// and combines those of pieces into that of the whole. It holds no state and does
// no I/O.
package crc

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Kind is a cyclic redundancy check that S3 stores with objects. Its value
// for a whole object follows from the values of its pieces, so pieces can be
// fetched in any order, and by any number of connections, and still be checked
// against the one value that the store knows.
type Kind struct {
	// Name is what S3 calls it.
	Name string
	// Bytes is the length of a value.
	Bytes int
	// poly is the polynomial with its bits reversed and the leading term left
	// out, which is the form that the table-driven implementations use too.
	poly   uint64
	update func(crc uint64, p []byte) uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// NVME is what S3 keeps unless it is asked for another.
	NVME = &Kind{
		Name: "CRC64NVME", Bytes: 8, poly: 0x9a6c9329ac4bc9b5,
		// The standard library rebuilds its tables on every write for any
		// polynomial but ISO and ECMA, so it is not used here.
		update: updateNVME,
	}
	// Castagnoli is that of iSCSI, which processors compute.
	Castagnoli = &Kind{
		Name: "CRC32C", Bytes: 4, poly: crc32.Castagnoli,
		update: func(crc uint64, p []byte) uint64 {
			return uint64(crc32.Update(uint32(crc), castagnoli, p))
		},
	}
	// IEEE is that of Ethernet and zip.
	IEEE = &Kind{
		Name: "CRC32", Bytes: 4, poly: crc32.IEEE,
		update: func(crc uint64, p []byte) uint64 {
			return uint64(crc32.Update(uint32(crc), crc32.IEEETable, p))
		},
	}
)

// ByName returns the kind with S3's name for it, or nil.
func ByName(name string) *Kind {
	for _, k := range []*Kind{NVME, Castagnoli, IEEE} {
		if k.Name == name {
			return k
		}
	}
	return nil
}

// Update returns the check of what crc stands for, followed by p. The check of
// nothing is 0.
func (k *Kind) Update(crc uint64, p []byte) uint64 { return k.update(crc, p) }

// Combine returns the check of A followed by B, from the check of A, the check
// of B and the length of B in bytes. Appending n zero bytes to A multiplies its
// remainder by x^(8n); the inversions at both ends of the check cancel out.
func (k *Kind) Combine(a, b uint64, lenB int64) uint64 {
	return k.multiply(a, k.powerOfX(uint64(lenB)*8)) ^ b //nolint:gosec // lengths are not negative
}

// multiply returns a·b modulo the polynomial. The highest bit stands for x^0.
func (k *Kind) multiply(a, b uint64) uint64 {
	var product uint64
	for bit := uint64(1) << (8*k.Bytes - 1); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		carry := b & 1
		b = b>>1 ^ k.poly&-carry
	}
	return product
}

// powerOfX returns x^n modulo the polynomial, by squaring.
func (k *Kind) powerOfX(n uint64) uint64 {
	one := uint64(1) << (8*k.Bytes - 1)
	result, square := one, one>>1
	for ; n != 0; n >>= 1 {
		if n&1 != 0 {
			result = k.multiply(result, square)
		}
		square = k.multiply(square, square)
	}
	return result
}

// BytesOf returns the value as big-endian bytes.
func (k *Kind) BytesOf(v uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return b[8-k.Bytes:]
}

// Encode returns the value as S3 writes it: base64 of the big-endian bytes.
func (k *Kind) Encode(v uint64) string {
	return base64.StdEncoding.EncodeToString(k.BytesOf(v))
}

// Decode reads what Encode writes.
func (k *Kind) Decode(s string) (uint64, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return 0, fmt.Errorf("decoding %s checksum %q: %w", k.Name, s, err)
	}
	if len(raw) != k.Bytes {
		return 0, fmt.Errorf("decoding %s checksum %q: %d bytes, want %d", k.Name, s, len(raw), k.Bytes)
	}
	var b [8]byte
	copy(b[8-k.Bytes:], raw)
	return binary.BigEndian.Uint64(b[:]), nil
}
