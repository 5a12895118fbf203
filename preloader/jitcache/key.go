// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// Names that every key needs, and names that are found out if they are not given.
const (
	// KeyEngine is the engine and its version, best as the image by digest: kernels of
	// one version crash another. It cannot be found out.
	KeyEngine = "engine"
	// KeyGPU is the product name of the GPU, which stands for its compute capability.
	KeyGPU = "gpu"
	// KeyDriver is the major version of the GPU's driver.
	KeyDriver = "driver"
	// KeyArch is the processor's architecture, as Go names it.
	KeyArch = "arch"
	// KeyModel is the digest of the model's files.
	KeyModel = "model"
)

// Key is what a cache depends on, by name. Two keys are the same cache only if they
// have the same names with the same values.
type Key map[string]string

const (
	mostParts    = 32
	longestName  = 32
	longestValue = 512
)

// ParseKey reads a list such as engine=vllm-0.11.0,tp=2. Names are lower case; values
// are anything in one line without commas.
func ParseKey(text string) (Key, error) {
	k := Key{}
	for part := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok {
			return nil, fmt.Errorf("%q is not of the form name=value", part)
		}
		if _, twice := k[name]; twice {
			return nil, fmt.Errorf("%q comes twice", name)
		}
		k[name] = value
	}
	return k, k.check()
}

// check returns what is wrong with names and values.
func (k Key) check() error {
	if len(k) > mostParts {
		return fmt.Errorf("a key has %d parts, more than %d", len(k), mostParts)
	}
	for _, name := range slices.Sorted(maps.Keys(k)) {
		if !isName(name) || len(name) > longestName {
			return fmt.Errorf("%q is no name of a key's part: want lower case letters, digits and hyphens, a letter first", name)
		}
		value := k[name]
		if value == "" || len(value) > longestValue || strings.ContainsRune(value, ',') ||
			strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("the value %q of %s: want one line of at most %d bytes, without commas", value, name, longestValue)
		}
	}
	return nil
}

func isName(s string) bool {
	for i, r := range s {
		letter := r >= 'a' && r <= 'z'
		if !letter && (i == 0 || r != '-' && (r < '0' || r > '9')) {
			return false
		}
	}
	return s != ""
}

// Under returns the key with what it lacks taken from what was found out.
func (k Key) Under(found Key) Key {
	all := maps.Clone(found)
	if all == nil {
		all = Key{}
	}
	maps.Copy(all, k)
	return all
}

// Missing names the first part without which a cache could be used where it would
// break, or is empty.
func (k Key) Missing() string {
	for _, name := range []string{KeyEngine, KeyGPU} {
		if k[name] == "" {
			return name
		}
	}
	return ""
}

// String lists the parts by name, in a form that [ParseKey] reads.
func (k Key) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(k)) {
		parts = append(parts, name+"="+k[name])
	}
	return strings.Join(parts, ",")
}

// Digest names the key in a store.
func (k Key) Digest() string {
	sum := sha256.Sum256([]byte(k.String()))
	return hex.EncodeToString(sum[:16])
}

// Differences lists the parts in which the other key is not the same, by name.
func (k Key) Differences(other Key) []string {
	var names []string
	for name := range k.Under(other) {
		if k[name] != other[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
