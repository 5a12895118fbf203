// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// campaignCases is how many seeds a test run goes through, in about a minute, and
// shortCampaign how many a short one: the race detector keeps 20 MB for each.
const (
	campaignCases = 320
	shortCampaign = 48
)

// TestPullUnderRandomFaults lets a store, a disk and the process itself fail at
// random, in many ways at once. Whatever happens, nothing is visible under its
// final name but a whole file of a version that the store had; a run that says
// that all is well has left exactly the tree; one that does not says why; and a
// run after the faults have passed mends everything. A seed that fails is run
// again by its name: go test -run 'TestPullUnderRandomFaults/seed=17$'.
func TestPullUnderRandomFaults(t *testing.T) {
	cases := uint64(campaignCases)
	if testing.Short() {
		cases = shortCampaign
	}
	for seed := range cases {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			c := newCampaign(t, seed)
			for range 1 + c.rng.IntN(3) {
				c.badRun(t)
			}
			c.goodRun(t)
		})
	}
}

// campaign is one seed's story.
type campaign struct {
	rng    *rand.Rand
	server *faultServer
	dir    string
	env    settings
	// versions are all contents that a file ever had, the last being the present one.
	versions map[string][][]byte
	// small means that the destination is a small volume of its own.
	small bool

	mu    sync.Mutex
	quota int // faults left before the store behaves
	kinds []string
}

// The ways in which an answer goes wrong.
var campaignKinds = []string{
	"503", "500", "429", "reset", "short", "stall", "flip", "range", "length", "etag", "late", "404",
}

func newCampaign(t *testing.T, seed uint64) *campaign {
	t.Helper()
	c := &campaign{
		rng: rand.New(rand.NewPCG(seed, 3)), server: newFaultServer(t), dir: filepath.Join(t.TempDir(), "model"),
		versions: map[string][][]byte{},
	}
	for i := range 1 + c.rng.IntN(4) {
		size := []int{0, 1, 4096, 70_000, 1_300_000}[c.rng.IntN(5)]
		if c.rng.IntN(3) == 0 {
			size = minPart + 1 + c.rng.IntN(4*mebibyte) // fetched in parts
		}
		rel := fmt.Sprintf("%c", 'a'+i)
		if c.rng.IntN(3) == 0 {
			rel = "folder/" + rel
		}
		c.versions[rel] = [][]byte{noise(seed*100+uint64(i), size)}
		c.store(rel, c.versions[rel][0])
	}
	if c.rng.IntN(8) == 0 && os.Geteuid() == 0 {
		c.small, c.dir = true, mountMemory(t, "48m")
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.env = with(serverSettings(c.server), settings{
		// Credentials that need no environment, so that many runs share a process.
		"STORAGE_CONFIG":  `{"type":"s3","access_key_id":"id","secret_access_key":"secret"}`,
		"PRELOADER_CONNS": strconv.Itoa(1 + c.rng.IntN(6)), "PRELOADER_PARTSIZE": fmt.Sprintf("%dMi", 1+c.rng.IntN(4)),
		"S3_MAX_ATTEMPTS": strconv.Itoa(2 + c.rng.IntN(4)), "PRELOADER_STALL": "0.2",
		"PRELOADER_IO": []string{"auto", "auto", "warm", "bounded"}[c.rng.IntN(4)],
	})
	return c
}

// store puts a file's content in one of the ways in which clients upload.
func (c *campaign) store(rel string, data []byte) {
	switch cut := mebibyte * (1 + len(data)%3); {
	case len(data) > 3*cut && len(data)%2 == 0:
		c.server.putParts("m/"+rel, slices.Collect(slices.Chunk(data, cut))...)
	default:
		c.server.put("m/"+rel, data)
	}
}

// badRun lets one run meet faults, and perhaps its death.
func (c *campaign) badRun(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	c.quota = 1 + c.rng.IntN(12)
	c.kinds = nil
	before := map[string]int{}
	for rel, versions := range c.versions {
		before[rel] = len(versions) - 1
	}
	for range 1 + c.rng.IntN(3) {
		c.kinds = append(c.kinds, campaignKinds[c.rng.IntN(len(campaignKinds))])
	}
	kill := time.Duration(-1)
	if c.rng.IntN(2) == 0 {
		kill = time.Duration(c.rng.IntN(150)) * time.Millisecond
	}
	fill := 0 // per cent of the volume that somebody else takes
	if c.small && c.rng.IntN(2) == 0 {
		fill = 1 + c.rng.IntN(100)
	}
	c.mu.Unlock()
	t.Logf("faults %v, %d of them; kill after %v; disk filled by %d %%; %s connections, parts of %s, io %s, %s attempts",
		c.kinds, c.quota, kill, fill,
		c.env["PRELOADER_CONNS"], c.env["PRELOADER_PARTSIZE"], c.env["PRELOADER_IO"], c.env["S3_MAX_ATTEMPTS"])
	c.server.faults(c.decide)
	var out outcome
	others := filepath.Join(c.dir, "somebody-elses")
	if fill > 0 {
		fillVolume(t, others, fill)
	}
	if kill < 0 {
		out = runBeside(t, c.env, "s3://models/m", c.dir)
	} else {
		p := start(t, c.env, "s3://models/m", c.dir)
		timer := time.AfterFunc(kill, func() { _ = p.Process.Kill() })
		out = p.outcome(t)
		timer.Stop()
	}
	if fill > 0 {
		if err := os.Remove(others); err != nil {
			t.Fatal(err)
		}
	}
	c.server.faults(nil)
	c.wantNothingWrong(t)
	switch {
	case out.code == ExitOK:
		// An object may change when its file has come already: by a request that was given up for another, or came too late.
		c.wantExactly(t, before)
	case out.code == -1 && kill >= 0: // killed
	default:
		c.wantClearFailure(t, out)
	}
}

// runBeside runs the command line in this process, beside others, with settings that are not the process's.
func runBeside(t *testing.T, env settings, args ...string) outcome {
	t.Helper()
	log := &bytes.Buffer{}
	last := filepath.Join(t.TempDir(), "last")
	getenv := func(name string) string {
		if name == "PRELOADER_TERMINATION_LOG" {
			return last
		}
		return env[name]
	}
	command := Command{Args: args, Getenv: getenv, Stdout: log, Stderr: log}
	return readOutcome(t, command.Run(t.Context()), log.String(), last)
}

// fillVolume takes so many per cent of what is free.
func fillVolume(t *testing.T, path string, share int) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &st); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, int64(st.Bavail)*st.Bsize*int64(share)/100), 0o600); err != nil {
		t.Fatal(err)
	}
}

// goodRun must mend everything.
func (c *campaign) goodRun(t *testing.T) {
	t.Helper()
	out := runBeside(t, with(c.env, settings{"PRELOADER_STALL": "20"}), "s3://models/m", c.dir)
	wantCode(t, out, ExitOK, "Completed")
	c.wantExactly(t, nil)
}

// decide says what goes wrong with one request.
func (c *campaign) decide(a asked) fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quota == 0 || c.rng.IntN(2) == 0 {
		return fault{}
	}
	c.quota--
	return c.fault(c.kinds[c.rng.IntN(len(c.kinds))], a)
}

func (c *campaign) fault(kind string, a asked) fault {
	after := int64(0)
	if a.n > 0 {
		after = c.rng.Int64N(a.n)
	}
	get := a.op == "Get"
	switch {
	case kind == "503":
		return fault{status: http.StatusServiceUnavailable, code: "SlowDown"}
	case kind == "500":
		return fault{status: http.StatusInternalServerError, code: "InternalError"}
	case kind == "429":
		return fault{status: http.StatusTooManyRequests, code: "TooManyRequests"}
	case kind == "404" && get:
		return fault{status: http.StatusNotFound, code: "NoSuchKey"}
	case kind == "late":
		return fault{pause: time.Duration(c.rng.IntN(250)) * time.Millisecond}
	case kind == "reset" && get:
		return fault{cut: true, after: after}
	case kind == "short" && get:
		return fault{cut: true, after: max(0, a.n-1-c.rng.Int64N(10))}
	case kind == "stall" && get:
		return fault{stall: true, after: after}
	case kind == "flip" && get:
		return fault{flip: true, after: after}
	case kind == "range" && get:
		return fault{shiftRange: 1 + c.rng.Int64N(100)}
	case kind == "length" && get:
		return fault{addLength: 1 + c.rng.Int64N(100)}
	case kind == "etag" && get:
		rel := strings.TrimPrefix(a.key, "m/")
		versions := c.versions[rel]
		next := noise(c.rng.Uint64(), max(1, len(versions[len(versions)-1])+c.rng.IntN(3)-1))
		c.versions[rel] = append(versions, next)
		c.store(rel, next)
	}
	return fault{}
}

// wantNothingWrong fails if a final name holds anything but a whole version.
func (c *campaign) wantNothingWrong(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for rel, data := range tree(t, c.dir) {
		if !slices.ContainsFunc(c.versions[rel], func(v []byte) bool { return bytes.Equal(v, []byte(data)) }) {
			t.Fatalf("%s is visible with %d bytes that it never had", rel, len(data))
		}
	}
}

// wantExactly fails unless every file is there, as the store has it now, or had it since it had so many versions, if that
// is given.
func (c *campaign) wantExactly(t *testing.T, since map[string]int) {
	t.Helper()
	c.mu.Lock()
	want, found := map[string][]byte{}, tree(t, c.dir)
	for rel, versions := range c.versions {
		want[rel] = versions[len(versions)-1]
		if from, given := since[rel]; given {
			for _, v := range versions[from:] {
				if found[rel] == string(v) {
					want[rel] = v
				}
			}
		}
	}
	c.mu.Unlock()
	wantTree(t, c.dir, want)
	if _, err := os.Stat(filepath.Join(c.dir, markerName)); err != nil {
		t.Errorf("the tree is not marked complete: %v", err)
	}
}

// wantClearFailure fails unless a run that failed has said why, and left no sign
// of completeness.
func (c *campaign) wantClearFailure(t *testing.T, out outcome) {
	t.Helper()
	clear := []ExitCode{ExitIntegrity, ExitNotFound, ExitUnavailable, ExitNoSpace}
	if !slices.Contains(clear, out.code) || out.report.Reason == "" || !strings.Contains(out.last, ".") {
		t.Errorf("exit code %d for %q, want one of %v and a sentence; termination message:\n%s\nlog:\n%s",
			out.code, out.report.Reason, clear, out.last, out.log)
	}
}
