// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
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

// writeMarker puts the marker in place in one step, with these files.
func writeMarker(root *os.Root, m *Marker, files map[string]*FileRecord) error {
	m.Form, m.Bytes = journalForm, 0
	for _, f := range files {
		m.Bytes += f.Size
	}
	const fresh = workDir + "/complete.new"
	out, err := root.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fileMode)
	if err != nil {
		return fmt.Errorf("writing %s: %w", markerName, err)
	}
	w := bufio.NewWriter(out)
	if err := errors.Join(m.encode(w, files), w.Flush(), out.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", markerName, err)
	}
	if err := root.Rename(fresh, markerName); err != nil {
		return fmt.Errorf("writing %s: %w", markerName, err)
	}
	return nil
}

// encode writes the marker file by file: there may be very many.
func (m *Marker) encode(w *bufio.Writer, files map[string]*FileRecord) error {
	m.Files = []FileRecord{}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	const last = "]}" // of the files, which end it
	_, err = w.Write(raw[:len(raw)-len(last)])
	for i, path := range slices.Sorted(maps.Keys(files)) {
		if raw, err = json.Marshal(files[path]); err != nil {
			return err
		}
		if i > 0 {
			raw = append([]byte(","), raw...)
		}
		if _, err = w.Write(raw); err != nil {
			return err
		}
	}
	if err == nil {
		_, err = w.WriteString(last + "\n")
	}
	return err
}
