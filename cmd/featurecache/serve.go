// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"

	"serverless.xyz/outrigger/memcached"
)

// socketMode lets every container of the pod use the socket, whatever user it runs as; the volume is the pod's own.
const socketMode = 0o666

// serve runs the proxy until the context ends, and then until its clients have left. It returns the first error of a
// listener.
func serve(ctx context.Context, o *options, log *slog.Logger) error {
	// What follows outlives the signal, to serve the clients that are left.
	live, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	client := memcached.NewClient(live, memcached.ClientOptions{
		Timeout:              o.timeout,
		ConnectionsPerServer: o.perServer,
		MaxBufferedBytes:     o.maxBuffered,
		Logger:               log,
	})
	proxy := memcached.NewProxy(client, memcached.ProxyOptions{
		MaxConnections: o.maxConnections,
		Version:        "outrigger " + versionText(),
	})
	listeners, err := listenAll(ctx, o.listen)
	if err != nil {
		return err
	}
	status, err := newStatusServer(ctx, o.metricsAddress, proxy, log)
	if err != nil {
		closeAll(listeners)
		return err
	}
	var running sync.WaitGroup
	for _, listener := range listeners {
		log.Info("Serving clients", "address", listener.Addr().String())
		running.Go(func() { stopOn(stop, proxy.Serve(listener)) })
	}
	running.Go(func() { stopOn(stop, status.serve()) })
	running.Go(func() { client.Follow(live, &memcached.FileSource{Path: o.ringFile}) })
	status.ready.Store(true)

	select {
	case <-ctx.Done():
	case <-live.Done():
	}
	status.ready.Store(false)
	log.Info("Draining", "connections", proxy.Connections())
	drain, cancel := context.WithTimeout(live, o.drainTimeout)
	defer cancel()
	proxy.Shutdown(drain)
	status.close()
	err = context.Cause(live)
	stop(nil)
	running.Wait()
	log.Info("Stopped")
	return err
}

// stopOn ends everything when a listener fails.
func stopOn(stop context.CancelCauseFunc, err error) {
	if err != nil {
		stop(err)
	}
}

// listenAll listens on all addresses, or on none.
func listenAll(ctx context.Context, addresses []string) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		listener, err := listen(ctx, address)
		if err != nil {
			closeAll(listeners)
			return nil, fmt.Errorf("listening for clients: %w", err)
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		_ = listener.Close()
	}
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	path, ok := strings.CutPrefix(address, unixPrefix)
	if !ok {
		return new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		_ = listener.Close()
		return nil, err
	}
	return listener, nil
}

// removeStale removes the socket that a killed process left behind, but not one that somebody listens on.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("%s exists and is no socket; remove it or use another path", path)
	}
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	return os.Remove(path)
}
