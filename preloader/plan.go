// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"slices"

	"serverless.xyz/outrigger/preloader/crc"
)

// span is a half-open range of bytes [off, off+n) of one file.
type span struct {
	off, n int64
}

func (s span) end() int64 { return s.off + s.n }

// segment is a span whose bytes are on disk, with their check.
type segment struct {
	span
	crc uint64
}

const (
	mebibyte = 1 << 20
	// minPart keeps the cost of a request small beside the bytes that it moves.
	minPart = 8 * mebibyte
	// maxPart bounds what a slow connection can hold back at the end.
	maxPart = 64 * mebibyte
)

// partSize returns how many bytes one request for a file of this size asks for:
// about four requests a connection, in whole mebibytes within fixed bounds.
func partSize(size int64, conns int) int64 {
	want := size / int64(4*max(conns, 1))
	want -= want % mebibyte
	return min(max(want, minPart), maxPart)
}

// gaps returns the spans of a file of this size that the segments leave open,
// in order. Segments must be sorted and must not overlap, as mergeSegments
// leaves them.
func gaps(size int64, have []segment) []span {
	var open []span
	var at int64
	for _, s := range have {
		if s.off > at {
			open = append(open, span{at, s.off - at})
		}
		at = s.end()
	}
	if at < size {
		open = append(open, span{at, size - at})
	}
	return open
}

// split cuts spans into requests of at most part bytes, keeping their order.
// A remainder shorter than a quarter of a part is taken along by the one before.
func split(spans []span, part int64) []span {
	var parts []span
	for _, s := range spans {
		for s.n > 0 {
			n := min(part, s.n)
			if s.n-n < part/4 {
				n = s.n
			}
			parts = append(parts, span{s.off, n})
			s.off += n
			s.n -= n
		}
	}
	return parts
}

// mergeSegments sorts segments and joins neighbours into one, combining their
// checks. A segment that overlaps an earlier one, or lies outside the file, is
// dropped: its bytes are then fetched again, which is always safe.
//
// If cut is not 0, nothing is joined at multiples of it, and a segment that
// lies across one is dropped, so that the check of each piece of that length
// can be told at the end.
func mergeSegments(kind *crc.Kind, size, cut int64, in []segment) []segment {
	sorted := slices.Clone(in)
	slices.SortFunc(sorted, func(a, b segment) int {
		if a.off != b.off {
			return compareInt64(a.off, b.off)
		}
		return compareInt64(b.n, a.n)
	})
	var out []segment
	for _, s := range sorted {
		if s.off < 0 || s.n <= 0 || s.off > size-s.n || cut > 0 && s.off/cut != (s.end()-1)/cut {
			continue
		}
		if len(out) == 0 {
			out = append(out, s)
			continue
		}
		last := &out[len(out)-1]
		switch {
		case s.off < last.end():
		case s.off == last.end() && (cut == 0 || s.off%cut != 0):
			last.crc = kind.Combine(last.crc, s.crc, s.n)
			last.n += s.n
		default:
			out = append(out, s)
		}
	}
	return out
}

// total returns the check of all segments, one after the other.
func total(kind *crc.Kind, segments []segment) uint64 {
	var sum uint64
	for _, s := range segments {
		sum = kind.Combine(sum, s.crc, s.n)
	}
	return sum
}

func compareInt64(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
