// SPDX-License-Identifier: Apache-2.0

// Package controllers puts the manager together: caches, controllers, webhook, probes and metrics. The program and the
// tests use the same code.
package controllers

import (
	"crypto/tls"
	"fmt"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/webhookcert"
	"serverless.xyz/outrigger/controllers/memcached"
	"serverless.xyz/outrigger/controllers/podwebhook"
	"serverless.xyz/outrigger/controllers/sidecarpolicy"
	"serverless.xyz/outrigger/routing"
)

// Options are what the manager is started with.
type Options struct {
	// Namespace is where the manager runs; its webhook certificate and its lease are there.
	Namespace string
	// WebhookHost and WebhookPort are where the webhook listens; an empty host is all addresses.
	WebhookHost string
	WebhookPort int
	// WebhookNames are the DNS names and IP addresses by which the API server calls the webhook.
	WebhookNames []string
	// MetricsAddress is where metrics are served over HTTPS to those whom the API server lets read /metrics; "0" is
	// nowhere.
	MetricsAddress string
	// ProbeAddress is where /healthz and /readyz are served; "0" is nowhere.
	ProbeAddress string
	// LeaderElection has only one of several replicas reconcile. All of them serve the webhook.
	LeaderElection bool
	// MemcachedImage is the image of a Memcached that names none.
	MemcachedImage string
	// PreloaderImage and FeatureCacheImage are injected where a SidecarPolicy names none, PreloaderGPUImage in place of
	// PreloaderImage where GPUs are checked.
	PreloaderImage    string
	PreloaderGPUImage string
	FeatureCacheImage string
	// NodeCachePath is a directory of nodes below which pods may share fetched models, each namespace in a folder of its
	// own; empty allows none.
	NodeCachePath string
	// AllowedImages limits the images that a SidecarPolicy may name; none allows all. One that ends in "/" stands for all
	// images below it.
	AllowedImages []string
	// NativeSidecars says whether the nodes know sidecars among init containers, as Kubernetes 1.29 and later do. When
	// unset, the version of the API server decides.
	NativeSidecars *bool
	// PrometheusURL is the Prometheus that rollouts with an analysis ask which name none; empty is none.
	PrometheusURL string
	// ClusterDomain is the DNS domain of the cluster's Services; empty is cluster.local.
	ClusterDomain string
	// ReadStats asks a memcached instance for its statistics.
	ReadStats memcached.StatsReader
}

// Scheme returns a scheme of all kinds that the manager reads and writes with types.
func Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	utilruntime.Must(kserve.AddToScheme(scheme))
	return scheme
}

// NewManager returns a manager with everything registered, ready to be started.
func NewManager(config *rest.Config, o Options) (ctrl.Manager, error) {
	var certificate *webhookcert.Reconciler
	mgr, err := ctrl.NewManager(config, managerOptions(o, func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return certificate.GetCertificate(hello)
	}))
	if err != nil {
		return nil, fmt.Errorf("making the manager: %w", err)
	}
	certificate = webhookcert.New(mgr.GetClient(), clock.RealClock{}, o.Namespace, o.WebhookNames...)
	if err := certificate.SetupWithManager(mgr); err != nil {
		return nil, fmt.Errorf("setting up the webhook's certificate: %w", err)
	}
	settings, err := sidecarSettings(config, o)
	if err != nil {
		return nil, err
	}
	mgr.GetWebhookServer().Register(podwebhook.Path, &admission.Webhook{
		Handler: podwebhook.New(mgr.GetClient(), mgr.GetAPIReader(), admission.NewDecoder(mgr.GetScheme()), settings),
	})
	if err := addControllers(mgr, o, settings); err != nil {
		return nil, err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("adding a health check: %w", err)
	}
	if err := mgr.AddReadyzCheck("webhook-certificate", certificate.Ready); err != nil {
		return nil, fmt.Errorf("adding a readiness check: %w", err)
	}
	if err := mgr.AddReadyzCheck("webhook", mgr.GetWebhookServer().StartedChecker()); err != nil {
		return nil, fmt.Errorf("adding a readiness check: %w", err)
	}
	return mgr, nil
}

func sidecarSettings(config *rest.Config, o Options) (sidecar.Settings, error) {
	settings := sidecar.Settings{
		Preloader: o.PreloaderImage, PreloaderGPU: o.PreloaderGPUImage, FeatureCache: o.FeatureCacheImage,
		Allowed: o.AllowedImages, NodeCachePath: o.NodeCachePath,
	}
	if o.NativeSidecars != nil {
		settings.PlainSidecars = !*o.NativeSidecars
		return settings, nil
	}
	server, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return settings, fmt.Errorf("making a client for the API server's version: %w", err)
	}
	info, err := server.ServerVersion()
	if err != nil {
		return settings, fmt.Errorf("asking for the API server's version: %w", err)
	}
	settings.PlainSidecars = !knowsNativeSidecars(info.Major, info.Minor)
	return settings, nil
}

// knowsNativeSidecars reports whether a Kubernetes of a version, such as 1 and 29+, knows sidecars among init
// containers. One whose version cannot be read is taken for a new one.
func knowsNativeSidecars(major, minor string) bool {
	digits := strings.TrimRightFunc(minor, func(r rune) bool { return r < '0' || r > '9' })
	n, err := strconv.Atoi(digits)
	return err != nil || major != "1" || n >= 29
}

// addControllers registers every controller, each as soon as the kinds that it watches are served.
func addControllers(mgr ctrl.Manager, o Options, settings sidecar.Settings) error {
	c, clk := mgr.GetClient(), clock.RealClock{}
	memo := &sidecarpolicy.Memo{}
	list := []lateController{
		{
			name: memcached.Name,
			setup: memcached.New(
				c, mgr.GetAPIReader(), clk, mgr.GetEventRecorderFor(memcached.Name), o.MemcachedImage, o.ReadStats,
			).SetupWithManager,
		},
		{
			name:  sidecarpolicy.Name,
			needs: []schema.GroupVersionKind{kserve.GroupVersionKind},
			setup: sidecarpolicy.New(
				c, mgr.GetAPIReader(), clk, mgr.GetEventRecorderFor(sidecarpolicy.Name), settings, memo).SetupWithManager,
		},
		{
			name:  sidecarpolicy.ServicesName,
			needs: []schema.GroupVersionKind{kserve.GroupVersionKind},
			setup: sidecarpolicy.NewServiceReconciler(
				c, clk, mgr.GetEventRecorderFor(sidecarpolicy.Name), memo).SetupWithManager,
		},
		{
			name:  sidecarpolicy.NodeCacheName,
			needs: []schema.GroupVersionKind{kserve.GroupVersionKind},
			setup: sidecarpolicy.NewNodeCacheReconciler(
				c, mgr.GetAPIReader(), mgr.GetEventRecorderFor(sidecarpolicy.NodeCacheName), o.FeatureCacheImage, memo,
			).SetupWithManager,
		},
		{
			name: canaryrollout.Name,
			setup: canaryrollout.New(c, mgr.GetAPIReader(), clk, mgr.GetEventRecorderFor(canaryrollout.Name)).
				WithAsker(canaryrollout.NewAnalyst(o.PrometheusURL)).
				WithWarmer(canaryrollout.NewStove(clk)).
				InDomain(routing.DomainOf(o.ClusterDomain)).SetupWithManager,
		},
	}
	for _, one := range list {
		if err := one.addTo(mgr); err != nil {
			return err
		}
	}
	return nil
}

func managerOptions(
	o Options, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error),
) ctrl.Options {
	// The API server speaks HTTP/1.1 to webhooks just as well, and HTTP/2 has cost too many denial-of-service holes.
	secure := func(c *tls.Config) {
		c.MinVersion = tls.VersionTLS12
		c.NextProtos = []string{"http/1.1"}
	}
	return ctrl.Options{
		Scheme: Scheme(),
		Cache:  cacheOptions(o.Namespace),
		Client: client.Options{Cache: &client.CacheOptions{Unstructured: true}},
		// Several managers may run in one process, as they do in tests.
		Controller: config.Controller{SkipNameValidation: new(true)},
		WebhookServer: webhook.NewServer(webhook.Options{
			Host: o.WebhookHost, Port: o.WebhookPort,
			TLSOpts: []func(*tls.Config){secure, func(c *tls.Config) { c.GetCertificate = certificate }},
		}),
		Metrics: metricsserver.Options{
			BindAddress: o.MetricsAddress, SecureServing: true, TLSOpts: []func(*tls.Config){secure},
			FilterProvider: filters.WithAuthenticationAndAuthorization,
		},
		HealthProbeBindAddress:        o.ProbeAddress,
		LeaderElection:                o.LeaderElection,
		LeaderElectionID:              "outrigger-manager",
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       ptr.To(20 * time.Second),
	}
}

// cacheOptions limits what is kept in memory to what Outrigger made, or is asked about.
func cacheOptions(namespace string) cache.Options {
	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy})}
	withKServe, err := labels.NewRequirement(kserve.LabelInferenceService, "exists", nil)
	utilruntime.Must(err)
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&appsv1.StatefulSet{}:        ours,
			&appsv1.DaemonSet{}:          ours,
			&corev1.Service{}:            ours,
			&corev1.ConfigMap{}:          ours,
			&discoveryv1.EndpointSlice{}: ours,
			// Pods that have ended stay for long, such as those that were evicted, and carry or serve nothing.
			&corev1.Pod{}: {
				Label: labels.NewSelector().Add(*withKServe),
				Field: fields.AndSelectors(
					fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
					fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
				),
			},
			&corev1.Secret{}: {Namespaces: map[string]cache.Config{
				namespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", webhookcert.SecretName)},
			}},
			&admissionv1.MutatingWebhookConfiguration{}: {
				Field: fields.OneTermEqualSelector("metadata.name", webhookcert.ConfigurationName),
			},
		},
	}
}
