// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// requests returns how many requests came in.
func (s *faultServer) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	for name, n := range s.counts {
		if !strings.Contains(name, " ") {
			total += n
		}
	}
	return total
}

func TestWhatIsPinnedNeedsNoRequest(t *testing.T) {
	for name, model := range map[string]map[string][]byte{
		"files":      {"m/model": noise(1, 9*mebibyte), "m/config.json": noise(2, 100)},
		"an archive": {"m/model.tar": tarOf(t, member{name: "a", body: "x"}, member{name: "b", body: "y"})},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			for key, data := range model {
				s.put(key, data)
			}
			s.put("other/file", noise(7, 10))
			dir := t.TempDir()
			wantCode(t, run(t, serverSettings(s), "s3://models/other", dir), ExitOK, "Completed")
			first := run(t, serverSettings(s), "s3://models/m", dir)
			wantCode(t, first, ExitOK, "Completed")
			if len(first.report.Digests) != 1 {
				t.Fatalf("digests %q", first.report.Digests)
			}
			pinned := with(serverSettings(s), settings{"PRELOADER_PIN": first.report.Digests[0]})

			s.forget()
			again := run(t, pinned, "s3://models/m", dir)
			wantCode(t, again, ExitOK, "Completed")
			if n := s.requests(); n != 0 {
				t.Errorf("%d requests, want none", n)
			}
			if again.report.Files != first.report.Files || again.report.Bytes != first.report.Bytes ||
				again.report.Skipped != first.report.Files {
				t.Errorf("report %+v after %+v", again.report.Report, first.report.Report)
			}

			// A file that is gone is fetched again, and elsewhere the same content meets the pin.
			for rel := range tree(t, dir) {
				if err := os.Remove(filepath.Join(dir, rel)); err != nil {
					t.Fatal(err)
				}
			}
			for _, into := range []string{dir, t.TempDir()} {
				wantCode(t, run(t, pinned, "s3://models/m", into), ExitOK, "Completed")
			}
		})
	}
}

func TestOtherContentThanPinnedIsRefused(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 100))
	dir := t.TempDir()
	first := run(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, first, ExitOK, "Completed")
	pinned := with(serverSettings(s), settings{"PRELOADER_PIN": first.report.Digests[0]})
	s.put("m/model", noise(2, 100))
	// What is in place is what was asked for, whatever the store has now.
	wantCode(t, run(t, pinned, "s3://models/m", dir), ExitOK, "Completed")
	fresh := t.TempDir()
	for range 2 { // in vain, and again without fetching anything
		out := run(t, pinned, "s3://models/m", fresh)
		wantCode(t, out, ExitIntegrity, "NotPinned")
		if _, err := os.Stat(filepath.Join(fresh, markerName)); !os.IsNotExist(err) {
			t.Errorf("the tree counts as complete: %v", err)
		}
	}
	if n := s.count("Get"); n != 2 {
		t.Errorf("%d files were fetched, want 2", n)
	}
	wantCode(t, run(t, with(pinned, settings{"PRELOADER_PIN": "sha1:x"}), "s3://models/m", fresh), ExitConfig, "Configuration")
}
