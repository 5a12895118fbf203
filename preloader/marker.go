// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"
	"unicode/utf8"
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
	// Files lists every file by path. There may be very many: who reads a marker
	// gets them one by one.
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

// writtenRecord is a record as the marker has it.
type writtenRecord struct {
	FileRecord

	// PathBytes is the path where it is not UTF-8, as names in old archives may be, which
	// JSON cannot hold.
	PathBytes []byte `json:"pathBytes,omitempty"`
}

// readMarker reads what a pull wrote, and hands its files on one by one: there may
// be very many. An error may come after the last of them.
func readMarker(r io.Reader, take func(*FileRecord)) (*Marker, error) {
	m := &Marker{}
	in := json.NewDecoder(r)
	rest := map[string]json.RawMessage{}
	err := want(in, json.Delim('{'))
	for err == nil && in.More() {
		var name json.Token
		if name, err = in.Token(); err != nil {
			break
		}
		if name == "files" {
			err = readRecords(in, take)
			continue
		}
		var value json.RawMessage
		err = in.Decode(&value)
		rest[fmt.Sprint(name)] = value
	}
	if err == nil {
		err = want(in, json.Delim('}'))
	}
	if err == nil {
		if _, err = in.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("something follows its end")
		}
	}
	if raw, marshalErr := json.Marshal(rest); err == nil {
		err = cmp.Or(marshalErr, json.Unmarshal(raw, m))
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", markerName, err)
	}
	if m.Form != journalForm {
		return nil, fmt.Errorf("reading %s: form %d is unknown", markerName, m.Form)
	}
	return m, nil
}

// want reads one token, which must be this one.
func want(in *json.Decoder, token json.Token) error {
	got, err := in.Token()
	if err == nil && got != token {
		err = fmt.Errorf("%v where %v should be", got, token)
	}
	return err
}

// readRecords reads a list of records.
func readRecords(in *json.Decoder, take func(*FileRecord)) error {
	if err := want(in, json.Delim('[')); err != nil {
		return err
	}
	for in.More() {
		var w writtenRecord
		if err := in.Decode(&w); err != nil {
			return err
		}
		if w.PathBytes != nil {
			w.Path = string(w.PathBytes)
		}
		take(&w.FileRecord)
	}
	return want(in, json.Delim(']'))
}

// loadMarker hands on the files of the marker beneath root and returns the rest of
// it, or nil if there is none that can be read, which may show after some of its files.
func loadMarker(root *os.Root, take func(*FileRecord)) (*Marker, error) {
	f, err := root.Open(markerName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // the absence is the answer
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", markerName, err)
	}
	defer f.Close() //nolint:errcheck // only read
	m, err := readMarker(bufio.NewReader(f), take)
	if disk, broken := errors.AsType[*fs.PathError](err); broken {
		return nil, fmt.Errorf("reading %s: %w", markerName, disk)
	}
	if err != nil {
		return nil, nil //nolint:nilnil // a torn marker is no marker; the files are fetched again
	}
	return m, nil
}

// writeMarker puts the marker in place in one step, with these files, which come in
// the order of their paths.
func writeMarker(root *os.Root, m *Marker, files iter.Seq[*FileRecord]) error {
	m.Form, m.Bytes = journalForm, 0
	for f := range files {
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
func (m *Marker) encode(w *bufio.Writer, files iter.Seq[*FileRecord]) error {
	m.Files = []FileRecord{}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	const last = "]}" // of the files, which end it
	_, err = w.Write(raw[:len(raw)-len(last)])
	first := true
	for r := range files {
		var record any = r
		if !utf8.ValidString(r.Path) {
			record = writtenRecord{FileRecord: *r, PathBytes: []byte(r.Path)}
		}
		if raw, err = json.Marshal(record); err != nil {
			return err
		}
		if !first {
			raw = append([]byte(","), raw...)
		}
		first = false
		if _, err = w.Write(raw); err != nil {
			return err
		}
	}
	if err == nil {
		_, err = w.WriteString(last + "\n")
	}
	return err
}
