// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTerminationMessageFitsAndEndsInJSON(t *testing.T) {
	cases := map[string]struct {
		failure *ExitError
		want    string
		sources int
	}{
		"success":                 {want: "Model ready: 2 files"},
		"success of many sources": {want: "Model ready: 2 files", sources: 40},
		"failure": {
			failure: &ExitError{
				Code:   66,
				Reason: "NoModel",
				Cause:  "no model",
				Advice: "Look closer.",
				Err:    errors.New("404\n  NotFound"),
			},
			want: "no model: 404 NotFound. Look closer.",
		},
		"a failure that is far too long": {
			failure: &ExitError{Code: 1, Reason: "Failed", Cause: strings.Repeat("ä", 5000), Advice: "Write less."},
			want:    "ä…",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			report := &Report{
				Files:    2,
				Bytes:    3e9,
				Fetched:  1e9,
				Seconds:  2,
				Evidence: map[Evidence]int{EvidenceChecksum: 1, EvidenceSize: 1},
			}
			for range tc.sources {
				report.Digests = append(report.Digests, "sha256:"+strings.Repeat("ab", 32))
			}
			got := terminationMessage(report, tc.failure)
			if len(got) > 2048 || !utf8.ValidString(got) {
				t.Errorf("%d bytes, valid UTF-8: %t", len(got), utf8.ValidString(got))
			}
			text, line, _ := strings.Cut(got, "\n")
			if !strings.Contains(text, tc.want) {
				t.Errorf("message %q does not say %q", text, tc.want)
			}
			var word lastWordRead
			if err := json.Unmarshal([]byte(line), &word); err != nil {
				t.Errorf("last line %q: %v", line, err)
			}
			if tc.failure != nil && word.Code != tc.failure.Code || word.Files != 2 {
				t.Errorf("last line says %+v", word)
			}
		})
	}
}

func TestTerminationMessageReplacesAnEarlierOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "last")
	for _, text := range []string{strings.Repeat("a long failure ", 20), "Model ready"} {
		if err := writeTermination(path, text); err != nil {
			t.Fatal(err)
		}
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "Model ready" {
		t.Errorf("the file holds %q (%v)", raw, err)
	}
}

func TestSummary(t *testing.T) {
	cached := int64(3e9)
	for name, tc := range map[string]struct {
		report Report
		want   string
	}{
		"nothing to fetch": {want: "nothing was to be fetched"},
		"one file": {
			report: Report{Files: 1, Bytes: 2e3, Fetched: 2e3, Seconds: 2, Evidence: map[Evidence]int{EvidenceSize: 1}},
			want:   "1 file, 2.0 kB in place after 2s, 2.0 kB fetched at 1.0 kB/s, checked by size-and-version",
		},
		"all evidence is told, the best first": {
			report: Report{Files: 10, Skipped: 10, Evidence: map[Evidence]int{EvidenceMD5: 1, EvidenceChecksum: 9}},
			want:   "10 files, 0 B in place after 0s, 10 files there already, checked by object-checksum 9, md5-etag 1",
		},
		"small files do not count as cold": {
			report: Report{Files: 2, Bytes: 4e9, Resumed: 1e9, Cached: &cached, cacheable: 3e9},
			want:   "2 files, 4.0 GB in place after 0s, 1.0 GB were left of an earlier run, 100 % in the page cache",
		},
	} {
		if got := tc.report.summary(); got != tc.want {
			t.Errorf("%s:\n%s, want\n%s", name, got, tc.want)
		}
	}
}
