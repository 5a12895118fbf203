// SPDX-License-Identifier: Apache-2.0

// Package classifier loads a small dense network from a model directory and runs it on the CPU. A model directory
// holds config.json and model.safetensors; both are checked against each other before anything is served, so that a
// Model that loads can predict. A Model is read-only and safe for use by many goroutines.
package classifier

import (
	"fmt"
	"math"
	"os"
	"path/filepath"

	"serverless.xyz/outrigger/samples/predictor/safetensors"
)

// The files of a model directory.
const (
	ConfigFile   = "config.json"
	WeightsFile  = "model.safetensors"
	FeaturesFile = "features.safetensors"
)

// Model is a network ready to predict.
type Model struct {
	// Config is what config.json says.
	Config Config

	layers []dense
}

// dense is one layer; weight holds a row for each output.
type dense struct {
	in, out      int
	weight, bias []float32
}

// Load reads and checks the model in dir. Errors name the file at fault and what it lacks.
func Load(dir string) (*Model, error) {
	data, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if err != nil {
		return nil, fmt.Errorf("reading model configuration: %w", err)
	}
	config, err := parseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, ConfigFile), err)
	}
	data, err = os.ReadFile(filepath.Join(dir, WeightsFile))
	if err != nil {
		return nil, fmt.Errorf("reading model weights: %w", err)
	}
	layers, err := parseWeights(data, config)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, WeightsFile), err)
	}
	return &Model{Config: config, layers: layers}, nil
}

func parseWeights(data []byte, config Config) ([]dense, error) {
	file, err := safetensors.Parse(data)
	if err != nil {
		return nil, err
	}
	layers := make([]dense, 0, len(config.Layers))
	in := config.Input.Pixels
	for _, l := range config.Layers {
		layer, err := newDense(file, l, in)
		if err != nil {
			return nil, err
		}
		layers, in = append(layers, layer), layer.out
	}
	if in != len(config.Labels) {
		return nil, fmt.Errorf("the last layer has %d outputs, but %s names %d labels", in, ConfigFile, len(config.Labels))
	}
	return layers, nil
}

func newDense(file *safetensors.File, l Layer, in int) (dense, error) {
	shape := file.Tensors[l.Weight].Shape
	if len(shape) != 2 || shape[0] < 1 || shape[1] != in {
		return dense{}, fmt.Errorf("tensor %q has shape %v, want [outputs %d]", l.Weight, shape, in)
	}
	weight, err := finite(file, l.Weight)
	if err != nil {
		return dense{}, err
	}
	if got := file.Tensors[l.Bias].Shape; len(got) != 1 || got[0] != shape[0] {
		return dense{}, fmt.Errorf("tensor %q has shape %v, want [%d]", l.Bias, got, shape[0])
	}
	bias, err := finite(file, l.Bias)
	if err != nil {
		return dense{}, err
	}
	return dense{in: in, out: shape[0], weight: weight, bias: bias}, nil
}

// finite widens a tensor and refuses NaN and infinities: one of them would make every answer meaningless.
func finite(file *safetensors.File, name string) ([]float32, error) {
	values, err := file.Tensors[name].Float32s()
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", name, err)
	}
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fmt.Errorf("tensor %q: element %d is %v", name, i, v)
		}
	}
	return values, nil
}

// Predict returns the index of the likeliest label and the probability of every label. It takes Config.Input.Pixels
// values from 0 to 255; any other number of them is a bug of the caller and panics.
func (m *Model) Predict(pixels []float32) (int, []float32) {
	if len(pixels) != m.Config.Input.Pixels {
		panic(fmt.Sprintf("classifier: %d pixels, want %d", len(pixels), m.Config.Input.Pixels))
	}
	x := make([]float32, len(pixels))
	for i, p := range pixels {
		x[i] = p * m.Config.Input.Scale
	}
	for i, layer := range m.layers {
		x = layer.apply(x)
		if i < len(m.layers)-1 {
			rectify(x)
		}
	}
	softmax(x)
	best := 0
	for i, p := range x {
		if p > x[best] {
			best = i
		}
	}
	return best, x
}

func (d dense) apply(x []float32) []float32 {
	y := make([]float32, d.out)
	for o := range y {
		sum := d.bias[o]
		for i, w := range d.weight[o*d.in : (o+1)*d.in] {
			sum += w * x[i]
		}
		y[o] = sum
	}
	return y
}

func rectify(x []float32) {
	for i, v := range x {
		x[i] = max(v, 0)
	}
}

// softmax turns scores into probabilities; the largest is subtracted first, or large scores would overflow.
func softmax(x []float32) {
	top := x[0]
	for _, v := range x {
		top = max(top, v)
	}
	var sum float32
	for i, v := range x {
		x[i] = float32(math.Exp(float64(v - top)))
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}
