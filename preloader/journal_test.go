// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/preloader/crc"
)

func noRecords(func(*FileRecord) bool) {}

// told is what a journal tells.
type told struct {
	*saved
	done map[string]FileRecord
}

func (d told) take(r *FileRecord) { d.done[r.Path] = *r }

func (d told) all(yield func(*FileRecord) bool) {
	for _, r := range d.done {
		if !yield(&r) {
			return
		}
	}
}

// tell reads a journal.
func tell(raw []byte) told {
	out := told{done: map[string]FileRecord{}}
	out.saved = readJournal(bytes.NewReader(raw), out.take)
	return out
}

// sampleJournal writes a journal as a run does and returns its bytes.
func sampleJournal(tb testing.TB) []byte {
	tb.Helper()
	root, err := os.OpenRoot(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	defer root.Close()
	if err := root.Mkdir(workDir, dirMode); err != nil {
		tb.Fatal(err)
	}
	j, err := startJournal(root, "boot", newSaved(), noRecords)
	if err != nil {
		tb.Fatal(err)
	}
	id, err := j.begin(begunFile{Path: "a", Object: "s3://b/a", Version: "v", Size: 100, CRC: "CRC32C"})
	if err != nil {
		tb.Fatal(err)
	}
	for _, s := range []segment{{span{0, 10}, 7}, {span{50, 50}, 1 << 63}} {
		if err := j.wrote(id, s); err != nil {
			tb.Fatal(err)
		}
	}
	if err := j.finished(&FileRecord{Path: "b", Object: "s3://b/b", Size: 3, Evidence: EvidenceChecksum}); err != nil {
		tb.Fatal(err)
	}
	if err := j.close(); err != nil {
		tb.Fatal(err)
	}
	raw, err := root.ReadFile(journalName)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func TestJournalReadsBack(t *testing.T) {
	got := tell(sampleJournal(t))
	want := told{
		saved: &saved{boot: "boot", begun: map[string]*savedFile{"a": {
			begunFile: begunFile{ID: 1, Path: "a", Object: "s3://b/a", Version: "v", Size: 100, CRC: "CRC32C"},
			segments:  []segment{{span{0, 10}, 7}, {span{50, 50}, 1 << 63}},
		}}},
		done: map[string]FileRecord{"b": {Path: "b", Object: "s3://b/b", Size: 3, Evidence: EvidenceChecksum}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(told{}, saved{}, savedFile{}, span{}, segment{})); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

// TestJournalTornAnywhere cuts a journal at every byte: what is read must be
// what the whole lines before the cut say, never anything else.
func TestJournalTornAnywhere(t *testing.T) {
	raw := sampleJournal(t)
	for cut := range raw {
		got := tell(raw[:cut])
		lines := bytes.Count(raw[:cut], []byte("\n"))
		if whole := len(raw[:cut]) > 0 && raw[cut] == '\n'; whole {
			lines++ // only the line's end is missing
		}
		segments := 0
		if f := got.begun["a"]; f != nil {
			segments = len(f.segments)
		}
		if want := min(max(lines-2, 0), 2); segments != want {
			t.Errorf("cut at %d of %d: %d ranges, want %d", cut, len(raw), segments, want)
		}
		if want := max(lines-4, 0); len(got.done) != want {
			t.Errorf("cut at %d of %d: %d files done, want %d", cut, len(raw), len(got.done), want)
		}
	}
}

func TestJournalKeepsWhatAnEarlierOneKnew(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.Mkdir(workDir, dirMode); err != nil {
		t.Fatal(err)
	}
	first := tell(sampleJournal(t))
	j, err := startJournal(root, "boot", first.saved, first.all)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.wrote(first.begun["a"].ID, segment{span{10, 5}, 9}); err != nil {
		t.Fatal(err)
	}
	again := told{done: map[string]FileRecord{}}
	again.saved, err = loadSaved(root, again.take)
	if err != nil {
		t.Fatal(err)
	}
	first.begun["a"].segments = append(first.begun["a"].segments, segment{span{10, 5}, 9})
	if diff := cmp.Diff(first, again, cmp.AllowUnexported(told{}, saved{}, savedFile{}, span{}, segment{})); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add(sampleJournal(f))
	f.Add([]byte(`{"range":{"id":1,"off":-5,"n":99999999999999,"sum":"1"}}`))
	f.Add([]byte(`{"begun":{"id":1,"path":"../x","size":-1,"crc":"CRC32"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := tell(raw)
		for _, b := range s.begun {
			have := mergeSegments(crc.ByName(b.CRC), b.Size, 0, b.segments)
			for _, p := range split(gaps(b.Size, have), max(b.Size/100, minPart)) {
				if p.off < 0 || p.n <= 0 || p.end() > b.Size {
					t.Errorf("plan %v for a file of %d", p, b.Size)
				}
			}
		}
	})
}

func FuzzMarker(f *testing.F) {
	raw, err := json.Marshal(Marker{Form: journalForm, Files: []FileRecord{{Path: "a"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"form":1,"files":[{"path":"../../etc/passwd","size":-1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		files := &catalog{}
		defer files.free()
		if _, err := readMarker(bytes.NewReader(raw), func(r *FileRecord) { files.put(r, noted) }); err != nil {
			return
		}
		files.settle()
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		s := &store{root: root}
		for i := range files.len() {
			r := files.record(i)
			if s.holds(r) && r.Path != "." {
				t.Errorf("an empty directory holds %q", r.Path)
			}
			s.matches(r, make([]byte, 16))
		}
	})
}
