// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"encoding/json"
	"maps"
	"path"
	"path/filepath"
	"slices"
)

// IndexName is the usual name of the index of a model in several files.
const IndexName = "model.safetensors.index.json"

// Index says which file of a model holds which tensor.
type Index struct {
	// Files are the names of the files, sorted, relative to the index. None leaves
	// the folder of the index.
	Files []string
	// FileOf holds the file of each tensor by the tensor's name.
	FileOf map[string]string
}

// ParseIndex reads an index. The error wraps ErrMalformed.
func ParseIndex(raw []byte) (*Index, error) {
	var content struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(raw, &content); err != nil {
		return nil, malformed("reading the index: %w", err)
	}
	if len(content.WeightMap) == 0 {
		return nil, malformed("the index has no weight_map")
	}
	files := map[string]bool{}
	for tensor, file := range content.WeightMap {
		if !beside(file) {
			return nil, malformed("the index puts tensor %q into %q, which is no name of a file beside it", tensor, file)
		}
		files[file] = true
	}
	return &Index{Files: slices.Sorted(maps.Keys(files)), FileOf: content.WeightMap}, nil
}

// beside reports whether an index may name this file: it leaves no folder.
func beside(file string) bool {
	return filepath.IsLocal(file) && path.Clean(file) == file && file != "."
}
