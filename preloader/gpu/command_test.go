// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseOptions(t *testing.T) {
	base := Options{
		Stall:      time.Minute,
		Wait:       time.Minute,
		Link:       256 << 20,
		Buffers:    4,
		BufferSize: 16 << 20,
		Readers:    3,
		ReadBack:   ReadBackSample,
	}
	with := func(change func(*Options)) Options {
		o := base
		change(&o)
		return o
	}
	tests := map[string]struct {
		args      []string
		env       settings
		want      Options
		wantPaths []string
	}{
		"nothing": {want: base},
		"flags": {
			args: []string{"--fail", "--json", "--cuda", "12.4", "--devices=2", "--memory", "40Gi", "/mnt/models"},
			want: with(func(o *Options) {
				o.Fail, o.JSON, o.CUDA, o.Devices, o.Memory = true, true, CUDAVersion{12, 4}, 2, 40<<30
			}),
			wantPaths: []string{"/mnt/models"},
		},
		"the environment": {
			env: settings{
				"PRELOADER_GPU_FAIL": "true", "PRELOADER_GPU_CALL_TIMEOUT": "5s", "PRELOADER_GPU_DEADLINE": "3m",
				"PRELOADER_GPU_WAIT": "10s", "PRELOADER_GPU_CUDA": "13", "PRELOADER_GPU_LINK": "0", "PRELOADER_GPU_BUFFERS": "2",
				"PRELOADER_GPU_BUFFER_SIZE": "64Mi", "PRELOADER_GPU_READ_BACK": "all",
			},
			want: with(func(o *Options) {
				o.Fail, o.Stall, o.Deadline, o.Wait, o.CUDA = true, 5*time.Second, 3*time.Minute, 10*time.Second, CUDAVersion{
					13,
					0,
				}
				o.Link, o.Buffers, o.BufferSize, o.ReadBack, o.Readers = 0, 2, 64<<20, ReadBackAll, 1
			}),
		},
		"a flag wins": {
			args: []string{"--fail=false"}, env: settings{"PRELOADER_GPU_FAIL": "true"}, want: base,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, paths, code, err := ParseOptions(tc.args, func(k string) string { return tc.env[k] })
			if err != nil || code != ExitOK {
				t.Fatalf("code %d: %v", code, err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(
				tc.wantPaths,
				paths,
				cmp.Transformer("nil", func(s []string) string { return strings.Join(s, " ") }),
			); diff != "" {
				t.Errorf("paths (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	for name, wrong := range map[string]string{
		"devices": "0", "memory": "-1", "link": "1Ti", "buffers": "1", "buffer-size": "1", "readers": "none", "read-back": "some",
		"cuda": "new", "wait": "soon", "fail": "perhaps", "deadline": "-1", "call-timeout": "0",
	} {
		if _, _, code, err := ParseOptions(
			[]string{"--" + name + "=" + wrong},
			func(string) string { return "" },
		); err == nil ||
			code != ExitUsage {
			t.Errorf("--%s=%s: code %d, %v; want %d and an error", name, wrong, code, err, ExitUsage)
		}
		env := func(k string) string { return settings{variableOf(name): wrong}[k] }
		_, _, code, err := ParseOptions(nil, env)
		if err == nil || code != ExitConfig || !strings.Contains(err.Error(), variableOf(name)) {
			t.Errorf("%s=%s: code %d, %v; want %d and an error that names it", variableOf(name), wrong, code, err, ExitConfig)
		}
	}
}

func TestUsage(t *testing.T) {
	for name, tc := range map[string]struct {
		args       []string
		wantCode   ExitCode
		wantStdout string
		wantStderr string
	}{
		"nothing":                {nil, ExitUsage, "Usage:", ""},
		"help":                   {[]string{"help"}, ExitOK, "PRELOADER_GPU_CALL_TIMEOUT", ""},
		"help among flags":       {[]string{"load", "--fail", "-h"}, ExitOK, "PRELOADER_GPU_CALL_TIMEOUT", ""},
		"the version":            {[]string{"version"}, ExitOK, "preloader-gpu ", ""},
		"an unknown command":     {[]string{"pull"}, ExitUsage, "", `unknown command "pull"`},
		"an unknown flag":        {[]string{"preflight", "--speed"}, ExitUsage, "", `-speed; "preloader-gpu help" lists`},
		"a time without meaning": {[]string{"preflight", "--wait=soon"}, ExitUsage, "", "want seconds, or a duration such as 20s"},
		"neither yes nor no":     {[]string{"preflight", "--fail=maybe"}, ExitUsage, "", "want true or false"},
		"load without a model":   {[]string{"load"}, ExitUsage, "", "load takes the folder"},
		"preflight with a model": {[]string{"preflight", "/mnt/models"}, ExitUsage, "", "for a model, use load"},
	} {
		t.Run(name, func(t *testing.T) {
			out := run(t, nil, tc.args...)
			if out.code != int(tc.wantCode) || !strings.Contains(out.stdout, tc.wantStdout) ||
				!strings.Contains(out.stderr, tc.wantStderr) {
				t.Errorf("code %d, want %d\n%s%s", out.code, tc.wantCode, out.stdout, out.stderr)
			}
			if len(out.journal) > 0 {
				t.Errorf("the driver was called: %v", out.journal)
			}
		})
	}
}

func TestVariablesThatMeanNothingAreNamed(t *testing.T) {
	out := run(t, settings{
		"PRELOADER_GPU_LINKS": "1Mi", "PRELOADER_GPU_GRACE": "1m", "PRELOADER_GPU_HOST_MEMORY": "1Gi", "PRELOADER_GPU_LINK": "0",
		"PRELOADER_GPU_SERVICE_HOST": "10.0.0.1", "PRELOADER_GPU_PORT_80_TCP": "tcp://10.0.0.1:80", "PRELOADER_GPU_WAIT": "",
	}, "preflight")
	const want = "preloader-gpu: the environment variable PRELOADER_GPU_LINKS is no setting and is ignored\n"
	if out.code != 0 || out.stderr != want {
		t.Errorf("code %d, said %q, want %q", out.code, out.stderr, want)
	}
}

// TestEveryReasonIsDocumented looks up each reason that the code can give, and each flag.
func TestEveryReasonIsDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/preloader-gpu.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	reasons := map[string]bool{}
	for code, c := range cudaCounsel {
		reasons[c.reason] = true
		if c.advice == "" || !strings.HasSuffix(c.advice, ".") {
			t.Errorf("CUDA error %d: the advice %q is no sentence", code, c.advice)
		}
	}
	for code, c := range nvmlCounsel {
		reasons[c.reason] = true
		if c.advice == "" || !strings.HasSuffix(c.advice, ".") {
			t.Errorf("NVML error %d: the advice %q is no sentence", code, c.advice)
		}
	}
	// Reasons that stand in the code: Reason: "X", Reason = "X", reason: "X", and those of
	// judgeHealth.
	literal := regexp.MustCompile(`(?:[rR]eason(?::| =)|add\(\w+,|return) "([A-Z][A-Za-z]+)"`)
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		source, err := os.ReadFile(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range literal.FindAllStringSubmatch(string(source), -1) {
			reasons[m[1]] = true
		}
	}
	if len(reasons) < 40 {
		t.Errorf("%d reasons were found in the code, want more", len(reasons))
	}
	for _, reason := range sortedKeys(reasons) {
		if !strings.Contains(page, "`"+reason+"`") {
			t.Errorf("docs/preloader-gpu.md does not explain %s", reason)
		}
	}
	for _, flag := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(run(t, nil, "help").stdout, -1) {
		if !strings.Contains(page, "`--"+flag[1]) {
			t.Errorf("docs/preloader-gpu.md does not explain --%s", flag[1])
		}
	}
}
