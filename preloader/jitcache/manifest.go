// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// form is the version of the layout in a store.
const form = 1

// LongestManifest bounds a manifest, in bytes.
const LongestManifest = 64 << 10

// mostMembers bounds files and folders of an archive each: beyond it, something else than
// a cache was packed.
const mostMembers = 1 << 20

// ManifestName is the manifest's name in the folder of a key. It is written last.
const ManifestName = "manifest.json"

// Manifest says what a store holds for a key.
type Manifest struct {
	// Form is the version of this layout.
	Form int `json:"form"`
	// Key is what the cache depends on.
	Key Key `json:"key"`
	// SHA256 is that of the archive, in hexadecimal, and Size its length in bytes.
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	Contents
	// Trees are what was packed, by name.
	Trees []Tree `json:"trees"`
	// Made is when, and By which version of the preloader.
	Made time.Time `json:"made"`
	By   string    `json:"by,omitempty"`
}

// ArchiveName is the archive's name in the folder of its key.
func (m *Manifest) ArchiveName() string { return m.SHA256 + ".tar.zst" }

// Encode returns the manifest as it is stored, or an error if nobody could read it.
func (m *Manifest) Encode() ([]byte, error) {
	m.Form = form
	if err := cmp.Or(m.Key.check(), m.check()); err != nil {
		return nil, fmt.Errorf("writing the manifest: %w", err)
	}
	raw, err := json.MarshalIndent(m, "", "  ")
	if err == nil && len(raw) >= LongestManifest {
		err = fmt.Errorf("it has %d bytes, more than %d", len(raw), LongestManifest)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the manifest: %w", err)
	}
	return append(raw, '\n'), nil
}

// ParseManifest reads a manifest, which must be for this key.
func ParseManifest(raw []byte, key Key) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if m.Form != form {
		return nil, fmt.Errorf("reading the manifest: form %d is unknown", m.Form)
	}
	if key != nil && m.Key.String() != key.String() {
		return nil, fmt.Errorf("the manifest is for another key, %s", m.Key)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}

// check returns what makes no sense.
func (m *Manifest) check() error {
	if sum, err := hex.DecodeString(m.SHA256); err != nil || len(sum) != 32 {
		return fmt.Errorf("the manifest names no SHA-256: %q", m.SHA256)
	}
	const most = math.MaxInt64 / 4
	if m.Size <= 0 || m.Size > most || m.Stream > most || !m.possible() {
		return fmt.Errorf("the manifest's sizes make no sense: %d bytes, %d files of %d bytes", m.Size, m.Files, m.Bytes)
	}
	if len(m.Trees) == 0 {
		return errors.New("the manifest names no tree")
	}
	for i, t := range m.Trees {
		if !isTreeName(t.Name) || i > 0 && t.Name <= m.Trees[i-1].Name {
			return fmt.Errorf("the manifest's trees are out of order, or %q is no name", t.Name)
		}
	}
	return nil
}

// possible reports whether an archive could hold so much.
func (c Contents) possible() bool {
	return c.Bytes >= 0 && c.Bytes <= c.Stream && min(c.Files, c.Folders) >= 0 && max(c.Files, c.Folders) <= mostMembers
}
