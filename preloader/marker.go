// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// markerName is a file, not a folder: model servers such as Triton take every
// folder of a model repository for a model, hidden or not.
const markerName = ".preloader.json"

// Marker says that a destination is complete, and what is in it. It is written
// last and removed before anything changes, so whoever sees it may rely on the
// files that it lists.
type Marker struct {
	// Form is the version of this layout.
	Form int `json:"form"`
	// Boot is the boot id of the machine that wrote the files. After a restart,
	// files that were not yet on disk may have lost their content, so they are
	// read and checked before they are reused.
	Boot string `json:"boot"`
	// Sources are the URIs that were pulled into this destination.
	Sources []string `json:"sources"`
	// Finished is when the last pull ended.
	Finished time.Time `json:"finished"`
	// Bytes is the sum of the sizes of Files.
	Bytes int64 `json:"bytes"`
	// Archives are the objects that were unpacked; Files lists what they held.
	Archives []FileRecord `json:"archives,omitempty"`
	// Files lists every file by path.
	Files []FileRecord `json:"files"`
}

// FileRecord is one finished file.
type FileRecord struct {
	// Path is below the destination.
	Path string `json:"path"`
	// Object is the s3:// URI that it came from.
	Object string `json:"object"`
	// Version is the ETag of that object, or its date where there is none.
	Version string `json:"version"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// Modified is the file's modification time in nanoseconds since 1970.
	Modified int64 `json:"modified"`
	// CRC names the check whose value Sum is, as S3 writes it.
	CRC string `json:"crc"`
	Sum string `json:"sum"`
	// Evidence is why the content is believed.
	Evidence Evidence `json:"evidence"`
}

// parseMarker reads what a pull wrote.
func parseMarker(raw []byte) (*Marker, error) {
	var m Marker
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("reading %s: %w", markerName, err)
	}
	if m.Form != journalForm {
		return nil, fmt.Errorf("reading %s: form %d is unknown", markerName, m.Form)
	}
	return &m, nil
}

// loadMarker returns the marker beneath root, or nil if there is none that can
// be read.
func loadMarker(root *os.Root) (*Marker, error) {
	raw, err := root.ReadFile(markerName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // the absence is the answer
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", markerName, err)
	}
	m, err := parseMarker(raw)
	if err != nil {
		return nil, nil //nolint:nilnil,nilerr // a torn marker is no marker; the files are fetched again
	}
	return m, nil
}

// writeMarker puts the marker in place in one step.
func writeMarker(root *os.Root, m *Marker) error {
	slices.SortFunc(m.Files, func(a, b FileRecord) int { return strings.Compare(a.Path, b.Path) })
	m.Form, m.Bytes = journalForm, 0
	for _, f := range m.Files {
		m.Bytes += f.Size
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("writing %s: %w", markerName, err)
	}
	const fresh = workDir + "/complete.new"
	if err := root.WriteFile(fresh, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", markerName, err)
	}
	if err := root.Rename(fresh, markerName); err != nil {
		return fmt.Errorf("writing %s: %w", markerName, err)
	}
	return nil
}
