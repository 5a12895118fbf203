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

// TestOtherContentThanPinnedIsNotFetched looks at what is asked of stores that tell before
// what a file holds, and of those that do not.
func TestOtherContentThanPinnedIsNotFetched(t *testing.T) {
	large, small := noise(1, 9*mebibyte), noise(2, 1000)
	cases := map[string]struct {
		put func(s *faultServer, key string, data []byte)
		// wantTold says that the store tells.
		wantTold bool
	}{
		"it tells checksums of whole files": {put: (*faultServer).put, wantTold: true},
		"it tells those of parts": {put: func(s *faultServer, key string, data []byte) {
			s.putParts(key, data[:len(data)/2], data[len(data)/2:])
		}},
		"it tells none": {put: func(s *faultServer, key string, data []byte) { s.putWith(key, data, nil) }},
		"it tells one that cannot be": {put: func(s *faultServer, key string, data []byte) {
			s.putWith(key, data, map[string]string{"x-amz-checksum-crc64nvme": "?", "x-amz-checksum-type": "FULL_OBJECT"})
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			put := tc.put
			if name == "it tells one that cannot be" {
				put = (*faultServer).put
			}
			put(s, "m/large", large)
			put(s, "m/small", small)
			s.put("m/empty", nil)
			first := run(t, serverSettings(s), "s3://models/m", t.TempDir())
			wantCode(t, first, ExitOK, "Completed")
			pinned := with(serverSettings(s), settings{"PRELOADER_PIN": first.report.Digests[0]})

			// What is pinned is taken, and planned, from an empty directory and from one that has half of it.
			dir := t.TempDir()
			wantDigest := ""
			if name != "it tells those of parts" && name != "it tells none" {
				wantDigest = first.report.Digests[0]
			}
			if plan, code, log := planned(t, pinned, "s3://models/m", dir); code != ExitOK || plan.Pairs[0].Digest != wantDigest {
				t.Errorf("the plan of what is pinned ends with %d, digest %q: %+v\n%s",
					code, plan.Pairs[0].Digest, plan.Failure, log)
			}
			wantCode(t, run(t, pinned, "s3://models/m", dir), ExitOK, "Completed")
			if err := os.Remove(filepath.Join(dir, "large")); err != nil {
				t.Fatal(err)
			}
			wantCode(t, run(t, pinned, "s3://models/m", dir), ExitOK, "Completed")
			wantTree(t, dir, map[string][]byte{"large": large, "small": small, "empty": nil})

			tc.put(s, "m/small", noise(3, 1000))
			s.forget()
			fresh := t.TempDir()
			plan, code, _ := planned(t, pinned, "s3://models/m", fresh)
			if tc.wantTold && (code != ExitIntegrity || plan.Failure == nil || plan.Failure.Reason != "NotPinned") {
				t.Errorf("the plan of something else ends with %d: %+v", code, plan.Failure)
			}
			s.forget()
			out := run(t, pinned, "s3://models/m", fresh)
			if name == "it tells one that cannot be" {
				wantCode(t, out, ExitIntegrity, "BadAnswer")
				return
			}
			wantCode(t, out, ExitIntegrity, "NotPinned")
			if got := s.count("Get") == 0; got != tc.wantTold {
				t.Errorf("%d files were fetched, told before: %t", s.count("Get"), tc.wantTold)
			}
			if tc.wantTold {
				wantTree(t, fresh, map[string][]byte{})
			}
			// A directory that holds it needs nothing of the store.
			s.forget()
			plan, code, _ = planned(t, pinned, "s3://models/m", dir)
			if code != ExitOK || plan.Pairs[0].Fetch.Files != 0 || plan.Pairs[0].InPlace.Files != 3 || s.requests() != 0 ||
				plan.Pairs[0].Digest != first.report.Digests[0] {
				t.Errorf("the plan for a directory that holds what is pinned: code %d, %+v, %d requests",
					code, plan.Pairs[0], s.requests())
			}
		})
	}
}

// TestAskingForWhatIsPinnedIsWorthIt has many small files, of each of which asking would
// take as long as fetching.
func TestAskingForWhatIsPinnedIsWorthIt(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/a", noise(1, 1000))
	s.put("m/b", noise(2, 1000))
	first := run(t, serverSettings(s), "s3://models/m", t.TempDir())
	wantCode(t, first, ExitOK, "Completed")
	s.forget()
	pinned := with(serverSettings(s), settings{"PRELOADER_PIN": first.report.Digests[0]})
	wantCode(t, run(t, pinned, "s3://models/m", t.TempDir()), ExitOK, "Completed")
	if n := s.count("Head"); n != 0 {
		t.Errorf("%d heads were asked for", n)
	}
}
