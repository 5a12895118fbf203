// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestPullTakesWholeListings(t *testing.T) {
	for name, listing := range map[string]string{
		"as S3 lists today":                            "",
		"of a store that knows the first version only": "1",
	} {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.pages, s.listing = 3, listing
			want := map[string][]byte{}
			for i := range 10 {
				rel := fmt.Sprintf("file %d+", i)
				want[rel] = noise(uint64(i), 100+i)
				s.put("m/"+rel, want[rel])
			}
			dir := t.TempDir()
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
			wantTree(t, dir, want)
		})
	}
}

func TestPullRefusesAListingThatDoesNotComeOn(t *testing.T) {
	s := newFaultServer(t)
	s.pages, s.listing = 1, "stuck"
	s.put("m/a", []byte("a"))
	s.put("m/b", []byte("b"))
	out := run(t, serverSettings(s), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitIntegrity, "BadListing")
}

// TestPullTakesKeysThatXMLCannotHold has keys with control characters, which boto3 lists
// too, and looks at what is said of them.
func TestPullTakesKeysThatXMLCannotHold(t *testing.T) {
	s := newFaultServer(t)
	names := []string{"esc\x1b[31mred", "return\rline\n", "\x01", "bidi\u202e", "c1\u009b31m", "tab\tbed"}
	want := map[string][]byte{}
	for i, rel := range names {
		want[rel] = noise(uint64(i), 50)
		s.put("m/"+rel, want[rel])
	}
	dir := t.TempDir()
	out := run(t, serverSettings(s), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, want)
	wantNothingHidden(t, out)

	out = run(t, serverSettings(s), "plan", "s3://models/m", t.TempDir())
	wantNothingHidden(t, out)
	s.faults(func(a asked) fault {
		if a.op == "Get" {
			return fault{status: http.StatusNotFound, code: "NoSuchKey"}
		}
		return fault{}
	})
	for _, rel := range names {
		out := run(t, serverSettings(s), "s3://models/m/"+rel, t.TempDir())
		wantCode(t, out, ExitNotFound, "NotFound")
		wantNothingHidden(t, out)
	}
}

// wantNothingHidden fails if what a run says holds more than lines that show.
func wantNothingHidden(t *testing.T, out outcome) {
	t.Helper()
	for _, text := range []string{out.log, out.last} {
		for line := range strings.Lines(text) {
			if line = strings.TrimSuffix(line, "\n"); shown(line) != line {
				t.Errorf("it says %q", line)
			}
		}
	}
}

// TestPullEndsAnswersThatDoNotEnd has a listing, and a refusal, of any length.
func TestPullEndsAnswersThatDoNotEnd(t *testing.T) {
	for name, status := range map[string]int{"a listing": http.StatusOK, "a refusal": http.StatusForbidden} {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				blank := []byte(strings.Repeat(" ", mebibyte))
				for range 1 << 20 {
					if _, err := w.Write(blank); err != nil {
						return
					}
				}
			})
			out := run(t, with(serverSettings(s), settings{"S3_MAX_ATTEMPTS": "1"}), "s3://models/m", t.TempDir())
			if out.code != ExitUnavailable && out.code != ExitDenied {
				t.Errorf("exit code %d; log:\n%s", out.code, out.log)
			}
		})
	}
}

func TestHeadsFollowTheBucketsRegion(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 1000))
	good := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "/eu-central-1/s3/") {
			w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		good.ServeHTTP(w, r)
	})
	opts := Options{
		Endpoint: s.URL, Region: "us-east-1", AccessKeyID: "id", SecretAccessKey: "secret", VerifyTLS: true, Attempts: 1,
	}
	client, err := newS3Client(t.Context(), opts, 4)
	if err != nil {
		t.Fatal(err)
	}
	src := newS3Source(client, testBucket, opts)
	// All at once, as the first requests of a run may be.
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			_, err := src.head(t.Context(), "m/model")
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
