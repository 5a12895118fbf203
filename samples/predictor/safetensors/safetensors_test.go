// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// file puts a header and a body together.
func file(header string, body ...byte) []byte {
	data := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(data, header...), body...)
}

// one is a header of one tensor, a.
func one(dtype, shape, offsets string) string {
	return fmt.Sprintf(`{"a":{"dtype":%q,"shape":%s,"data_offsets":%s}}`, dtype, shape, offsets)
}

// two is a header of two tensors of bytes, a and one of another name, each as long as its offsets say.
func two(a [2]int, name string, b [2]int) string {
	const tensor = `%q:{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}`
	return fmt.Sprintf("{"+tensor+","+tensor+"}", "a", a[1]-a[0], a[0], a[1], name, b[1]-b[0], b[0], b[1])
}

func TestParseReadsTensors(t *testing.T) {
	got, err := Parse(file(`{"__metadata__":{"by":"hand"},`+
		`"b":{"dtype":"F16","shape":[2,1],"data_offsets":[3,7]},`+
		`"none":{"dtype":"F32","shape":[0,5],"data_offsets":[3,3]},`+
		`"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},`+
		`"one":{"dtype":"U8","shape":[],"data_offsets":[7,8]}}   `, 1, 2, 3, 0x00, 0x3c, 0x00, 0xc0, 9))
	if err != nil {
		t.Fatal(err)
	}
	want := &File{
		Tensors: map[string]Tensor{
			"a":    {DType: "U8", Shape: []int{3}, Data: []byte{1, 2, 3}},
			"b":    {DType: "F16", Shape: []int{2, 1}, Data: []byte{0x00, 0x3c, 0x00, 0xc0}},
			"none": {DType: "F32", Shape: []int{0, 5}, Data: []byte{}},
			"one":  {DType: "U8", Shape: []int{}, Data: []byte{9}},
		},
		Metadata: map[string]string{"by": "hand"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	numbers, err := got.Tensors["b"].Float32s()
	if diff := cmp.Diff([]float32{1, -2}, numbers); err != nil || diff != "" {
		t.Errorf("elements, error %v (-want +got):\n%s", err, diff)
	}
}

func TestParseRefusesMalformedFiles(t *testing.T) {
	good := one("U8", "[3]", "[0,3]")
	cases := map[string]struct {
		data    []byte
		wantSay string
	}{
		"empty file":                {nil, "too few"},
		"length alone":              {make([]byte, 8), "does not start"},
		"header longer than file":   {binary.LittleEndian.AppendUint64(nil, 1), "exceeds the file"},
		"header of 2^64-1 bytes":    {append(binary.LittleEndian.AppendUint64(nil, math.MaxUint64), '{'), "exceeds the file"},
		"header is no object":       {file(`[]`), "does not start"},
		"header is cut":             {file(good[:len(good)-1], 1, 2, 3), "reading header"},
		"bytes behind the brace":    {file(good+"x", 1, 2, 3), "follow the header"},
		"cut body":                  {file(good, 1, 2), "ends at byte 3 of 2"},
		"bytes behind the tensors":  {file(good, 1, 2, 3, 4), "follow the last tensor"},
		"no tensors but bytes":      {file(`{}`, 1), "follow the last tensor"},
		"unknown dtype":             {file(one("U9", "[3]", "[0,3]"), 1, 2, 3), "unknown dtype"},
		"shape and offsets differ":  {file(one("U8", "[2]", "[0,3]"), 1, 2, 3), "want 2 bytes"},
		"offsets run backwards":     {file(one("U8", "[0]", "[3,0]"), 1, 2, 3), "begins at byte 3"},
		"no offsets":                {file(`{"a":{"dtype":"U8","shape":[0]}}`), "no data_offsets"},
		"negative offset":           {file(one("U8", "[3]", "[-1,2]"), 1, 2, 3), "reading tensor"},
		"negative dimension":        {file(one("U8", "[-3]", "[0,3]"), 1, 2, 3), "reading tensor"},
		"offset far behind the end": {file(one("U8", "[9]", "[18446744073709551607,18446744073709551615]")), "begins at"},
		"hole between tensors": {
			file(two([2]int{0, 1}, "b", [2]int{2, 3}), 1, 2, 3),
			"begins at byte 2, want 1",
		},
		"overlapping tensors": {
			file(two([2]int{0, 2}, "b", [2]int{1, 3}), 1, 2, 3),
			"begins at byte 1, want 2",
		},
		"the same name twice": {
			file(two([2]int{0, 1}, "a", [2]int{1, 2}), 1, 2),
			"described twice",
		},
		"a product that wraps to zero": {
			file(one("U8", "[2147483647,2147483647,2147483647,0]", "[0,0]")), "too large",
		},
		"a product that wraps to the size": {
			file(one("I64", "[2305843009213693952]", "[0,0]")), "too large",
		},
		"metadata that is not text": {file(`{"__metadata__":{"a":1}}`), "__metadata__"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tc.data)
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tc.wantSay) {
				t.Errorf("Parse = %v, error %v; want ErrMalformed with %q", got, err, tc.wantSay)
			}
		})
	}
}

func TestFloat32sRefusesOtherTypes(t *testing.T) {
	if got, err := (Tensor{DType: "I64", Data: make([]byte, 8)}).Float32s(); err == nil {
		t.Errorf("Float32s of I64 = %v, want an error", got)
	}
}

// Every half is checked against the definition of the format, computed in float64.
func TestHalvesWidenExactly(t *testing.T) {
	for bits := range 1 << 16 {
		half := uint16(bits)
		sign, exponent, fraction := 1-2*float64(half>>15), int(half>>10&0x1f), float64(half&0x3ff)
		var want float64
		switch {
		case exponent == 0x1f && fraction != 0:
			want = math.NaN()
		case exponent == 0x1f:
			want = math.Inf(int(sign))
		case exponent == 0:
			want = sign * math.Ldexp(fraction, -24)
		default:
			want = sign * math.Ldexp(1024+fraction, exponent-25)
		}
		got := float64(fromHalf(half))
		if got != want && !(math.IsNaN(got) && math.IsNaN(want)) || math.Signbit(got) != (half>>15 == 1) {
			t.Fatalf("fromHalf(%#04x) = %v, want %v", half, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, path := range []string{"../model/v1/model.safetensors", "../model/v2/model.safetensors"} {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[:400])
	}
	f.Add(file(one("F32", "[1,2]", "[0,8]"), 1, 2, 3, 4, 5, 6, 7, 8))
	f.Add(file(`{"__metadata__":{"k":"v"},"a":{"dtype":"F16","shape":[],"data_offsets":[0,2]}} `, 1, 2))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v does not wrap ErrMalformed", err)
			}
			return
		}
		total := 0
		for name, tensor := range got.Tensors {
			want := int(elementSize[tensor.DType])
			for _, n := range tensor.Shape {
				want *= n
			}
			if len(tensor.Data) != want {
				t.Errorf("tensor %q: %d bytes for %s %v", name, len(tensor.Data), tensor.DType, tensor.Shape)
			}
			total += want
			_, _ = tensor.Float32s()
		}
		if size := int(binary.LittleEndian.Uint64(data)); 8+size+total != len(data) {
			t.Errorf("header %d and tensors %d do not fill the file of %d", size, total, len(data))
		}
	})
}
