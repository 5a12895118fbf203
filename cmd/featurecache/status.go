// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"serverless.xyz/outrigger/memcached"
)

// headerTimeout bounds a request for metrics or health.
const headerTimeout = 5 * time.Second

// statusServer answers /metrics, /healthz and /readyz.
type statusServer struct {
	// ready is set while clients are served and nobody has asked to stop.
	ready atomic.Bool
	// listener is nil when no address was given.
	listener net.Listener
	http     http.Server
}

// newStatusServer listens on the address; on none for an empty one.
func newStatusServer(ctx context.Context, address string, proxy *memcached.Proxy, log *slog.Logger) (*statusServer, error) {
	s := &statusServer{}
	if address == "" {
		return s, nil
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(proxy, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
	})
	s.http.Handler, s.http.ReadHeaderTimeout = mux, headerTimeout
	var err error
	if s.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address); err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	log.Info("Serving metrics and health", "address", s.listener.Addr().String())
	return s, nil
}

// serve answers until close.
func (s *statusServer) serve() error {
	if s.listener == nil {
		return nil
	}
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

func (s *statusServer) close() {
	_ = s.http.Close()
}
