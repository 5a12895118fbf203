// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"serverless.xyz/outrigger/samples/predictor/classifier"
	"serverless.xyz/outrigger/samples/predictor/features"
	"serverless.xyz/outrigger/samples/predictor/inference"
	"serverless.xyz/outrigger/samples/predictor/model"
)

// running is a server on a port of its own, with a client of each kind.
type running struct {
	*Server

	front *http.Server
	addr  string
	conn  *grpc.ClientConn
	infer inference.GRPCInferenceServiceClient
}

// start serves without a model; give it one with serve.
func start(t *testing.T) *running {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Server: New("mnist", slog.New(slog.DiscardHandler)), addr: listener.Addr().String()}
	r.front = r.HTTPServer()
	served := make(chan error, 1)
	go func() { served <- r.front.Serve(listener) }()
	r.conn, err = grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.infer = inference.NewGRPCInferenceServiceClient(r.conn)
	t.Cleanup(func() {
		_ = r.conn.Close()
		_ = r.front.Close()
		<-served
	})
	return r
}

// serve loads a version; cache may be nil.
func (r *running) serve(t *testing.T, version string, cache *features.Cache) *running {
	t.Helper()
	dir := filepath.Join("../model", version)
	m, err := classifier.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	store, err := features.OpenStore(filepath.Join(dir, classifier.FeaturesFile), m.Config.Input.Pixels)
	if err != nil {
		t.Fatal(err)
	}
	r.SetModel(m, &features.Source{Store: store, Cache: cache}, time.Millisecond)
	return r
}

// reply is an HTTP response, its JSON body decoded.
type reply struct {
	status int
	header http.Header
	text   string
	fields map[string]any
}

func (r *running) do(t *testing.T, client *http.Client, method, path, body string) reply {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.addr+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := reply{status: response.StatusCode, header: response.Header, text: string(text)}
	_ = json.Unmarshal(text, &out.fields)
	return out
}

func (r *running) get(t *testing.T, path string) reply {
	t.Helper()
	return r.do(t, http.DefaultClient, http.MethodGet, path, "")
}

func (r *running) post(t *testing.T, path, body string) reply {
	t.Helper()
	return r.do(t, http.DefaultClient, http.MethodPost, path, body)
}

// h2c is a client that speaks HTTP/2 in clear text from the first byte, as Envoy does to a port named h2c.
func h2c() *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: &protocols}}
}

// call gives a gRPC call time even on a busy machine, but not for ever.
func call(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func heldOut(t *testing.T) []model.Digit {
	t.Helper()
	digits, err := model.HeldOut()
	if err != nil {
		t.Fatal(err)
	}
	return digits
}

func marshal(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
