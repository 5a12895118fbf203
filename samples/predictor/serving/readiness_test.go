// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"serverless.xyz/outrigger/samples/predictor/inference"
)

// wantReadiness asks every way there is whether the server is ready.
func (r *running) wantReadiness(t *testing.T, want bool) {
	t.Helper()
	wantStatus := map[bool]int{true: http.StatusOK, false: http.StatusServiceUnavailable}[want]
	for _, path := range []string{"/v1/models/mnist", "/v2/health/ready", "/v2/models/mnist/ready"} {
		if got := r.get(t, path); got.status != wantStatus || got.fields["ready"] != want {
			t.Errorf("GET %s: %d %s, want ready %t", path, got.status, got.text, want)
		}
	}
	r.wantReadinessOverGRPC(t, want)
	if got := r.get(t, "/v2/health/live"); got.status != http.StatusOK {
		t.Errorf("live: %d %s", got.status, got.text)
	}
}

func (r *running) wantReadinessOverGRPC(t *testing.T, want bool) {
	t.Helper()
	server, err := r.infer.ServerReady(call(t), &inference.ServerReadyRequest{})
	if err != nil || server.GetReady() != want {
		t.Errorf("ServerReady = %v, error %v, want %t", server, err, want)
	}
	mnist, err := r.infer.ModelReady(call(t), &inference.ModelReadyRequest{Name: "mnist"})
	if err != nil || mnist.GetReady() != want {
		t.Errorf("ModelReady = %v, error %v, want %t", mnist, err, want)
	}
	for _, service := range []string{"", "inference.GRPCInferenceService"} {
		health, err := healthpb.NewHealthClient(r.conn).Check(call(t), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || (health.GetStatus() == healthpb.HealthCheckResponse_SERVING) != want {
			t.Errorf("health of %q = %v, error %v, want serving %t", service, health, err, want)
		}
	}
}

func TestReadinessFollowsTheModelAndTheDrain(t *testing.T) {
	const path, body = "/v1/models/mnist:predict", `{"instances":[{"id":"digit-0"}]}`
	server := start(t)
	server.wantReadiness(t, false)
	if got := server.post(t, path, body); got.status != http.StatusServiceUnavailable {
		t.Errorf("prediction before the model: %d %s, want 503", got.status, got.text)
	}
	_, err := server.infer.ModelInfer(call(t), &inference.ModelInferRequest{ModelName: "mnist"})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("prediction before the model: %v, want Unavailable", err)
	}
	server.serve(t, "v1", nil)
	server.wantReadiness(t, true)
	if got := server.post(t, path, body); got.status != http.StatusOK {
		t.Errorf("prediction: %d %s", got.status, got.text)
	}
	// Routes take a while to move away; what still arrives is served.
	server.Drain()
	server.wantReadiness(t, false)
	if got := server.post(t, path, body); got.status != http.StatusOK {
		t.Errorf("prediction while draining: %d %s", got.status, got.text)
	}
}

// A request whose body is still on its way when the server shuts down is answered, over each version of HTTP.
func TestShutdownLetsRequestsInFlightFinish(t *testing.T) {
	for name, client := range map[string]*http.Client{"HTTP/1.1": {}, "HTTP/2": h2c()} {
		t.Run(name, func(t *testing.T) {
			server := start(t).serve(t, "v1", nil)
			arrived := make(chan struct{})
			server.front.Handler = signalling(server.front.Handler, arrived)
			body, writer := io.Pipe()
			request, err := http.NewRequestWithContext(call(t), http.MethodPost,
				"http://"+server.addr+"/v1/models/mnist:predict", body)
			if err != nil {
				t.Fatal(err)
			}
			answered := make(chan error, 1)
			go func() {
				response, err := client.Do(request)
				if err == nil {
					text, _ := io.ReadAll(response.Body)
					_ = response.Body.Close()
					if response.StatusCode != http.StatusOK {
						err = &fault{codes.Unknown, string(text)}
					}
				}
				answered <- err
			}()
			<-arrived
			stopped := make(chan error, 1)
			go func() { stopped <- server.front.Shutdown(call(t)) }()
			waitForClosedPort(t, server)
			if _, err := io.Copy(writer, strings.NewReader(`{"instances":[{"id":"digit-0"}]}`)); err != nil {
				t.Fatal(err)
			}
			_ = writer.Close()
			if err := <-answered; err != nil {
				t.Errorf("request in flight: %v", err)
			}
			if err := <-stopped; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// signalling closes arrived when the first request reaches the handler.
func signalling(next http.Handler, arrived chan struct{}) http.Handler {
	var once sync.Once
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(arrived) })
		next.ServeHTTP(w, r)
	})
}

// waitForClosedPort returns once connections are refused, which is when Shutdown has begun.
func waitForClosedPort(t *testing.T, server *running) {
	t.Helper()
	ctx := call(t)
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", server.addr)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal("the port is still open")
			}
			return
		}
		_ = conn.Close()
	}
}
