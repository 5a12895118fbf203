// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSuperfluous(t *testing.T) {
	cases := map[string]struct {
		files  []string
		shards map[string][]string
		want   []string // left out
	}{
		"a model in one form loses nothing": {
			files: []string{"config.json", "pytorch_model.bin", "tokenizer.model", "original/params.json"},
		},
		"other forms of the same weights go": {
			files: []string{
				"config.json", "flax_model.msgpack", "model.safetensors", "pytorch_model-00001-of-00002.bin",
				"pytorch_model.bin.index.json", "rust_model.ot", "tf_model.h5", "tokenizer.model", "weights.pth",
			},
			want: []string{
				"flax_model.msgpack", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "rust_model.ot",
				"tf_model.h5", "weights.pth",
			},
		},
		"a folder is judged by itself": {
			files: []string{
				"1_Dense/pytorch_model.bin",
				"2_Dense/model.safetensors",
				"2_Dense/pytorch_model.bin",
				"model.safetensors",
			},
			want: []string{"2_Dense/pytorch_model.bin"},
		},
		"Meta's folder goes, at any depth": {
			files: []string{
				"8b/model.safetensors",
				"8b/original/consolidated.00.pth",
				"8b/original/params.json",
				"original/notes",
			},
			want: []string{"8b/original/consolidated.00.pth", "8b/original/params.json"},
		},
		"Mistral's file goes where others are": {
			files: []string{
				"consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated-00001-of-00002.safetensors",
				"model-00001-of-00001.safetensors", "consolidated_report.txt",
			},
			want: []string{
				"consolidated-00001-of-00002.safetensors",
				"consolidated.safetensors",
				"consolidated.safetensors.index.json",
			},
		},
		"Mistral's file stays where it is the only one": {
			files: []string{"consolidated.safetensors", "consolidated.00.pth", "params.json", "tekken.json"},
		},
		"the index decides, and adapters stay": {
			files: []string{
				"adapter_model.safetensors", "model-1.safetensors", "model-2.safetensors", "model.fp16.safetensors",
				"model.safetensors", "model.safetensors.index.json", "modelling.safetensors",
			},
			shards: map[string][]string{"model.safetensors.index.json": {"model-1.safetensors", "model-2.safetensors"}},
			want:   []string{"model.fp16.safetensors", "model.safetensors"},
		},
		"an index decides for its own folder": {
			files: []string{"model.safetensors", "vae/model-1.safetensors", "vae/model.safetensors"},
			shards: map[string][]string{
				"vae/model.safetensors.index.json": {"model-1.safetensors"},
			},
			want: []string{"vae/model.safetensors"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			why := superfluous(slices.Values(tc.files), tc.shards)
			var got []string
			for _, file := range tc.files {
				if why(file) != "" {
					got = append(got, file)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("left out (-want +got):\n%s", diff)
			}
		})
	}
}
