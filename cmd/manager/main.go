// SPDX-License-Identifier: Apache-2.0

// Command manager runs Outrigger's controllers and its pod webhook.
//
// It exits 0 when told to stop, and 1 when it cannot start or loses the lease by which it leads.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"serverless.xyz/outrigger/controllers"
	"serverless.xyz/outrigger/memcached"
)

func main() {
	if err := run(); err != nil {
		ctrl.Log.Error(err, "Cannot go on")
		os.Exit(1)
	}
}

func run() error {
	o, logOptions, err := parse()
	if err != nil {
		return err
	}
	logger := zap.New(zap.UseFlagOptions(&logOptions))
	ctrl.SetLogger(logger)
	klog.SetLogger(logger) // Leader election and client-go speak through klog.
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	config.UserAgent = "outrigger-manager/" + version()
	// The API server's own fairness protects it; a client-side limit would only delay a rollback.
	config.QPS = -1
	mgr, err := controllers.NewManager(config, o)
	if err != nil {
		return err
	}
	ctrl.Log.Info("Starting", "version", version(), "namespace", o.Namespace, "clusterDomain", o.ClusterDomain)
	return mgr.Start(ctrl.SetupSignalHandler())
}

func parse() (controllers.Options, zap.Options, error) {
	o := controllers.Options{ReadStats: memcached.ReadStats}
	logOptions := zap.Options{TimeEncoder: zapcore.RFC3339NanoTimeEncoder, StacktraceLevel: zapcore.DPanicLevel}
	var webhookAddress, webhookNames, allowedImages, nativeSidecars string
	flag.StringVar(&o.Namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of the manager's Secret and Lease")
	flag.StringVar(&webhookAddress, "webhook-address", ":9443", "host:port where the pod webhook listens")
	flag.StringVar(&webhookNames, "webhook-names", "",
		"comma-separated names and addresses by which the API server calls the webhook "+
			"(default outrigger-webhook.<namespace>.svc)")
	flag.StringVar(&o.MetricsAddress, "metrics-address", ":8443", "host:port of the metrics over HTTPS; 0 for none")
	flag.StringVar(&o.ProbeAddress, "probe-address", ":8081", "host:port of /healthz and /readyz; 0 for none")
	flag.BoolVar(&o.LeaderElection, "leader-elect", true, "have one of several replicas lead")
	flag.StringVar(&o.MemcachedImage, "memcached-image", "docker.io/library/memcached:1.6.18",
		"image of a Memcached that names none")
	flag.StringVar(&o.PreloaderImage, "preloader-image", "ghcr.io/outrigger/preloader:v0.1.0",
		"image of the preloader where a SidecarPolicy names none")
	flag.StringVar(&o.PreloaderGPUImage, "preloader-gpu-image", "ghcr.io/outrigger/preloader-gpu:v0.1.0",
		"image of the preloader where GPUs are checked and a SidecarPolicy names none")
	flag.StringVar(&o.FeatureCacheImage, "feature-cache-image", "ghcr.io/outrigger/outrigger:v0.1.0",
		"image of the feature cache")
	flag.StringVar(&o.NodeCachePath, "node-cache-path", "",
		"directory of nodes below which pods of a namespace may share fetched models (default none)")
	flag.StringVar(&allowedImages, "allowed-images", "",
		"comma-separated images that a SidecarPolicy may name; one that ends in / stands for all below it (default all)")
	flag.StringVar(&nativeSidecars, "native-sidecars", "auto",
		"whether nodes know sidecars among init containers: always, never, or auto to go by the API server's version")
	flag.StringVar(&o.PrometheusURL, "prometheus-url", "",
		"address of the Prometheus that a CanaryRollout's analysis asks if it names none")
	flag.StringVar(&o.ClusterDomain, "cluster-domain", "",
		"DNS domain of the cluster's Services (default that of /etc/resolv.conf, or cluster.local)")
	logOptions.BindFlags(flag.CommandLine)
	flag.Parse()
	if o.Namespace == "" {
		return o, logOptions, errors.New("--namespace or POD_NAMESPACE must name the manager's namespace")
	}
	host, port, err := net.SplitHostPort(webhookAddress)
	if err != nil {
		return o, logOptions, fmt.Errorf("--webhook-address: %w", err)
	}
	o.WebhookHost = host
	if o.WebhookPort, err = strconv.Atoi(port); err != nil {
		return o, logOptions, fmt.Errorf("--webhook-address: port %q is no number", port)
	}
	if webhookNames == "" {
		webhookNames = "outrigger-webhook." + o.Namespace + ".svc"
	}
	o.WebhookNames = strings.Split(webhookNames, ",")
	switch nativeSidecars {
	case "auto":
	case "always", "never":
		o.NativeSidecars = new(nativeSidecars == "always")
	default:
		return o, logOptions, fmt.Errorf("--native-sidecars: %q is none of auto, always and never", nativeSidecars)
	}
	if o.NodeCachePath != "" && (!path.IsAbs(o.NodeCachePath) || path.Clean(o.NodeCachePath) == "/") {
		return o, logOptions, fmt.Errorf("--node-cache-path: %q is no absolute path of a directory", o.NodeCachePath)
	}
	if o.ClusterDomain, err = clusterDomain(o.ClusterDomain); err != nil {
		return o, logOptions, err
	}
	if allowedImages != "" {
		o.AllowedImages = strings.Split(allowedImages, ",")
	}
	return o, logOptions, nil
}

// version is the module version that the binary was built from, or "devel".
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}
