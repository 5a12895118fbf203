// SPDX-License-Identifier: Apache-2.0

// Command preloader-gpu looks at the GPUs of a machine before a model server does, and
// loads models into their memory to prove that they fit and arrive intact; run it with
// help for its arguments. It links glibc, unlike the preloader, which runs it where GPUs
// are to be checked.
//
// Exit codes: 0 whatever was found, unless --fail is given; 64 usage; 65 a file that does
// not hold what it should; 66 no model; 74 a file that cannot be read; 78 environment; 80 a
// GPU that is not fit for work; 130 and 143 stopped by a signal. A driver that crashes takes
// the program down, with 2 or a signal.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"serverless.xyz/outrigger/preloader/gpu"
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		if s, ok := (<-signals).(syscall.Signal); ok {
			cancel(&gpu.StoppedError{Signal: s})
		}
	}()
	command := gpu.Command{
		Args: os.Args[1:], Getenv: os.Getenv, Environ: os.Environ(),
		Stdout: os.Stdout, Stderr: os.Stderr, Restart: gpu.RestartSelf,
	}
	os.Exit(int(command.Run(ctx)))
}
