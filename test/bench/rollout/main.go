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
	rollouts, edits, drifts, storms, rounds int
	patience                                time.Duration
	out, only                               string
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
	flag.IntVar(&o.rollouts, "rollouts", 200, "how many canaries each system has; all are edited in a storm")
	flag.IntVar(&o.edits, "edits", 100, "how many single edits a round")
	flag.IntVar(&o.drifts, "drifts", 30, "how many foreign edits a round")
	flag.IntVar(&o.storms, "storms", 1, "how many storms a round")
	flag.IntVar(&o.rounds, "rounds", 2, "how many rounds of all systems in turns")
	flag.DurationVar(&o.patience, "patience", 25*time.Second,
		"how long to wait for one change; more than two of Flagger's intervals")
	flag.StringVar(&o.out, "out", "test/bench/rollout.md", "the report; empty for none")
	flag.StringVar(&o.only, "only", "", "measure this system alone, for a look at one: "+nameOutrigger+", ...")
	flag.Parse()
	o.edits, o.drifts = min(o.edits, o.rollouts), min(o.drifts, o.rollouts)
	return o
}

// wishes is how often one canary is edited at most.
func (o options) wishes() int { return o.rounds * (1 + o.storms) }

func run(ctx context.Context, o options) error {
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
	}
	programs, err := build(ctx, o, say)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	l, err := newLab(ctx, stop, say)
	if err != nil {
		stop(nil)
		return err
	}
	defer l.close()
	defer stop(nil) // before, so that the controllers end
	r := newResults(programs, o)
	if err := l.measureAll(ctx, o, r); err != nil {
		fmt.Fprint(os.Stderr, r.table()) // what there is of it
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return r.report(o, os.Stdout)
}

// measureAll starts all systems, and measures them in turns.
func (l *lab) measureAll(ctx context.Context, o options, r *results) error {
	var systems []system
	for _, s := range []system{&outrigger{lab: l}, newArgo(l, o), &flagger{lab: l}} {
		if o.only == "" || o.only == s.name() {
			systems = append(systems, s)
		}
	}
	for _, s := range systems {
		program := r.programs[s.name()]
		l.say("starting %s %s with %d canaries", s.name(), program.version, o.rollouts)
		if err := s.start(ctx, program.path); err != nil {
			return fmt.Errorf("starting %s: %w", s.name(), err)
		}
	}
	err := each(len(systems), len(systems), func(i int) error {
		if err := l.prepare(ctx, systems[i], o.rollouts); err != nil {
			return fmt.Errorf("making the canaries of %s: %w", systems[i].name(), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if r.busyBefore, err = l.busyAtRest(ctx); err != nil {
		return err
	}
	for round := range o.rounds {
		for _, s := range systems {
			l.say("round %d of %d: %s", round+1, o.rounds, s.name())
			if err := l.measure(ctx, s, o, r); err != nil {
				return fmt.Errorf("measuring %s: %w", s.name(), err)
			}
		}
	}
	r.busyAfter, err = l.busyAtRest(ctx)
	return err
}
