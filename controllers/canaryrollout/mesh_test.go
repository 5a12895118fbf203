// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
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
	// patience is how long a call may wait for a side without endpoints. It waits on when the route has turned away from
	// that side.
	patience time.Duration
	failed   int
	err      error
}

func dialMesh(t *testing.T, xdsAddress, namespace, host string) *meshClient {
	t.Helper()
	conn, err := mesh.Dial(xdsAddress, "10.0.0.9", namespace, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &meshClient{health: grpc_health_v1.NewHealthClient(conn), patience: within}
}

// with returns a client of the same connection whose calls carry a header.
func (c *meshClient) with(header ...string) *meshClient {
	return &meshClient{health: c.health, header: header, patience: within}
}

// share makes calls and returns the percentage that a version answered.
func (c *meshClient) share(ctx context.Context, calls int, version string) float64 {
	hits := 0
	ctx = metadata.AppendToOutgoingContext(ctx, c.header...)
	for range calls {
		var header metadata.MD
		callCtx, cancel := context.WithTimeout(ctx, c.patience)
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

	wantTraffic(t, w, caller)

	do(t, w, percent(50))
	caller.await(t, "v2", 50, 9)
	do(t, w, served("v3", startServer(t, "v3")), edit(`{"spec":{"canary":{"inferenceService":"v3"}}}`))
	caller.await(t, "v3", 50, 9) // a superseded canary
	if caller.failed > 0 {
		t.Errorf("%d calls failed while all sides were well: %v", caller.failed, caller.err)
	}
	// A canary that dies midway takes the calls along that were on their way to it, and no later one.
	caller.patience = 2 * time.Second
	do(t, w, endpoints("v3-predictor", "v3", 0))
	caller.await(t, "v1", 100, 0)
	caller.patience, caller.failed, caller.err = within, 0, nil

	do(t, w, edit(coloured), edit(`{"spec":{"canary":{"inferenceService":"v2"}}}`), percent(0))
	red := wantColours(t, w, caller)
	if failed := caller.failed + red.failed; failed > 0 {
		t.Errorf("%d calls failed: %v %v", failed, caller.err, red.err)
	}

	do(t, w, edit(`{"spec":{"colours":null,"stickiness":{"header":{"name":"x-session-id"}}}}`), percent(30))
	caller.await(t, "v2", 30, 9)
	byHeader := sessionsOf(t, caller, 256, func(n int) []string { return []string{"x-session-id", fmt.Sprintf("a7-%02x", n)} })
	do(t, w, edit(`{"spec":{"stickiness":{"header":null,"cookie":{"name":"digits"}}}}`))
	caller.await(t, "v2", 30, 9)
	awaitSetCookie(t, bed.XDSAddress(), w.Namespace)
	byCookie := sessionsOf(t, caller, 100, func(n int) []string { return []string{"cookie", fmt.Sprintf("a=b; digits=%02d", n)} })
	if byHeader != 77 || byCookie != 30 {
		t.Errorf("at 30 percent the canary has %d of 256 sessions by header and %d of 100 by cookie", byHeader, byCookie)
	}
	wantShare(t, caller, 30)

	do(t, w, edit(`{"spec":{"stickiness":null,"shadow":{"percent":20}}}`), percent(0))
	caller.await(t, "v2", 0, 0)
	mirrors := awaitRoute(t, bed.XDSAddress(), w.Namespace, "a mirror", func(route *routev3.Route) bool {
		return len(route.GetRoute().GetRequestMirrorPolicies()) == 1
	}).GetRoute().GetRequestMirrorPolicies()
	if share := mirrors[0].GetRuntimeFraction().GetDefaultValue(); !strings.Contains(mirrors[0].GetCluster(), "v2-predictor") ||
		share.GetNumerator()*100 != 20*denominator(share.GetDenominator()) {
		t.Errorf("istiod sends the mirror %v, want 20 percent to v2", mirrors[0])
	}

	do(t, w, edit(`{"spec":{"routing":{"mode":"Delegate"}}}`), percent(50), front)
	front := dialMesh(t, bed.XDSAddress(), w.Namespace, "front."+w.Namespace+".svc.cluster.local:80")
	front.await(t, "v2", 50, 9)

	// A canary that a person turns back, and a rollout that is deleted, leave everything to stable and lose no call.
	do(t, w, usersOwn, edit(`{"spec":{"shadow":null,"canaryPercent":0,"strategy":{"steps":[{"setPercent":50},{"pause":{}}]},
		"routing":{"mode":"Adopt","virtualServiceRef":{"name":"own","route":"digits"}}}}`))
	own := dialMesh(t, bed.XDSAddress(), w.Namespace, "own."+w.Namespace+".svc.cluster.local:80")
	awaitPhase(t, w, v1alpha1.PhasePaused)
	own.await(t, "v2", 50, 9)
	do(t, w, say(v1alpha1.AnnotationAbort))
	aborted := time.Now()
	own.await(t, "v1", 100, 0)
	t.Logf("a rollback: traffic follows %s after the word", time.Since(aborted).Round(time.Millisecond))
	awaitPhase(t, w, v1alpha1.PhaseRolledBack)
	do(t, w, say(v1alpha1.AnnotationRetry))
	own.await(t, "v2", 50, 9)
	do(t, w, remove)
	own.await(t, "v1", 100, 0)
	if own.failed > 0 {
		t.Errorf("%d calls failed on the way back: %v", own.failed, own.err)
	}
}

// wantTraffic edits the canary's share, to end at 0, and measures what it gets of the calls.
func wantTraffic(t *testing.T, w *faults.World, caller *meshClient) {
	t.Helper()
	for _, n := range []int{10, 50, 100, 0} {
		edited := time.Now()
		do(t, w, percent(n))
		awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
		t.Logf("%d percent: accepted %s after the edit", n, time.Since(edited).Round(time.Millisecond))
		caller.await(t, "v2", float64(n), 9)
		t.Logf("%d percent: traffic follows %s after the edit", n, time.Since(edited).Round(time.Millisecond))
		wantShare(t, caller, float64(n))
	}
}

// wantShare measures what the canary v2 gets of the calls. One time in some thousand a share of 4000 calls is off by 3
// percent by chance, and then that of four times as many decides.
func wantShare(t *testing.T, caller *meshClient, want float64) {
	t.Helper()
	got, calls := 0.0, 4000
	for range 2 {
		if got = caller.share(t.Context(), calls, "v2"); math.Abs(got-want) <= 3 {
			return
		}
		calls *= 4
	}
	t.Errorf("the canary gets %.1f percent of %d calls, want %.0f", got, calls/4, want)
}

// wantColours has the calls of a coloured rollout from v1 to v2 marked: at 0 percent, and then at 100, those with the
// mark of a side reach that side, and no others do. It returns a client of marked calls.
func wantColours(t *testing.T, w *faults.World, caller *meshClient) *meshClient {
	t.Helper()
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
	return red
}

// sessionsOf counts the sessions that the canary v2 answers. Each makes several calls and must find one side only.
func sessionsOf(t *testing.T, c *meshClient, n int, header func(int) []string) int {
	t.Helper()
	// The client may be a moment behind with the rules of sessions.
	for deadline := time.Now().Add(within); ; {
		if share := c.with(header(0)...).share(t.Context(), 50, "v2"); share == 0 || share == 100 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s the session %q still finds both sides", within, header(0))
		}
	}
	count := 0
	for session := range n {
		switch share := c.with(header(session)...).share(t.Context(), 4, "v2"); share {
		case 100:
			count++
		case 0:
		default:
			t.Errorf("the session %q finds v2 in %.0f percent of its calls", header(session), share)
		}
	}
	return count
}

// awaitRoute waits until istiod sends a proxy a route of the rollout's host that is as wanted. It sees what callers that
// obey less than a proxy, as those of gRPC do, leave out.
func awaitRoute(
	t *testing.T, xdsAddress, namespace, what string, wanted func(*routev3.Route) bool,
) (found *routev3.Route) {
	t.Helper()
	host := name + "." + namespace + ".svc.cluster.local:80"
	deadline := time.Now().Add(within)
	for found == nil {
		if time.Now().After(deadline) {
			t.Fatalf("after %s istiod still sends no %s", within, what)
		}
		hosts, err := mesh.Routes(t.Context(), xdsAddress, "10.0.0.9", namespace, "80")
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range hosts {
			if one.GetName() != host {
				continue
			}
			for _, route := range one.GetRoutes() {
				if wanted(route) {
					found = route
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return found
}

// awaitSetCookie waits until istiod tells proxies to give each new session a cookie.
func awaitSetCookie(t *testing.T, xdsAddress, namespace string) {
	t.Helper()
	awaitRoute(t, xdsAddress, namespace, "cookies of new sessions", func(route *routev3.Route) bool {
		clusters := route.GetRoute().GetWeightedClusters().GetClusters()
		for _, one := range clusters {
			if added := one.GetResponseHeadersToAdd(); len(added) != 1 || added[0].GetHeader().GetKey() != "Set-Cookie" ||
				!strings.HasPrefix(added[0].GetHeader().GetValue(), "digits=") {
				return false
			}
		}
		return len(clusters) == 100
	})
}

func denominator(of typev3.FractionalPercent_DenominatorType) uint32 {
	return map[typev3.FractionalPercent_DenominatorType]uint32{
		typev3.FractionalPercent_HUNDRED: 100, typev3.FractionalPercent_TEN_THOUSAND: 10_000,
		typev3.FractionalPercent_MILLION: 1_000_000,
	}[of]
}

// front makes a Service and a VirtualService of the user's for it, which delegates to the rollout's.
func front(ctx context.Context, w *faults.World) error {
	return hostOfTheUsers(ctx, w, "front", `[{name: digits, delegate: {name: digits}}]`)
}

// usersOwn makes a Service and a VirtualService of the user's for it, which sends everything to v1.
func usersOwn(ctx context.Context, w *faults.World) error {
	return hostOfTheUsers(ctx, w, "own", `[{name: digits, route: [
    {destination: {host: v1-predictor}, weight: 100}, {destination: {host: v2-predictor}, weight: 0}]}]`)
}

func hostOfTheUsers(ctx context.Context, w *faults.World, name, rules string) error {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	if err := w.Client.Create(ctx, service); err != nil {
		return err
	}
	return applyYAML(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: `+name+`}
spec:
  hosts: [`+name+`.`+w.Namespace+`.svc.cluster.local]
  http: `+rules+`
`)(ctx, w)
}

// startMesh returns an API server with istiod that tests share, each in a namespace of its own. It ends with the process.
func startMesh(t *testing.T) (*testbed.Testbed, *testcluster.Cluster) {
	t.Helper()
	bed, err := sharedMesh()
	if err != nil {
		t.Fatalf("starting istiod: %v", err)
	}
	return bed, clusterOf(t, bed)
}

var sharedMesh = sync.OnceValues(func() (*testbed.Testbed, error) {
	ctx := context.Background()
	bed, err := testbed.Start(ctx, testbed.Options{Size: testbed.API, With: []testbed.Part{testbed.GatewayAPI, testbed.Istio}})
	if err != nil {
		return nil, err
	}
	kserveDir, err := testbed.ModuleDir(ctx, testcluster.Root(), "github.com/kserve/kserve")
	if err != nil {
		return nil, err
	}
	return bed, bed.InstallCRDs(
		ctx,
		filepath.Join(testcluster.Root(), "config/crd/bases"),
		filepath.Join(kserveDir, "config/crd/full"),
	)
})

// clusterOf returns a testbed's API server as worlds want it.
func clusterOf(t *testing.T, bed *testbed.Testbed) *testcluster.Cluster {
	t.Helper()
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
	return &testcluster.Cluster{Config: bed.Config(), Client: c}
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
	wantTraffic(t, w, caller)
	do(t, w, edit(coloured))
	red := wantColours(t, w, caller)
	do(
		t,
		w,
		edit(`{"spec":{"colours":null,"stickiness":{"header":{"name":"x-session-id"}},"shadow":{"percent":20}}}`),
		percent(30),
	)
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	caller.await(t, "v2", 30, 9)
	if got := sessionsOf(t, caller, 256, func(n int) []string {
		return []string{"x-session-id", fmt.Sprintf("a7-%02x", n)}
	}); got != 77 {
		t.Errorf("at 30 percent the canary has %d of 256 sessions", got)
	}
	do(t, w, percent(0))
	awaitRoute(t, bed.XDSAddress(), w.Namespace, "a mirror", func(route *routev3.Route) bool {
		mirrors := route.GetRoute().GetRequestMirrorPolicies()
		return len(mirrors) == 1 && strings.Contains(mirrors[0].GetCluster(), "v2-predictor")
	})
	// From one kind of route to the other, and not a call is lost.
	do(t, w, percent(50), edit(`{"spec":{"routing":{"provider":"VirtualService"}}}`))
	awaitReason(t, w, name, v1alpha1.ReasonWeightsApplied)
	awaitWeights(t, w, name, routing.SplitRoute, "v1=50 v2=50 ")
	caller.await(t, "v2", 50, 9)
	if failed := caller.failed + red.failed; failed > 0 {
		t.Errorf("%d calls failed: %v %v", failed, caller.err, red.err)
	}
}
