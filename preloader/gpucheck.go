// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"serverless.xyz/outrigger/preloader/quantity"
	"serverless.xyz/outrigger/preloader/safetensors"
)

// GPUMode says what is done about the GPUs of the pod.
type GPUMode string

const (
	// GPUOff leaves them alone.
	GPUOff GPUMode = "off"
	// GPUPreflight checks them while the model is fetched.
	GPUPreflight GPUMode = "preflight"
	// GPULoad also loads the model into their memory once it is there, to prove that
	// it fits and arrives intact. It does not stay there.
	GPULoad GPUMode = "load"
)

// gpuProgram is another program, because calling the driver takes a dynamically linked
// one, and because a driver that crashes or hangs must not take the pull along.
const gpuProgram = "preloader-gpu"

// GPUVerdict is what a check of the GPUs came to.
type GPUVerdict struct {
	// Check is preflight or load.
	Check string `json:"check"`
	// Verdict is healthy, degraded or unhealthy.
	Verdict string `json:"verdict"`
	// Reason names the worst finding in one word; empty if there is none.
	Reason string `json:"reason,omitempty"`
	// Summary is one sentence, with cause and advice.
	Summary string `json:"summary"`

	// free is how many bytes were free on all GPUs together; 0 if that is not known.
	free int64
}

// unhealthy is the verdict that fails a pull if it is asked to.
const unhealthy = "unhealthy"

// noVerdict stands for a check that did not come to one.
func noVerdict(check, reason, cause string) *GPUVerdict {
	return &GPUVerdict{Check: check, Verdict: unhealthy, Reason: reason, Summary: "GPU " + check + ": " + cause}
}

// failure is the verdict as the pull's end, if it is asked to be.
func (v *GPUVerdict) failure(opts Options) *ExitError {
	if v == nil || !opts.GPUFail || v.Verdict != unhealthy {
		return nil
	}
	return &ExitError{
		Code: ExitGPU, Reason: cmp.Or(v.Reason, "GPU"), Cause: strings.TrimSuffix(v.Summary, "."),
		Advice: "Without PRELOADER_GPU_FAIL, the pod starts anyway.",
	}
}

// pullAndCheck pulls, and does to the GPUs what is asked for. The check beside the pull
// ends it if that was asked for; otherwise no check can make a pull fail, or wait for long.
func pullAndCheck(ctx context.Context, opts Options, pairs []Pair, log *slog.Logger) (*Report, error) {
	if opts.GPU == GPUOff {
		return Pull(ctx, opts, pairs, log)
	}
	pulling, end := context.WithCancelCause(ctx)
	defer end(nil)
	preflight := startPreflight(pulling, opts, log, end)
	if anyInMemory(pairs) { // from file to file, the model leaves the check less memory
		preflight.finish(opts.GPUGrace)
	}
	report, err := Pull(pulling, opts, pairs, log)
	if err != nil {
		end(err)
	}
	report.GPU = preflight.finish(opts.GPUGrace)
	if err == nil && opts.GPU == GPUPreflight && report.GPU != nil {
		report.GPU.compare(weightsIn(destinations(pairs)), log)
	}
	if err == nil && opts.GPU == GPULoad && report.GPU != nil && report.GPU.Verdict != unhealthy {
		report.GPU = loadOntoGPU(ctx, opts, pairs, report.Bytes, log)
	}
	if failure := report.GPU.failure(opts); err == nil && failure != nil {
		err = failure
	}
	return report, err
}

// errCheckTooLong ends a check that takes longer than one waits for it.
var errCheckTooLong = errors.New("the check took too long")

// preflight is a check under way beside a pull.
type preflight struct {
	late    context.CancelCauseFunc
	ended   chan struct{}
	verdict *GPUVerdict // once it has ended
}

// startPreflight starts a check; fail is called with its failure if that was asked for.
func startPreflight(ctx context.Context, opts Options, log *slog.Logger, fail context.CancelCauseFunc) *preflight {
	ctx, late := context.WithCancelCause(ctx)
	p := &preflight{late: late, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.verdict = checkGPU(ctx, opts, log, string(GPUPreflight))
		if failure := p.verdict.failure(opts); failure != nil {
			fail(failure)
		}
	}()
	return p
}

// finish returns the verdict, for which it waits so long at most.
func (p *preflight) finish(grace time.Duration) *GPUVerdict {
	timer := time.AfterFunc(grace, func() { p.late(errCheckTooLong) })
	defer timer.Stop()
	<-p.ended
	return p.verdict
}

// anyInMemory reports whether a model goes where files take memory.
func anyInMemory(pairs []Pair) bool {
	for _, pair := range pairs {
		s, err := viewStore(pair.Dest)
		if err != nil {
			continue // the pull will tell
		}
		s.close()
		if s.memory {
			return true
		}
	}
	return false
}

// compare adds to a verdict that weights of so many bytes are more than the GPUs have room
// for. That is no failure: a model server may keep a part of them elsewhere.
func (v *GPUVerdict) compare(weights int64, log *slog.Logger) {
	if v.free == 0 || weights <= v.free || v.Verdict == unhealthy {
		return
	}
	const reason = "NotEnoughMemory"
	text := fmt.Sprintf("The model's weights come to %s, and the GPUs have %s free: use more or larger GPUs or a "+
		"quantised model, unless the model server keeps a part in host memory.",
		quantity.FormatBytes(weights), quantity.FormatBytes(v.free))
	log.Warn(text, "reason", reason)
	v.Verdict, v.Reason = "degraded", cmp.Or(v.Reason, reason)
	v.Summary += " " + text
}

// weightsIn returns the size of the safetensors files in folders, as a load takes them:
// those that an index names, or else all.
func weightsIn(folders []string) int64 {
	var sum int64
	for _, folder := range folders {
		for _, name := range shardsIn(folder) {
			if info, err := os.Stat(filepath.Join(folder, name)); err == nil {
				sum += info.Size()
			}
		}
	}
	return sum
}

func shardsIn(folder string) []string {
	if index, err := os.Open(filepath.Join(folder, safetensors.IndexName)); err == nil {
		defer index.Close() //nolint:errcheck // only read
		if names, err := safetensors.IndexFiles(index); err == nil {
			return names
		}
	}
	var names []string
	entries, _ := os.ReadDir(folder) // of a folder that cannot be read, nothing is known
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".safetensors") {
			names = append(names, e.Name())
		}
	}
	return names
}

// slowestLoad is the rate, in bytes a second, at which a load must come on at least.
const slowestLoad = 100e6

// loadOntoGPU loads what was pulled, so many bytes, and is not waited for longer than that
// can take.
func loadOntoGPU(ctx context.Context, opts Options, pairs []Pair, bytes int64, log *slog.Logger) *GPUVerdict {
	longest := opts.GPUGrace + time.Duration(float64(bytes)/slowestLoad*float64(time.Second))
	ctx, cancel := context.WithTimeoutCause(ctx, longest, errCheckTooLong)
	defer cancel()
	return checkGPU(ctx, opts, log, string(GPULoad), append([]string{"--"}, destinations(pairs)...)...)
}

// tooTight returns why a check must not run: where the kernel ends all processes of a
// container together when its memory is used up, as Kubernetes asks it to, the check would
// take the pull along.
func tooTight(opts Options, check string, l limits) *GPUVerdict {
	need := opts.GPUHostMemory + opts.Memory + breath
	if !l.together || l.room() >= need {
		return nil
	}
	return noVerdict(check, "NoMemory", fmt.Sprintf("it was not run: the container may then take %s more of %s than is left, "+
		"and the kernel would end the pull too. Raise the memory limit, or lower PRELOADER_GPU_HOST_MEMORY if that is too careful.",
		quantity.FormatBytes(need-l.room()), describeLimit(l)))
}

// checkGPU runs the GPU program and reads its verdict. It returns nil if the context
// ended before there was one, for another reason than that the check takes too long.
func checkGPU(ctx context.Context, opts Options, log *slog.Logger, check string, args ...string) *GPUVerdict {
	path, err := findGPUProgram()
	if err != nil {
		return said(log, noVerdict(check, "NoProgram", err.Error()+". Use the image preloader-gpu."))
	}
	if v := tooTight(opts, check, readLimits(os.DirFS("/"))); v != nil {
		return said(log, v)
	}
	args = append([]string{check, "--json", "--fail=false"}, args...)
	program := exec.CommandContext(ctx, path, args...)
	program.Env = withoutSecrets(os.Environ())
	lines := &lineTaker{say: func(line string) { log.Info(line) }}
	program.Stderr = lines
	output, err := program.StdoutPipe()
	if err == nil {
		err = program.Start()
	}
	if err != nil {
		return said(log, noVerdict(check, "NoProgram", fmt.Sprintf("%s cannot be run: %v.", path, err)))
	}
	// Where the kernel ends one process for memory, it takes the check and not the pull.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", program.Process.Pid), []byte("1000"), 0)
	verdict, err := readVerdict(ctx, output, check)
	patience := time.Second / 2
	if err != nil && ctx.Err() == nil { // it wrote no report, so it is ending, which tells why
		patience = 10 * time.Second
	}
	state := waitBriefly(program, patience)
	switch {
	case err != nil && errors.Is(context.Cause(ctx), errCheckTooLong):
		verdict = noVerdict(check, "Timeout", "it gave no verdict in time and was ended: the driver or a disk hangs. "+
			"Look at the node's kernel log, or raise PRELOADER_GPU_GRACE.")
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), errCheckTooLong):
		return nil
	case err == nil:
	case state != nil && (state.ExitCode() == int(ExitConfig) || state.ExitCode() == int(ExitUsage)):
		verdict = noVerdict(check, "Configuration", lines.last+".")
	default:
		verdict = noVerdict(check, "Crashed", fmt.Sprintf(
			"%s gave no verdict (%v): the driver is broken. Look for Xid in the node's kernel log.", gpuProgram, state))
	}
	return said(log, verdict)
}

// said logs a verdict.
func said(log *slog.Logger, v *GPUVerdict) *GPUVerdict {
	if v.Verdict == "healthy" {
		log.Info(v.Summary)
	} else {
		log.Warn(v.Summary, "reason", v.Reason)
	}
	return v
}

// findGPUProgram looks beside this program, and then in the path.
func findGPUProgram() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), gpuProgram)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(gpuProgram)
	if err != nil {
		return "", errors.New("the program " + gpuProgram + " is not in this image")
	}
	return path, nil
}

// withoutSecrets leaves the store's settings out of an environment.
func withoutSecrets(environment []string) []string {
	var kept []string
	for _, e := range environment {
		if !strings.HasPrefix(e, "AWS_") && !strings.HasPrefix(e, "STORAGE_") && !strings.HasPrefix(e, "S3_") {
			kept = append(kept, e)
		}
	}
	return kept
}

// readVerdict reads the program's report. It does not wait for the program's end: one
// that hangs in the driver may not have any.
func readVerdict(ctx context.Context, output io.Reader, check string) (*GPUVerdict, error) {
	type findings struct {
		GPUVerdict
		Findings []struct {
			Severity string `json:"severity"`
			Reason   string `json:"reason"`
		} `json:"findings"`
		Devices []struct {
			MemoryFree int64 `json:"memoryFree"`
		} `json:"devices"`
	}
	read := make(chan error, 1)
	var report findings
	go func() { read <- json.NewDecoder(output).Decode(&report) }()
	select {
	case err := <-read:
		if err != nil {
			return nil, fmt.Errorf("reading the report: %w", err)
		}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	verdict := report.GPUVerdict
	verdict.Check = check
	for _, d := range report.Devices {
		verdict.free += d.MemoryFree
	}
	for _, severity := range []string{"failure", "warning"} {
		for _, f := range report.Findings {
			if verdict.Reason == "" && f.Severity == severity {
				verdict.Reason = f.Reason
			}
		}
	}
	// The whole termination message has 2 KiB.
	const longest = 700
	if len(verdict.Summary) > longest {
		verdict.Summary = strings.ToValidUTF8(verdict.Summary[:longest], "") + "…"
	}
	return &verdict, nil
}

// waitBriefly collects the program's end, or returns nil if that takes longer.
func waitBriefly(program *exec.Cmd, patience time.Duration) *os.ProcessState {
	ended := make(chan *os.ProcessState, 1)
	go func() {
		_ = program.Wait()
		ended <- program.ProcessState
	}()
	select {
	case state := <-ended:
		return state
	case <-time.After(patience):
		return nil
	}
}

// lineTaker says what is written to it, line by line, and of a crash the first line only:
// what Go's runtime tells of it beyond that is of no use to whoever has a broken driver.
type lineTaker struct {
	say     func(line string)
	rest    []byte
	last    string
	crashed bool
}

// crashLine is how Go's runtime begins to tell of a crash.
var crashLine = regexp.MustCompile(`^(SIG[A-Z]+: |fatal error: |unexpected fault address |panic: )`)

// Write never fails.
func (l *lineTaker) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		if l.crashed {
			continue
		}
		l.last = string(line)
		l.crashed = crashLine.MatchString(l.last)
		l.say(l.last)
	}
}

// gpuVerb hands a command over to the GPU program.
func (c *Command) gpuVerb(ctx context.Context, verb string, args []string) ExitCode {
	path, err := findGPUProgram()
	if err != nil && wantsHelp(args) {
		return c.help([]string{verb})
	}
	if err != nil {
		fmt.Fprintf(c.Stderr, "preloader %s: %v; use the image preloader-gpu\n", verb, err)
		return ExitConfig
	}
	program := exec.CommandContext(ctx, path, append([]string{verb}, args...)...)
	lines := &lineTaker{say: func(line string) { fmt.Fprintln(c.Stderr, line) }}
	program.Stdout, program.Stderr = c.Stdout, lines
	program.Cancel = func() error { return program.Process.Signal(stopSignal(ctx)) }
	if err := program.Run(); err != nil && program.ProcessState == nil {
		fmt.Fprintf(c.Stderr, "preloader %s: %v\n", verb, err)
		return ExitConfig
	}
	if code := program.ProcessState.ExitCode(); code >= 0 && !lines.crashed {
		return ExitCode(code)
	}
	fmt.Fprintf(c.Stderr, "preloader %s: %s crashed (%v): the driver is broken; look for Xid in the node's kernel log\n",
		verb, gpuProgram, program.ProcessState)
	return ExitGPU
}

// stopSignal is the signal that ended a context, or else SIGTERM's equal.
func stopSignal(ctx context.Context) os.Signal {
	if stopped, ok := errors.AsType[*StoppedError](context.Cause(ctx)); ok {
		return stopped.Signal
	}
	return os.Kill
}
