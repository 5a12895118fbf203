// SPDX-License-Identifier: Apache-2.0

package crc

import (
	"hash/crc32"
	"hash/crc64"
	"math/rand/v2"
	"testing"
)

func noise(seed uint64, n int) []byte {
	out := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}

var kinds = []*Kind{NVME, Castagnoli, IEEE}

func TestCRCMeetsPublishedValues(t *testing.T) {
	// The check values of the CRC catalogue, for the text 123456789.
	for kind, want := range map[*Kind]uint64{NVME: 0xae8b14860a799888, Castagnoli: 0xe3069283, IEEE: 0xcbf43926} {
		if got := kind.Update(0, []byte("123456789")); got != want {
			t.Errorf("%s of 123456789 is %#x, want %#x", kind.Name, got, want)
		}
	}
	data := noise(1, 100_000)
	if got, want := NVME.Update(0, data), crc64.Checksum(data, crc64.MakeTable(NVME.poly)); got != want {
		t.Errorf("CRC64NVME is %#x, the standard library says %#x", got, want)
	}
	if got, want := Castagnoli.Update(0, data), uint64(crc32.Checksum(data, castagnoli)); got != want {
		t.Errorf("CRC32C is %#x, the standard library says %#x", got, want)
	}
}

func TestCRCIsWrittenAsS3Does(t *testing.T) {
	for _, kind := range kinds {
		v := kind.Update(0, []byte("hello"))
		back, err := kind.Decode(kind.Encode(v))
		if err != nil || back != v {
			t.Errorf("%s: %q reads back as %#x (%v), want %#x", kind.Name, kind.Encode(v), back, err, v)
		}
		if _, err := kind.Decode("AAA="); err == nil {
			t.Errorf("%s: a value of two bytes is accepted", kind.Name)
		}
		if _, err := kind.Decode("!"); err == nil {
			t.Errorf("%s: a value that is no base64 is accepted", kind.Name)
		}
	}
	if got := IEEE.Encode(0x01020304); got != "AQIDBA==" {
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
			a, b, c := kind.Update(0, data[:i]), kind.Update(0, data[i:j]), kind.Update(0, data[j:])
			got := kind.Combine(kind.Combine(a, b, int64(j-i)), c, int64(len(data)-j))
			if want := kind.Update(0, data); got != want {
				t.Errorf("%s of %d bytes cut at %d and %d is %#x, want %#x", kind.Name, len(data), i, j, got, want)
			}
		}
	})
}

func TestCRCCombineTakesHugeLengths(t *testing.T) {
	// Zeros can be checked by doubling, without having them.
	for _, kind := range kinds {
		zeros := kind.Update(0, []byte{0})
		n := int64(1)
		for n < 1<<45 {
			zeros = kind.Combine(zeros, zeros, n)
			n *= 2
		}
		first := kind.Update(0, []byte("x"))
		step := kind.Combine(kind.Combine(first, zeros, n), zeros, n)
		if once := kind.Combine(first, kind.Combine(zeros, zeros, n), 2*n); step != once {
			t.Errorf("%s: two steps of %d bytes give %#x, one of twice that %#x", kind.Name, n, step, once)
		}
	}
}
