// SPDX-License-Identifier: Apache-2.0

// Package features finds the features of an entity by its id: first in a memcached, with one multi-get a request,
// then in the feature store. The store is the truth; the cache may be absent, slow, dead or wrong, and the caller
// still gets the right bytes, a few timeouts later at worst. An id that the store does not hold is the only error.
package features

import (
	"errors"
	"fmt"
	"os"

	"serverless.xyz/outrigger/samples/predictor/safetensors"
)

// Store holds a feature vector of bytes for each entity, read once from a safetensors file in which every tensor is
// an entity. It is read-only and safe for use by many goroutines.
type Store struct {
	width int
	rows  map[string][]byte
}

// OpenStore reads the file at path. Every tensor in it must be of type U8 and hold width elements.
func OpenStore(path string, width int) (*Store, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading feature store: %w", err)
	}
	store, err := parseStore(data, width)
	if err != nil {
		return nil, fmt.Errorf("reading feature store %s: %w", path, err)
	}
	return store, nil
}

func parseStore(data []byte, width int) (*Store, error) {
	file, err := safetensors.Parse(data)
	if err != nil {
		return nil, err
	}
	rows := make(map[string][]byte, len(file.Tensors))
	for id, tensor := range file.Tensors {
		if tensor.DType != "U8" || len(tensor.Data) != width {
			return nil, fmt.Errorf("entity %q has %d elements of %s, want %d of U8", id, len(tensor.Data), tensor.DType, width)
		}
		rows[id] = tensor.Data
	}
	if len(rows) == 0 {
		return nil, errors.New("it holds no entity")
	}
	return &Store{width: width, rows: rows}, nil
}

// Len returns the number of entities.
func (s *Store) Len() int { return len(s.rows) }

// Get returns the features of one entity. The caller must not write to them.
func (s *Store) Get(id string) ([]byte, bool) {
	row, ok := s.rows[id]
	return row, ok
}
