// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"serverless.xyz/outrigger/test/testbed/internal/keep"
)

// readyWithin bounds the wait for one component, which takes seconds on an idle machine and a minute on a very busy one.
const readyWithin = 4 * time.Minute

// component is a long-running program and the question that tells when it is ready.
type component struct {
	name  string
	path  string
	args  []string
	env   []string
	dir   string
	ready func(context.Context) error // Nil means at once.
}

// launch starts the component and waits until it is ready. Its error carries the end of the component's log.
func (t *Testbed) launch(ctx context.Context, c component) error {
	if err := t.startProcess(ctx, c); err != nil {
		return err
	}
	if err := t.awaitComponent(ctx, c); err != nil {
		return err
	}
	t.say("%s is ready", c.name)
	return nil
}

func (t *Testbed) startProcess(ctx context.Context, c component) error {
	_, err := t.client.Start(ctx, keep.Process{
		Name: c.name, Path: c.path, Args: c.args, Dir: c.dir, Log: t.logOf(c.name),
		Env: slices.Concat(c.env, t.baseEnv()), // Of two settings of a variable the first counts.
	})
	return err
}

// baseEnv is small on purpose: a proxy setting of the user's would send the cluster's own traffic elsewhere.
func (t *Testbed) baseEnv() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + t.dir,
		"TMPDIR=" + t.path("tmp"),
	}
}

func (t *Testbed) awaitComponent(ctx context.Context, c component) error {
	if c.ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not ready within %s", readyWithin))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- t.client.Wait(ctx, c.name) }()
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case end := <-ended:
			if ctx.Err() == nil {
				err = errors.Join(end, errors.New("it ended before it was ready"))
				return t.failure(c.name, err)
			}
		case <-ctx.Done():
			return t.failure(c.name, errors.Join(context.Cause(ctx), err))
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// failure adds the end of a component's log to its error.
func (t *Testbed) failure(name string, err error) error {
	return fmt.Errorf("starting %s: %w\nend of its log:\n%s", name, err, t.logTail(name))
}

func (t *Testbed) logTail(name string) string {
	raw, err := os.ReadFile(t.logOf(name))
	if err != nil {
		return err.Error()
	}
	return tail(string(raw), 25)
}

// runProcess runs a program to its end where the testbed's processes live, and returns what it printed.
func (t *Testbed) runProcess(ctx context.Context, name, path string, args ...string) (string, error) {
	return t.runWithInput(ctx, "", name, path, args...)
}

func (t *Testbed) runWithInput(ctx context.Context, stdin, name, path string, args ...string) (string, error) {
	name = fmt.Sprintf("%s-%d", name, t.runs.Add(1))
	log := t.path("tmp/" + name)
	defer func() { _ = os.Remove(log) }()
	if _, err := t.client.Start(ctx, keep.Process{
		Name: name, Path: path, Args: args, Log: log, Env: t.baseEnv(), Stdin: stdin,
	}); err != nil {
		return "", err
	}
	err := t.client.Wait(ctx, name)
	out, readErr := os.ReadFile(log)
	if err != nil {
		return string(out), fmt.Errorf("%w: %s", err, tail(string(out), 10))
	}
	return string(out), readErr
}
