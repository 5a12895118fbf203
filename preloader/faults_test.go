// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// quick makes retries of a doomed request end soon. It takes no healthy connection for one that stands still, as a
// short PRELOADER_STALL does on a busy machine.
var quick = settings{"S3_MAX_ATTEMPTS": "3"}

func with(env, more settings) settings {
	out := settings{}
	for _, m := range []settings{env, more} {
		maps.Copy(out, m)
	}
	return out
}

// once makes a fault happen at the first request for each key only.
func once(f fault) func(asked) fault {
	return func(a asked) fault {
		if a.op == "Get" && a.seen == 0 {
			return f
		}
		return fault{}
	}
}

// always makes a fault happen at every request for data.
func always(f fault) func(asked) fault {
	return func(a asked) fault {
		if a.op == "Get" {
			return f
		}
		return fault{}
	}
}

func TestPullOutlastsPassingTrouble(t *testing.T) {
	refused := func(status int, code string) func(asked) fault {
		return func(a asked) fault {
			if a.seen < 2 {
				return fault{status: status, code: code}
			}
			return fault{}
		}
	}
	cases := map[string]struct {
		decide func(asked) fault
		// wasted is how many bytes may come twice.
		wasted int64
		// stall is how long no byte may come, if it matters.
		stall string
	}{
		"connection broken at the first byte":     {decide: once(fault{cut: true})},
		"connection broken in the middle":         {decide: once(fault{cut: true, after: 1_234_567})},
		"connection broken at the last byte":      {decide: once(fault{cut: true, after: 8*mebibyte - 1})},
		"connection that stalls":                  {decide: once(fault{stall: true, after: 700_000}), stall: "0.3"},
		"answer that never begins":                {decide: once(fault{pause: 700 * time.Millisecond}), stall: "0.3"},
		"two times 503 at everything":             {decide: refused(http.StatusServiceUnavailable, "SlowDown")},
		"two times 500 at everything":             {decide: refused(http.StatusInternalServerError, "InternalError")},
		"two times 429 at everything":             {decide: refused(http.StatusTooManyRequests, "TooManyRequests")},
		"another range than asked for":            {decide: once(fault{shiftRange: 1}), wasted: 300_000},
		"fewer bytes than said":                   {decide: once(fault{addLength: 0, cut: true, after: 3})},
		"a flipped byte starts the file over":     {decide: once(fault{flip: true, after: 99}), wasted: 22 * mebibyte},
		"answers that do not say their length":    {decide: always(fault{chunked: true})},
		"an answer of no length that breaks off":  {decide: once(fault{chunked: true, cut: true, after: 200_000})},
		"an answer of no length that is too long": {decide: once(fault{chunked: true, addLength: 10}), wasted: 10 * mebibyte},
		"tags that a proxy calls weak":            {decide: always(fault{weak: true})},
		"connections broken again and again": {decide: func(a asked) fault {
			return fault{cut: a.op == "Get" && a.n > 100_000, after: 65_537}
		}, wasted: 4 * mebibyte}, // another connection may be tried
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFaultServer(t)
			large, small := noise(1, 21*mebibyte), noise(2, 300_000)
			s.put("m/large", large)
			s.put("m/small", small)
			s.faults(tc.decide)
			dir := t.TempDir()
			env := with(serverSettings(s), settings{"PRELOADER_STALL": tc.stall})
			out := start(t, env, "s3://models/m", dir).outcome(t)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dir, map[string][]byte{"large": large, "small": small})
			size := int64(len(large) + len(small))
			wasted := tc.wasted
			if out.report.Seconds >= slowAge.Seconds() {
				// On a machine so slow, connections that are well may be overtaken: each of the parts, or tried to.
				wasted += out.report.Overtaken*8*mebibyte + 4*firstBytes
			}
			if got := out.report.Fetched; got < size || got > size+wasted {
				t.Errorf("fetched %d bytes for %d, want at most %d twice", got, size, wasted)
			}
		})
	}
}

// TestAHeadWithoutALengthIsNoEmptyObject is about proxies that drop the length from
// answers to HEAD.
func TestAHeadWithoutALengthIsNoEmptyObject(t *testing.T) {
	s := newFaultServer(t)
	s.putWith("m/model", noise(1, 9*mebibyte), nil)
	s.faults(func(a asked) fault { return fault{chunked: a.op == "Head"} })
	dir := t.TempDir()
	wantCode(t, run(t, with(serverSettings(s), quick), "s3://models/m", dir), ExitIntegrity, "BadAnswer")
	wantTree(t, dir, map[string][]byte{})
}

func TestPullGivesUpWithACause(t *testing.T) {
	cases := map[string]struct {
		decide func(asked) fault
		env    settings
		code   ExitCode
		reason string
		advice string
	}{
		"connections always break": {
			decide: always(fault{cut: true}), code: ExitUnavailable, reason: "Unavailable", advice: "endpoint is reachable",
		},
		"connections always stall": {
			decide: always(fault{stall: true}), env: settings{"PRELOADER_STALL": "0.3"},
			code: ExitUnavailable, reason: "Stalled", advice: "PRELOADER_STALL",
		},
		"always 503": {
			decide: always(
				fault{status: 503, code: "SlowDown"},
			),
			code:   ExitUnavailable,
			reason: "Throttled",
			advice: "fewer requests",
		},
		"listing always 500": {
			decide: func(asked) fault { return fault{status: 500, code: "InternalError"} },
			code:   ExitUnavailable, reason: "Unavailable", advice: "reachable",
		},
		"listing denied": {
			decide: func(asked) fault { return fault{status: 403, code: "AccessDenied"} },
			code:   ExitDenied, reason: "AccessDenied", advice: "s3:ListBucket",
		},
		"reading denied": {
			decide: always(
				fault{status: 403, code: "AccessDenied"},
			),
			code:   ExitDenied,
			reason: "AccessDenied",
			advice: "s3:GetObject",
		},
		"the object is deleted meanwhile": {
			decide: always(
				fault{status: 404, code: "NoSuchKey"},
			),
			code:   ExitNotFound,
			reason: "NotFound",
			advice: "removed during",
		},
		"always another range": {
			decide: always(fault{shiftRange: 5}), code: ExitIntegrity, reason: "BadAnswer", advice: "proxy",
		},
		"always longer than asked for": {
			decide: always(fault{addLength: 5}), code: ExitIntegrity, reason: "BadAnswer", advice: "proxy",
		},
		"always a flipped byte": {
			decide: always(fault{flip: true, after: 5}), code: ExitIntegrity, reason: "ChecksumMismatch", advice: "damaged",
		},
		"no checksum where one is required": {
			env:  settings{"PRELOADER_VERIFY": "require", "nochecksum": "1"},
			code: ExitIntegrity, reason: "NoChecksum", advice: "PRELOADER_VERIFY",
		},
		"a deadline": {
			decide: always(fault{stall: true}), env: settings{"PRELOADER_DEADLINE": "0.2", "PRELOADER_STALL": "20"},
			code: ExitUnavailable, reason: "DeadlineExceeded", advice: "PRELOADER_DEADLINE",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFaultServer(t)
			if tc.env["nochecksum"] != "" {
				s.putWith("m/large", noise(1, 20*mebibyte), nil)
				s.objects["m/large"].etag = "0123-4"
			} else {
				s.put("m/large", noise(1, 20*mebibyte))
			}
			s.faults(tc.decide)
			dir := t.TempDir()
			out := start(t, with(serverSettings(s), with(quick, tc.env)), "s3://models/m", dir).outcome(t)
			wantCode(t, out, tc.code, tc.reason)
			if !strings.Contains(out.last, tc.advice) {
				t.Errorf("termination message %q does not say %q", out.last, tc.advice)
			}
			wantTree(t, dir, map[string][]byte{})
			if _, err := os.Stat(filepath.Join(dir, markerName)); !os.IsNotExist(err) {
				t.Errorf("the tree is marked complete: %v", err)
			}
		})
	}
}

func TestPullTakesOneVersionOfAnObject(t *testing.T) {
	oldData, newData := noise(1, 30*mebibyte), noise(2, 26*mebibyte)
	for name, unmarked := range map[string]bool{"known by ETag": false, "known by date": true} {
		t.Run("changed once while being read, "+name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/model", oldData)
			if unmarked {
				s.objects["m/model"].etag = ""
			}
			changed := false
			s.faults(func(a asked) fault {
				if a.op != "Get" || a.off == 0 {
					return fault{}
				}
				return fault{before: func() {
					s.mu.Lock()
					done := changed
					changed = true
					s.mu.Unlock()
					if done {
						return
					}
					s.put("m/model", newData)
					if unmarked {
						s.mu.Lock()
						s.objects["m/model"].etag, s.objects["m/model"].modified = "", time.Unix(1_700_000_500, 0)
						s.mu.Unlock()
					}
				}}
			})
			dir := t.TempDir()
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
			wantTree(t, dir, map[string][]byte{"model": newData})
		})
	}
	t.Run("changing all the time", func(t *testing.T) {
		s := newFaultServer(t)
		s.put("m/model", oldData)
		seed := uint64(10)
		s.faults(func(a asked) fault {
			if a.op != "Get" || a.off == 0 {
				return fault{}
			}
			return fault{before: func() {
				s.mu.Lock()
				seed++
				now := seed
				s.mu.Unlock()
				s.put("m/model", noise(now, 26*mebibyte))
			}}
		})
		dir := t.TempDir()
		wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitIntegrity, "ObjectChanged")
		wantTree(t, dir, map[string][]byte{})
	})
}

func TestPullNeverShowsWhatFailedItsCheckBesideTheOldFile(t *testing.T) {
	s := newFaultServer(t)
	good := noise(1, 100_000)
	s.put("m/model", good)
	dir := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	s.put("m/model", noise(2, 100_000))
	s.faults(always(fault{flip: true}))
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitIntegrity, "ChecksumMismatch")
	wantTree(t, dir, map[string][]byte{"model": good})
	if _, err := os.Stat(filepath.Join(dir, markerName)); !os.IsNotExist(err) {
		t.Errorf("a tree that is not what was asked for is marked complete: %v", err)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", []byte("data"))
	secret := "hunter2-secret"
	cases := map[string]settings{
		"broken STORAGE_CONFIG":   {"STORAGE_CONFIG": `{"type":"s3","secret_access_key":"` + secret + `",}`},
		"broken override":         {"STORAGE_OVERRIDE_CONFIG": `["` + secret + `"]`},
		"an endpoint with a user": {"AWS_ENDPOINT_URL": "https://me:" + secret + "@minio:9000"},
		"access denied":           {"AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": secret},
	}
	for name, env := range cases {
		t.Run(name, func(t *testing.T) {
			s.faults(func(asked) fault { return fault{status: 403, code: "AccessDenied"} })
			out := run(t, with(serverSettings(s), env), "s3://models/m", t.TempDir())
			if out.code == ExitOK {
				t.Fatal("the pull worked")
			}
			if strings.Contains(out.log+out.last, secret) {
				t.Errorf("the secret shows:\n%s\n%s", out.log, out.last)
			}
		})
	}
}
