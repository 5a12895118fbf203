// SPDX-License-Identifier: Apache-2.0

// Command keeper holds the processes of one testbed and removes all trace of them when its owner is gone. The testbed
// package builds and starts it; see package keep.
package main

import (
	"os"
	"runtime"

	"serverless.xyz/outrigger/test/testbed/internal/keep"
)

// The main goroutine stays on the main thread, for parent-death signals follow the thread that forked.
func init() { runtime.LockOSThread() }

func main() {
	os.Exit(keep.Main(os.Args[1:]))
}
