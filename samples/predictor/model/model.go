// SPDX-License-Identifier: Apache-2.0

// Package model carries the two trained versions of the digit classifier, for those who upload or test them: each
// folder of FS is a complete model directory. train.py, beside this file, made them; README.md of the predictor says
// from what data and under which licence.
package model

import (
	"embed"
	"encoding/json"
	"fmt"

	"serverless.xyz/outrigger/samples/predictor/safetensors"
)

// FS holds the model directories v1 and v2.
//
//go:embed v1 v2
var FS embed.FS

//go:embed heldout.json
var heldOut []byte

// Digit is a hand-written digit that neither version saw in training. Its features are in both model directories
// under the same id.
type Digit struct {
	// ID names the digit in the feature store, for example digit-17.
	ID string `json:"id"`
	// Label is the digit that the writer meant, 0 to 9.
	Label int `json:"label"`
	// V1 and V2 are what the training script's own arithmetic predicted with each version.
	V1 int `json:"v1"`
	V2 int `json:"v2"`
	// Pixels are 28 rows of 28, 0 for the paper and 255 for the ink.
	Pixels []byte `json:"-"`
}

// HeldOut returns the digits shipped with the models, in a fixed order. It fails only if the files were edited.
func HeldOut() ([]Digit, error) {
	var digits []Digit
	if err := json.Unmarshal(heldOut, &digits); err != nil {
		return nil, fmt.Errorf("reading heldout.json: %w", err)
	}
	data, err := FS.ReadFile("v1/features.safetensors")
	if err != nil {
		return nil, fmt.Errorf("reading features: %w", err)
	}
	file, err := safetensors.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("reading v1/features.safetensors: %w", err)
	}
	for i := range digits {
		tensor, ok := file.Tensors[digits[i].ID]
		if !ok {
			return nil, fmt.Errorf("reading v1/features.safetensors: no tensor %q", digits[i].ID)
		}
		digits[i].Pixels = tensor.Data
	}
	return digits, nil
}
