// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"serverless.xyz/outrigger/memcached"
)

const (
	envPrefix      = "FEATURECACHE_"
	unixPrefix     = "unix:"
	maxTimeout     = 10 * time.Second
	maxPerServer   = 64
	maxConnections = 1 << 16
)

// options are the flags.
type options struct {
	listen         []string
	ringFile       string
	timeout        time.Duration
	metricsAddress string
	perServer      int
	maxConnections int
	maxBuffered    int64
	drainTimeout   time.Duration
	logLevel       slog.Level
}

// parseOptions reads the flags, and the environment for those that are not given.
func parseOptions(args []string, lookupEnv func(string) (string, bool), stderr io.Writer) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("featurecache", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	listen := flags.String("listen", "127.0.0.1:11211",
		"`addresses` for clients, separated by commas: host:port, or unix:/path for a Unix socket that anyone may use")
	flags.StringVar(&o.ringFile, "ring-file", "/etc/outrigger/ring/ring.json",
		"`file` with the ring document, looked at every second; without it the ring is empty and every read a miss")
	flags.DurationVar(&o.timeout, "timeout", memcached.DefaultTimeout,
		"`time` that a request waits for servers, 1ms to 10s; then what is missing is a miss")
	flags.StringVar(&o.metricsAddress, "metrics-address", ":9151",
		"`address` for /metrics, /healthz and /readyz over HTTP; empty for none")
	flags.IntVar(&o.perServer, "connections-per-server", 1,
		"`number` of connections to each server, 1 to 64; one carries some 100,000 requests a second")
	flags.IntVar(&o.maxConnections, "max-connections", memcached.DefaultMaxConnections,
		"`number` of clients at a time, 1 to 65536")
	flags.Int64Var(&o.maxBuffered, "max-buffered-bytes", memcached.DefaultMaxBufferedBytes,
		"`bytes` of values on their way at a time, 65536 or more; a value that does not fit is a miss, or not stored")
	flags.DurationVar(&o.drainTimeout, "drain-timeout", 20*time.Second,
		"`time` after SIGTERM in which clients are still served; it ends when the last one has left")
	flags.TextVar(&o.logLevel, "log", slog.LevelInfo, "least `level` to log: debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(stderr)
			flags.Usage()
		}
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q; use version or flags, see -h", flags.Arg(0))
	}
	if err := setFromEnv(flags, lookupEnv); err != nil {
		return nil, err
	}
	o.listen = strings.Split(*listen, ",")
	if err := o.validate(); err != nil {
		return nil, err
	}
	return o, nil
}

// setFromEnv sets each flag that was not given from its variable, if there is one.
func setFromEnv(flags *flag.FlagSet, lookupEnv func(string) (string, bool)) error {
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var errs []error
	flags.VisitAll(func(f *flag.Flag) {
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := lookupEnv(name)
		if !ok || given[f.Name] {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: invalid value %q: %w", name, value, err))
		}
	})
	return errors.Join(errs...)
}

func (o *options) validate() error {
	for _, address := range o.listen {
		if path, ok := strings.CutPrefix(address, unixPrefix); ok {
			if path == "" {
				return fmt.Errorf("--listen: %q names no file; use unix:/path", address)
			}
			continue
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("--listen: %q is neither host:port nor unix:/path", address)
		}
	}
	switch {
	case o.ringFile == "":
		return errors.New("--ring-file: it is empty; name the file of the ring document")
	case o.timeout < time.Millisecond || o.timeout > maxTimeout:
		return fmt.Errorf("--timeout: %v is not between 1ms and %v", o.timeout, maxTimeout)
	case o.perServer < 1 || o.perServer > maxPerServer:
		return fmt.Errorf("--connections-per-server: %d is not between 1 and %d", o.perServer, maxPerServer)
	case o.maxConnections < 1 || o.maxConnections > maxConnections:
		return fmt.Errorf("--max-connections: %d is not between 1 and %d", o.maxConnections, maxConnections)
	case o.maxBuffered < 1<<16:
		return fmt.Errorf("--max-buffered-bytes: %d is less than %d", o.maxBuffered, 1<<16)
	case o.drainTimeout < 0:
		return fmt.Errorf("--drain-timeout: %v is less than 0", o.drainTimeout)
	}
	return nil
}

func newLogger(o *options, w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: o.logLevel}))
}
