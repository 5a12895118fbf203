// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sample is what one run of a client took.
type sample struct {
	// Wall and CPU are seconds; CPU is user and system time of the client and its children, not of the server.
	Wall, CPU float64
	// RSS is the largest resident set of any process of the client, in bytes.
	RSS int64
}

// process is a client at work. It runs below a small process of its own, because what the kernel counts as a program's
// largest resident set includes that of the process that started it.
type process struct {
	*exec.Cmd
	out    bytes.Buffer
	result *os.File
	name   string
}

// begin starts a client, within the groups if there are any.
func begin(ctx context.Context, self string, c client, j job, g *groups) (*process, error) {
	argv, env, stdin := c.command(j)
	argv = g.within(append([]string{self, clientVerb}, argv...))
	p := &process{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), name: c.name}
	result, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer end.Close()
	p.result = result
	p.ExtraFiles = []*os.File{end}
	p.Env = append(j.environment(), env...)
	p.Stdin, p.Stdout, p.Stderr = bytes.NewReader(stdin), &p.out, &p.out
	// A group of its own, so that a kill takes workers along.
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.Cancel = p.kill
	if err := p.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", c.name, err), result.Close())
	}
	return p, nil
}

func (p *process) kill() error { return syscall.Kill(-p.Process.Pid, syscall.SIGKILL) }

// end waits for the client and tells what it took.
func (p *process) end() (sample, error) {
	defer p.result.Close()
	err := p.Wait()
	var s sample
	if err == nil {
		err = json.NewDecoder(p.result).Decode(&s)
	}
	if err != nil {
		return s, fmt.Errorf("running %s: %w\n%s", p.name, err, tail(p.out.Bytes()))
	}
	return s, nil
}

// resultFile is where runClient writes.
const resultFile = 3

// runClient is the process above a client: it runs it and writes what it took.
func runClient(argv []string) error {
	result := os.NewFile(resultFile, "result")
	syscall.CloseOnExec(resultFile)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return err
	}
	s := sample{
		Wall: time.Since(began).Seconds(), CPU: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(),
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.RSS = usage.Maxrss << 10
	}
	return json.NewEncoder(result).Encode(s)
}

func tail(out []byte) []byte { return bytes.TrimSpace(out[max(0, len(out)-2000):]) }

// groups are control groups with KServe's default limits for its initializer: 1 CPU and 1 GiB. Their making needs root.
type groups struct {
	dirs []string
}

const (
	limitMemory = 1024 * mebibyte
	limitCPUs   = 1
	cpuPeriod   = 100_000 // microseconds
)

func newGroups() (*groups, error) {
	const root = "/sys/fs/cgroup"
	name := "preloader-bench-" + strconv.Itoa(os.Getpid())
	quota := strconv.Itoa(limitCPUs * cpuPeriod)
	settings := []struct{ dir, file, value string }{
		{root + "/memory/" + name, "memory.limit_in_bytes", strconv.Itoa(limitMemory)},
		{root + "/cpu/" + name, "cpu.cfs_quota_us", quota},
	}
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		settings = []struct{ dir, file, value string }{
			{root + "/" + name, "memory.max", strconv.Itoa(limitMemory)},
			{root + "/" + name, "cpu.max", quota + " " + strconv.Itoa(cpuPeriod)},
		}
	}
	g := &groups{}
	for _, s := range settings {
		if err := os.Mkdir(s.dir, 0o755); err == nil {
			g.dirs = append(g.dirs, s.dir)
		} else if !errors.Is(err, os.ErrExist) {
			return nil, errors.Join(fmt.Errorf("making a control group: %w", err), g.close())
		}
		if err := os.WriteFile(filepath.Join(s.dir, s.file), []byte(s.value), 0o644); err != nil {
			return nil, errors.Join(fmt.Errorf("limiting a control group: %w", err), g.close())
		}
	}
	return g, nil
}

// within returns arguments that start the program within the groups. None at all limit nothing.
func (g *groups) within(argv []string) []string {
	if g == nil {
		return argv
	}
	var join strings.Builder
	for _, d := range g.dirs {
		fmt.Fprintf(&join, "echo $$ > %s/cgroup.procs || exit 125; ", d)
	}
	return append([]string{"/bin/sh", "-c", join.String() + `exec "$@"`, "sh"}, argv...)
}

// close removes the groups, which must be empty.
func (g *groups) close() error {
	if g == nil {
		return nil
	}
	var err error
	for _, d := range g.dirs {
		err = errors.Join(err, os.Remove(d))
	}
	return err
}
