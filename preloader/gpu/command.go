// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"serverless.xyz/outrigger/preloader/quantity"
)

// ExitCode is what the process returns. The values are those of the preloader.
type ExitCode int

const (
	// ExitOK says that the check ran. What it found is in the report.
	ExitOK ExitCode = 0
	// ExitUsage says that the command line was wrong.
	ExitUsage ExitCode = 64
	// ExitIntegrity says that a file does not hold what it should.
	ExitIntegrity ExitCode = 65
	// ExitNotFound says that there is no model to load.
	ExitNotFound ExitCode = 66
	// ExitNoInput says that a file cannot be read.
	ExitNoInput ExitCode = 74
	// ExitConfig says that a variable of the environment is wrong.
	ExitConfig ExitCode = 78
	// ExitGPU says that a GPU is not fit for work.
	ExitGPU ExitCode = 80
	// ExitInterrupt says that SIGINT ended the run.
	ExitInterrupt ExitCode = 130
	// ExitTerminated says that SIGTERM ended the run.
	ExitTerminated ExitCode = 143
)

const usage = `Usage:
  preloader-gpu preflight [flags]            look at the driver and at every GPU
  preloader-gpu load [flags] PATH [PATH ...] load safetensors files, or the folders with them, into GPU memory
  preloader-gpu version                      print the version

The exit code is 0 whatever is found, unless --fail is given. Each flag can be set by a variable of the environment
instead: --call-timeout by PRELOADER_GPU_CALL_TIMEOUT. Flags:
`

// Command is the command line: arguments without the program's name, the environment,
// and where to write.
type Command struct {
	Args   []string
	Getenv func(string) string
	// Environ is the whole environment, as os.Environ returns it, to warn of variables
	// that mean nothing.
	Environ        []string
	Stdout, Stderr io.Writer
	// Restart runs the program again in this process's place, with one more variable. It
	// returns only if that fails.
	Restart func(variable string) error
}

// StoppedError is the cause of a context that a signal ended.
type StoppedError struct {
	// Signal is what ended it.
	Signal syscall.Signal
}

// Error names the signal.
func (s *StoppedError) Error() string { return "stopped by " + s.Signal.String() }

// Run does what the arguments ask for and returns the exit code. The process should
// end then, because threads may hang in the driver.
func (c *Command) Run(ctx context.Context) ExitCode {
	verb, args := "help", []string(nil)
	if len(c.Args) > 0 {
		verb, args = c.Args[0], c.Args[1:]
	}
	switch verb {
	case "preflight", "load":
		if wantsHelp(args) {
			c.help(c.Stdout)
			return ExitOK
		}
		return c.check(ctx, verb, args)
	case "version":
		fmt.Fprintln(c.Stdout, "preloader-gpu", Version())
		return ExitOK
	case "help", "-h", "-help", "--help":
		c.help(c.Stdout)
		if len(c.Args) > 0 {
			return ExitOK
		}
		return ExitUsage
	}
	fmt.Fprintf(c.Stderr, "preloader-gpu: unknown command %q\n", verb)
	c.help(c.Stderr)
	return ExitUsage
}

// wantsHelp reports whether a flag asks for help.
func wantsHelp(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" })
}

func (c *Command) help(w io.Writer) {
	fmt.Fprint(w, usage)
	flags := (&Options{}).flags()
	flags.SetOutput(w)
	flags.PrintDefaults()
}

// check runs a preflight or a load and reports.
func (c *Command) check(ctx context.Context, verb string, args []string) ExitCode {
	opts, paths, code, err := ParseOptions(args, c.Getenv)
	switch {
	case err != nil:
	case verb == "load" && len(paths) == 0:
		code, err = ExitUsage, errors.New("load takes the folder of a model, or its safetensors files")
	case verb == "preflight" && len(paths) > 0:
		code, err = ExitUsage, fmt.Errorf("preflight takes no %q: for a model, use load", paths[0])
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "preloader-gpu: %v; \"preloader-gpu help\" lists all flags\n", err)
		return code
	}
	if opts.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, opts.Deadline, &tooLongError{opts.Deadline})
		defer cancel()
	}
	waited := c.waited()
	if waited == 0 {
		c.warnOfStrangers()
	}
	var report *Report
	var again bool
	if verb == "load" {
		report, again = LoadModel(ctx, opts, paths)
	} else {
		report, again = Preflight(ctx, opts)
	}
	if again && waited < opts.Wait {
		c.wait(ctx, waited, opts.Wait)
	}
	report.Waited = waited.Seconds()
	if err := report.write(c.Stdout, opts.JSON); err != nil {
		fmt.Fprintln(c.Stderr, "preloader-gpu:", err)
	}
	return c.exitCode(ctx, opts, report)
}

// tooLongError says that a run took longer than it may.
type tooLongError struct{ limit time.Duration }

func (t *tooLongError) Error() string { return fmt.Sprintf("the run took longer than %v", t.limit) }
func (t *tooLongError) Unwrap() error { return context.DeadlineExceeded }

// preloaderOwn are variables of this program's prefix that the preloader reads.
var preloaderOwn = []string{"PRELOADER_GPU_GRACE", "PRELOADER_GPU_HOST_MEMORY", waitedVariable}

// warnOfStrangers says which variables of this program's prefix it does not know.
// Kubernetes itself sets some for a Service of that name.
func (c *Command) warnOfStrangers() {
	known := slices.Clone(preloaderOwn)
	(&Options{}).flags().VisitAll(func(f *flag.Flag) { known = append(known, variableOf(f.Name)) })
	for _, e := range c.Environ {
		name, value, _ := strings.Cut(e, "=")
		rest, own := strings.CutPrefix(name, "PRELOADER_GPU_")
		if !own || value == "" || slices.Contains(known, name) ||
			strings.HasPrefix(rest, "SERVICE_") || strings.HasPrefix(rest, "PORT") {
			continue
		}
		fmt.Fprintf(c.Stderr, "preloader-gpu: the environment variable %s is no setting and is ignored\n", name)
	}
}

// exitCode is 0 unless a failure was asked to be one, or a signal ended the run.
func (c *Command) exitCode(ctx context.Context, opts Options, report *Report) ExitCode {
	if stopped, ok := errors.AsType[*StoppedError](context.Cause(ctx)); ok {
		if stopped.Signal == syscall.SIGINT {
			return ExitInterrupt
		}
		return ExitTerminated
	}
	if !opts.Fail || report.Verdict != Unhealthy {
		return ExitOK
	}
	if code := report.worst().code; code != 0 {
		return code
	}
	return ExitGPU
}

// waitedVariable tells a new process how long those before it have waited.
const waitedVariable = "PRELOADER_GPU_WAITED"

func (c *Command) waited() time.Duration {
	waited, err := time.ParseDuration(c.Getenv(waitedVariable))
	if err != nil {
		return 0
	}
	return waited
}

// wait sleeps, longer each time, and starts over in a new process. It returns only if
// that cannot be.
func (c *Command) wait(ctx context.Context, waited, most time.Duration) {
	pause := min(max(waited, 500*time.Millisecond), 5*time.Second, most-waited)
	fmt.Fprintf(c.Stderr, "preloader-gpu: the fabric manager is not ready, trying again in %v\n", pause)
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return
	}
	if err := c.Restart(fmt.Sprintf("%s=%v", waitedVariable, waited+pause)); err != nil {
		fmt.Fprintln(c.Stderr, "preloader-gpu: starting again:", err)
	}
}

// RestartSelf replaces the process by a new one of the same program and arguments.
func RestartSelf(variable string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the program: %w", err)
	}
	name, _, _ := strings.Cut(variable, "=")
	environment := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, name+"=") })
	return syscall.Exec(self, os.Args, append(environment, variable)) //nolint:gosec // this program again
}

// ParseOptions reads flags, and for those that are not given the environment. The exit
// code goes with the error.
func ParseOptions(args []string, getenv func(string) string) (Options, []string, ExitCode, error) {
	opts := Options{}
	flags := opts.flags()
	flags.SetOutput(io.Discard)
	var wrong error
	flags.VisitAll(func(f *flag.Flag) {
		name := variableOf(f.Name)
		if v := getenv(name); v != "" && wrong == nil {
			if err := f.Value.Set(v); err != nil {
				wrong = fmt.Errorf("environment variable %s is %q: %w", name, v, err)
			}
		}
	})
	if wrong != nil {
		return opts, nil, ExitConfig, wrong
	}
	if err := flags.Parse(args); err != nil {
		return opts, nil, ExitUsage, err
	}
	if opts.Readers >= opts.Buffers {
		opts.Readers = opts.Buffers - 1
	}
	return opts, flags.Args(), ExitOK, nil
}

func variableOf(name string) string {
	return "PRELOADER_GPU_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// flags binds the options to flags, with their defaults.
func (o *Options) flags() *flag.FlagSet {
	*o = Options{ReadBack: ReadBackSample}
	f := flag.NewFlagSet("preloader-gpu", flag.ContinueOnError)
	f.BoolFunc("fail", "exit with 80 if a GPU is not fit for work, 65 if a file does not hold what it should, 66 if there "+
		"is no model, 74 if a file cannot be read", yesOrNo(&o.Fail))
	f.BoolFunc("json", "report in one line of JSON", yesOrNo(&o.JSON))
	o.Stall, o.Wait = time.Minute, time.Minute
	f.Func("call-timeout", "how `long` one call into the driver may take (default 1m)", timeIn(&o.Stall, time.Millisecond))
	f.Func("deadline", "how `long` the run may take; 0 for as long as it needs (default 0)", timeIn(&o.Deadline, 0))
	f.Func("wait", "how `long` to wait for the fabric manager (default 1m)", timeIn(&o.Wait, 0))
	f.Func("cuda", "the `version` of CUDA that the driver must support, such as 12.4", func(v string) (err error) {
		o.CUDA, err = parseCUDAVersion(v)
		return err
	})
	f.Func("devices", "how `many` GPUs must be there (default 1)", inRange(&o.Devices, 1, 64))
	f.Func("memory", "how many `bytes` must be free on all GPUs together, such as 40Gi", bytesIn(&o.Memory, 0, 1<<50))
	o.Link, o.BufferSize, o.Buffers, o.Readers = 256<<20, 16<<20, 4, 3
	f.Func("link", "how many `bytes` to copy each way to measure a link; 0 for none (default 256Mi)", bytesIn(&o.Link, 0, 16<<30))
	f.Func("buffers", "how `many` page-locked buffers a GPU gets, 2 to 16 (default 4)", inRange(&o.Buffers, 2, 16))
	f.Func("buffer-size", "their size in `bytes`, 1Mi to 256Mi (default 16Mi)", bytesIn(&o.BufferSize, 1<<20, 256<<20))
	f.Func("readers", "how `many` threads read files for a GPU, fewer than buffers: 1 to 15 (default 3)",
		inRange(&o.Readers, 1, 15))
	f.Func("read-back", "how `much` to compare in GPU memory: sample, all or off (default sample)", func(v string) error {
		if !slices.Contains([]ReadBack{ReadBackSample, ReadBackAll, ReadBackOff}, ReadBack(v)) {
			return errors.New("want sample, all or off")
		}
		o.ReadBack = ReadBack(v)
		return nil
	})
	return f
}

func yesOrNo(into *bool) func(string) error {
	return func(v string) error {
		yes, err := strconv.ParseBool(v)
		if err != nil {
			return errors.New("want true or false")
		}
		*into = yes
		return nil
	}
}

func timeIn(into *time.Duration, least time.Duration) func(string) error {
	return func(v string) error {
		d, err := quantity.ParseSeconds(v)
		if err != nil {
			return err
		}
		if d < least {
			return fmt.Errorf("want %v or more", least)
		}
		*into = d
		return nil
	}
}

func inRange(into *int, least, most int) func(string) error {
	return func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < least || n > most {
			return fmt.Errorf("want a whole number from %d to %d", least, most)
		}
		*into = n
		return nil
	}
}

func bytesIn(into *int64, least, most int64) func(string) error {
	return func(v string) error {
		n, err := quantity.ParseBytes(v)
		if err != nil {
			return err
		}
		if n < least || n > most {
			return fmt.Errorf("want %d to %d bytes", least, most)
		}
		*into = n
		return nil
	}
}

func parseCUDAVersion(text string) (CUDAVersion, error) {
	major, minor, _ := strings.Cut(text, ".")
	a, err := strconv.ParseUint(major, 10, 8)
	b, err2 := strconv.ParseUint(minor, 10, 8)
	if minor == "" {
		err2 = nil
	}
	if err != nil || err2 != nil {
		return CUDAVersion{}, errors.New("want a version such as 12.4")
	}
	return CUDAVersion{int(a), int(b)}, nil
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
