// SPDX-License-Identifier: Apache-2.0

// Package safetensors reads the safetensors file format: eight bytes of header length, a JSON header that names
// every tensor with its type, shape and place, then the bytes of the tensors. The header is not trusted: every
// offset and product is checked before it is used, and a file is refused whole, never read in part.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// maxHeader is the format's own bound on the length of the header, in bytes.
const maxHeader = 100 << 20

// ErrMalformed is wrapped by every error of Parse.
var ErrMalformed = errors.New("malformed safetensors file")

// elementSize is the width in bytes of each type that a file may name.
var elementSize = map[string]uint64{
	"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
	"I16": 2, "U16": 2, "F16": 2, "BF16": 2,
	"I32": 4, "U32": 4, "F32": 4,
	"I64": 8, "U64": 8, "F64": 8,
}

// Tensor is one named array. Data is in row-major order, little endian, and shares memory with the parsed file.
type Tensor struct {
	// DType is the element type as the file spells it, for example F32.
	DType string
	// Shape is the length of each dimension; a scalar has none.
	Shape []int
	// Data holds exactly the elements that DType and Shape ask for.
	Data []byte
}

// File is a parsed file.
type File struct {
	// Tensors holds every tensor by name.
	Tensors map[string]Tensor
	// Metadata is the free text that the writer put beside the tensors; it may be nil.
	Metadata map[string]string
}

// entry is a tensor as the header describes it.
type entry struct {
	DType   string     `json:"dtype"`
	Shape   []uint64   `json:"shape"`
	Offsets *[2]uint64 `json:"data_offsets"`

	name string
}

// Parse reads a whole file. The tensors share memory with data. The error wraps ErrMalformed and names the tensor
// at fault.
func Parse(data []byte) (*File, error) {
	if len(data) < 8 {
		return nil, fmt.Errorf("%w: %d bytes are too few for the header length", ErrMalformed, len(data))
	}
	size := binary.LittleEndian.Uint64(data)
	if size > maxHeader || size > uint64(len(data)-8) {
		return nil, fmt.Errorf("%w: header length %d exceeds the file of %d bytes", ErrMalformed, size, len(data))
	}
	header, body := data[8:8+size], data[8+size:]
	entries, metadata, err := parseHeader(header)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	tensors, err := place(entries, body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return &File{Tensors: tensors, Metadata: metadata}, nil
}

// parseHeader walks the header key by key, because a decoder into a map would let a later duplicate hide a tensor.
func parseHeader(header []byte) ([]entry, map[string]string, error) {
	if len(header) == 0 || header[0] != '{' {
		return nil, nil, errors.New("header does not start with {")
	}
	decoder := json.NewDecoder(bytes.NewReader(header))
	if _, err := decoder.Token(); err != nil {
		return nil, nil, fmt.Errorf("reading header: %w", err)
	}
	var (
		entries  []entry
		metadata map[string]string
		seen     = map[string]bool{}
	)
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, nil, fmt.Errorf("reading header: %w", err)
		}
		e := entry{}
		e.name, _ = token.(string)
		if seen[e.name] {
			return nil, nil, fmt.Errorf("tensor %q is described twice", e.name)
		}
		seen[e.name] = true
		if e.name == "__metadata__" {
			err = decoder.Decode(&metadata)
		} else {
			err = decoder.Decode(&e)
			entries = append(entries, e)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading tensor %q: %w", e.name, err)
		}
	}
	if _, err := decoder.Token(); err != nil {
		return nil, nil, fmt.Errorf("reading header: %w", err)
	}
	if rest := bytes.TrimRight(header[decoder.InputOffset():], " "); len(rest) > 0 {
		return nil, nil, fmt.Errorf("%d bytes follow the header's closing brace", len(rest))
	}
	return entries, metadata, nil
}

// place cuts the body into tensors. Together they must cover it without a hole or an overlap, as the format asks:
// a file with spare room could hide anything in it.
func place(entries []entry, body []byte) (map[string]Tensor, error) {
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.begin(), b.begin()), cmp.Compare(a.end(), b.end()), cmp.Compare(a.name, b.name))
	})
	tensors := make(map[string]Tensor, len(entries))
	var at uint64
	for _, e := range entries {
		if e.Offsets == nil {
			return nil, fmt.Errorf("tensor %q has no data_offsets", e.name)
		}
		want, shape, err := e.size()
		if err != nil {
			return nil, err
		}
		if e.begin() != at {
			return nil, fmt.Errorf("tensor %q begins at byte %d, want %d", e.name, e.begin(), at)
		}
		if e.end() < e.begin() || e.end()-e.begin() != want {
			return nil, fmt.Errorf("tensor %q spans bytes %d to %d, want %d bytes", e.name, e.begin(), e.end(), want)
		}
		if e.end() > uint64(len(body)) {
			return nil, fmt.Errorf("tensor %q ends at byte %d of %d", e.name, e.end(), len(body))
		}
		at = e.end()
		tensors[e.name] = Tensor{DType: e.DType, Shape: shape, Data: body[e.begin():e.end():e.end()]}
	}
	if at != uint64(len(body)) {
		return nil, fmt.Errorf("%d bytes follow the last tensor", uint64(len(body))-at)
	}
	return tensors, nil
}

func (e entry) begin() uint64 {
	if e.Offsets == nil {
		return 0
	}
	return e.Offsets[0]
}

func (e entry) end() uint64 {
	if e.Offsets == nil {
		return 0
	}
	return e.Offsets[1]
}

// size returns how many bytes the type and shape ask for, refusing products that do not fit.
func (e entry) size() (uint64, []int, error) {
	total, ok := elementSize[e.DType]
	if !ok {
		return 0, nil, fmt.Errorf("tensor %q has unknown dtype %q", e.name, e.DType)
	}
	shape := make([]int, len(e.Shape))
	for i, n := range e.Shape {
		high, low := bits.Mul64(total, n)
		if high != 0 || n > math.MaxInt32 {
			return 0, nil, fmt.Errorf("tensor %q has a shape too large: %v", e.name, e.Shape)
		}
		total, shape[i] = low, int(n)
	}
	return total, shape, nil
}

// Float32s returns the elements of an F32, F16 or U8 tensor as float32, exactly; other types are an error.
func (t Tensor) Float32s() ([]float32, error) {
	switch t.DType {
	case "F32":
		out := make([]float32, len(t.Data)/4)
		for i := range out {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
		}
		return out, nil
	case "F16":
		out := make([]float32, len(t.Data)/2)
		for i := range out {
			out[i] = fromHalf(binary.LittleEndian.Uint16(t.Data[2*i:]))
		}
		return out, nil
	case "U8":
		out := make([]float32, len(t.Data))
		for i, b := range t.Data {
			out[i] = float32(b)
		}
		return out, nil
	}
	return nil, fmt.Errorf("dtype %s is not one of F32, F16, U8", t.DType)
}

// fromHalf widens an IEEE 754 half-precision number. Every half is a float32 exactly.
func fromHalf(half uint16) float32 {
	sign := uint32(half&0x8000) << 16
	exponent := uint32(half>>10) & 0x1f
	fraction := uint32(half & 0x3ff)
	switch exponent {
	case 0: // zero and the subnormals, fraction times 2^-24
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)*0x1p-24))
	case 0x1f: // infinities and NaN
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}
