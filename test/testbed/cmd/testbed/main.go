// SPDX-License-Identifier: Apache-2.0

// Command testbed brings up a Kubernetes cluster on this machine and takes it down again. See package testbed.
//
// It exits with 0 if what was asked for happened, with 1 if not, and with 2 if it was called wrongly.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"serverless.xyz/outrigger/test/testbed"
)

const usage = `usage: testbed COMMAND [flags]

  up [--size api|control|node] [--keep] [--resource NAME=AMOUNT]
          start a testbed and print how to use it; it ends with Ctrl-C, or with "down" if kept
  down [ID...]
          stop testbeds: those named, or the only one there is
  status  list the testbeds that run
  env [ID]
          print shell lines that set KUBECONFIG and the addresses
  clean   remove what dead testbeds left behind
  build [--size SIZE]
          build the programs of a size, node unless given, so that the next start takes seconds
`

// errUsage says that the command line makes no sense.
var errUsage = errors.New("wrong usage")

func main() {
	os.Exit(exitCode())
}

func exitCode() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		return 2
	case err != nil:
		fmt.Fprintln(os.Stderr, "testbed:", err)
		return 1
	default:
		return 0
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"up": up, "down": down, "status": status, "env": env, "clean": clean, "build": build,
	}
	command, ok := commands[args[0]]
	if !ok {
		return errUsage
	}
	return command(ctx, args[1:], stdout, stderr)
}

// resources collects NAME=AMOUNT flags.
type resources map[string]string

func (r resources) String() string { return "" }

func (r resources) Set(value string) error {
	name, amount, ok := strings.Cut(value, "=")
	if !ok || name == "" || amount == "" {
		return errors.New("want NAME=AMOUNT, as in nvidia.com/gpu=1")
	}
	r[name] = amount
	return nil
}

func parse(flags *flag.FlagSet, args []string, stderr io.Writer) error {
	flags.SetOutput(stderr)
	if err := flags.Parse(args); err != nil {
		return errUsage
	}
	return nil
}

func up(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	name := flags.String("size", testbed.Control.String(), "api, control or node")
	keep := flags.Bool("keep", false, "let it run in the background")
	advertised := resources{}
	flags.Var(advertised, "resource", "extended resource that the node advertises, NAME=AMOUNT")
	if err := parse(flags, args, stderr); err != nil {
		return err
	}
	size, err := testbed.ParseSize(*name)
	if err != nil {
		return err
	}
	tb, err := testbed.Start(ctx, testbed.Options{Size: size, ExtendedResources: advertised, Progress: stderr})
	if err != nil {
		return err
	}
	printEnv(stdout, tb.State())
	if *keep {
		_, _ = fmt.Fprintf(stderr, "testbed %s runs until: testbed down %s\n", tb.State().ID, tb.State().ID)
		return tb.Detach()
	}
	_, _ = fmt.Fprintf(stderr, "testbed %s runs until Ctrl-C\n", tb.State().ID)
	<-ctx.Done()
	return tb.Stop()
}

func down(ctx context.Context, args []string, _, _ io.Writer) error {
	if len(args) == 0 {
		only, err := one(nil)
		if err != nil {
			return err
		}
		args = []string{only.ID}
	}
	var failed error
	for _, id := range args {
		if _, err := one([]string{id}); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		failed = errors.Join(failed, testbed.Down(ctx, id))
	}
	return failed
}

// one returns the running testbed with the id in args, or the only one if there is none.
func one(args []string) (testbed.State, error) {
	states, err := testbed.List()
	if err != nil {
		return testbed.State{}, err
	}
	if len(args) == 0 {
		switch len(states) {
		case 0:
			return testbed.State{}, errors.New("no testbed runs; start one with: testbed up")
		case 1:
			return states[0], nil
		default:
			return testbed.State{}, fmt.Errorf("%d testbeds run: name one of those that testbed status lists", len(states))
		}
	}
	for _, s := range states {
		if s.ID == args[0] {
			return s, nil
		}
	}
	return testbed.State{}, fmt.Errorf("no testbed %q runs", args[0])
}

func status(_ context.Context, _ []string, stdout, _ io.Writer) error {
	states, err := testbed.List()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(stdout, "%-10s %-8s %-8s %s\n", "ID", "SIZE", "AGE", "LOGS")
	for _, s := range states {
		age := time.Since(s.Started).Round(time.Second)
		_, _ = fmt.Fprintf(stdout, "%-10s %-8s %-8s %s\n", s.ID, s.Size, age, s.Logs)
	}
	return nil
}

func env(_ context.Context, args []string, stdout, _ io.Writer) error {
	s, err := one(args)
	if err != nil {
		return err
	}
	printEnv(stdout, s)
	return nil
}

// printEnv prints lines for a shell; the S3 ones are those that AWS' tools read.
func printEnv(w io.Writer, s testbed.State) {
	for _, line := range [][2]string{
		{"KUBECONFIG", s.Kubeconfig},
		{"KUBECTL", s.Kubectl},
		{"TESTBED_ID", s.ID},
		{"TESTBED_LOGS", s.Logs},
		{"TESTBED_HOST_IP", s.HostIP},
		{"TESTBED_NODE_IP", s.NodeIP},
		{"AWS_ENDPOINT_URL", s.S3Endpoint},
		{"AWS_ACCESS_KEY_ID", s.S3AccessKey},
		{"AWS_SECRET_ACCESS_KEY", s.S3SecretKey},
		{"AWS_REGION", s.S3Region},
		{"TESTBED_XDS", s.XDSAddress},
		{"TESTBED_PROMETHEUS", s.PrometheusURL},
	} {
		if line[1] != "" {
			_, _ = fmt.Fprintf(w, "export %s='%s'\n", line[0], strings.ReplaceAll(line[1], "'", `'\''`))
		}
	}
}

func clean(ctx context.Context, _ []string, _, _ io.Writer) error { return testbed.Clean(ctx) }

func build(ctx context.Context, args []string, _, stderr io.Writer) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	name := flags.String("size", testbed.Node.String(), "api, control or node")
	if err := parse(flags, args, stderr); err != nil {
		return err
	}
	size, err := testbed.ParseSize(*name)
	if err != nil {
		return err
	}
	return testbed.Build(ctx, testbed.Options{Size: size}, stderr)
}
