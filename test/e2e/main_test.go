// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// Package e2e tests Outrigger on a real node with real pods, installed from config/default. All tests share the cluster
// and keep apart by namespaces. They need root.
package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/test/cluster"
)

// within bounds how long a test waits for what takes seconds. Only what never happens exceeds it, however slow the machine
// is.
const within = 5 * time.Minute

var shared *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx := context.Background()
	c, err := cluster.Start(ctx, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := c.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	for version, prefix := range map[string]string{"v1": "digits/v1", "v2": "digits/v2"} {
		if _, err := c.UploadModel(ctx, version, prefix); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if _, err := c.UploadModel(ctx, "v2", "mnist"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared = c
	return m.Run()
}

// namespace makes a namespace with the runtime and credentials, and the given samples in it.
func namespace(t *testing.T, name string, samples ...string) string {
	t.Helper()
	must(t, shared.Namespace(t.Context(), name))
	t.Cleanup(func() {
		_, _ = shared.KubectlRun(context.WithoutCancel(t.Context()), "delete", "namespace", name, "--wait=false")
	})
	for _, sample := range samples {
		must(t, shared.ApplySample(t.Context(), name, sample, nil))
	}
	return name
}

func awaitMemcached(t *testing.T, ns string, size int32) *v1alpha1.Memcached {
	t.Helper()
	m := &v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "features"}}
	must(t, shared.Await(t.Context(), m, within, func() bool {
		return m.Status.ObservedGeneration == m.Generation && m.Status.Phase == v1alpha1.MemcachedRunning && m.Status.Size == size
	}))
	return m
}

func patch(t *testing.T, o client.Object, text string) {
	t.Helper()
	must(t, shared.Client.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(text))))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
