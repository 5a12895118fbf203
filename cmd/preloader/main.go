// SPDX-License-Identifier: Apache-2.0

// Command preloader fetches models from S3 into a directory. It takes the place
// of KServe's storage-initializer image; run it with help for its arguments.
//
// Exit codes: 0 done; 1 try again; 64 usage; 65 bytes that do not match; 66 not
// found; 69 endpoint unavailable; 73 no space or not writable; 77 access denied;
// 78 configuration; 80 a GPU that is not fit for work, if asked; 130 and 143 stopped by a signal.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"serverless.xyz/outrigger/preloader"
)

func main() {
	// Model servers run as other users and must be able to read the files.
	syscall.Umask(0o022)
	// The bytes never touch the heap, so it can be kept small.
	debug.SetGCPercent(50)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	command := preloader.Command{
		Args: os.Args[1:], Getenv: os.Getenv, Environ: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr,
	}
	os.Exit(int(command.RunUntil(context.Background(), signals)))
}
