// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
)

// Command is the command line: arguments without the program's name, the
// environment, and where to write.
type Command struct {
	Args           []string
	Getenv         func(string) string
	Stdout, Stderr io.Writer

	// Environ is the whole environment, as os.Environ returns it: a pull and a plan warn of
	// settings in it that do not exist. It may be nil.
	Environ []string

	// flags are settings that were given as flags, by variable.
	flags map[string]string
}

// StoppedError is the cause of a context that a signal ended.
type StoppedError struct {
	// Signal is what ended it.
	Signal os.Signal
}

// Error names the signal.
func (s *StoppedError) Error() string { return "stopped by " + s.Signal.String() }

// Run does what the arguments ask for and returns the exit code.
func (c *Command) Run(ctx context.Context) ExitCode {
	verb, args := c.verb()
	switch verb {
	case "help":
		return c.help(args)
	case "preflight", "load":
		return c.gpuVerb(ctx, verb, args)
	}
	if wantsHelp(args) {
		return c.help([]string{verb})
	}
	c, flags, args, err := c.takeFlags(verb, args)
	switch {
	case err != nil && verb == "pull":
		return c.misusedPull(err)
	case err != nil:
		return c.misused(verb, err)
	}
	switch verb {
	case "plan":
		return c.plan(ctx, flags, args)
	case "verify":
		return c.verify(ctx, args)
	case "warm":
		return c.warm(ctx, flags, args)
	case "publish-cache":
		return c.publishCache(ctx, flags, args)
	case "version":
		fmt.Fprintln(c.Stdout, Version())
		return ExitOK
	}
	return c.pull(ctx, args)
}

// wantsHelp reports whether a flag asks for help.
func wantsHelp(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--":
			return false
		case "-h", "-help", "--help":
			return true
		}
	}
	return false
}

// verb tells what is asked for. Arguments that start with no known word are a
// pull, because that is how KServe calls its initializer.
func (c *Command) verb() (string, []string) {
	if len(c.Args) > 0 {
		switch first := c.Args[0]; {
		case usageOf(first).name != "":
			return first, c.Args[1:]
		case first == "--version":
			return "version", nil
		case wantsHelp(c.Args[:1]):
			return "help", nil
		}
	}
	return "pull", c.Args
}

// misusedPull says what is wrong with a command line, also to Kubernetes.
func (c *Command) misusedPull(err error) ExitCode {
	c.refer("pull")
	opts := Options{TerminationLog: firstOf(c.Getenv("PRELOADER_TERMINATION_LOG"), DefaultTerminationLog)}
	return c.end(c.logger(c.Getenv("PRELOADER_LOG") == "json"), opts, &Report{}, err)
}

// pull fetches pairs and leaves the last word.
func (c *Command) pull(ctx context.Context, args []string) ExitCode {
	opts, err := c.options()
	var bar *screen
	if !opts.JSONLogs {
		c, bar = c.onScreen()
	}
	log := c.logger(opts.JSONLogs)
	if err != nil {
		opts.TerminationLog = firstOf(c.Getenv("PRELOADER_TERMINATION_LOG"), DefaultTerminationLog)
		return c.end(log, opts, &Report{}, err)
	}
	if len(args) < 2 || len(args)%2 != 0 || misspelt(args[0]) {
		failure := noPairs(args)
		failure.Code = ExitTransient // as KServe's initializer
		return c.misusedPull(failure)
	}
	warnOfStrangers(c.Environ, log)
	opts.Meter = &Meter{}
	publishEnd := publish(opts.Metrics, opts.Meter, log)
	stopFollowing := startFollowing(ctx, opts.Meter, log, "Downloading", bar)
	report, err := pullAndCheck(ctx, opts, pairsOf(args), log)
	stopFollowing()
	code := c.end(log, opts, report, err)
	publishEnd(report, code)
	return code
}

// noPairs says that arguments are no pairs of a source and a directory.
func noPairs(args []string) *ExitError {
	switch {
	case len(args) == 0:
		return usageFailure("a source and a directory are missing")
	case len(args) == 1 && !strings.ContainsAny(args[0], "/:"), misspelt(args[0]):
		return noCommand(args[0])
	}
	return usageFailure("%s has no directory to go to", args[len(args)-1])
}

// noCommand says that there is no such command, and which one may have been meant.
func noCommand(word string) *ExitError {
	failure := usageFailure("there is no command %s", word)
	if meant := nearest(word, commandNames()); meant != "" {
		failure.Advice = "Did you mean " + meant + "?"
	}
	return failure
}

// misspelt reports whether a word was meant to be a command rather than the source of a pair.
func misspelt(word string) bool {
	if strings.ContainsAny(word, "/:") || nearest(word, commandNames()) == "" {
		return false
	}
	_, err := os.Lstat(word)
	return errors.Is(err, fs.ErrNotExist)
}

func commandNames() []string {
	var names []string
	for _, u := range commands {
		names = append(names, u.name)
	}
	return names
}

// pairsOf pairs an even number of arguments.
func pairsOf(args []string) []Pair {
	var pairs []Pair
	for i := 0; i < len(args); i += 2 {
		pairs = append(pairs, Pair{Source: args[i], Dest: args[i+1]})
	}
	return pairs
}

// end says how it went, in the log and in the termination message.
func (c *Command) end(log *slog.Logger, opts Options, report *Report, err error) ExitCode {
	var failure *ExitError
	if err != nil {
		failure = failureOf(err)
	}
	message := terminationMessage(report, failure)
	if err := writeTermination(opts.TerminationLog, message); err != nil {
		log.Warn("The termination message could not be left", "cause", err.Error())
	}
	if failure != nil {
		log.Error(sentence(failure), "reason", failure.Reason, "code", int(failure.Code))
		return failure.Code
	}
	attrs := []any{"retries", report.Retries, "digests", strings.Join(report.Digests, ",")}
	if opts.JSONLogs {
		attrs = []any{"report", report}
	}
	log.Info("Model ready: "+report.summary(), attrs...)
	return ExitOK
}

// failed says what went wrong in the log, and returns the exit code.
func (c *Command) failed(log *slog.Logger, err error) ExitCode {
	f := failureOf(err)
	log.Error(sentence(f), "reason", f.Reason, "code", int(f.Code))
	return f.Code
}

// failureOf words any error, signals included.
func failureOf(err error) *ExitError {
	var stopped *StoppedError
	if !errors.As(err, &stopped) {
		return asFailure(err)
	}
	f := &ExitError{
		Code: ExitTerminated, Reason: "Stopped", Cause: "the run was " + stopped.Error(),
		Advice: "The next start goes on where this one stopped.",
	}
	if stopped.Signal == syscall.SIGINT {
		f.Code = ExitInterrupt
	}
	return f
}

// Version returns the version that the build was given, or that of the module.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// version is set by the linker.
var version string
