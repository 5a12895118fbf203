// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"slices"
	"strings"
)

// settingFlags are flags that stand for an environment variable: --verify=off is
// PRELOADER_VERIFY=off.
var settingFlags = []string{
	"verify",
	"io",
	"conns",
	"partsize",
	"mem",
	"stall",
	"deadline",
	"resume",
	"prefix-mode",
	"select",
	"lint",
	"gpu",
	"gpu-fail",
	"gpu-grace",
	"gpu-host-memory",
	"log",
	"metrics",
	"archive-size",
	"archive-files",
	"node-cache",
	"node-cache-size",
	"node-cache-wait",
	"jit-cache-uri",
	"jit-cache-dir",
	"jit-cache-key",
	"jit-cache-size",
	"jit-cache-deadline",
	"jit-cache-model",
	"termination-log",
}

// verbFlags are flags that only one verb knows.
var verbFlags = map[string][]string{
	"plan": {"output"},
	"warm": {"limit"},

	"publish-cache": {"replace", "when-idle"},
}

// takeFlags splits arguments into those that stand for themselves and flags of
// the form --name=value. What a setting's flag says goes over the environment.
// A lone -- ends the flags.
func (c *Command) takeFlags(verb string, args []string) (*Command, map[string]string, []string, error) {
	own, over := map[string]string{}, map[string]string{}
	var rest []string
	for i, arg := range args {
		if arg == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		text, isFlag := strings.CutPrefix(arg, "--")
		if !isFlag {
			rest = append(rest, arg)
			continue
		}
		name, value, hasValue := strings.Cut(text, "=")
		switch {
		case !hasValue:
			return c, nil, nil, usageFailure("flag --%s needs a value, as in --%s=VALUE", name, name)
		case slices.Contains(verbFlags[verb], name):
			own[name] = value
		case slices.Contains(settingFlags, name):
			over["PRELOADER_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))] = value
		default:
			return c, nil, nil, usageFailure("preloader %s has no flag --%s", verb, name)
		}
	}
	below := c.Getenv
	with := *c
	with.Getenv = func(name string) string {
		if v, ok := over[name]; ok {
			return v
		}
		return below(name)
	}
	return &with, own, rest, nil
}
