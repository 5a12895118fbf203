// SPDX-License-Identifier: Apache-2.0

// Command rollout measures how soon a wish reaches the route: Outrigger, Argo Rollouts and Flagger side by side on one
// API server, in turns, and writes what it found to test/bench/rollout.md. It builds all three; nothing else acts on the
// objects, and Deployments and ReplicaSets are ready as soon as they are made.
//
// It exits with 0 whatever falls short: a loss is a finding.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// options are the command line.
type options struct {
	rollouts, edits, drifts, rounds int
	patience                        time.Duration
	out                             string
}

func main() {
	ctrllog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, parse())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func parse() options {
	var o options
	flag.IntVar(&o.rollouts, "rollouts", 200, "how many canaries each system has; all are edited in the storm")
	flag.IntVar(&o.edits, "edits", 50, "how many single edits a round")
	flag.IntVar(&o.drifts, "drifts", 20, "how many foreign edits a round")
	flag.IntVar(&o.rounds, "rounds", 2, "how many rounds of all systems in turns")
	flag.DurationVar(
		&o.patience,
		"patience",
		25*time.Second,
		"how long to wait for one change; more than two of Flagger's intervals",
	)
	flag.StringVar(&o.out, "out", "test/bench/rollout.md", "the report; empty for none")
	flag.Parse()
	return o
}

func run(ctx context.Context, o options) error {
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
	}
	programs, err := build(ctx, say)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	l, err := newLab(ctx, say)
	if err != nil {
		stop()
		return err
	}
	defer l.close()
	defer stop() // before, so that the controllers end
	systems := []system{&outrigger{lab: l}, &argo{lab: l}, &flagger{lab: l}}
	for _, s := range systems {
		say("starting %s %s with %d canaries", s.name(), programs[s.name()].version, o.rollouts)
		if err := s.start(ctx, programs[s.name()].path); err != nil {
			return fmt.Errorf("starting %s: %w", s.name(), err)
		}
		if err := l.makeAll(ctx, s, o.rollouts); err != nil {
			return fmt.Errorf("making the canaries of %s: %w", s.name(), err)
		}
	}
	r := newResults(programs, o)
	for round := range o.rounds {
		for _, s := range systems {
			say("round %d of %d: %s", round+1, o.rounds, s.name())
			if err := l.measure(ctx, s, o, r); err != nil {
				return fmt.Errorf("measuring %s: %w", s.name(), err)
			}
		}
	}
	return r.report(o, os.Stdout)
}
