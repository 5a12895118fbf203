// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"serverless.xyz/outrigger/samples/predictor/features"
	"serverless.xyz/outrigger/samples/predictor/inference"
)

const twoIDs = `{"instances":[{"id":"digit-0"},{"id":"digit-1"},{"id":"digit-0"}]}`

func newCache(t *testing.T, addr string) *features.Cache {
	t.Helper()
	cache, err := features.NewCache(features.CacheOptions{
		Address: addr, View: "digits:v1", Width: 784, TTL: time.Minute, Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return cache
}

// startMemcached runs a real memcached until the test ends and returns its address.
func startMemcached(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("memcached", "-s", socket, "-m", "16", "-u", "root")
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting memcached, which the Debian package of that name holds: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
		if err == nil {
			_ = conn.Close()
			return "unix:" + socket
		}
		if time.Now().After(deadline) {
			t.Fatalf("memcached does not answer: %v", err)
		}
	}
}

// The same two entities by each protocol in turn: the first fills the cache, the others find them there.
func TestAnswersSayWhereFeaturesCameFrom(t *testing.T) {
	server := start(t).serve(t, "v1", newCache(t, startMemcached(t)))
	for _, want := range []string{"hits=0 misses=2", "hits=2 misses=0"} {
		got := server.post(t, "/v1/models/mnist:predict", twoIDs)
		if got.status != http.StatusOK || got.header.Get("X-Feature-Cache") != want {
			t.Errorf("V1: %d, X-Feature-Cache %q, want %q", got.status, got.header.Get("X-Feature-Cache"), want)
		}
	}
	got := server.post(t, "/v2/models/mnist/infer",
		`{"inputs":[{"name":"id","datatype":"BYTES","shape":[2],"data":["digit-0","digit-2"]}]}`)
	want := `"parameters":{"feature_cache_hits":1,"feature_cache_misses":1}`
	if !strings.Contains(got.text, want) || got.header.Get("X-Feature-Cache") != "hits=1 misses=1" {
		t.Errorf("V2: %s, X-Feature-Cache %q, want %s", got.text, got.header.Get("X-Feature-Cache"), want)
	}
	response, err := server.infer.ModelInfer(call(t), &inference.ModelInferRequest{
		ModelName: "mnist",
		Inputs: []*inference.ModelInferRequest_InferInputTensor{{
			Name: "id", Datatype: "BYTES", Shape: []int64{2},
			Contents: &inference.InferTensorContents{BytesContents: asBytes([]string{"digit-2", "digit-3"})},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	parameters := response.GetParameters()
	hits, misses := parameters["feature_cache_hits"].GetInt64Param(), parameters["feature_cache_misses"].GetInt64Param()
	if hits != 1 || misses != 1 || len(parameters) != 2 {
		t.Errorf("gRPC: parameters %v, want one hit and one miss", parameters)
	}
	server.wantMetrics(t,
		"\npredictor_feature_cache_hits_total 4\n",
		"\npredictor_feature_cache_misses_total 4\n",
		"\npredictor_feature_cache_errors_total 0\n",
		`predictor_requests_total{code="200",protocol="v1"} 2`+"\n",
		`predictor_requests_total{code="200",protocol="v2"} 1`+"\n",
		`predictor_requests_total{code="OK",protocol="grpc"} 1`+"\n",
		`predictor_model_info{model="mnist",version="v1"} 1`+"\n",
	)
}

// wantMetrics looks for lines of the metrics.
func (r *running) wantMetrics(t *testing.T, lines ...string) {
	t.Helper()
	text := r.get(t, "/metrics").text
	for _, want := range lines {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %q in\n%s", want, text)
		}
	}
}

func TestAnswersWithoutACache(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	got := server.post(t, "/v1/models/mnist:predict", twoIDs)
	if got.status != http.StatusOK || got.header.Get("X-Feature-Cache") != "off" {
		t.Errorf("by id: %d, X-Feature-Cache %q, want off", got.status, got.header.Get("X-Feature-Cache"))
	}
	got = server.post(t, "/v1/models/mnist:predict", `{"instances":[[`+strings.Repeat("0,", 783)+`0]]}`)
	if _, sent := got.header["X-Feature-Cache"]; got.status != http.StatusOK || sent {
		t.Errorf("by pixels: %d, X-Feature-Cache sent %t, want 200 and not sent", got.status, sent)
	}
}

func TestADeadCacheIsOnlyAMiss(t *testing.T) {
	server := start(t).serve(t, "v2", newCache(t, "unix:"+filepath.Join(t.TempDir(), "nobody")))
	got := server.post(t, "/v1/models/mnist:predict", twoIDs)
	digits := heldOut(t)
	want := []int{digits[0].V2, digits[1].V2, digits[0].V2}
	if got.status != http.StatusOK || got.header.Get("X-Feature-Cache") != "hits=0 misses=2" {
		t.Fatalf("%d %s, X-Feature-Cache %q", got.status, got.text, got.header.Get("X-Feature-Cache"))
	}
	for i, class := range ints(t, got.fields["predictions"]) {
		if class != want[i] {
			t.Errorf("row %d: predicted %d, want %d", i, class, want[i])
		}
	}
	server.wantMetrics(t, "\npredictor_feature_cache_errors_total 1\n")
}

// A model directory may come without features: then ids are refused and pixels are served.
func TestAModelWithoutFeatures(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	server.SetModel(server.serving.Load().Model, nil, time.Millisecond)
	got := server.post(t, "/v1/models/mnist:predict", twoIDs)
	if got.status != http.StatusBadRequest || !strings.Contains(got.text, "instances[0]: names an entity") {
		t.Errorf("by id: %d %s, want 400", got.status, got.text)
	}
	got = server.post(t, "/v1/models/mnist:predict", `{"instances":[[`+strings.Repeat("0,", 783)+`0]]}`)
	if got.status != http.StatusOK {
		t.Errorf("by pixels: %d %s", got.status, got.text)
	}
	if text := server.get(t, "/v2/models/mnist").text; strings.Contains(text, `"id"`) {
		t.Errorf("metadata still offers ids: %s", text)
	}
}
