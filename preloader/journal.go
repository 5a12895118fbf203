// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"sync"

	"serverless.xyz/outrigger/preloader/crc"
)

// The journal lets a run that was killed go on where it stopped. It is a file
// of JSON lines in the working directory, only ever appended to: which files
// were begun, which of their bytes are on disk and with what check, and which
// are finished. A line is written after the bytes that it speaks of, so a
// process that dies between the two only forgets.
//
// A line does not wait for the disk. What a killed process wrote is in the page
// cache; after a restart of the machine the boot id differs, and what the
// journal says is then checked against the bytes before it is believed.

const (
	workDir     = ".preloader"
	journalName = workDir + "/journal.jsonl"
	journalForm = 1
)

// journalLine is one line; exactly one field is set.
type journalLine struct {
	Header *journalHeader `json:"header,omitempty"`
	Begun  *begunFile     `json:"begun,omitempty"`
	Range  *writtenRange  `json:"range,omitempty"`
	Done   *FileRecord    `json:"done,omitempty"`
}

type journalHeader struct {
	Form int    `json:"form"`
	Boot string `json:"boot"`
}

// begunFile says that a file has a temporary name and its full length.
type begunFile struct {
	// ID is what ranges refer to; a later file with the same path replaces it.
	ID      int    `json:"id"`
	Path    string `json:"path"`
	Object  string `json:"object"`
	Version string `json:"version"`
	Size    int64  `json:"size"`
	CRC     string `json:"crc"`
}

// writtenRange says that bytes are in place and what their check is.
type writtenRange struct {
	ID  int    `json:"id"`
	Off int64  `json:"off"`
	N   int64  `json:"n"`
	Sum uint64 `json:"sum,string"`
}

// savedFile is what a journal knows of a file that was begun.
type savedFile struct {
	begunFile
	segments []segment
}

// saved is what an earlier run left of files that it had begun, by path.
type saved struct {
	boot  string
	begun map[string]*savedFile
}

func newSaved() *saved {
	return &saved{begun: map[string]*savedFile{}}
}

// readJournal reads what r holds, and hands on the records of files that were done.
// A line that cannot be read ends the reading: what follows a torn line cannot be
// trusted, and what is forgotten is fetched again.
func readJournal(r io.Reader, done func(*FileRecord)) *saved {
	s := newSaved()
	byID := map[int]*savedFile{}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), mebibyte)
	for lines.Scan() {
		var line journalLine
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		if decoder.Decode(&line) != nil || !s.apply(line, byID) {
			break
		}
		if line.Done != nil {
			done(line.Done)
		}
	}
	return s
}

// apply takes one line in and reports whether it makes sense.
func (s *saved) apply(line journalLine, byID map[int]*savedFile) bool {
	switch {
	case line.Header != nil:
		s.boot = line.Header.Boot
		return line.Header.Form == journalForm
	case line.Begun != nil:
		if crc.ByName(line.Begun.CRC) == nil || line.Begun.Size < 0 {
			return false
		}
		f := &savedFile{begunFile: *line.Begun}
		byID[f.ID] = f
		s.begun[f.Path] = f
	case line.Range != nil:
		f := byID[line.Range.ID]
		if f == nil {
			return false
		}
		f.segments = append(f.segments, segment{span{line.Range.Off, line.Range.N}, line.Range.Sum})
	case line.Done != nil:
		if f := s.begun[line.Done.Path]; f != nil {
			delete(s.begun, f.Path)
			delete(byID, f.ID)
		}
	default:
		return false
	}
	return true
}

// journal is the writing side. Its methods may be called from any goroutine.
type journal struct {
	mu     sync.Mutex
	file   *os.File
	nextID int
}

// startJournal writes a new journal with what is still worth knowing of the old
// one, and with files that are done, and puts it in its place in one step. It gives
// begun files new ids.
func startJournal(root *os.Root, boot string, keep *saved, done iter.Seq[*FileRecord]) (*journal, error) {
	const fresh = journalName + ".new"
	f, err := root.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting the journal: %w", err)
	}
	j := &journal{file: f}
	err = j.copy(boot, keep, done)
	if err == nil {
		err = root.Rename(fresh, journalName)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("starting the journal: %w", err)
	}
	return j, nil
}

func (j *journal) copy(boot string, keep *saved, done iter.Seq[*FileRecord]) error {
	w := bufio.NewWriter(j.file)
	encoder := json.NewEncoder(w)
	err := encoder.Encode(journalLine{Header: &journalHeader{Form: journalForm, Boot: boot}})
	for r := range done {
		err = errors.Join(err, encoder.Encode(journalLine{Done: r}))
	}
	for _, f := range keep.begun {
		j.nextID++
		f.ID = j.nextID
		err = errors.Join(err, encoder.Encode(journalLine{Begun: &f.begunFile}))
		for _, s := range f.segments {
			line := &writtenRange{ID: f.ID, Off: s.off, N: s.n, Sum: s.crc}
			err = errors.Join(err, encoder.Encode(journalLine{Range: line}))
		}
	}
	return errors.Join(err, w.Flush())
}

func (j *journal) write(line journalLine) error {
	raw, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	return nil
}

// begin records a file and returns the id for its ranges.
func (j *journal) begin(f begunFile) (int, error) {
	j.mu.Lock()
	j.nextID++
	f.ID = j.nextID
	j.mu.Unlock()
	return f.ID, j.write(journalLine{Begun: &f})
}

func (j *journal) wrote(id int, s segment) error {
	return j.write(journalLine{Range: &writtenRange{ID: id, Off: s.off, N: s.n, Sum: s.crc}})
}

func (j *journal) finished(r *FileRecord) error {
	return j.write(journalLine{Done: r})
}

func (j *journal) close() error { return j.file.Close() }

// loadSaved reads the journal beneath root; none at all is as good as an empty one.
func loadSaved(root *os.Root, done func(*FileRecord)) (*saved, error) {
	f, err := root.Open(journalName)
	if errors.Is(err, fs.ErrNotExist) {
		return newSaved(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	return readJournal(f, done), nil
}

// bootID names the current run of the kernel, or nothing where it is unknown,
// in which case nothing that was saved is believed unread.
func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(raw))
}
