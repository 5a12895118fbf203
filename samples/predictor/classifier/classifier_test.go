// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"serverless.xyz/outrigger/samples/predictor/model"
)

// The labels come from the data set and the predictions from the training script's numpy, so that nothing of this
// package judges itself.
func TestModelsPredictAsTrained(t *testing.T) {
	digits, err := model.HeldOut()
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		trained func(model.Digit) int
	}{
		"v1": {func(d model.Digit) int { return d.V1 }},
		"v2": {func(d model.Digit) int { return d.V2 }},
	}
	for version, tc := range cases {
		t.Run(version, func(t *testing.T) {
			m := load(t, version)
			if m.Config.Version != version {
				t.Errorf("version is %q, want %q", m.Config.Version, version)
			}
			right := 0
			for _, digit := range digits {
				class, probabilities := m.Predict(pixels(digit))
				if class != tc.trained(digit) {
					t.Errorf("%s: predicted %d, the training script %d", digit.ID, class, tc.trained(digit))
				}
				if class == digit.Label {
					right++
				}
				checkDistribution(t, digit.ID, class, probabilities)
			}
			stated := m.Config.Accuracy.Shipped
			if stated.Digits != len(digits) {
				t.Errorf("config.json measures %d shipped digits, there are %d", stated.Digits, len(digits))
			}
			if share := float64(right) / float64(len(digits)); math.Abs(share-stated.Share) > 5e-5 {
				t.Errorf("right on %.4f of the shipped digits, config.json states %.4f", share, stated.Share)
			}
		})
	}
}

func checkDistribution(t *testing.T, id string, class int, probabilities []float32) {
	t.Helper()
	var sum float32
	for i, p := range probabilities {
		sum += p
		if p < 0 || p > probabilities[class] {
			t.Errorf("%s: probability of %d is %v, of the predicted %d %v", id, i, p, class, probabilities[class])
		}
	}
	if math.Abs(float64(sum)-1) > 1e-5 {
		t.Errorf("%s: probabilities add up to %v", id, sum)
	}
}

func TestTheNewVersionIsBetter(t *testing.T) {
	one, two := load(t, "v1").Config.Accuracy.HeldOut, load(t, "v2").Config.Accuracy.HeldOut
	if one.Digits != two.Digits || two.Share <= one.Share {
		t.Errorf("v1 is right on %v, v2 on %v, of which the tour says that it is the better", one, two)
	}
}

func TestLoadNamesWhatIsMissingOrWrong(t *testing.T) {
	cases := map[string]struct {
		change  func(t *testing.T, dir string)
		wantSay string
		wantIs  error
	}{
		"no directory":    {without(""), "config.json", fs.ErrNotExist},
		"no config.json":  {without(ConfigFile), "config.json", fs.ErrNotExist},
		"no weights":      {without(WeightsFile), "model.safetensors", fs.ErrNotExist},
		"weights are cut": {cutWeights, "model.safetensors: malformed safetensors file", nil},
		"config is not JSON": {
			func(t *testing.T, dir string) { write(t, dir, ConfigFile, "{") }, "config.json: reading JSON", nil,
		},
		"no version":        {edit("version", ""), "version is empty", nil},
		"view with a space": {edit("featureView", "digits v1"), "featureView", nil},
		"no labels":         {edit("labels", []string{}), "labels is empty", nil},
		"too few labels":    {edit("labels", []string{"0"}), "10 outputs", nil},
		"no layers":         {edit("layers", []Layer{}), "layers has 0", nil},
		"no pixels":         {edit("input", Input{Pixels: 0, Scale: 1}), "input.pixels is 0", nil},
		"too few pixels":    {edit("input", Input{Pixels: 9, Scale: 1}), "want [outputs 9]", nil},
		"scale is zero":     {edit("input", Input{Pixels: 784}), "input.scale", nil},
		"unknown activation": {
			edit("layers", []Layer{{"layer0.weight", "layer0.bias", "tanh"}}), `activation is "tanh"`, nil,
		},
		"a tensor that is not there": {
			edit("layers", []Layer{{"nope", "layer0.bias", "softmax"}}), `tensor "nope"`, nil,
		},
		"a bias of another shape": {
			edit("layers", []Layer{{"layer0.weight", "layer0.weight", "softmax"}}), "want [10]", nil,
		},
		"a weight that is infinite": {infiniteWeight, "element 0 is +Inf", nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "model")
			if err := os.CopyFS(dir, os.DirFS("../model/v1")); err != nil {
				t.Fatal(err)
			}
			tc.change(t, dir)
			_, err := Load(dir)
			if err == nil || !strings.Contains(err.Error(), tc.wantSay) {
				t.Errorf("Load error = %v, want one that says %q", err, tc.wantSay)
			}
			if tc.wantIs != nil && !errors.Is(err, tc.wantIs) {
				t.Errorf("Load error = %v, want one that is %v", err, tc.wantIs)
			}
		})
	}
}

func load(t *testing.T, version string) *Model {
	t.Helper()
	m, err := Load(filepath.Join("../model", version))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func pixels(digit model.Digit) []float32 {
	out := make([]float32, len(digit.Pixels))
	for i, p := range digit.Pixels {
		out[i] = float32(p)
	}
	return out
}

// without removes a file, or the directory itself.
func without(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// edit replaces one field of config.json.
func edit(field string, value any) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		var config map[string]any
		if err := json.Unmarshal([]byte(read(t, dir, ConfigFile)), &config); err != nil {
			t.Fatal(err)
		}
		if _, ok := config[field]; !ok {
			t.Fatalf("config.json has no %q to edit", field)
		}
		config[field] = value
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, ConfigFile, string(text))
	}
}

func cutWeights(t *testing.T, dir string) {
	t.Helper()
	text := read(t, dir, WeightsFile)
	write(t, dir, WeightsFile, text[:len(text)/2])
}

// infiniteWeight overwrites the first element of the first tensor, which begins where the header ends.
func infiniteWeight(t *testing.T, dir string) {
	t.Helper()
	text := read(t, dir, WeightsFile)
	header := 8 + int(text[0]) + int(text[1])<<8
	write(t, dir, WeightsFile, fmt.Sprintf("%s\x00\x00\x80\x7f%s", text[:header], text[header+4:]))
}
