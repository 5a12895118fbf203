// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fileOf makes a file of a header and some bytes of data.
func fileOf(header string, data int) []byte {
	raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(raw, header...), make([]byte, data)...)
}

func TestReadTakesWhatTheFormatAllows(t *testing.T) {
	tests := map[string]struct {
		header string
		data   int
		want   *Header
	}{
		"tensors in any order of names, with metadata and padding": {
			header: `{"b":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},"__metadata__":{"format":"pt"},` +
				`"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}    `,
			data: 26,
			want: &Header{
				Start: 153, Metadata: map[string]string{"format": "pt"},
				Tensors: []Tensor{
					{Name: "a", DType: "BF16", Shape: []int64{}, Begin: 0, End: 2},
					{Name: "b", DType: "F32", Shape: []int64{2, 3}, Begin: 2, End: 26},
				},
			},
		},
		"elements narrower than a byte": {
			header: `{"q":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}}`, data: 3,
			want: &Header{Start: 63, Tensors: []Tensor{{Name: "q", DType: "F4", Shape: []int64{3, 2}, End: 3}}},
		},
		"a tensor without elements": {
			header: `{"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}}`,
			want:   &Header{Start: 64, Tensors: []Tensor{{Name: "e", DType: "F32", Shape: []int64{0, 7}}}},
		},
		"a type that is not known yet": {
			header: `{"n":{"dtype":"F2","shape":[9],"data_offsets":[0,5]}}`, data: 5,
			want: &Header{Start: 61, Tensors: []Tensor{{Name: "n", DType: "F2", Shape: []int64{9}, End: 5}}},
		},
		"no tensor at all": {header: `{}`, want: &Header{Start: 10}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			file := fileOf(tc.header, tc.data)
			got, err := Read(bytes.NewReader(file), int64(len(file)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if got.FileBytes() != int64(len(file)) {
				t.Errorf("FileBytes is %d, the file has %d", got.FileBytes(), len(file))
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	whole := fileOf(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4)
	tests := map[string]struct {
		file      []byte
		wantCause string
	}{
		"an empty file":              {nil, "too few"},
		"a length without a header":  {whole[:8], "does not fit"},
		"a file cut within its data": {whole[:len(whole)-1], "its header asks for"},
		"a file with bytes behind":   {append(bytes.Clone(whole), 0), "its header asks for"},
		"a length beyond the bound":  {binary.LittleEndian.AppendUint64(nil, MaxHeader+1), "longer than the format allows"},
		"a length below zero":        {bytes.Repeat([]byte{0xff}, 8), "longer than the format allows"},
		"no JSON":                    {fileOf("<html>", 0), "does not start with {"},
		"JSON that ends early":       {fileOf(`{"a":`, 0), "reading"},
		"bytes behind the brace":     {fileOf(`{}x`, 0), "follow the header"},
		"bytes that are no UTF-8":    {fileOf("{\"\xff\":1}", 0), "UTF-8"},
		"a tensor named twice": {fileOf(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},`+
			`"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2), "twice"},
		"a hole": {fileOf(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2), "want it to begin at 0"},
		"an overlap": {fileOf(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},`+
			`"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3), "want it to begin at 2"},
		"a tensor that ends before it begins": {
			fileOf(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,-1]}}`, 0), "spans",
		},
		"a shape that asks for more": {fileOf(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 4), "ask for 64 bits"},
		"a shape that overflows": {
			fileOf(`{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}`, 4), "too large",
		},
		"a shape below zero":            {fileOf(`{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}`, 4), "below zero"},
		"part of a byte":                {fileOf(`{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}`, 1), "12 bits"},
		"no shape":                      {fileOf(`{"a":{"dtype":"U8","data_offsets":[0,1]}}`, 1), "shape"},
		"names of fields in upper case": {fileOf(`{"a":{"DTYPE":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), "dtype"},
		"three offsets":                 {fileOf(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}`, 1), "3 offsets"},
		"metadata that is not text":     {fileOf(`{"__metadata__":{"n":1}}`, 0), "__metadata__"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h, err := Read(bytes.NewReader(tc.file), int64(len(tc.file)))
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tc.wantCause) {
				t.Errorf("Read gives %+v, %v; want ErrMalformed with %q", h, err, tc.wantCause)
			}
		})
	}
}

func TestReadOfAFileThatCannotBeRead(t *testing.T) {
	// The size promises more than there is, as when a file shrinks while it is read.
	if _, err := Read(bytes.NewReader([]byte{20, 0, 0, 0, 0, 0, 0, 0, 123}), 100); err == nil || errors.Is(err, ErrMalformed) {
		t.Errorf("Read gives %v, want an error of reading that does not blame the file", err)
	}
}

func TestParseIndex(t *testing.T) {
	got, err := ParseIndex([]byte(`{"metadata":{"total_size":1.5e9},` +
		`"weight_map":{"x":"m-2.safetensors","y":"m-1.safetensors","z":"m-2.safetensors"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Index{
		Files:  []string{"m-1.safetensors", "m-2.safetensors"},
		FileOf: map[string]string{"x": "m-2.safetensors", "y": "m-1.safetensors", "z": "m-2.safetensors"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("index (-want +got):\n%s", diff)
	}
	for name, raw := range map[string]string{
		"no JSON": `[`, "no weight_map": `{}`, "a name that leaves the folder": `{"weight_map":{"a":"../b"}}`,
		"an absolute name": `{"weight_map":{"a":"/b"}}`, "an empty name": `{"weight_map":{"a":""}}`,
		"the folder itself": `{"weight_map":{"a":"."}}`,
	} {
		if got, err := ParseIndex([]byte(raw)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: ParseIndex gives %+v, %v; want ErrMalformed", name, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"__metadata__":{"k":"v"}}  `))
	f.Add([]byte(`{"a":{"dtype":"F4","shape":[9223372036854775807,9223372036854775807],"data_offsets":[0,9223372036854775807]}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("Parse gives %v, want ErrMalformed", err)
			}
			return
		}
		at := int64(0)
		for _, tensor := range h.Tensors {
			if tensor.Begin != at || tensor.End < at {
				t.Fatalf("tensor %+v does not follow byte %d", tensor, at)
			}
			at = tensor.End
		}
		if h.FileBytes() != h.Start+at || h.FileBytes() < h.Start {
			t.Errorf("FileBytes is %d, want %d", h.FileBytes(), h.Start+at)
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"weight_map":{"x":"m-1.safetensors"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		index, err := ParseIndex(raw)
		if err != nil {
			return
		}
		dir, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		for _, file := range index.Files {
			if _, err := dir.Stat(file); err == nil {
				t.Errorf("%q is found in an empty folder", file)
			}
		}
	})
}
