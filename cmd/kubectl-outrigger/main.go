// SPDX-License-Identifier: Apache-2.0

// Command kubectl-outrigger is a plugin of kubectl: with it in the PATH, `kubectl outrigger canary` shows rollouts and
// tells them what to do. Everything that it does, an edit of the CanaryRollout does too.
//
// It exits 0 when it has done what was asked, 1 when that could not be done, and 2 when it was not understood.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctrllog.SetLogger(logr.Discard()) // what matters is printed
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errUsage marks what was not understood.
var errUsage = errors.New("see --help")

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot(&app{in: stdin, out: stdout}) //nolint:contextcheck // cobra hands commands the context.
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	stderr = plain{stderr} // an error may hold what the API server, or an object, says
	switch {
	case err == nil, ctx.Err() != nil:
		return 0
	case errors.Is(err, errUsage):
		_, _ = fmt.Fprintf(stderr, "error: %v\n", err)
		return 2
	default:
		_, _ = fmt.Fprintf(stderr, "error: %v\n", err)
		return 1
	}
}
