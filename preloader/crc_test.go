// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"hash/crc32"
	"hash/crc64"
	"testing"
)

var kinds = []*crcKind{crc64NVME, crc32C, crc32IEEE}

func TestCRCMeetsPublishedValues(t *testing.T) {
	// The check values of the CRC catalogue, for the text 123456789.
	for kind, want := range map[*crcKind]uint64{crc64NVME: 0xae8b14860a799888, crc32C: 0xe3069283, crc32IEEE: 0xcbf43926} {
		if got := kind.update(0, []byte("123456789")); got != want {
			t.Errorf("%s of 123456789 is %#x, want %#x", kind.name, got, want)
		}
	}
	data := noise(1, 100_000)
	if got, want := crc64NVME.update(0, data), crc64.Checksum(data, crc64.MakeTable(crc64NVME.poly)); got != want {
		t.Errorf("CRC64NVME is %#x, the standard library says %#x", got, want)
	}
	if got, want := crc32C.update(0, data), uint64(crc32.Checksum(data, castagnoli)); got != want {
		t.Errorf("CRC32C is %#x, the standard library says %#x", got, want)
	}
}

func TestCRCIsWrittenAsS3Does(t *testing.T) {
	for _, kind := range kinds {
		v := kind.update(0, []byte("hello"))
		back, err := kind.decode(kind.encode(v))
		if err != nil || back != v {
			t.Errorf("%s: %q reads back as %#x (%v), want %#x", kind.name, kind.encode(v), back, err, v)
		}
		if _, err := kind.decode("AAA="); err == nil {
			t.Errorf("%s: a value of two bytes is accepted", kind.name)
		}
		if _, err := kind.decode("!"); err == nil {
			t.Errorf("%s: a value that is no base64 is accepted", kind.name)
		}
	}
	if got := crc32IEEE.encode(0x01020304); got != "AQIDBA==" {
		t.Errorf("encode gives %q, want the big-endian bytes AQIDBA==", got)
	}
}

// FuzzCRCCombine cuts a text into three and compares the combined check with
// that of one pass.
func FuzzCRCCombine(f *testing.F) {
	f.Add([]byte("hello, world"), 3, 7)
	f.Add([]byte{}, 0, 0)
	f.Add(noise(1, 5000), 0, 4999)
	f.Fuzz(func(t *testing.T, data []byte, i, j int) {
		i = min(max(i, 0), len(data))
		j = min(max(j, i), len(data))
		for _, kind := range kinds {
			a, b, c := kind.update(0, data[:i]), kind.update(0, data[i:j]), kind.update(0, data[j:])
			got := kind.combine(kind.combine(a, b, int64(j-i)), c, int64(len(data)-j))
			if want := kind.update(0, data); got != want {
				t.Errorf("%s of %d bytes cut at %d and %d is %#x, want %#x", kind.name, len(data), i, j, got, want)
			}
		}
	})
}

func TestCRCCombineTakesHugeLengths(t *testing.T) {
	// Zeros can be checked by doubling, without having them.
	for _, kind := range kinds {
		zeros := kind.update(0, []byte{0})
		n := int64(1)
		for n < 1<<45 {
			zeros = kind.combine(zeros, zeros, n)
			n *= 2
		}
		first := kind.update(0, []byte("x"))
		step := kind.combine(kind.combine(first, zeros, n), zeros, n)
		if once := kind.combine(first, kind.combine(zeros, zeros, n), 2*n); step != once {
			t.Errorf("%s: two steps of %d bytes give %#x, one of twice that %#x", kind.name, n, step, once)
		}
	}
}
