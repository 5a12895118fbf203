// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSums(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	want := sums{}
	for _, name := range []string{"a", "b c", "d/e", "f"} {
		want[name] = [sha256.Size]byte([]byte(strings.Repeat("\xab", 32)))
	}
	text := strings.Join([]string{
		"# made by hand", "", digest + "  a", digest + " *b c\r", digest + "  ./d/e", strings.ToUpper(digest) + " f",
		digest[2:] + "  short", digest, digest + "  ", digest + "  foreign",
		strings.Repeat("zz", 32) + "  g", strings.Repeat("x", 100_000),
	}, "\n")
	got, err := parseSums(strings.NewReader(text), func(rel string) bool { return rel != "foreign" })
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

func FuzzParseSums(f *testing.F) {
	f.Add(strings.Repeat("ab", 32) + "  a\n")
	f.Fuzz(func(t *testing.T, text string) {
		wanted := func(rel string) bool { return rel != "foreign" }
		found, _ := parseSums(strings.NewReader(text), wanted)
		var again strings.Builder
		for name, digest := range found {
			if name == "" || !wanted(name) || !strings.Contains(strings.ToLower(text), hex.EncodeToString(digest[:])) {
				t.Errorf("digest %x of %q in %q", digest, name, text)
			}
			if strings.TrimSpace(name) != name { // which the end of a line cannot hold
				delete(found, name)
				continue
			}
			fmt.Fprintf(&again, "%x *%s\n", digest, name)
		}
		written, err := parseSums(strings.NewReader(again.String()), wanted)
		if diff := cmp.Diff(found, written); err != nil || diff != "" {
			t.Errorf("%v, written anew (-want +got):\n%s", err, diff)
		}
	})
}

// TestSumsOfAModelAreEvidence uses a store that has no checksums.
func TestSumsOfAModelAreEvidence(t *testing.T) {
	large, small := noise(1, 9*mebibyte), noise(2, 100)
	line := func(data []byte, name string) string {
		sum := sha256.Sum256(data)
		return hex.EncodeToString(sum[:]) + "  " + name + "\n"
	}
	cases := map[string]struct {
		sums         string
		verify       string
		wantCode     ExitCode
		wantReason   string
		wantEvidence map[Evidence]int
	}{
		"they are met": {
			sums: line(large, "large") + line(small, "sub/small"), wantReason: "Completed",
			wantEvidence: map[Evidence]int{EvidenceSums: 2, EvidenceChecksum: 1},
		},
		"they are enough for who requires a check": {
			sums: line(large, "large") + line(small, "sub/small"), verify: "require", wantReason: "Completed",
			wantEvidence: map[Evidence]int{EvidenceSums: 2, EvidenceChecksum: 1},
		},
		"one file is not listed": {
			sums: line(large, "large"), wantReason: "Completed",
			wantEvidence: map[Evidence]int{EvidenceSums: 1, EvidenceSize: 1, EvidenceChecksum: 1},
		},
		"one is not met": {sums: line(small, "large"), wantCode: ExitIntegrity, wantReason: "ChecksumMismatch"},
		"nobody asks": {
			sums: line(small, "large"), verify: "off", wantReason: "Completed", wantEvidence: map[Evidence]int{EvidenceSize: 3},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.putWith("m/large", large, nil)
			s.putWith("m/sub/small", small, nil)
			s.objects["m/large"].etag, s.objects["m/sub/small"].etag = "opaque", "opaque"
			s.put("m/SHA256SUMS", []byte(tc.sums))
			env := with(serverSettings(s), settings{"PRELOADER_VERIFY": tc.verify})
			out := run(t, env, "s3://models/m", t.TempDir())
			wantCode(t, out, tc.wantCode, tc.wantReason)
			if diff := cmp.Diff(tc.wantEvidence, out.report.Evidence); tc.wantCode == ExitOK && diff != "" {
				t.Errorf("evidence (-want +got):\n%s", diff)
			}
			if tc.wantCode != ExitOK && !strings.Contains(out.log, "SHA256SUMS says") {
				t.Errorf("the log does not tell who says so:\n%s", out.log)
			}
		})
	}
}

func TestEveryRequestSaysWhoPaysAndWhoOwns(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/large", noise(1, 9*mebibyte))
	s.put("m/small", noise(2, 100))
	var asked, wrong atomic.Int64
	s.look(func(r *http.Request) {
		asked.Add(1)
		if r.Header.Get("X-Amz-Request-Payer") != "requester" || r.Header.Get("X-Amz-Expected-Bucket-Owner") != "123456789012" ||
			!strings.Contains(r.Header.Get("Authorization"), "x-amz-expected-bucket-owner") ||
			!strings.Contains(r.Header.Get("Authorization"), "x-amz-request-payer") {
			wrong.Add(1)
		}
	})
	env := with(serverSettings(s), settings{"PRELOADER_REQUESTER_PAYS": "on", "PRELOADER_BUCKET_OWNER": "123456789012"})
	wantCode(t, run(t, env, "s3://models/m", t.TempDir()), ExitOK, "Completed")
	if asked.Load() < 4 || wrong.Load() > 0 {
		t.Errorf("%d of %d requests do not say it, signed", wrong.Load(), asked.Load())
	}
}
