// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tensors makes a safetensors file of one tensor of n bytes, with a header that
// is padded by as many spaces.
func tensors(seed uint64, n, padding int) []byte {
	header := fmt.Sprintf(`{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, n, n) + strings.Repeat(" ", padding)
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), noise(seed, n)...)
}

func TestPullRefusesBrokenSafetensorsBeforeItFetches(t *testing.T) {
	good := tensors(1, 9*mebibyte, 0)
	cases := map[string]struct {
		objects map[string][]byte
		env     settings
		want    ExitCode
		reason  string
		// inMessage is part of the termination message.
		inMessage string
		// most bytes that may be fetched.
		most int64
	}{
		"a whole file passes": {objects: map[string][]byte{"model.safetensors": good}, most: int64(len(good)) + firstHeader},
		"a header beyond the first request": {
			objects: map[string][]byte{"model.safetensors": tensors(1, 1000, 300_000)}, most: 800_000,
		},
		"a file cut short": {
			objects: map[string][]byte{"model.safetensors": good[:len(good)-1]},
			want:    ExitIntegrity, reason: "BadSafetensors", inMessage: "its header asks for", most: 2 * firstHeader,
		},
		"a pointer of Git LFS": {
			objects: map[string][]byte{
				"a/model.safetensors": []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
			},
			want:      ExitIntegrity,
			reason:    "BadSafetensors",
			inMessage: "Git LFS pointer",
			most:      1000,
		},
		"an empty file": {
			objects: map[string][]byte{"model.safetensors": {}, "big": noise(1, mebibyte)},
			want:    ExitIntegrity, reason: "BadSafetensors", inMessage: "has 0 bytes", most: 0,
		},
		"a broken file among good ones": {
			objects: map[string][]byte{
				"1.safetensors": good,
				"2.safetensors": good,
				"3.safetensors": good[:100],
				"big":           noise(1, mebibyte),
			},
			want:      ExitIntegrity,
			reason:    "BadSafetensors",
			inMessage: "m/3.safetensors",
			most:      4 * firstHeader,
		},
		"an index that names what is not there": {
			objects: map[string][]byte{
				"model-1.safetensors":          good,
				"model.safetensors.index.json": []byte(`{"weight_map":{"w":"model-1.safetensors","v":"model-2.safetensors"}}`),
			},
			want: ExitIntegrity, reason: "MissingShard", inMessage: `"model-2.safetensors"`, most: 1000,
		},
		"an index that names what the user leaves out": {
			objects: map[string][]byte{
				"model-1.safetensors":          good,
				"model-2.safetensors":          good,
				"model.safetensors.index.json": []byte(`{"weight_map":{"w":"model-1.safetensors","v":"model-2.safetensors"}}`),
			},
			env: settings{"STORAGE_IGNORE_PATTERNS": "model-2*"}, most: int64(len(good)) + firstHeader + 1000,
		},
		"an index that is none": {
			objects: map[string][]byte{"model-1.safetensors": good, "model.safetensors.index.json": []byte("<html>")},
			want:    ExitIntegrity, reason: "BadSafetensors", inMessage: "index.json", most: 1000,
		},
		"turned off, everything passes": {
			objects: map[string][]byte{"model.safetensors": good[:100], "model.safetensors.index.json": []byte("<html>")},
			env:     settings{"PRELOADER_LINT": "off"}, most: 106,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			for k, v := range tc.objects {
				s.put("m/"+k, v)
			}
			var sent int64
			s.faults(func(a asked) fault {
				if a.op == "Get" {
					s.mu.Lock()
					defer s.mu.Unlock()
					sent += a.n
				}
				return fault{}
			})
			dir := t.TempDir()
			out := run(t, with(serverSettings(s), tc.env), "s3://models/m", dir)
			wantCode(t, out, tc.want, firstOf(tc.reason, "Completed"))
			if !strings.Contains(out.last, tc.inMessage) {
				t.Errorf("termination message %q lacks %q", out.last, tc.inMessage)
			}
			if sent > tc.most {
				t.Errorf("%d bytes were asked for, want %d at most", sent, tc.most)
			}
			if got := tree(t, dir); tc.want != ExitOK && len(got) > 0 {
				t.Errorf("%d files are visible", len(got))
			}
		})
	}
}

func TestLintOutlastsPassingTrouble(t *testing.T) {
	index := []byte(`{"weight_map":{"w":"model-1.safetensors"}}`)
	cases := map[string]func(asked) fault{
		"a header that is cut":       once(fault{cut: true, after: 20}),
		"a header that stalls":       once(fault{stall: true, after: 20}),
		"a flipped byte":             once(fault{flip: true, after: 12}),
		"a refusal":                  once(fault{status: 503, code: "SlowDown"}),
		"a flipped byte in the name": once(fault{flip: true, after: 25}),
	}
	for name, decide := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			want := map[string][]byte{"model-1.safetensors": tensors(1, 200_000, 0), "model.safetensors.index.json": index}
			for k, v := range want {
				s.put("m/"+k, v)
			}
			s.faults(decide)
			dir := t.TempDir()
			out := run(t, with(serverSettings(s), settings{"PRELOADER_STALL": "0.5"}), "s3://models/m", dir)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dir, want)
		})
	}
}

func TestPullSelectsSafetensors(t *testing.T) {
	s := newFaultServer(t)
	objects := map[string][]byte{
		"config.json":                  noise(1, 10),
		"consolidated.safetensors":     tensors(2, 1000, 0),
		"model-1.safetensors":          tensors(3, 1000, 0),
		"model-2.safetensors":          tensors(4, 1000, 0),
		"model.safetensors":            noise(5, 5000), // not named by the index, and broken too
		"model.safetensors.index.json": []byte(`{"weight_map":{"w":"model-1.safetensors","v":"model-2.safetensors"}}`),
		"original/consolidated.00.pth": noise(6, 2000),
		"pytorch_model.bin":            noise(7, 3000),
	}
	want := map[string][]byte{}
	for k, v := range objects {
		s.put("m/"+k, v)
	}
	for _, k := range []string{"config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"} {
		want[k] = objects[k]
	}
	env := with(serverSettings(s), settings{"PRELOADER_SELECT": "safetensors"})
	dir := t.TempDir()
	plan, code, log := planned(t, env, "s3://models/m", dir)
	left := Amount{Files: 4, Bytes: 10_000 + int64(len(objects["consolidated.safetensors"]))}
	if code != ExitOK || plan.Pairs[0].LeftOut != left || plan.Pairs[0].Total.Files != 4 {
		t.Errorf("exit code %d, plan %+v; want %+v left out; log:\n%s", code, plan.Pairs[0], left, log)
	}
	out := run(t, env, "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, want)
	if diff := cmp.Diff(&left, out.report.LeftOut); diff != "" {
		t.Errorf("left out (-want +got):\n%s", diff)
	}
	for _, line := range []string{`because="not named by model.safetensors.index.json"`, `because="a copy in the original form"`} {
		if !strings.Contains(out.log, line) {
			t.Errorf("the log lacks %s:\n%s", line, out.log)
		}
	}
	s.forget()
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	if n := s.count("Get") + s.count("Head"); n > 0 {
		t.Errorf("%d requests for a model that is in place, want none but the listing", n)
	}
	// Asked for all, the rest comes, and what was there stays.
	wantCode(
		t,
		run(t, with(env, settings{"PRELOADER_SELECT": "all", "PRELOADER_LINT": "off"}), "s3://models/m", dir),
		ExitOK,
		"Completed",
	)
	wantTree(t, dir, objects)
}

func TestVerifyReadsSafetensorsHeaders(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model.safetensors", tensors(1, 1000, 0))
	s.put("m/other.safetensors", tensors(1, 1000, 0)[:500])
	env := with(serverSettings(s), settings{"PRELOADER_LINT": "off"})
	dir := t.TempDir()
	wantCode(t, run(t, env, "s3://models/m", dir), ExitOK, "Completed")
	if out := run(t, env, "verify", dir); out.code != ExitOK {
		t.Errorf("exit code %d with the lint off; log:\n%s", out.code, out.log)
	}
	out := run(t, with(env, settings{"PRELOADER_LINT": "on"}), "verify", dir)
	if out.code != ExitIntegrity || !strings.Contains(out.log, "other.safetensors") ||
		!strings.Contains(out.log, "its header asks for") {
		t.Errorf("exit code %d, want %d; log:\n%s", out.code, ExitIntegrity, out.log)
	}
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), tensors(2, 1000, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	out = run(t, env, "verify", dir)
	if out.code != ExitIntegrity || !strings.Contains(out.log, "FileChanged") {
		t.Errorf("exit code %d, want %d; log:\n%s", out.code, ExitIntegrity, out.log)
	}
}
