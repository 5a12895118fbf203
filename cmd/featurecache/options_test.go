// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// env is an environment.
type env map[string]string

func (e env) lookup(name string) (string, bool) {
	value, ok := e[name]
	return value, ok
}

func TestParseOptions(t *testing.T) {
	defaults := func(change func(o *options)) *options {
		o := &options{
			listen: []string{"127.0.0.1:11211"}, ringFile: "/etc/outrigger/ring/ring.json", timeout: 20 * time.Millisecond,
			metricsAddress: ":9151", perServer: 1, maxConnections: 1024, maxBuffered: 32 << 20, drainTimeout: 20 * time.Second,
			logLevel: slog.LevelInfo,
		}
		change(o)
		return o
	}
	tests := map[string]struct {
		args []string
		env  env
		want *options
	}{
		"nothing given: the defaults": {want: defaults(func(*options) {})},
		"flags": {
			args: []string{"--listen=unix:/run/mc.sock,0.0.0.0:11211", "-timeout", "5ms", "-metrics-address=", "-log=debug"},
			want: defaults(func(o *options) {
				o.listen = []string{"unix:/run/mc.sock", "0.0.0.0:11211"}
				o.timeout, o.metricsAddress, o.logLevel = 5*time.Millisecond, "", slog.LevelDebug
			}),
		},
		"variables": {
			env: env{
				"FEATURECACHE_LISTEN": "127.0.0.1:1", "FEATURECACHE_RING_FILE": "/r", "FEATURECACHE_TIMEOUT": "1s",
				"FEATURECACHE_METRICS_ADDRESS": "", "FEATURECACHE_CONNECTIONS_PER_SERVER": "2",
				"FEATURECACHE_MAX_CONNECTIONS": "3", "FEATURECACHE_MAX_BUFFERED_BYTES": "70000",
				"FEATURECACHE_DRAIN_TIMEOUT": "0s", "FEATURECACHE_LOG": "WARN", "FEATURECACHE_ADDR": "not ours",
			},
			want: &options{
				listen: []string{"127.0.0.1:1"}, ringFile: "/r", timeout: time.Second, perServer: 2, maxConnections: 3,
				maxBuffered: 70000, logLevel: slog.LevelWarn,
			},
		},
		"a flag wins over its variable": {
			args: []string{"--timeout=5ms"},
			env:  env{"FEATURECACHE_TIMEOUT": "nonsense"},
			want: defaults(func(o *options) { o.timeout = 5 * time.Millisecond }),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseOptions(tc.args, tc.env.lookup, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(options{})); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseOptionsNamesTheFault(t *testing.T) {
	tests := map[string]struct {
		args []string
		env  env
		want string
	}{
		"unknown flag":               {args: []string{"--servers=a"}, want: "-servers"},
		"argument":                   {args: []string{"serve"}, want: `"serve"`},
		"listen without a port":      {args: []string{"--listen=127.0.0.1"}, want: "--listen"},
		"listen on nothing":          {args: []string{"--listen=127.0.0.1:1,"}, want: "--listen"},
		"unix without a path":        {args: []string{"--listen=unix:"}, want: "--listen"},
		"no ring file":               {args: []string{"--ring-file="}, want: "--ring-file"},
		"timeout of nothing":         {args: []string{"--timeout=0"}, want: "--timeout"},
		"timeout without a unit":     {args: []string{"--timeout=20"}, want: "-timeout"},
		"timeout too long":           {args: []string{"--timeout=11s"}, want: "--timeout"},
		"no connections to a server": {args: []string{"--connections-per-server=0"}, want: "--connections-per-server"},
		"no clients":                 {args: []string{"--max-connections=0"}, want: "--max-connections"},
		"no memory":                  {args: []string{"--max-buffered-bytes=1"}, want: "--max-buffered-bytes"},
		"negative drain timeout":     {args: []string{"--drain-timeout=-1s"}, want: "--drain-timeout"},
		"unknown level":              {args: []string{"--log=loud"}, want: "-log"},
		"bad variable":               {env: env{"FEATURECACHE_TIMEOUT": "20"}, want: "FEATURECACHE_TIMEOUT"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parseOptions(tc.args, tc.env.lookup, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	var help strings.Builder
	if _, err := parseOptions([]string{"-h"}, env{}.lookup, &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatalf("error = %v, want help", err)
	}
	for _, name := range []string{"listen", "ring-file", "timeout", "metrics-address", "drain-timeout", "log"} {
		if !strings.Contains(help.String(), "-"+name+" ") {
			t.Errorf("help lacks --%s", name)
		}
	}
}
