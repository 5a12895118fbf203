// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// startParts starts everything beside the API server. Definitions come first, since KServe and Istio look once for those that
// they watch, and everything that does not need them starts meanwhile.
func (t *Testbed) startParts(ctx context.Context, parts []Part) error {
	group, ctx := errgroup.WithContext(ctx)
	if slices.Contains(parts, ControllerManager) {
		group.Go(func() error { return t.startControllerManager(ctx) })
	}
	if slices.Contains(parts, Scheduler) {
		group.Go(func() error { return t.startScheduler(ctx) })
	}
	if slices.Contains(parts, S3) {
		group.Go(func() error { return t.startS3(ctx) })
	}
	if slices.Contains(parts, Pods) {
		group.Go(func() error { return t.startNode(ctx) })
		group.Go(func() error { return t.startDNS(ctx) })
	}
	group.Go(func() error {
		if err := t.installDefinitions(ctx, parts); err != nil {
			return err
		}
		if slices.Contains(parts, Istio) {
			group.Go(func() error { return t.startIstio(ctx) })
		}
		if slices.Contains(parts, Knative) {
			group.Go(func() error { return t.startKnative(ctx) })
		}
		if slices.Contains(parts, KServe) {
			group.Go(func() error { return t.startKServe(ctx) })
		}
		return nil
	})
	return group.Wait()
}

// installDefinitions creates the custom resource definitions of all parts, several at a time.
func (t *Testbed) installDefinitions(ctx context.Context, parts []Part) error {
	var definitions []*unstructured.Unstructured
	for _, set := range manifestsFor(parts) {
		for _, pattern := range set.files {
			paths, err := filepath.Glob(filepath.Join(t.bin.manifests[set.name], pattern))
			if err != nil {
				return fmt.Errorf("listing definitions: %w", err)
			}
			found, err := readObjects(paths...)
			if err != nil {
				return err
			}
			definitions = append(definitions, slices.DeleteFunc(found, func(o *unstructured.Unstructured) bool {
				return o.GetKind() != crdKind
			})...)
		}
	}
	if len(definitions) == 0 {
		return nil
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, d := range definitions {
		group.Go(func() error {
			// Creating takes the API server a third of the time of applying; no definition is there yet.
			_, err := t.dynamic.Resource(crdResource).Create(groupCtx, d, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("creating definition %s: %w", d.GetName(), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := t.awaitDefinitions(ctx, definitions); err != nil {
		return err
	}
	t.say("%d custom resource definitions are established", len(definitions))
	return nil
}

func (t *Testbed) startControllerManager(ctx context.Context) error {
	config, err := t.userConfig("kube-controller-manager", "system:kube-controller-manager")
	if err != nil {
		return err
	}
	c := t.kubernetesServer(controllerManagerProgram, config, portControllerManager)
	c.args = append(c.args,
		"--service-account-private-key-file="+t.ca.path("service-accounts.key"),
		"--root-ca-file="+t.ca.path("ca.crt"),
		"--use-service-account-credentials=true",
		"--flex-volume-plugin-dir="+t.path("tmp"),
		"--kube-api-qps=200", "--kube-api-burst=400",
	)
	return t.launch(ctx, c)
}

func (t *Testbed) startScheduler(ctx context.Context) error {
	config, err := t.userConfig("kube-scheduler", "system:kube-scheduler")
	if err != nil {
		return err
	}
	return t.launch(ctx, t.kubernetesServer(schedulerProgram, config, portScheduler))
}

// kubernetesServer is what the controller manager and the scheduler have in common.
func (t *Testbed) kubernetesServer(p program, config string, port int) component {
	return component{
		name: p.name, path: t.bin.programs[p.name],
		args: []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--leader-elect=false", "--bind-address=" + t.bind(), "--secure-port=" + strconv.Itoa(t.port(port)),
			"--cert-dir=" + t.path("tmp/"+p.name), "--profiling=false",
		},
		ready: httpReady(unverified(), "https://"+t.hostPort(port)+"/healthz"),
	}
}

// unverified returns a client for servers whose certificates they signed themselves.
func unverified() *http.Client {
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
}

// direct returns a client that obeys no proxy setting.
func direct() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
}
