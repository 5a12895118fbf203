// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	kserveNamespace = "kserve"
	kserveDeploy    = `{"defaultDeploymentMode": "Standard"}`
	exampleKey      = "_example"
)

// startKServe starts KServe's manager beside the cluster, as the administrator. The API server calls its webhooks by
// address instead of by Service.
func (t *Testbed) startKServe(ctx context.Context) error {
	if err := t.applyKServeConfig(ctx); err != nil {
		return err
	}
	serving, err := t.ca.issue("kserve-webhook", "kserve-webhook", nil, []string{t.address()})
	if err != nil {
		return err
	}
	// The manager takes its certificates from a fixed folder below the one for temporary files.
	temp := t.path("tmp/kserve")
	certs := filepath.Join(temp, "k8s-webhook-server", "serving-certs")
	if err := os.MkdirAll(certs, 0o700); err != nil {
		return fmt.Errorf("making the folder of KServe's certificates: %w", err)
	}
	if err := errors.Join(
		os.Symlink(serving.certPath, filepath.Join(certs, "tls.crt")),
		os.Symlink(serving.keyPath, filepath.Join(certs, "tls.key")),
	); err != nil {
		return fmt.Errorf("placing KServe's certificates: %w", err)
	}
	listen := func(port int) string { return net.JoinHostPort(t.bind(), strconv.Itoa(t.port(port))) }
	err = t.launch(ctx, component{
		name: kserveProgram.name, path: t.bin.programs[kserveProgram.name],
		args: []string{
			"--webhook-port", strconv.Itoa(t.port(portKServeWebhook)),
			"--metrics-addr", listen(portKServeMetrics), "--health-probe-addr", listen(portKServeHealth),
		},
		env: []string{
			"KUBECONFIG=" + t.state.Kubeconfig, "POD_NAMESPACE=" + kserveNamespace,
			"SECRET_NAME=kserve-webhook-server-cert", "TMPDIR=" + temp,
		},
		ready: httpReady(direct(), "http://"+t.hostPort(portKServeHealth)+"/readyz"),
	})
	if err != nil {
		return err
	}
	// Only now: until the manager answers, its webhooks would refuse every pod of a model.
	return t.applyKServeWebhooks(ctx)
}

// applyKServeConfig applies KServe's namespace and configuration, both as KServe ships it but for the deployment mode.
func (t *Testbed) applyKServeConfig(ctx context.Context) error {
	files := t.bin.manifests[kserveManifests.name]
	config, err := readObjects(files + "/config/configmap/inferenceservice.yaml")
	if err != nil {
		return err
	}
	for _, o := range config {
		o.SetNamespace(kserveNamespace)
		unstructured.RemoveNestedField(o.Object, "data", exampleKey)
		if err := unstructured.SetNestedField(o.Object, kserveDeploy, "data", "deploy"); err != nil {
			return fmt.Errorf("configuring KServe: %w", err)
		}
		for key, value := range t.options.KServeConfig {
			if err := unstructured.SetNestedField(o.Object, value, "data", key); err != nil {
				return fmt.Errorf("configuring KServe: %w", err)
			}
		}
	}
	storage, err := readObjects(files + "/config/storagecontainers/default.yaml")
	if err != nil {
		return err
	}
	for _, o := range storage {
		// KServe's release process puts the image in; the file has a placeholder.
		err := unstructured.SetNestedField(o.Object, StorageInitializerImage, "spec", "container", "image")
		if err != nil {
			return fmt.Errorf("configuring KServe: %w", err)
		}
	}
	if err := t.Apply(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+kserveNamespace+"}\n"); err != nil {
		return err
	}
	return t.applyObjects(ctx, append(config, storage...))
}

// applyKServeWebhooks applies KServe's webhooks with an address in place of a Service.
func (t *Testbed) applyKServeWebhooks(ctx context.Context) error {
	objects, err := readObjects(t.bin.manifests[kserveManifests.name] + "/config/webhook/manifests.yaml")
	if err != nil {
		return err
	}
	base := "https://" + t.hostPort(portKServeWebhook)
	for _, o := range objects {
		if err := pointWebhooks(o, base, t.ca.pem); err != nil {
			return err
		}
	}
	return t.applyObjects(ctx, objects)
}

// pointWebhooks makes every webhook of a configuration call the same path at base instead of a Service.
func pointWebhooks(o *unstructured.Unstructured, base string, bundle []byte) error {
	unstructured.RemoveNestedField(o.Object, "metadata", "creationTimestamp")
	hooks, _, err := unstructured.NestedSlice(o.Object, "webhooks")
	if err != nil {
		return fmt.Errorf("reading webhooks of %s: %w", o.GetName(), err)
	}
	for _, hook := range hooks {
		m, ok := hook.(map[string]any)
		if !ok {
			return fmt.Errorf("reading webhooks of %s: one is no object", o.GetName())
		}
		path, _, err := unstructured.NestedString(m, "clientConfig", "service", "path")
		if err != nil {
			return fmt.Errorf("reading webhooks of %s: %w", o.GetName(), err)
		}
		m["clientConfig"] = map[string]any{
			"url": base + path, "caBundle": base64.StdEncoding.EncodeToString(bundle),
		}
	}
	if err := unstructured.SetNestedSlice(o.Object, hooks, "webhooks"); err != nil {
		return fmt.Errorf("writing webhooks of %s: %w", o.GetName(), err)
	}
	return nil
}
