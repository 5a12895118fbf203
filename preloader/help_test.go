// SPDX-License-Identifier: Apache-2.0

package preloader

import (
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
		if u.name == "help" || u.name == "preflight" || u.name == "load" {
			continue
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
		"a value behind a space":         {args: []string{"--verify", "auto", "s3://models/m", "DIR"}},
		"another flag where a value is":  {args: []string{"--verify", "--lint=on"}, wantCode: ExitUsage, wantText: "--verify needs a value"},
		"a wrong value, by its flag":     {args: []string{"--conns=0", "s3://models/m", "DIR"}, wantCode: ExitUsage, wantText: "flag --conns:"},
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
