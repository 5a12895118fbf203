// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
)

// IndexFiles reads an index and returns only the files that it names, as
// [Index.Files] does, without holding more than these in memory: the index of a
// large model has ten megabytes. The error wraps ErrMalformed if the file is to
// blame, and is that of r if it cannot be read.
func IndexFiles(r io.Reader) ([]string, error) {
	decoder := json.NewDecoder(r)
	if err := open(decoder); err != nil {
		return nil, err
	}
	var shards []string
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, noIndex(err)
		}
		if key != "weight_map" {
			var skipped json.RawMessage
			if err := decoder.Decode(&skipped); err != nil {
				return nil, noIndex(err)
			}
			continue
		}
		if shards, err = readWeightMap(decoder); err != nil {
			return nil, err
		}
	}
	if _, err := decoder.Token(); err != nil {
		return nil, noIndex(err)
	}
	if len(shards) == 0 {
		return nil, malformed("the index has no weight_map")
	}
	return shards, nil
}

func readWeightMap(decoder *json.Decoder) ([]string, error) {
	if err := open(decoder); err != nil {
		return nil, err
	}
	files := map[string]bool{}
	for decoder.More() {
		if _, err := decoder.Token(); err != nil {
			return nil, noIndex(err)
		}
		token, err := decoder.Token()
		if err != nil {
			return nil, noIndex(err)
		}
		file, isText := token.(string)
		if !isText || !beside(file) {
			return nil, malformed("the index names %v, which is no name of a file beside it", token)
		}
		files[file] = true
	}
	if _, err := decoder.Token(); err != nil {
		return nil, noIndex(err)
	}
	return slices.Sorted(maps.Keys(files)), nil
}

// open reads the beginning of an object.
func open(decoder *json.Decoder) error {
	token, err := decoder.Token()
	if err != nil {
		return noIndex(err)
	}
	if token != json.Delim('{') {
		return malformed("the index is no JSON object where one should be")
	}
	return nil
}

// noIndex blames the file, unless reading it failed.
func noIndex(err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("reading the index: %w", err)
	}
	return err
}
