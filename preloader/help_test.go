// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestHelpTellsWhatThereIs(t *testing.T) {
	all := run(t, nil, "help")
	if all.code != ExitOK || !strings.Contains(all.log, "Usage:") {
		t.Fatalf("exit code %d:\n%s", all.code, all.log)
	}
	for _, args := range [][]string{{"--help"}, {"-h"}} {
		if out := run(t, nil, args...); out.code != ExitOK || out.log != all.log {
			t.Errorf("%s tells something else: %d\n%s", args, out.code, out.log)
		}
	}
	for _, u := range commands {
		for _, name := range u.also {
			if _, known := settingOf(name); !known {
				t.Errorf("help %s tells of --%s, which is no setting", u.name, name)
			}
		}
		if !strings.Contains(all.log, "\n  "+u.name+" ") {
			t.Errorf("help does not tell of %s", u.name)
		}
		one := run(t, nil, "help", u.name)
		if one.code != ExitOK || !strings.Contains(one.log, u.synopsis()) {
			t.Errorf("help %s: exit code %d\n%s", u.name, one.code, one.log)
		}
		for _, f := range u.flags {
			if !strings.Contains(one.log, "--"+f.flag+"=") {
				t.Errorf("help %s does not tell of --%s", u.name, f.flag)
			}
		}
		if u.name == "help" {
			continue
		}
		if _, err := findGPUProgram(); err == nil && (u.name == "preflight" || u.name == "load") {
			continue // it tells its own flags
		}
		if out := run(t, nil, u.name, "--help"); out.code != ExitOK || out.log != one.log {
			t.Errorf("%s --help tells something else: %d\n%s", u.name, out.code, out.log)
		}
	}
	if out := run(t, nil, "help", "nothing"); out.code != ExitUsage || !strings.Contains(out.log, "there is no command nothing") {
		t.Errorf("exit code %d:\n%s", out.code, out.log)
	}
	if out := run(t, nil, "help", "exit-codes"); out.code != ExitOK || !strings.Contains(out.log, "77") {
		t.Errorf("exit code %d:\n%s", out.code, out.log)
	}
}

func TestEverySettingIsTold(t *testing.T) {
	page, err := os.ReadFile("../docs/preloader.md")
	if err != nil {
		t.Fatal(err)
	}
	told := run(t, nil, "help", "settings").log
	for _, group := range topics {
		for _, s := range group.settings {
			if !strings.Contains(told, "--"+s.flag+"=") {
				t.Errorf("help settings does not tell of --%s", s.flag)
			}
			if !strings.Contains(string(page), "`"+s.variable()+"`") {
				t.Errorf("docs/preloader.md does not tell of %s", s.variable())
			}
		}
	}
	source, err := os.ReadFile("options.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range strings.Split(string(source), `"PRELOADER_`)[1:] {
		name, _, _ := strings.Cut(text, `"`)
		if _, known := settingOf(strings.ToLower(strings.ReplaceAll(name, "_", "-"))); !known {
			t.Errorf("PRELOADER_%s has no flag", name)
		}
	}
}

func TestFlagsAsPeopleTypeThem(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 100))
	for name, tc := range map[string]struct {
		args     []string
		wantCode ExitCode
		wantText string
	}{
		"a value behind a space":        {args: []string{"--verify", "auto", "s3://models/m", "DIR"}},
		"another flag where a value is": {args: []string{"--verify", "--lint=on"}, wantCode: ExitUsage, wantText: "--verify needs a value"},
		"a wrong value, by its flag":    {args: []string{"--conns=0", "s3://models/m", "DIR"}, wantCode: ExitUsage, wantText: "flag --conns:"},
		"a switch without a value":      {args: []string{"--requester-pays", "s3://models/m", "DIR"}},
		"a switch at the end":           {args: []string{"s3://models/m", "DIR", "--gpu-fail"}},
		"a switch turned off":           {args: []string{"--lint", "off", "s3://models/m", "DIR"}},
		"one dash too few": {
			args: []string{"-conns=3", "s3://models/m", "DIR"}, wantCode: ExitUsage, wantText: "-conns=3 is no flag: flags begin with two dashes",
		},
		"a file of metrics that has no whole path": {
			args: []string{"--metrics=m.prom", "s3://models/m", "DIR"}, wantCode: ExitUsage,
			wantText: "nor the whole path of a file such as /metrics/preloader.prom. ",
		},
		"a misspelt flag": {
			args: []string{"--con=4", "s3://models/m", "DIR"}, wantCode: ExitUsage, wantText: "has no flag --con. Did you mean --conns? ",
		},
		"a flag like no other": {
			args: []string{"pull", "--xyzzy=1", "s3://models/m", "DIR"}, wantCode: ExitUsage, wantText: "has no flag --xyzzy. ",
		},
		"a flag of another command": {
			args: []string{"verify", "--metrics=/m.prom", "DIR"}, wantCode: ExitUsage, wantText: "preloader verify has no flag --metrics",
		},
		"an unknown format of the log":   {args: []string{"warm", "--log=xml", "DIR"}, wantCode: ExitUsage, wantText: "want kserve or json"},
		"a misspelt command":             {args: []string{"verfiy"}, wantCode: ExitTransient, wantText: "Did you mean verify? "},
		"a misspelt command and a path":  {args: []string{"verfiy", "DIR"}, wantCode: ExitTransient, wantText: "no command verfiy. Did you mean verify? "},
		"a misspelt command and a pair":  {args: []string{"pul", "s3://models/m", "DIR"}, wantCode: ExitTransient, wantText: "no command pul. Did you mean pull? "},
		"a word that is no command":      {args: []string{"fetch"}, wantCode: ExitTransient, wantText: "there is no command fetch"},
		"no directory":                   {args: []string{"s3://models/m"}, wantCode: ExitTransient, wantText: "has no directory to go to"},
		"a path that does not exist":     {args: []string{"/nowhere", "DIR"}, wantCode: ExitNotFound, wantText: "local path /nowhere"},
		"a slash too few":                {args: []string{"s3:/models/m", "DIR"}, wantCode: ExitConfig, wantText: "neither a URI nor a path"},
		"a scheme of somebody else":      {args: []string{"gs://models/m", "DIR"}, wantCode: ExitConfig, wantText: "(gs)"},
		"help among the flags of a pull": {args: []string{"s3://models/m", "--help"}, wantText: "Usage:\n  preloader pull"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var args []string
			for _, a := range tc.args {
				args = append(args, strings.ReplaceAll(a, "DIR", dir))
			}
			out := run(t, serverSettings(s), args...)
			if out.code != tc.wantCode || !strings.Contains(out.log, tc.wantText) {
				t.Errorf("exit code %d, want %d with %q; log:\n%s", out.code, tc.wantCode, tc.wantText, out.log)
			}
		})
	}
}

func TestUnknownVariablesAreNamed(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 100))
	for k, v := range with(serverSettings(s), settings{"PRELOADER_TERMINATION_LOG": os.DevNull}) {
		t.Setenv(k, v)
	}
	for name, tc := range map[string]struct {
		environ []string
		want    string // empty: no warning
	}{
		"a misspelt setting":            {[]string{"PRELOADER_VERFY=require"}, "did you mean PRELOADER_VERIFY?"},
		"a setting of no such name":     {[]string{"PRELOADER_COLOUR=blue"}, "PRELOADER_COLOUR is no setting and is ignored\n"},
		"settings":                      {[]string{"PRELOADER_VERIFY=auto", "PRELOADER_JIT_CACHE_DIR=/x", "PATH=/bin"}, ""},
		"one without a value":           {[]string{"PRELOADER_COLOUR="}, ""},
		"the GPU program's":             {[]string{"PRELOADER_GPU_READ_BACK=all"}, ""},
		"those of a Service named that": {[]string{"PRELOADER_SERVICE_HOST=10.0.0.1", "PRELOADER_PORT_80_TCP=x", "PRELOADER_PORT=x"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, verb := range []string{"pull", "plan"} {
				var out, log bytes.Buffer
				command := Command{
					Args: []string{
						verb,
						"s3://models/m",
						t.TempDir(),
					},
					Getenv:  os.Getenv,
					Environ: tc.environ,
					Stdout:  &out,
					Stderr:  &log,
				}
				if code := command.Run(t.Context()); code != ExitOK {
					t.Fatalf("exit code %d:\n%s", code, &log)
				}
				if warned := strings.Contains(
					log.String(),
					"is no setting",
				); warned != (tc.want != "") ||
					!strings.Contains(log.String(), tc.want) {
					t.Errorf("%s: log does not hold %q:\n%s", verb, tc.want, &log)
				}
			}
		})
	}
}
