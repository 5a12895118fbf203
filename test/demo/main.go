// SPDX-License-Identifier: Apache-2.0

// Command demo runs Outrigger's whole job on a real cluster on this machine and tells it as a story. It exits 1 when
// something does not come out as told.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"serverless.xyz/outrigger/test/cluster"
)

func main() {
	keep := flag.Bool("keep", false, "leave the cluster running")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, keep bool) (err error) {
	s := newStory(out)
	s.chapter("A cluster with KServe, Istio and S3, and Outrigger installed from config/default")
	c, err := cluster.Start(ctx, out)
	if err != nil {
		return err
	}
	defer func() {
		if keep && err == nil {
			err = errors.Join(err, c.Detach())
			s.howToPlay(c)
			return
		}
		err = errors.Join(err, c.Stop())
	}()
	s.cluster = c
	s.result("cluster and Outrigger are up", s.sinceChapter(), "")
	for _, chapter := range []func(context.Context) error{s.prepare, s.preload, s.features, s.canary, s.scale} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return s.summary()
}
