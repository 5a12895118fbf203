// SPDX-License-Identifier: Apache-2.0

package crc

import (
	"math/rand/v2"
	"testing"

	"github.com/minio/crc64nvme"
)

func TestNVMEOfAnyLengthAndAlignment(t *testing.T) {
	data := make([]byte, 70_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		off, n, before := rng.IntN(64), i, rng.Uint64()
		if i%3 == 0 {
			n = rng.IntN(len(data) - off)
		}
		p := data[off : off+n]
		if got, want := NVME.Update(before, p), crc64nvme.Update(before, p); got != want {
			t.Fatalf("%d bytes at %d after %x: got %x, want %x", n, off, before, got, want)
		}
	}
}

func BenchmarkNVME(b *testing.B) {
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		NVME.Update(0, p)
	}
}
