// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
)

// The bounds on what a configuration may ask for; they keep a broken file from asking for all the memory.
const (
	maxPixels = 1 << 20
	maxLayers = 64
	maxView   = 40
)

// Config is config.json, which lies beside the weights.
type Config struct {
	// Version names the weights, for example v1. It is reported with every prediction.
	Version string `json:"version"`
	// Kind says in a few words what the network is.
	Kind string `json:"kind"`
	// Input describes one instance.
	Input Input `json:"input"`
	// Layers are applied in order.
	Layers []Layer `json:"layers"`
	// Labels name the classes, in the order of the last layer's rows.
	Labels []string `json:"labels"`
	// FeatureView names the features that the model eats, with their version, for example digits:v1. It prefixes
	// cache keys, so that models with different features never read each other's.
	FeatureView string `json:"featureView"`
	// Accuracy is what the training script measured.
	Accuracy Accuracy `json:"accuracy"`
}

// Input describes one instance: a number of pixels, each from 0 to 255, and what they are multiplied by.
type Input struct {
	Pixels int     `json:"pixels"`
	Scale  float32 `json:"scale"`
}

// Layer is one dense layer: two tensors by name and the function applied to their output.
type Layer struct {
	Weight     string `json:"weight"`
	Bias       string `json:"bias"`
	Activation string `json:"activation"`
}

// Accuracy holds shares of right answers on digits that the training never saw.
type Accuracy struct {
	// HeldOut is measured on all of them.
	HeldOut Share `json:"heldOut"`
	// Shipped is measured on those whose features come with the model.
	Shipped Share `json:"shipped"`
}

// Share is the share of right answers, 0 to 1, among so many digits.
type Share struct {
	Digits int     `json:"digits"`
	Share  float64 `json:"share"`
}

func parseConfig(data []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return Config{}, fmt.Errorf("reading JSON: %w", err)
	}
	return c, c.validate()
}

func (c Config) validate() error {
	switch {
	case c.Version == "":
		return errors.New("version is empty")
	case !validView(c.FeatureView):
		return fmt.Errorf("featureView is %q, want 1 to %d letters, digits and any of .-_: in it", c.FeatureView, maxView)
	case c.Input.Pixels < 1 || c.Input.Pixels > maxPixels:
		return fmt.Errorf("input.pixels is %d, want 1 to %d", c.Input.Pixels, maxPixels)
	case !(c.Input.Scale > 0) || math.IsInf(float64(c.Input.Scale), 0):
		return fmt.Errorf("input.scale is %v, want a positive number", c.Input.Scale)
	case len(c.Labels) == 0:
		return errors.New("labels is empty")
	case len(c.Layers) == 0 || len(c.Layers) > maxLayers:
		return fmt.Errorf("layers has %d entries, want 1 to %d", len(c.Layers), maxLayers)
	}
	return c.validateActivations()
}

// validateActivations holds the layers to what this server can compute: rectifiers inside, a distribution at the end.
func (c Config) validateActivations() error {
	for i, layer := range c.Layers {
		want := "relu"
		if i == len(c.Layers)-1 {
			want = "softmax"
		}
		if layer.Activation != want {
			return fmt.Errorf("layers[%d].activation is %q, want %q", i, layer.Activation, want)
		}
	}
	return nil
}

// validView keeps the view to what a cache key may begin with.
func validView(view string) bool {
	if view == "" || len(view) > maxView {
		return false
	}
	return strings.IndexFunc(view, func(r rune) bool {
		return ('a' > r || r > 'z') && ('A' > r || r > 'Z') && ('0' > r || r > '9') && !strings.ContainsRune(".-_:", r)
	}) < 0
}
