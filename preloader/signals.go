// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"os"
	"time"
)

// patience is how long a run may take to end after a signal. Nothing on disk
// needs it: what is there can be gone on from at any instant.
const patience = 700 * time.Millisecond

// RunUntil runs as Run does, and ends within a second of a signal: where a disk,
// a mount or a name service hangs, whatever waits for it is left behind.
func (c *Command) RunUntil(ctx context.Context, signals <-chan os.Signal) ExitCode {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan ExitCode, 1)
	go func() { ended <- c.Run(ctx) }()
	var stopped *StoppedError
	select {
	case code := <-ended:
		return code
	case s := <-signals:
		stopped = &StoppedError{Signal: s}
	}
	cancel(stopped)
	select {
	case code := <-ended:
		return code
	case <-time.After(patience):
	}
	if with, _, _, err := c.takeFlags(c.verb()); err == nil {
		c = with
	}
	opts := Options{TerminationLog: firstOf(c.Getenv("PRELOADER_TERMINATION_LOG"), DefaultTerminationLog)}
	return c.end(c.logger(c.Getenv("PRELOADER_LOG") == "json"), opts, &Report{}, stopped)
}
