// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// planned runs preloader plan and reads what it prints.
func planned(t *testing.T, env settings, args ...string) (*Plan, ExitCode, string) {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, v)
	}
	var out, log bytes.Buffer
	command := Command{Args: append([]string{"plan", "--output=json"}, args...), Getenv: os.Getenv, Stdout: &out, Stderr: &log}
	code := command.Run(t.Context())
	plan := &Plan{}
	if err := json.Unmarshal(out.Bytes(), plan); err != nil {
		t.Fatalf("the plan is not JSON: %v\n%s\n%s", err, out.String(), log.String())
	}
	return plan, code, log.String()
}

func TestPlanFailsAsPullWould(t *testing.T) {
	cases := map[string]struct {
		env    settings
		fault  fault
		source string
		dir    func(t *testing.T) string
		want   ExitCode
		reason string
	}{
		"credentials refused": {
			fault: fault{status: http.StatusForbidden, code: "AccessDenied"}, want: ExitDenied, reason: "AccessDenied",
		},
		"no such bucket":  {source: "s3://elsewhere/m", want: ExitNotFound, reason: "NoSuchBucket"},
		"nothing there":   {source: "s3://models/none", want: ExitNotFound, reason: "NoModel"},
		"local path gone": {source: "/mnt/pvc/none", want: ExitNotFound, reason: "NotFound"},
		"a scheme of others": {
			source: "gs://bucket/m", want: ExitConfig, reason: "Configuration",
		},
		"a key that leads out": {source: "s3://models/bad", want: ExitConfig, reason: "UnsafeKey"},
		"no checksum, though required": {
			source: "s3://models/weak", env: settings{"PRELOADER_VERIFY": "require"}, want: ExitIntegrity, reason: "NoChecksum",
		},
		"a volume too small": {
			dir:  func(t *testing.T) string { t.Helper(); return mountMemory(t, "1m") },
			want: ExitNoSpace, reason: "NoSpace",
		},
		"a file where the directory should be": {
			dir: func(t *testing.T) string {
				t.Helper()
				file := filepath.Join(t.TempDir(), "file")
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				return file
			},
			want: ExitNoSpace, reason: "InTheWay",
		},
		"all is well": {want: ExitOK},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/model", noise(1, 3*mebibyte))
			s.put("bad/../../model", noise(1, 10))
			s.putWith("weak/model", noise(1, 10), nil)
			s.objects["weak/model"].etag = "opaque"
			s.faults(func(asked) fault { return tc.fault })
			dir := filepath.Join(t.TempDir(), "new")
			if tc.dir != nil {
				dir = tc.dir(t)
			}
			source := firstOf(tc.source, "s3://models/m")
			env := with(with(serverSettings(s), quick), tc.env)
			before := tree(t, filepath.Dir(dir))
			plan, code, log := planned(t, env, source, dir)
			if diff := cmp.Diff(before, tree(t, filepath.Dir(dir))); diff != "" {
				t.Errorf("the plan changed files (-before +after):\n%s", diff)
			}
			reason := ""
			if plan.Failure != nil {
				reason = plan.Failure.Reason
			}
			if code != tc.want || reason != tc.reason {
				t.Errorf("exit code %d for %q, want %d for %q; log:\n%s", code, reason, tc.want, tc.reason, log)
			}
			pulled := run(t, env, source, dir)
			if pulled.code != tc.want || tc.reason != "" && pulled.report.Reason != tc.reason {
				t.Errorf("the pull ends with %d for %q, want %d for %q; log:\n%s",
					pulled.code, pulled.report.Reason, tc.want, tc.reason, pulled.log)
			}
		})
	}
}

func TestPlanCountsWhatIsLeft(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/config.json", noise(1, 1000))
	s.put("m/large", noise(2, 30*mebibyte))
	s.putWith("m/weak", noise(3, 9*mebibyte), nil)
	s.objects["m/weak"].etag = "opaque"
	s.putParts("m/parts", noise(4, 5*mebibyte), noise(5, mebibyte))
	dir := t.TempDir()
	// The ranges of the large file stand still, so that the others need connections of their own.
	env := with(serverSettings(s), settings{"PRELOADER_CONNS": "8"})
	s.faults(func(a asked) fault {
		f := fault{stall: a.op == "Get" && a.key == "m/large"}
		if a.off%minPart == 0 { // and nothing for whoever overtakes it, if this takes long
			f.after = 5_000_001
		}
		return f
	})
	p := start(t, env, "s3://models/m", dir)
	eventually(t, "ranges are recorded and three files are done", func() bool {
		raw, _ := os.ReadFile(filepath.Join(dir, journalName))
		return recordedOf(dir, "large") >= 3 && bytes.Count(raw, []byte(`{"done"`)) == 3
	})
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantCode(t, p.outcome(t), ExitTerminated, "Stopped")
	s.faults(nil)
	s.forget()

	plan, code, log := planned(t, env, "s3://models/m", dir)
	if code != ExitOK || len(plan.Pairs) != 1 {
		t.Fatalf("exit code %d; log:\n%s", code, log)
	}
	got := plan.Pairs[0]
	want := &PairPlan{
		Source: "s3://models/m", Directory: dir,
		Total:   Amount{Files: 4, Bytes: 45*mebibyte + 1000},
		InPlace: Amount{Files: 3, Bytes: 15*mebibyte + 1000},
		Fetch:   Amount{Files: 1, Bytes: 30*mebibyte - got.Resumed}, Resumed: got.Resumed,
		Wanted:   45*mebibyte + 1000 + (45*mebibyte+1000)/4 + breath,
		Evidence: map[Evidence]int{EvidenceChecksum: 2, EvidenceParts: 1, EvidenceSize: 1},
		Objects: []ObjectPlan{
			{Path: "config.json", Bytes: 1000, State: "inPlace", Evidence: EvidenceChecksum},
			{Path: "large", Bytes: 30 * mebibyte, State: "begun", Evidence: EvidenceChecksum},
			{Path: "parts", Bytes: 6 * mebibyte, State: "inPlace", Evidence: EvidenceParts},
			{Path: "weak", Bytes: 9 * mebibyte, State: "inPlace", Evidence: EvidenceSize},
		},
		Disk: got.Disk, IO: got.IO, Why: got.Why, Digest: got.Digest,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	if got.Resumed < 3*recordEvery || got.IO == "" || got.Why == "" || got.Disk.Free == nil {
		t.Errorf("resumed %d bytes, policy %q because %q, disk %+v", got.Resumed, got.IO, got.Why, got.Disk)
	}
	if plan.Forecast == nil || plan.Forecast.Seconds <= 0 || plan.Memory.Room == nil {
		t.Errorf("forecast %+v, memory %+v", plan.Forecast, plan.Memory)
	}
	if n := s.count("Get"); n > 1 {
		t.Errorf("the plan made %d requests for data, want one probe at most", n)
	}
	for _, line := range []string{"4 files", "3 files", "by size only: weak", "part-checksums 1", "forecast"} {
		if !strings.Contains(plan.String(), line) {
			t.Errorf("the text lacks %q:\n%s", line, plan)
		}
	}
	out := run(t, env, "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	if diff := cmp.Diff(out.report.Digests, []string{got.Digest}); diff != "" {
		t.Errorf("digests (-pulled +planned):\n%s", diff)
	}
}

func TestPlanAddsUpPairsOfOneVolume(t *testing.T) {
	s := newFaultServer(t)
	s.put("a/model", noise(1, 6*mebibyte))
	s.put("b/model", noise(2, 6*mebibyte))
	dir := mountMemory(t, "10m")
	env := serverSettings(s)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if _, code, log := planned(t, env, "s3://models/a", a); code != ExitOK {
		t.Errorf("exit code %d for one of them; log:\n%s", code, log)
	}
	plan, code, log := planned(t, env, "s3://models/a", a, "s3://models/b", b)
	if code != ExitNoSpace || plan.Failure == nil || plan.Failure.Reason != "NoSpace" {
		t.Errorf("exit code %d, failure %+v for both; log:\n%s", code, plan.Failure, log)
	}
}

func TestForecastNamesTheBottleneck(t *testing.T) {
	ms := func(n ...int) []time.Duration {
		var all []time.Duration
		for _, d := range n {
			all = append(all, time.Duration(d)*time.Millisecond)
		}
		return all
	}
	cases := map[string]struct {
		pace  pace
		fetch Amount
		conns int
		more  int
		cpus  float64
		want  string
		// wantSeconds is rounded down.
		wantSeconds int
	}{
		"slow connections hold back": {
			pace: pace{answers: ms(5, 10, 90), perConnection: 90e6}, fetch: Amount{Files: 4, Bytes: 14_400e6}, conns: 8, cpus: 4,
			want: "connections", wantSeconds: 20,
		},
		"one processor holds fast connections back": {
			pace: pace{answers: ms(1), perConnection: 1e9}, fetch: Amount{Files: 4, Bytes: 10e9}, conns: 8, cpus: 1,
			want: "cpu", wantSeconds: 6,
		},
		"many small files wait for answers": {
			pace: pace{
				answers: ms(20),
			},
			fetch:       Amount{Files: 10_000, Bytes: 1e6},
			conns:       8,
			cpus:        4,
			want:        "requests",
			wantSeconds: 25,
		},
		"a far store gets more connections": {
			pace: pace{answers: ms(20, 25)}, fetch: Amount{Files: 10_000, Bytes: 1e6}, conns: 8, more: 24, cpus: 4,
			want: "requests", wantSeconds: 7,
		},
		"a near store does not": {
			pace: pace{answers: ms(1, 20, 25)}, fetch: Amount{Files: 10_000, Bytes: 1e6}, conns: 8, more: 24, cpus: 4,
			want: "requests", wantSeconds: 25,
		},
		"nothing to fetch, nothing to say": {pace: pace{answers: ms(20)}, conns: 8, cpus: 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := tc.pace.forecast(
				&Plan{Pairs: []*PairPlan{{Fetch: tc.fetch}}},
				Options{Conns: tc.conns, more: tc.more, cpus: tc.cpus},
			)
			if got == nil {
				if tc.want != "" {
					t.Errorf("no forecast, want %s", tc.want)
				}
				return
			}
			if got.Bottleneck != tc.want || int(got.Seconds) != tc.wantSeconds {
				t.Errorf("%s, %.1f s; want %s, %d s", got.Bottleneck, got.Seconds, tc.want, tc.wantSeconds)
			}
		})
	}
}

func TestFlagsStandForSettings(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 100))
	s.putWith("weak/model", noise(1, 100), nil)
	s.objects["weak/model"].etag = "opaque"
	cases := map[string]struct {
		args []string
		want ExitCode
	}{
		"a flag goes over the environment": {
			args: []string{"pull", "--verify=require", "s3://models/weak", "DIR"}, want: ExitIntegrity,
		},
		"without the verb":         {args: []string{"--verify=require", "s3://models/weak", "DIR"}, want: ExitIntegrity},
		"behind the arguments":     {args: []string{"s3://models/weak", "DIR", "--verify=require"}, want: ExitIntegrity},
		"a wrong value is named":   {args: []string{"--verify=maybe", "s3://models/m", "DIR"}, want: ExitUsage},
		"an unknown flag":          {args: []string{"--verifi=off", "s3://models/m", "DIR"}, want: ExitUsage},
		"a flag without a value":   {args: []string{"--verify", "s3://models/m", "DIR"}, want: ExitUsage},
		"another verb's flag":      {args: []string{"pull", "--output=json", "s3://models/m", "DIR"}, want: ExitUsage},
		"two dashes end the flags": {args: []string{"pull", "--", "s3://models/m", "DIR"}, want: ExitOK},
		"no flags at all":          {args: []string{"s3://models/weak", "DIR"}, want: ExitOK},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			args := make([]string, len(tc.args))
			for i, a := range tc.args {
				args[i] = strings.ReplaceAll(a, "DIR", dir)
			}
			if out := run(t, serverSettings(s), args...); out.code != tc.want {
				t.Errorf("exit code %d, want %d; log:\n%s", out.code, tc.want, out.log)
			}
		})
	}
}
