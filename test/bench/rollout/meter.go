// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// tick is the unit of Linux's counts of processor time.
const tick = 10 * time.Millisecond

// processor is the time that a controller has had a processor.
func (l *lab) processor(name string) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.processes[name]))
	if err != nil {
		return 0, fmt.Errorf("reading what %s has used: %w", name, err)
	}
	// The program's name, which may have spaces, is in brackets; user and system time are the 12th and 13th field after it.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	return ticks(fields[11], fields[12])
}

func ticks(fields ...string) (time.Duration, error) {
	sum := time.Duration(0)
	for _, field := range fields {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading processor time: %w", err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// restTime is how long a machine at rest is looked at.
const restTime = 10 * time.Second

// busyAtRest is how many processors are busy while all three have nothing to do.
func (l *lab) busyAtRest(ctx context.Context) (float64, error) {
	if _, err := l.settled(ctx); err != nil {
		return 0, err
	}
	before, err := busy()
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(restTime):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := busy()
	return (after - before).Seconds() / restTime.Seconds(), err
}

// busy is the processor time of the whole machine that was not idle.
func busy() (time.Duration, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading how busy the machine is: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal ...
	return ticks(fields[1], fields[2], fields[3], fields[6], fields[7])
}

// revision is how many writes the API server has stored.
func (l *lab) revision(ctx context.Context) (int64, error) {
	var list corev1.NamespaceList
	if err := l.client.List(ctx, &list, client.Limit(1)); err != nil {
		return 0, fmt.Errorf("reading the revision: %w", err)
	}
	n, err := strconv.ParseInt(list.ResourceVersion, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the revision: %w", err)
	}
	return n, nil
}

// quiet is how long nothing must have been stored for a system to be at rest.
const quiet = time.Second

// settled waits until nothing is stored any more, and returns the revision.
func (l *lab) settled(ctx context.Context) (int64, error) {
	last, err := l.revision(ctx)
	if err != nil {
		return 0, err
	}
	for began := time.Now(); time.Since(began) < time.Minute; {
		select {
		case <-time.After(quiet):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		now, err := l.revision(ctx)
		if err != nil || now-last <= 1 { // the API server renews its lease
			return now, err
		}
		last = now
	}
	return last, nil
}
