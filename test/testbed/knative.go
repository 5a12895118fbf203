// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const knativeNamespace = "knative-serving"

// knativeImage stands for queue-proxy. Without a node nobody pulls it.
const knativeImage = "knative.dev/queue-proxy:testbed"

// knativeObjects are what Knative's own processes need beside their configuration. The API server calls the webhook by
// its Service, whose reference Knative does not let go of: one that leads out of the cluster, to this machine.
const knativeObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: knative-serving}
---
apiVersion: v1
kind: Secret
metadata: {name: webhook-certs, namespace: knative-serving}
---
apiVersion: v1
kind: Service
metadata: {name: webhook, namespace: knative-serving}
spec:
  type: ExternalName
  externalName: %s
  ports: [{name: https-webhook, port: %d}]
`

// startKnative starts Knative Serving's controller and webhook beside the cluster, as the administrator. Nothing routes
// and nothing scales: pods come and stay as a revision's Deployment is first made.
func (t *Testbed) startKnative(ctx context.Context) error {
	files := t.bin.manifests[knativeManifests.name]
	if err := t.Apply(ctx, fmt.Sprintf(knativeObjects, t.address(), t.port(portKnativeWebhook))); err != nil {
		return err
	}
	if err := t.applyKnativeConfig(ctx, files); err != nil {
		return err
	}
	hooks, err := t.knativeWebhooks(files)
	if err != nil {
		return err
	}
	// The webhook's process fills in rules and certificates, of configurations that are there.
	if err := t.applyObjects(ctx, hooks); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return t.launch(ctx, t.knativeServer(knativeControllerProgram, portKnativeControllerProfiling, nil))
	})
	group.Go(func() error {
		return t.launch(ctx, t.knativeServer(knativeWebhookProgram, portKnativeWebhookProfiling, func(ctx context.Context) error {
			return t.haveCertificates(ctx, hooks)
		}))
	})
	return group.Wait()
}

func (t *Testbed) knativeServer(p program, profiling int, ready func(context.Context) error) component {
	return component{
		name: p.name, path: t.bin.programs[p.name], args: []string{"--kubeconfig", t.state.Kubeconfig, "--disable-ha"},
		env: []string{
			"SYSTEM_NAMESPACE=" + knativeNamespace, "KUBERNETES_MIN_VERSION=1.20.0", "POD_NAME=" + p.name,
			"CONFIG_LOGGING_NAME=config-logging", "CONFIG_OBSERVABILITY_NAME=config-observability",
			"CONFIG_LEADERELECTION_NAME=config-leader-election", "METRICS_DOMAIN=knative.dev/internal/serving",
			"WEBHOOK_NAME=webhook", "WEBHOOK_PORT=" + strconv.Itoa(t.port(portKnativeWebhook)),
			"PROFILING_PORT=" + strconv.Itoa(t.port(profiling)),
		},
		ready: ready,
	}
}

// haveCertificates returns an error until the API server can call all webhooks of the configurations.
func (t *Testbed) haveCertificates(ctx context.Context, configurations []*unstructured.Unstructured) error {
	for _, o := range configurations {
		resource := schema.GroupVersionResource{
			Group: "admissionregistration.k8s.io", Version: "v1", Resource: strings.ToLower(o.GetKind()) + "s",
		}
		live, err := t.dynamic.Resource(resource).Get(ctx, o.GetName(), metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("reading %s: %w", o.GetName(), err)
		}
		hooks, _, err := unstructured.NestedSlice(live.Object, "webhooks")
		if err != nil {
			return fmt.Errorf("reading webhooks of %s: %w", o.GetName(), err)
		}
		for _, hook := range hooks {
			m, _ := hook.(map[string]any)
			if bundle, _, _ := unstructured.NestedString(m, "clientConfig", "caBundle"); bundle == "" {
				return fmt.Errorf("webhook %s has no certificate yet", o.GetName())
			}
		}
	}
	return nil
}

// applyKnativeConfig applies Knative's ConfigMaps as it ships them, but for what is local to a testbed.
func (t *Testbed) applyKnativeConfig(ctx context.Context, files string) error {
	local := map[string]map[string]string{
		"config-deployment": {
			"queue-sidecar-image": knativeImage,
			// No registry is asked for the digest of a tag.
			"registries-skipping-tag-resolving": "index.docker.io,ghcr.io,knative.dev",
		},
	}
	paths, err := filepath.Glob(filepath.Join(files, "config/core/configmaps/*.yaml"))
	if err != nil {
		return fmt.Errorf("listing Knative's configuration: %w", err)
	}
	objects, err := readObjects(
		append(paths, filepath.Join(t.bin.manifests[knativeNetworking.name], "config/config-network.yaml"))...)
	if err != nil {
		return err
	}
	for _, o := range objects {
		o.SetNamespace(knativeNamespace)
		unstructured.RemoveNestedField(o.Object, "data", exampleKey)
		for key, value := range local[o.GetName()] {
			if err := unstructured.SetNestedField(o.Object, value, "data", key); err != nil {
				return fmt.Errorf("configuring Knative: %w", err)
			}
		}
	}
	return t.applyObjects(ctx, objects)
}

// knativeWebhooks returns Knative's webhooks of its own kinds, called at the port of this testbed.
func (t *Testbed) knativeWebhooks(files string) ([]*unstructured.Unstructured, error) {
	objects, err := readObjects(
		filepath.Join(files, "config/core/webhooks/defaulting.yaml"),
		filepath.Join(files, "config/core/webhooks/resource-validation.yaml"),
		filepath.Join(files, "config/core/webhooks/configmap-validation.yaml"),
	)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		hooks, _, err := unstructured.NestedSlice(o.Object, "webhooks")
		if err != nil {
			return nil, fmt.Errorf("reading webhooks of %s: %w", o.GetName(), err)
		}
		for _, hook := range hooks {
			m, _ := hook.(map[string]any)
			if err := unstructured.SetNestedField(
				m,
				int64(t.port(portKnativeWebhook)),
				"clientConfig",
				"service",
				"port",
			); err != nil {
				return nil, fmt.Errorf("writing webhooks of %s: %w", o.GetName(), err)
			}
		}
		if err := unstructured.SetNestedSlice(o.Object, hooks, "webhooks"); err != nil {
			return nil, fmt.Errorf("writing webhooks of %s: %w", o.GetName(), err)
		}
	}
	return objects, nil
}
