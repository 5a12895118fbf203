// SPDX-License-Identifier: Apache-2.0

// Package testcluster gives tests of controllers a real API server that serves Outrigger's kinds and those that it
// builds on. Nothing acts on the objects but the test itself.
package testcluster

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/test/testbed"
)

// Cluster is an API server that all tests of a package share.
type Cluster struct {
	// Config reaches it as an administrator.
	Config *rest.Config
	// Client reads and writes without a cache.
	Client client.WithWatch
}

var definitions = sync.OnceValue(func() error {
	ctx := context.Background()
	if err := InstallForeign(ctx, shared); err != nil {
		return err
	}
	return shared.InstallCRDs(ctx, filepath.Join(Root(), "config/crd/bases"))
})

// InstallForeign installs the kinds of KServe, Istio and the Gateway API.
func InstallForeign(ctx context.Context, tb *testbed.Testbed) error {
	kserveDir, err := testbed.ModuleDir(ctx, Root(), "github.com/kserve/kserve")
	if err != nil {
		return err
	}
	istioDir, err := testbed.ModuleDir(ctx, filepath.Join(Root(), "test/testbed/modules/istio"), "istio.io/istio")
	if err != nil {
		return err
	}
	gatewayDir, err := testbed.ModuleDir(ctx, Root(), "sigs.k8s.io/gateway-api")
	if err != nil {
		return err
	}
	if err := tb.ApplyFiles(ctx,
		filepath.Join(istioDir, "manifests/charts/base/files/crd-all.gen.yaml"),
		filepath.Join(gatewayDir, "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"),
	); err != nil {
		return err
	}
	return tb.InstallCRDs(ctx, filepath.Join(kserveDir, "config/crd/full"))
}

var (
	shared *testbed.Testbed
	made   struct {
		sync.Mutex

		cluster *Cluster
	}
)

// New returns the shared cluster.
func New(t testing.TB) *Cluster {
	t.Helper()
	made.Lock()
	defer made.Unlock()
	if made.cluster != nil {
		return made.cluster
	}
	shared = testbed.Shared(t, testbed.API)
	if err := definitions(); err != nil {
		t.Fatalf("installing custom resource definitions: %v", err)
	}
	scheme := apiruntime.NewScheme()
	for _, add := range []func(*apiruntime.Scheme) error{
		clientgoscheme.AddToScheme, v1alpha1.AddToScheme, kserve.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatalf("making a scheme: %v", err)
		}
	}
	config := shared.Config()
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatalf("making a client: %v", err)
	}
	made.cluster = &Cluster{Config: config, Client: c}
	return made.cluster
}

// Namespace makes a namespace for one test.
func (c *Cluster) Namespace(t testing.TB) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	if err := c.Client.Create(t.Context(), ns); err != nil {
		t.Fatalf("making a namespace: %v", err)
	}
	return ns.Name
}

// root is found from the folder that the tests began in, which they may leave.
var root, errRoot = testbed.Root()

// Root returns the folder of the repository.
func Root() string {
	if errRoot != nil {
		panic(errRoot)
	}
	return root
}

// ModuleDir returns the folder of a module that the repository requires.
func ModuleDir(t testing.TB, module string) string {
	t.Helper()
	dir, err := testbed.ModuleDir(t.Context(), Root(), module)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
