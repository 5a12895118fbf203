// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestIndexFiles(t *testing.T) {
	cases := map[string]struct {
		index string
		want  []string
		// wantCause is part of the error; empty for a good index.
		wantCause string
	}{
		"each file once, in order": {
			index: `{"metadata":{"total_size":9,"x":[{}]},"weight_map":{"l.2":"m-2","l.1":"m-1","l.3":"m-1"},"more":1}`,
			want:  []string{"m-1", "m-2"},
		},
		"a file in a folder below":        {index: `{"weight_map":{"a":"x/m-1"}}`, want: []string{"x/m-1"}},
		"no weight_map":                   {index: `{"metadata":{}}`, wantCause: "no weight_map"},
		"an empty weight_map":             {index: `{"weight_map":{}}`, wantCause: "no weight_map"},
		"a file elsewhere":                {index: `{"weight_map":{"a":"../m"}}`, wantCause: "beside it"},
		"the folder above":                {index: `{"weight_map":{"a":".."}}`, wantCause: "beside it"},
		"a number for a file":             {index: `{"weight_map":{"a":1}}`, wantCause: "beside it"},
		"a list for the map":              {index: `{"weight_map":[]}`, wantCause: "no JSON object"},
		"an index that breaks off":        {index: `{"weight_map":{"a":"m"`, wantCause: "EOF"},
		"an index that is something else": {index: `<html>`, wantCause: "invalid character"},
		"an empty index":                  {index: ``, wantCause: "EOF"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := IndexFiles(strings.NewReader(tc.index))
			if tc.wantCause != "" {
				if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tc.wantCause) {
					t.Fatalf("IndexFiles gives %q, %v; want ErrMalformed with %q", got, err, tc.wantCause)
				}
				return
			}
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("IndexFiles gives %q, %v; want %q", got, err, tc.want)
			}
		})
	}
	broken := io.MultiReader(strings.NewReader(`{"weight_map":{"a"`), iotest.ErrReader(io.ErrNoProgress))
	if _, err := IndexFiles(broken); !errors.Is(err, io.ErrNoProgress) || errors.Is(err, ErrMalformed) {
		t.Errorf("a reader that fails gives %v, want its error", err)
	}
}

// FuzzIndexFiles holds the short way to the long one.
func FuzzIndexFiles(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":9},"weight_map":{"a":"m-1","b":"m-2"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../m"}}`))
	f.Add([]byte(`{"weight_map":{"a":"m"},"weight_map":{"b":"n"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		files, err := IndexFiles(bytes.NewReader(raw))
		if err == nil && !slices.IsSorted(files) || slices.ContainsFunc(files, func(file string) bool { return !beside(file) }) {
			t.Fatalf("files %q", files)
		}
		index, err := ParseIndex(raw)
		if err != nil {
			return
		}
		plain, err := json.Marshal(map[string]any{"weight_map": index.FileOf})
		if err != nil {
			t.Fatal(err)
		}
		if files, err := IndexFiles(bytes.NewReader(plain)); err != nil || !slices.Equal(index.Files, files) {
			t.Fatalf("%q one way, %q the other (%v)", index.Files, files, err)
		}
	})
}
