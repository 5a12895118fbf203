// SPDX-License-Identifier: Apache-2.0

// Command preloader measures the preloader against other programs that bring objects from S3 to files, on this machine
// and in turns, and writes what it found to test/bench/preloader.md. It builds the peers from Go modules beside it;
// KServe's own initializer runs in a Python environment that it makes, and awscli is Debian's. It exits with 0 whatever
// falls short: a loss is a finding.
//
// A whole series takes long. -cells and -clients run parts of it, whose results are kept in the file of -state and
// reported together.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// floorVerb makes this program the floor.
	floorVerb = "run-as-floor"
	// clientVerb makes it run a client and measure that.
	clientVerb = "run-client"
)

// options are the command line.
type options struct {
	cells, clients, disk, memory, state, out string
	rounds                                   int
	quick, kill                              bool
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	verb := ""
	if len(os.Args) > 1 {
		verb = os.Args[1]
	}
	switch verb {
	case floorVerb:
		return runFloor(ctx, os.Stdin)
	case clientVerb:
		return runClient(os.Args[2:])
	}
	return bench(ctx, parse())
}

func parse() options {
	var o options
	flag.StringVar(&o.cells, "cells", "", "which cells to measure, by commas; a name stands for all that begin with it")
	flag.StringVar(&o.clients, "clients", "", "which clients to measure, by commas")
	flag.IntVar(&o.rounds, "rounds", 0, "how many interleaved rounds; 5 if not given, and 1 with -quick")
	flag.BoolVar(&o.quick, "quick", false, "small workloads, and nothing written to the report: to see that it works")
	flag.BoolVar(&o.kill, "kill", false, "measure what is sent twice after a kill, in place of time")
	flag.StringVar(&o.disk, "disk", os.TempDir(), "a folder on a disk")
	flag.StringVar(&o.memory, "memory", "/dev/shm", "a folder in memory")
	flag.StringVar(&o.state, "state", "bin/bench-preloader.json", "where results are kept between parts of a series")
	flag.StringVar(&o.out, "out", "test/bench/preloader.md", "the report")
	flag.Parse()
	if o.rounds == 0 && o.quick {
		o.rounds = 1
	} else if o.rounds == 0 {
		o.rounds = 5
	}
	return o
}

// among reports whether a name is on a list by commas, by its beginning; an empty list has everything.
func among(list, name string) bool {
	return list == "" || slices.ContainsFunc(strings.Split(list, ","), func(s string) bool { return strings.HasPrefix(name, s) })
}

func bench(ctx context.Context, o options) error {
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	clients, err := builder{
		self:  self,
		cache: cache,
		say:   say,
	}.clients(
		ctx,
		func(name string) bool { return among(o.clients, name) },
	)
	if err != nil {
		return err
	}
	all := workloads
	if o.quick {
		all = tiny
	}
	l, closeLab, err := newLab(ctx, o, all)
	if err != nil {
		return err
	}
	defer closeLab()
	l.self, l.say = self, say
	r := newResults()
	if !o.quick {
		if r, err = loadResults(o.state); err != nil {
			return err
		}
	}
	r.Machine = machine(o)
	for _, c := range clients {
		r.Versions[c.name] = c.version
	}
	for _, c := range cells {
		if !among(o.cells, c.id()) || o.kill && (c.limited || c.far || c.tls || c.memory) {
			continue
		}
		if err := l.measure(ctx, o, c, clients, r); err != nil {
			return err
		}
		if !o.quick {
			if err := r.save(o.state); err != nil {
				return err
			}
		}
	}
	for _, t := range r.targets() {
		fmt.Fprintln(os.Stdout, t.line())
	}
	if o.quick {
		return nil
	}
	out, err := os.Create(o.out)
	if err != nil {
		return err
	}
	r.print(out, all)
	return out.Close()
}

// measure fills in one cell.
func (l *lab) measure(ctx context.Context, o options, c cell, clients []client, r *results) error {
	id := c.id()
	if !o.kill {
		samples, failed, err := l.rounds(ctx, c, clients, o.rounds)
		if err != nil {
			return err
		}
		if r.Samples[id] == nil || r.Failed[id] == nil {
			r.Samples[id], r.Failed[id] = map[string][]sample{}, map[string]string{}
		}
		for _, client := range clients {
			delete(r.Failed[id], client.name)
			if r.Samples[id][client.name] = samples[client.name]; failed[client.name] != "" {
				r.Failed[id][client.name] = failed[client.name]
			}
		}
		return nil
	}
	r.Refetched[id] = map[string]float64{}
	for _, client := range clients {
		if client.name == nameFloor {
			continue
		}
		share, err := l.killed(ctx, c, client)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			l.say("%s: %s: %v", id, client.name, err)
			continue
		}
		l.say("%-34s %-16s %5.1f %% sent twice", id, client.name, share*100)
		r.Refetched[id][client.name] = share
	}
	return nil
}

// newLab starts the server.
func newLab(ctx context.Context, o options, all []workload) (*lab, func(), error) {
	home, err := os.MkdirTemp(o.memory, "preloader-bench-home-")
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &lab{workloads: all, disk: o.disk, memory: o.memory, home: home, authority: filepath.Join(home, "authority.pem")}
	closeLab := func() {
		cancel()
		for _, dir := range append(l.done, home) {
			_ = os.RemoveAll(dir)
		}
	}
	certificate, pem, err := newCertificate()
	if err == nil {
		err = os.WriteFile(l.authority, pem, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(home, "aws-config"), []byte(awsConfig), 0o600)
	}
	if err == nil {
		l.store, err = newStore(home, all)
	}
	if err == nil {
		l.plain, l.secure, err = l.store.listen(ctx, certificate)
	}
	if err != nil {
		closeLab()
		return nil, nil, err
	}
	return l, closeLab, nil
}

func cacheDir() (string, error) {
	root := os.Getenv("OUTRIGGER_CACHE")
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding the cache folder, set OUTRIGGER_CACHE to choose one: %w", err)
		}
		root = filepath.Join(user, "outrigger")
	}
	dir := filepath.Join(root, "bench-preloader")
	return dir, os.MkdirAll(dir, 0o755)
}

// machine says what was measured on.
func machine(o options) string {
	var name unix.Utsname
	_ = unix.Uname(&name)
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	return fmt.Sprintf("%d x %s, %d GB of memory, Linux %s, disk %s, memory %s, %s", runtime.NumCPU(), processor(),
		info.Totalram*uint64(info.Unit)/1e9, unix.ByteSliceToString(name.Release[:]), fileSystem(o.disk), fileSystem(o.memory),
		runtime.Version())
}

func processor() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
