// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// setting is an environment variable that may be given as a flag too: --verify=off is
// PRELOADER_VERIFY=off.
type setting struct {
	flag string
	// values are those that it takes, the default first.
	values string
	what   string
}

// variable is the environment variable.
func (s setting) variable() string {
	return "PRELOADER_" + strings.ToUpper(strings.ReplaceAll(s.flag, "-", "_"))
}

// words are the values that it takes, if these are words.
func (s setting) words() []string { return strings.Split(s.values, "|") }

// isSwitch reports whether it is on or off, so that its flag needs no value.
func (s setting) isSwitch() bool {
	switch s.values {
	case "on|off", "off|on", "false|true":
		return true
	}
	return false
}

// turnedOn is what the flag of a switch stands for without a value.
func (s setting) turnedOn() string {
	if s.values == "false|true" {
		return "true"
	}
	return "on"
}

// topic is a group of settings that belong together.
type topic struct {
	name     string
	settings []setting
}

// topics hold all settings.
var topics = []topic{
	{"fetching", []setting{
		{"verify", "auto|require|off", "what evidence a file needs; require fails where there is only a size"},
		{"select", "all|safetensors", "leave out weights that safetensors files hold already"},
		{"lint", "on|off", "check safetensors headers before their bytes are fetched"},
		{"prefix-mode", "directory|kserve", "kserve takes llama-70b/ for a source of llama too"},
		{"resume", "on|off", "go on with what an earlier run left"},
		{"io", "auto|warm|bounded|direct", "how written bytes relate to memory"},
		{"conns", "auto|NUMBER", "requests at once"},
		{"partsize", "auto|SIZE", "bytes a request"},
		{"mem", "64Mi", "bound of the buffers"},
		{"stall", "20s", "end a request that moved no byte for so long"},
		{"deadline", "0", "bound of the whole run; 0 for none"},
		{"wait", "30m", "how long to wait for another preloader in the same directory; 0 for no bound"},
		{"pin", "sha256:DIGEST,...", "take this content and no other; nothing is asked of the store if it is in place"},
		{"requester-pays", "off|on", "pay for requests to a bucket of somebody else"},
		{"bucket-owner", "ACCOUNT", "the account that must own the bucket"},
		{"archive-size", "auto|SIZE", "bound of what a model that is one archive comes to"},
		{"archive-files", "100000", "bound of its files, folders and links"},
		{"volume-size", "auto|SIZE", "what the volume may hold, if that is less than its file system says"},
	}},
	{"the node's cache", []setting{
		{"node-cache", "DIRECTORY", "take and keep files that pods of this node share"},
		{"node-cache-size", "auto|SIZE", "bound of that directory; auto is half of its file system"},
		{"node-cache-wait", "5m", "how long to wait for a pod that fetches the same"},
	}},
	{"compiled kernels", []setting{
		{"jit-cache-uri", "s3://BUCKET/PATH", "bring compiled kernels from there, or publish them"},
		{"jit-cache-key", "engine=IMAGE,...", "what they depend on"},
		{"jit-cache-dir", "/mnt/jit-cache", "where they are unpacked"},
		{"jit-cache-size", "16Gi", "bound of what is unpacked"},
		{"jit-cache-deadline", "2m", "bound of the time that a pull spends on them"},
		{"jit-cache-model", "/mnt/models", "publish-cache: where the fetched models are"},
	}},
	{"GPUs", []setting{
		{"gpu", "off|preflight|load", "check the pod's GPUs"},
		{"gpu-fail", "false|true", "fail if one is not fit for work"},
		{"gpu-grace", "60s", "how long a pull that is done waits for the check"},
		{"gpu-host-memory", "512Mi", "memory that must be left for the check, or it is not run"},
	}},
	{"telling", []setting{
		{"log", "kserve|json", "plain lines, or JSON lines"},
		{"metrics", ":PORT|FILE,...", "where Prometheus finds metrics"},
		{"termination-log", DefaultTerminationLog, "the file that takes the last word for Kubernetes"},
	}},
}

// settingOf returns the setting of a flag.
func settingOf(flag string) (setting, bool) {
	for _, t := range topics {
		for _, s := range t.settings {
			if s.flag == flag {
				return s, true
			}
		}
	}
	return setting{}, false
}

// flagOf returns a command's own flag of a name, or else the setting.
func flagOf(verb, name string) setting {
	own := usageOf(verb).flags
	if i := slices.IndexFunc(own, func(s setting) bool { return s.flag == name }); i >= 0 {
		return own[i]
	}
	s, _ := settingOf(name)
	return s
}

// takeFlags splits arguments into those that stand for themselves and flags, of the
// form --name=value or --name value; those that are on or off need no value. What a
// setting's flag says goes over the environment. A lone -- ends the flags.
func (c *Command) takeFlags(verb string, args []string) (*Command, map[string]string, []string, error) {
	own := map[string]string{}
	with := *c
	with.flags = map[string]string{}
	var rest []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			rest = append(rest, args...)
			break
		}
		text, isFlag := strings.CutPrefix(arg, "--")
		if !isFlag {
			if len(arg) > 1 && arg[0] == '-' {
				return c, nil, nil, usageFailure("%s is no flag: flags begin with two dashes, and -- ends them", arg)
			}
			rest = append(rest, arg)
			continue
		}
		name, value, hasValue := strings.Cut(text, "=")
		known, isSetting := settingOf(name)
		isOwn := slices.ContainsFunc(usageOf(verb).flags, func(s setting) bool { return s.flag == name })
		if !isOwn && (!isSetting || !usageOf(verb).takes(name)) {
			return c, nil, nil, noFlag(verb, name)
		}
		if !hasValue {
			var err error
			if value, args, err = valueBehind(flagOf(verb, name), args); err != nil {
				return c, nil, nil, err
			}
		}
		if isOwn {
			own[name] = value
		} else {
			with.flags[known.variable()] = value
		}
	}
	below := c.Getenv
	with.Getenv = func(name string) string {
		if v, ok := with.flags[name]; ok {
			return v
		}
		return below(name)
	}
	return &with, own, rest, nil
}

// valueBehind returns the value of a flag that stands in the argument after it, and the
// arguments after that.
func valueBehind(flag setting, args []string) (string, []string, error) {
	switch {
	case flag.isSwitch() && (len(args) == 0 || !slices.Contains(flag.words(), strings.ToLower(args[0]))):
		return flag.turnedOn(), args, nil
	case len(args) == 0 || strings.HasPrefix(args[0], "--"):
		return "", nil, usageFailure("flag --%s needs a value, as in --%s=%s", flag.flag, flag.flag, flag.values)
	}
	return args[0], args[1:], nil
}

// takes reports whether a setting means something to the command.
func (c usage) takes(name string) bool { return !c.local || slices.Contains(c.also, name) }

// noFlag says that a command has no such flag, and which one may have been meant.
func noFlag(verb, name string) error {
	var names []string
	for _, s := range usageOf(verb).flags {
		names = append(names, s.flag)
	}
	for _, t := range topics {
		for _, s := range t.settings {
			if usageOf(verb).takes(s.flag) {
				names = append(names, s.flag)
			}
		}
	}
	failure := usageFailure("preloader %s has no flag --%s", verb, name)
	if meant := nearest(name, names); meant != "" {
		failure.Advice = "Did you mean --" + meant + "?"
	}
	return failure
}

// nearest returns the name that a word was most likely meant to be: one that it begins, or
// is at most two letters away from; nothing if none is.
func nearest(word string, names []string) string {
	const typo = 2
	best, least := "", typo+1
	for _, name := range names {
		away := editDistance(word, name)
		if strings.HasPrefix(name, word) || strings.HasPrefix(word, name) {
			away = min(away, typo)
		}
		if away < least && away < len(name) {
			best, least = name, away
		}
	}
	return best
}

// editDistance counts the letters to insert, remove or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			corner, row[j+1] = row[j+1], min(corner+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// strangers returns variables of this program's prefix that it does not know, with what
// each was most likely meant to be. Kubernetes itself sets some for a Service of that name.
func strangers(environ []string) map[string]string {
	known := map[string]bool{}
	var names []string
	for _, t := range topics {
		for _, s := range t.settings {
			known[s.variable()] = true
			names = append(names, s.variable())
		}
	}
	found := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case !strings.HasPrefix(name, "PRELOADER_") || known[name] || value == "":
		case strings.HasPrefix(name, "PRELOADER_GPU_"): // the GPU program's own
		case strings.HasPrefix(name, "PRELOADER_SERVICE_"), strings.HasPrefix(name, "PRELOADER_PORT"):
		default:
			found[name] = nearest(name, names)
		}
	}
	return found
}

// warnOfStrangers says which variables mean nothing to this program.
func warnOfStrangers(environ []string, log *slog.Logger) {
	unknown := strangers(environ)
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		text := "The environment variable " + name + " is no setting and is ignored"
		if unknown[name] != "" {
			text += "; did you mean " + unknown[name] + "?"
		}
		log.Warn(text)
	}
}

// logFormat tells JSON lines from plain ones, for commands that read no other setting.
func (c *Command) logFormat() (inJSON bool, err error) {
	switch word := strings.ToLower(strings.TrimSpace(c.Getenv("PRELOADER_LOG"))); word {
	case "", "kserve":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, usageFailure("the log's format is %q, want kserve or json", word)
	}
}

// options reads the settings, and names a wrong one as it was given.
func (c *Command) options() (Options, error) {
	opts, err := OptionsFromEnv(c.Getenv)
	f, ok := errors.AsType[*ExitError](err)
	if !ok {
		return opts, err
	}
	for _, t := range topics {
		for _, s := range t.settings {
			if _, given := c.flags[s.variable()]; !given {
				continue
			}
			if cause, found := strings.CutPrefix(f.Cause, "environment variable "+s.variable()+" "); found {
				f.Code, f.Reason, f.Cause = ExitUsage, "Usage", "flag --"+s.flag+" "+cause
			} else if cause, found := strings.CutPrefix(f.Cause, "environment variable "+s.variable()+":"); found {
				f.Code, f.Reason, f.Cause = ExitUsage, "Usage", "flag --"+s.flag+":"+cause
			}
		}
	}
	return opts, err
}
