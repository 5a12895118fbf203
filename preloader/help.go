// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"slices"
	"strings"
)

// usage is one word of the command line, as help tells it.
type usage struct {
	name, args, what string
	// about is what there is to say beyond that.
	about    string
	examples []string
	// flags are those that no other command knows, and topics the settings that matter.
	flags  []setting
	topics []string
	// also are single settings that matter beside those.
	also []string
	// local commands ask nothing of a store: they take no setting that they do not tell of.
	local bool
}

const pairArgs = "SOURCE DIRECTORY [SOURCE DIRECTORY ...]"

var commands = []usage{
	{
		name: "pull", args: pairArgs, what: "fetch models; pairs without a command do the same",
		about: `A SOURCE is s3://bucket/path, an object or a folder with all objects below it, or a local path, which is
linked. A model that is a single tar or zip is unpacked. Run it again and it goes on where it stopped.`,
		examples: []string{
			"preloader s3://models/llama /mnt/models",
			"preloader pull --select=safetensors --verify=require s3://models/llama /mnt/models",
		},
		topics: []string{"fetching", "the node's cache", "compiled kernels", "GPUs", "telling"},
	},
	{
		name: "plan", args: pairArgs, what: "say what pull would do and need; fetches nothing",
		about:    "Run it where the pull will run: limits, disk and network are those of the place.",
		examples: []string{"preloader plan s3://models/llama /mnt/models"},
		flags:    []setting{{"output", "text|json", "json prints every figure and every object"}},
		topics:   []string{"fetching", "the node's cache", "compiled kernels"},
		also:     []string{"log"},
	},
	{
		name: "verify", args: "DIRECTORY [...]", what: "read fetched trees and compare every byte",
		about: `It needs no network: pull noted the check of every file in .preloader.json. Files that differ, or are
missing, are named; headers of safetensors files are checked too. Exit code 65 if anything is wrong.`,
		examples: []string{"preloader verify /mnt/models"},
		also:     []string{"lint", "log"},
		local:    true,
	},
	{
		name: "warm", args: "DIRECTORY [...]", what: "bring files into the page cache, as far as memory has room",
		examples: []string{"preloader warm --limit=40Gi /mnt/models"},
		flags:    []setting{{"limit", "SIZE", "bring no more than so much"}},
		also:     []string{"log"},
		local:    true,
	},
	{
		name: "publish-cache", args: "[NAME=PATH|DIRECTORY ...]", what: "put what engines have compiled where pulls find it",
		about: `Without arguments it takes the folders that the engines' variables name, such as VLLM_CACHE_ROOT, and those of
--jit-cache-dir.`,
		examples: []string{
			"preloader publish-cache --jit-cache-uri=s3://models/jit --jit-cache-key=engine=vllm-0.11.0 vllm=$HOME/.cache/vllm",
		},
		flags: []setting{
			{"replace", "false|true", "put new ones in the place of those that are published"},
			{"when-idle", "DURATION", "wait until nothing was compiled for so long, publish, and stay"},
		},
		topics: []string{"compiled kernels", "telling"},
	},
	{
		name: "preflight", args: "[FLAGS]", what: "check the GPUs; in the image preloader-gpu only",
		about: "Its flags are told by preloader-gpu help.",
	},
	{
		name: "load", args: "[FLAGS] PATH [...]", what: "load safetensors into GPU memory to prove them; in that image only",
		about: "Its flags are told by preloader-gpu help.",
	},
	{name: "version", what: "print the version"},
	{name: "help", args: "[COMMAND|settings|exit-codes]", what: "explain a command, all settings, or the exit codes"},
}

// usageOf returns the use of the command of a name; one that does not exist has no name.
func usageOf(name string) usage {
	at := slices.IndexFunc(commands, func(c usage) bool { return c.name == name })
	if at < 0 {
		return usage{}
	}
	return commands[at]
}

// synopsis is how to call a command.
func (c usage) synopsis() string { return strings.TrimRight("preloader "+c.name+" "+c.args, " ") }

const exitCodes = `Exit codes:
    0  every file is in place and proven
    1  passing trouble: start again, it goes on where it stopped; or arguments that are no pairs
   64  the command line is wrong
   65  bytes do not match what the store promises, or a safetensors file is broken
   66  the bucket, the path or a file is missing
   69  the endpoint did not answer, or stalled, through all retries
   73  no space, no memory for what was asked, or not writable
   77  the store refused the credentials, or there are none
   78  the configuration is wrong, or asks for what this program does not do
   80  a GPU is not fit for work, and --gpu-fail=true
  130  stopped by SIGINT
  143  stopped by SIGTERM
`

// overview is what help says about everything.
func overview() string {
	var b strings.Builder
	b.WriteString("preloader brings models from S3 into a directory, proves them, and says what went wrong if it cannot.\n\n" +
		"Usage:\n  preloader " + pairArgs + "\n  preloader COMMAND [FLAGS] [ARGUMENTS]\n\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "  %-14s %s\n", c.name, c.what)
	}
	b.WriteString("\nExamples:\n" +
		"  preloader plan s3://models/llama /mnt/models      # what would it take? fetches nothing\n" +
		"  preloader s3://models/llama /mnt/models           # fetch; run again to go on where it stopped\n" +
		"  preloader verify /mnt/models                      # read every byte and compare\n\n" +
		"Credentials and endpoint come from the environment, as KServe sets it: AWS_*, S3_*, STORAGE_*.\n" +
		"'preloader help COMMAND' tells a command's flags, 'preloader help settings' all of them.\n")
	return b.String()
}

// explain is what help says about one command.
func (c usage) explain() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\nUsage:\n  %s\n", capitalized(c.what), c.synopsis())
	if c.name == "pull" {
		b.WriteString("  preloader " + c.args + "\n")
	}
	if c.about != "" {
		b.WriteString("\n" + c.about + "\n")
	}
	if len(c.examples) > 0 {
		b.WriteString("\nExamples:\n")
		for _, e := range c.examples {
			b.WriteString("  " + e + "\n")
		}
	}
	own := slices.Clone(c.flags)
	for _, name := range c.also {
		if s, ok := settingOf(name); ok {
			own = append(own, s)
		}
	}
	if len(own) > 0 {
		b.WriteString("\nFlags:\n")
		for _, s := range own {
			s.describe(&b)
		}
	}
	for _, t := range topics {
		if slices.Contains(c.topics, t.name) {
			t.describe(&b)
		}
	}
	if len(c.topics) > 0 || len(c.also) > 0 {
		b.WriteString("\nEach of these may also be set in the environment: --verify=off is PRELOADER_VERIFY=off.\n")
	}
	return b.String()
}

func (t topic) describe(b *strings.Builder) {
	b.WriteString("\nFlags for " + t.name + ":\n")
	for _, s := range t.settings {
		s.describe(b)
	}
}

func (s setting) describe(b *strings.Builder) {
	fmt.Fprintf(b, "  %-38s %s\n", "--"+s.flag+"="+s.values, s.what)
}

// allSettings is what help says about settings.
func allSettings() string {
	var b strings.Builder
	b.WriteString("Settings, the default first. Each may be given as a flag or in the environment: " +
		"--verify=off is PRELOADER_VERIFY=off.\n")
	for _, t := range topics {
		t.describe(&b)
	}
	b.WriteString("\nFrom the environment alone, as KServe sets it:\n" +
		"  AWS_* with every source of credentials of the AWS SDK, AWS_ENDPOINT_URL, S3_ENDPOINT, S3_USE_HTTPS, S3_VERIFY_SSL,\n" +
		"  S3_USER_VIRTUAL_BUCKET, S3_USE_ACCELERATE, S3_CONNECT_TIMEOUT, S3_READ_TIMEOUT, S3_MAX_ATTEMPTS,\n" +
		"  S3_MAX_FILE_CONCURRENCY, awsAnonymousCredential, AWS_CA_BUNDLE, CA_BUNDLE_CONFIGMAP_NAME, CA_BUNDLE_VOLUME_MOUNT_POINT,\n" +
		"  STORAGE_CONFIG, STORAGE_OVERRIDE_CONFIG, STORAGE_ALLOW_PATTERNS, STORAGE_IGNORE_PATTERNS\n")
	return b.String()
}

// help explains what the arguments ask for.
func (c *Command) help(args []string) ExitCode {
	text := overview()
	if len(args) > 0 {
		about := usageOf(args[0])
		switch {
		case args[0] == "settings":
			text = allSettings()
		case args[0] == "exit-codes":
			text = exitCodes
		case about.name != "":
			text = about.explain()
		default:
			return c.misused("help", noCommand(args[0]))
		}
	}
	fmt.Fprint(c.Stdout, text)
	return ExitOK
}

// misused says what is wrong with a command line, and where to read on.
func (c *Command) misused(verb string, err error) ExitCode {
	fmt.Fprintf(c.Stderr, "preloader: %v\n", err)
	c.refer(verb)
	return ExitUsage
}

// refer says how a command is used, and where to read on.
func (c *Command) refer(verb string) {
	fmt.Fprintf(c.Stderr, "Usage: %s\nRun 'preloader help %s' for more.\n", usageOf(verb).synopsis(), verb)
}
