// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"math"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
	"serverless.xyz/outrigger/test/mesh"
	"serverless.xyz/outrigger/test/testbed"
)

// versionHeader is the header in which a server of the test tells who it is.
const versionHeader = "x-version"

// meshServer answers health checks and tells which side it is.
type meshServer struct {
	grpc_health_v1.UnimplementedHealthServer
	version string
}

// Check implements grpc_health_v1.HealthServer.
func (s meshServer) Check(
	ctx context.Context,
	_ *grpc_health_v1.HealthCheckRequest,
) (*grpc_health_v1.HealthCheckResponse, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs(versionHeader, s.version)); err != nil {
		return nil, err
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

// startServer serves at an address that an EndpointSlice may hold, and returns it.
func startServer(t *testing.T, version string) *net.TCPAddr {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(hostAddress(t), "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, meshServer{version: version})
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	return listener.Addr().(*net.TCPAddr)
}

// hostAddress returns an address of this machine; the API server takes no loopback address for an endpoint.
func hostAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if ip, ok := address.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			return ip.IP.String()
		}
	}
	t.Fatal("this machine has no IPv4 address but the loopback; the test needs one for its endpoints")
	return ""
}

// served makes an InferenceService with a Service as KServe makes it, whose only endpoint is a server of the test.
func served(name string, at *net.TCPAddr) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		if err := inferenceService(name, 0)(ctx, w); err != nil {
			return err
		}
		var service corev1.Service
		key := client.ObjectKey{Namespace: w.Namespace, Name: name + "-predictor"}
		if err := w.Client.Get(ctx, key, &service); err != nil {
			return err
		}
		return w.Client.Update(ctx, &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: key.Name, Labels: map[string]string{
				discoveryv1.LabelServiceName: key.Name, kserve.LabelInferenceService: name, "component": "predictor",
			}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &service.Spec.Ports[0].Name, Port: new(int32(at.Port))}},
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{at.IP.String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
			}},
		})
	}
}

// meshClient calls a host as a proxyless member of the mesh does: by the routes that istiod sends it.
type meshClient struct {
	health grpc_health_v1.HealthClient
	header []string
	failed int
	err    error
}

func dialMesh(t *testing.T, xdsAddress, namespace, host string) *meshClient {
	t.Helper()
	conn, err := mesh.Dial(xdsAddress, "10.0.0.9", namespace, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &meshClient{health: grpc_health_v1.NewHealthClient(conn)}
}

// with returns a client of the same connection whose calls carry a header.
func (c *meshClient) with(header ...string) *meshClient {
	return &meshClient{health: c.health, header: header}
}

// share makes calls and returns the percentage that a version answered.
func (c *meshClient) share(ctx context.Context, calls int, version string) float64 {
	hits := 0
	ctx = metadata.AppendToOutgoingContext(ctx, c.header...)
	for range calls {
		var header metadata.MD
		// A call that waits for a side without endpoints waits on when the route has turned away from that side.
		callCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := c.health.Check(callCtx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header), grpc.WaitForReady(true))
		cancel()
		if err != nil {
			c.failed++
			c.err = err
			continue
		}
		if got := header.Get(versionHeader); len(got) == 1 && got[0] == version {
			hits++
		}
	}
	return 100 * float64(hits) / float64(calls)
}

// await calls until the share of a version has come near what is wanted.
func (c *meshClient) await(t *testing.T, version string, want, tolerance float64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for ctx.Err() == nil {
		if math.Abs(c.share(ctx, 200, version)-want) <= tolerance {
			return
		}
	}
	t.Fatalf("after %s %s still does not get near %.0f percent; last error: %v", within, version, want, c.err)
}

// TestTrafficFollows is the whole way: an edit of the CR, the VirtualService, istiod, and a client that obeys it.
// Callers see every share as asked, and no failed call on the way.
func TestTrafficFollows(t *testing.T) {
	bed, cluster := startMesh(t)
	w := faults.NewWorld(t, cluster)
	do(t, w, served("v1", startServer(t, "v1")), served("v2", startServer(t, "v2")), rollout(nil))
	startManager(t, w, bed.Config())
	awaitReason(t, w, name, "WeightsApplied")
	caller := dialMesh(t, bed.XDSAddress(), w.Namespace, name+"."+w.Namespace+".svc.cluster.local:80")
	caller.await(t, "v1", 100, 0)
	if caller.failed > 0 {
		t.Fatalf("%d calls failed before anything was edited: %v", caller.failed, caller.err)
	}

	for _, n := range []int{10, 50, 100, 0} {
		do(t, w, percent(n))
		edited := time.Now()
		caller.await(t, "v2", float64(n), 9)
		t.Logf("%d percent: traffic follows %s after the edit", n, time.Since(edited).Round(time.Millisecond))
		if got := caller.share(t.Context(), 4000, "v2"); math.Abs(got-float64(n)) > 3 {
			t.Errorf("the canary gets %.1f percent of 4000 calls, want %d", got, n)
		}
	}

	do(t, w, percent(50))
	caller.await(t, "v2", 50, 9)
	do(t, w, served("v3", startServer(t, "v3")), edit(`{"spec":{"canary":{"inferenceService":"v3"}}}`))
	caller.await(t, "v3", 50, 9) // a superseded canary
	// A canary that dies midway takes the calls along that were on their way to it, and no later one.
	if caller.failed > 0 {
		t.Errorf("%d calls failed while all sides were well: %v", caller.failed, caller.err)
	}
	do(t, w, endpoints("v3-predictor", "v3", 0))
	caller.await(t, "v1", 100, 0)
	caller.failed, caller.err = 0, nil

	do(t, w, edit(coloured), edit(`{"spec":{"canary":{"inferenceService":"v2"}}}`), percent(0))
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	red := caller.with("x-colour", "canary")
	red.await(t, "v2", 100, 0)
	for what, other := range map[string]*meshClient{
		"no mark": caller, "another colour": caller.with("x-colour", "canary2"), "a cookie that looks alike": caller.with("cookie", "xtier=gold"),
	} {
		if got := other.share(t.Context(), 300, "v1"); got != 100 {
			t.Errorf("with %s: %.1f percent reach stable, want all", what, got)
		}
	}
	do(t, w, percent(100))
	caller.await(t, "v2", 100, 0)
	if got := caller.with("cookie", "a=b; tier=gold; c=d").share(t.Context(), 300, "v1"); got != 100 {
		t.Errorf("with the cookie: %.1f percent reach stable, want all", got)
	}
	if failed := caller.failed + red.failed; failed > 0 {
		t.Errorf("%d calls failed: %v %v", failed, caller.err, red.err)
	}

	do(t, w, edit(`{"spec":{"routing":{"mode":"Delegate"}}}`), percent(50), front)
	front := dialMesh(t, bed.XDSAddress(), w.Namespace, "front."+w.Namespace+".svc.cluster.local:80")
	front.await(t, "v2", 50, 9)
}

// front makes a Service and a VirtualService of the user's for it, which delegates to the rollout's.
func front(ctx context.Context, w *faults.World) error {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "front"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	if err := w.Client.Create(ctx, service); err != nil {
		return err
	}
	return applyYAML(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: [front.`+w.Namespace+`.svc.cluster.local]
  http: [{name: digits, delegate: {name: digits}}]
`)(ctx, w)
}

// startMesh starts an API server and istiod, which end with the test.
func startMesh(t *testing.T) (*testbed.Testbed, *testcluster.Cluster) {
	t.Helper()
	bed, err := testbed.Start(
		t.Context(),
		testbed.Options{Size: testbed.API, With: []testbed.Part{testbed.GatewayAPI, testbed.Istio}},
	)
	if err != nil {
		t.Fatalf("starting istiod: %v", err)
	}
	t.Cleanup(func() {
		if err := bed.Stop(); err != nil {
			t.Errorf("stopping istiod: %v", err)
		}
	})
	crds := []string{
		filepath.Join(testcluster.Root(), "config/crd/bases"),
		filepath.Join(testcluster.ModuleDir(t, "github.com/kserve/kserve"), "config/crd/full"),
	}
	if err := bed.InstallCRDs(t.Context(), crds...); err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, kserve.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.NewWithWatch(bed.Config(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return bed, &testcluster.Cluster{Config: bed.Config(), Client: c}
}

// TestTrafficFollowsHTTPRoutes is the same way by the Gateway API's routes: istiod as their controller accepts them,
// serves them to callers of a Service, and says so in their status, for which the rollout waits.
func TestTrafficFollowsHTTPRoutes(t *testing.T) {
	bed, cluster := startMesh(t)
	w := faults.NewWorld(t, cluster)
	do(t, w, served("v1", startServer(t, "v1")), served("v2", startServer(t, "v2")), providers[1].owned())
	startManager(t, w, bed.Config())
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	caller := dialMesh(t, bed.XDSAddress(), w.Namespace, name+"."+w.Namespace+".svc.cluster.local:80")
	caller.await(t, "v1", 100, 0)
	for _, n := range []int{10, 50, 100, 0} {
		edited := time.Now()
		do(t, w, percent(n))
		awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
		t.Logf("%d percent: accepted %s after the edit", n, time.Since(edited).Round(time.Millisecond))
		caller.await(t, "v2", float64(n), 9)
		t.Logf("%d percent: traffic follows %s after the edit", n, time.Since(edited).Round(time.Millisecond))
		if got := caller.share(t.Context(), 4000, "v2"); math.Abs(got-float64(n)) > 3 {
			t.Errorf("the canary gets %.1f percent of 4000 calls, want %d", got, n)
		}
	}
	do(t, w, edit(coloured))
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	red := caller.with("x-colour", "canary")
	red.await(t, "v2", 100, 0)
	for what, other := range map[string]*meshClient{
		"no mark": caller, "another colour": caller.with("x-colour", "canary2"), "a cookie that looks alike": caller.with("cookie", "xtier=gold"),
	} {
		if got := other.share(t.Context(), 300, "v1"); got != 100 {
			t.Errorf("with %s: %.1f percent reach stable, want all", what, got)
		}
	}
	do(t, w, percent(100))
	caller.await(t, "v2", 100, 0)
	if got := caller.with("cookie", "a=b; tier=gold; c=d").share(t.Context(), 300, "v1"); got != 100 {
		t.Errorf("with the cookie: %.1f percent reach stable, want all", got)
	}
	// From one kind of route to the other, and not a call is lost.
	do(t, w, percent(50), edit(`{"spec":{"routing":{"provider":"VirtualService"}}}`))
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	awaitWeights(t, w, name, routing.SplitRoute, "v1=50 v2=50 ")
	caller.await(t, "v2", 50, 9)
	if failed := caller.failed + red.failed; failed > 0 {
		t.Errorf("%d calls failed: %v %v", failed, caller.err, red.err)
	}
}
