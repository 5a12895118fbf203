// SPDX-License-Identifier: Apache-2.0

// Command featurecache is the sidecar through which a predictor reaches its feature cache: a memcached server on a local
// address whose items live in a ring of memcached servers. It follows the ring from a document that the Memcached
// controller publishes.
//
//	featurecache [flags]     serves until SIGTERM or SIGINT
//	featurecache version     prints the version
//
// Every flag can be set by a variable of the environment instead: --ring-file by FEATURECACHE_RING_FILE. After the
// first signal it goes on serving until its last client has left, at most for --drain-timeout; a second one ends it at
// once.
//
// Exit codes: 0 after a signal or version, 1 when an address cannot be listened on or fails, 2 for a bad flag or
// variable.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

const (
	exitOK = iota
	exitFailed
	exitUsage
)

// version is set at link time; without that, the module's version counts.
var version string

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-signals
		// The next signal has its usual effect, from before anything tells that the first one was seen.
		signal.Stop(signals)
		cancel()
	}()
	os.Exit(run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(
	ctx context.Context, args []string, lookupEnv func(string) (string, bool), stdout, stderr io.Writer,
) int {
	if len(args) == 1 && args[0] == "version" {
		_, _ = fmt.Fprintln(stdout, "featurecache", versionText())
		return exitOK
	}
	o, err := parseOptions(args, lookupEnv, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "featurecache:", err)
		return exitUsage
	}
	if err := serve(ctx, o, newLogger(o, stderr)); err != nil {
		_, _ = fmt.Fprintln(stderr, "featurecache:", err)
		return exitFailed
	}
	return exitOK
}

// versionText returns the version of the build.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
