// SPDX-License-Identifier: Apache-2.0

// Command predictor serves a small digit classifier, so that Outrigger's samples and tests have a model server that
// is real: it reads the weights that a preloader put on the volume, speaks KServe's V1 and the Open Inference (V2)
// protocol over HTTP and gRPC on one port, and looks features up in the cache at FEATURE_CACHE_ADDR.
//
// It exits with 0 after a drain, 1 if it cannot serve, 2 if a flag is wrong and 3 if the model directory is unusable.
// The first SIGTERM or SIGINT drains: readiness turns to no at once, new requests are still answered for the time
// --drain, then the port closes and requests in flight finish. A second signal ends the process at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"serverless.xyz/outrigger/samples/predictor/classifier"
	"serverless.xyz/outrigger/samples/predictor/features"
	"serverless.xyz/outrigger/samples/predictor/serving"
)

// The exit codes.
const (
	exitServe = 1
	exitFlags = 2
	exitModel = 3
)

// options are the flags and environment of one run.
type options struct {
	modelDir, modelName string
	port                int
	drain, finish       time.Duration
	// ttl and timeout are those of the feature cache.
	ttl, timeout time.Duration
	// cacheAddr and storePath come from the environment, because they are set by whoever adds the cache to the pod.
	cacheAddr, storePath string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	// Once the first signal has been taken, the next one has its default effect again.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stderr))
}

// run serves until ctx is done and returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) int {
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	opts, err := parseOptions(args, getenv, stderr)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		log.Error("Wrong flags", "error", err)
		return exitFlags
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(opts.port)))
	if err != nil {
		log.Error("Cannot listen", "error", err)
		return exitServe
	}
	server := serving.New(opts.modelName, log)
	front := server.HTTPServer()
	served := make(chan error, 1)
	go func() { served <- front.Serve(listener) }()
	log.Info("Listening", "address", listener.Addr().String())

	if err := load(server, opts, log); err != nil {
		log.Error("Model cannot be served", "modelDir", opts.modelDir, "error", err)
		_ = front.Close()
		return exitModel
	}
	select {
	case err := <-served:
		log.Error("Stopped serving", "error", err)
		return exitServe
	case <-ctx.Done():
	}
	if err := drain(ctx, server, front, opts, log); err != nil {
		log.Error("Requests were cut off", "error", err)
		return exitServe
	}
	return 0
}

func parseOptions(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	opts := options{cacheAddr: getenv("FEATURE_CACHE_ADDR"), storePath: getenv("FEATURE_STORE")}
	flags := flag.NewFlagSet("predictor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&opts.modelDir, "model_dir", "/mnt/models", "folder with config.json and model.safetensors")
	flags.StringVar(&opts.modelName, "model_name", "model", "name that the model is served under")
	flags.IntVar(&opts.port, "port", 8080, "port for HTTP and gRPC; 0 picks a free one")
	flags.IntVar(&opts.port, "http_port", 8080, "the same as --port")
	flags.DurationVar(&opts.drain, "drain", 5*time.Second, "time from the stop signal to the port closing")
	flags.DurationVar(&opts.finish, "finish", 20*time.Second, "time for requests in flight once the port is closed")
	flags.DurationVar(&opts.ttl, "feature_ttl", 5*time.Minute, "time that features may stay in the cache")
	flags.DurationVar(&opts.timeout, "feature_timeout", 20*time.Millisecond, "time for each step of asking the cache")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return opts, opts.validate()
}

func (o options) validate() error {
	switch {
	case o.modelName == "" || strings.ContainsAny(o.modelName, "/:"):
		return fmt.Errorf("--model_name is %q, want a name, and neither / nor : in it", o.modelName)
	case o.port < 0 || o.port > 65535:
		return fmt.Errorf("--port is %d, want 0 to 65535", o.port)
	case o.drain < 0 || o.finish < 0:
		return errors.New("--drain and --finish must not be negative")
	case o.ttl < time.Second || o.ttl > features.MaxTTL:
		return fmt.Errorf("--feature_ttl is %s, want 1s to %s", o.ttl, features.MaxTTL)
	case o.timeout <= 0:
		return fmt.Errorf("--feature_timeout is %s, want a positive time", o.timeout)
	}
	return nil
}

// load reads the model and its feature store and makes the server ready.
func load(server *serving.Server, opts options, log *slog.Logger) error {
	start := time.Now()
	model, err := classifier.Load(opts.modelDir)
	if err != nil {
		return err
	}
	source, err := openSource(opts, model.Config, log)
	if err != nil {
		return err
	}
	took := time.Since(start)
	server.SetModel(model, source, took)
	entities := 0
	if source != nil {
		entities = source.Store.Len()
	}
	log.Info("Model ready", "model", opts.modelName, "version", model.Config.Version, "kind", model.Config.Kind,
		"heldOutAccuracy", model.Config.Accuracy.HeldOut.Share, "loadTime", took.String(),
		"entities", entities)
	return nil
}

// openSource opens the feature store: the one that the environment names, or the one that came with the model, if
// any did.
func openSource(opts options, config classifier.Config, log *slog.Logger) (*features.Source, error) {
	path := opts.storePath
	if path == "" {
		path = filepath.Join(opts.modelDir, classifier.FeaturesFile)
	}
	store, err := features.OpenStore(path, config.Input.Pixels)
	if errors.Is(err, os.ErrNotExist) && opts.storePath == "" {
		return nil, nil //nolint:nilnil // a model without a store is served by pixels only
	}
	if err != nil {
		return nil, err
	}
	source := &features.Source{Store: store}
	if opts.cacheAddr == "" {
		return source, nil
	}
	// A cache is never a reason not to serve, not even one whose address makes no sense.
	source.Cache, err = features.NewCache(features.CacheOptions{
		Address: opts.cacheAddr, View: config.FeatureView, Width: config.Input.Pixels,
		TTL: opts.ttl, Timeout: opts.timeout,
	})
	if err != nil {
		log.Warn("Feature cache ignored", "FEATURE_CACHE_ADDR", opts.cacheAddr, "error", err)
	}
	return source, nil
}

// drain waits for routes to move away, then closes the port and lets requests in flight finish.
func drain(ctx context.Context, server *serving.Server, front *http.Server, opts options, log *slog.Logger) error {
	server.Drain()
	log.Info("Draining", "for", opts.drain.String())
	time.Sleep(opts.drain)
	log.Info("Closing the port", "finishWithin", opts.finish.String())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opts.finish)
	defer cancel()
	if err := front.Shutdown(ctx); err != nil {
		return fmt.Errorf("waiting for requests in flight: %w", err)
	}
	log.Info("Drained")
	return nil
}
