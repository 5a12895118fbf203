// SPDX-License-Identifier: Apache-2.0

// Package safetensors reads what a file in the safetensors format says about
// itself, without its data: eight bytes with the length of a header, a JSON header
// that names every tensor with its type, shape and place, then the bytes of the
// tensors. It reads the index of a model in several files too.
//
// Nothing in a file is trusted. A header passes only if its tensors cover the data
// without a hole or an overlap, as the format asks, so that the length of a whole
// file follows from its header and a file that was cut short is found at once.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"unicode/utf8"
)

const (
	// PrefixBytes is how many bytes at the start of a file hold the length of its
	// header.
	PrefixBytes = 8
	// MaxHeader is the format's own bound on the length of a header, in bytes.
	MaxHeader = 100_000_000
)

// ErrMalformed is wrapped by every error that a file is to blame for.
var ErrMalformed = errors.New("malformed safetensors file")

// Tensor is one named array as the header describes it.
type Tensor struct {
	// Name is unique in its file.
	Name string
	// DType is the type of the elements as the file spells it, such as BF16. It
	// need not be one that Bits knows.
	DType string
	// Shape is the length of each dimension; a scalar has none.
	Shape []int64
	// Begin and End bound the tensor's bytes, counted from the start of the data.
	Begin, End int64
}

// Bytes is the length of the tensor's data.
func (t Tensor) Bytes() int64 { return t.End - t.Begin }

// Header is what a file says about its tensors.
type Header struct {
	// Start is where the data starts, in bytes from the start of the file.
	Start int64
	// Tensors are in the order of their bytes.
	Tensors []Tensor
	// Metadata is the free text beside the tensors; it may be nil.
	Metadata map[string]string
}

// FileBytes is the exact length that the whole file must have.
func (h *Header) FileBytes() int64 {
	if len(h.Tensors) == 0 {
		return h.Start
	}
	return h.Start + h.Tensors[len(h.Tensors)-1].End
}

// bitsOf is the width of the types that the format's own library knows.
var bitsOf = map[string]uint64{
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16,
	"I32": 32, "U32": 32, "F32": 32,
	"I64": 64, "U64": 64, "F64": 64, "C64": 64,
}

// Bits returns the width of an element of the type, and whether it is known.
func Bits(dtype string) (int, bool) {
	n, ok := bitsOf[dtype]
	return int(n), ok //nolint:gosec // at most 64
}

// Read reads the header of a file of that size. The error wraps ErrMalformed if
// the file is to blame, and is that of r if it cannot be read.
func Read(r io.ReaderAt, size int64) (*Header, error) {
	var prefix [PrefixBytes]byte
	if size < PrefixBytes {
		return nil, malformed("%d bytes are too few for the length of a header", size)
	}
	if err := readFull(r, prefix[:], 0); err != nil {
		return nil, err
	}
	n, err := HeaderBytes(prefix)
	if err != nil {
		return nil, err
	}
	if n > size-PrefixBytes {
		return nil, malformed("a header of %d bytes does not fit the file of %d", n, size)
	}
	raw := make([]byte, n)
	if err := readFull(r, raw, PrefixBytes); err != nil {
		return nil, err
	}
	h, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	if want := h.FileBytes(); want != size {
		return nil, malformed("the file has %d bytes, its header asks for %d", size, want)
	}
	return h, nil
}

func readFull(r io.ReaderAt, p []byte, at int64) error {
	if _, err := io.ReadFull(io.NewSectionReader(r, at, int64(len(p))), p); err != nil {
		return fmt.Errorf("reading the header: %w", err)
	}
	return nil
}

// HeaderBytes returns the length of the header that follows a file's first bytes.
func HeaderBytes(prefix [PrefixBytes]byte) (int64, error) {
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > MaxHeader {
		return 0, malformed("a header of %d bytes is longer than the format allows", n)
	}
	return int64(n), nil
}

// Parse reads a header without the length before it. What it returns is sound in
// itself; whether the file is as long as FileBytes is left to the caller.
func Parse(raw []byte) (*Header, error) {
	h := &Header{Start: PrefixBytes + int64(len(raw))}
	if len(raw) == 0 || raw[0] != '{' {
		return nil, malformed("the header does not start with {")
	}
	if !utf8.Valid(raw) {
		return nil, malformed("the header is not UTF-8")
	}
	if err := h.walk(raw); err != nil {
		return nil, malformed("%w", err)
	}
	slices.SortFunc(h.Tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End), cmp.Compare(a.Name, b.Name))
	})
	if err := h.cover(); err != nil {
		return nil, malformed("%w", err)
	}
	return h, nil
}

// walk reads the header key by key: a decoder into a map would let a later key of
// the same name hide a tensor.
func (h *Header) walk(raw []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if _, err := decoder.Token(); err != nil {
		return fmt.Errorf("reading the header: %w", err)
	}
	seen := map[string]bool{}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return fmt.Errorf("reading the header: %w", err)
		}
		name, _ := token.(string)
		if seen[name] {
			return fmt.Errorf("tensor %q is described twice", name)
		}
		seen[name] = true
		if err := h.entry(decoder, name); err != nil {
			return fmt.Errorf("reading tensor %q: %w", name, err)
		}
	}
	if _, err := decoder.Token(); err != nil {
		return fmt.Errorf("reading the header: %w", err)
	}
	if rest := bytes.Trim(raw[decoder.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return fmt.Errorf("%d bytes follow the header's closing brace", len(rest))
	}
	return nil
}

// entry reads what stands behind a name.
func (h *Header) entry(decoder *json.Decoder, name string) error {
	if name == "__metadata__" {
		return decoder.Decode(&h.Metadata)
	}
	// Names of fields are matched exactly, which a struct would not do.
	var fields map[string]json.RawMessage
	if err := decoder.Decode(&fields); err != nil {
		return err
	}
	var offsets []int64
	t := Tensor{Name: name}
	for key, into := range map[string]any{"dtype": &t.DType, "shape": &t.Shape, "data_offsets": &offsets} {
		if err := json.Unmarshal(fields[key], into); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	if t.Shape == nil || len(offsets) != 2 {
		return fmt.Errorf("want a shape and two data_offsets, got %d offsets", len(offsets))
	}
	t.Begin, t.End = offsets[0], offsets[1]
	h.Tensors = append(h.Tensors, t)
	return nil
}

// cover checks that each tensor starts where the last one ends, and is as long as
// its type and shape ask for. Types that are not known are believed.
func (h *Header) cover() error {
	var at int64
	for _, t := range h.Tensors {
		if t.Begin != at || t.End < t.Begin || t.End > math.MaxInt64-h.Start {
			return fmt.Errorf("tensor %q spans bytes %d to %d, want it to begin at %d", t.Name, t.Begin, t.End, at)
		}
		at = t.End
		width, known := bitsOf[t.DType]
		for _, n := range t.Shape {
			if n < 0 {
				return fmt.Errorf("tensor %q has a shape below zero: %v", t.Name, t.Shape)
			}
			high, low := bits.Mul64(width, uint64(n))
			if high != 0 {
				return fmt.Errorf("tensor %q has a shape too large: %v", t.Name, t.Shape)
			}
			width = low
		}
		if known && (width%8 != 0 || width/8 != uint64(t.Bytes())) { //nolint:gosec // End is not before Begin
			return fmt.Errorf("tensor %q has %d bytes, its type and shape ask for %d bits", t.Name, t.Bytes(), width)
		}
	}
	return nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}
