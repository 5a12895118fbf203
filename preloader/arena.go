// SPDX-License-Identifier: Apache-2.0

package preloader

import "golang.org/x/sys/unix"

// arena is memory that is given out in pieces and given back as a whole. It lies
// outside the heap: the collector neither reads it nor lets garbage grow with it.
// Its methods must not be called at once.
type arena struct {
	chunks []chunk
	// used is how much of the last chunk is taken.
	used int
}

type chunk struct {
	memory []byte
	mapped bool
}

// place says where in an arena a piece begins: in which chunk, and at which byte.
type place uint32

const (
	chunkBits  = 18
	chunkSize  = 1 << chunkBits
	mostChunks = 1 << (32 - chunkBits)
)

// put copies a piece into the arena, and reports whether there was room for it.
func (a *arena) put(piece []byte) (place, bool) {
	if len(a.chunks) == 0 || a.used+len(piece) > len(a.chunks[len(a.chunks)-1].memory) {
		if len(a.chunks) == mostChunks {
			return 0, false
		}
		a.chunks = append(a.chunks, newChunk(max(chunkSize, len(piece))))
		a.used = 0
	}
	last := len(a.chunks) - 1
	at := place(last<<chunkBits | a.used) //nolint:gosec // bounded by mostChunks and chunkSize
	copy(a.chunks[last].memory[a.used:], piece)
	a.used += len(piece)
	if a.used >= chunkSize { // no place begins behind it
		a.used = len(a.chunks[last].memory)
	}
	return at, true
}

func newChunk(size int) chunk {
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return chunk{memory: make([]byte, size)} // which ends the program where there is none at all
	}
	return chunk{memory: memory, mapped: true}
}

// at returns what begins at a place, and whatever lies behind it.
func (a *arena) at(p place) []byte {
	return a.chunks[p>>chunkBits].memory[p&(chunkSize-1):]
}

// free gives all of it back. What at returned must not be used any more.
func (a *arena) free() {
	for _, c := range a.chunks {
		if c.mapped {
			_ = unix.Munmap(c.memory) // what cannot be given back is only lost
		}
	}
	*a = arena{}
}
