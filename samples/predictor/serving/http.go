// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"
)

// The response headers that tell a client which model answered and where the features came from.
const (
	headerVersion = "X-Model-Version"
	headerCache   = "X-Feature-Cache"
)

// object is a JSON object to be sent.
type object map[string]any

func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", s.v1List)
	mux.HandleFunc("GET /v1/models/{model}", s.v1Ready)
	mux.HandleFunc("POST /v1/models/{model}", s.v1Predict)
	mux.HandleFunc("GET /v2", s.v2Server)
	mux.HandleFunc("GET /v2/health/live", func(w http.ResponseWriter, _ *http.Request) {
		send(w, http.StatusOK, object{"live": true})
	})
	mux.HandleFunc("GET /v2/health/ready", s.v2Ready)
	for _, path := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		mux.HandleFunc("GET "+path, s.v2Metadata)
		mux.HandleFunc("GET "+path+"/ready", s.v2ModelReady)
		mux.HandleFunc("POST "+path+"/infer", s.v2Infer)
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

// worker makes the response to the body of a prediction request.
type worker func(body []byte) (*prediction, object, error)

// answer runs one prediction request: it reads the body, lets work make the response, and counts the outcome.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, protocol string, work worker) {
	body, err := readBody(w, r)
	start := time.Now()
	code := http.StatusOK
	var (
		p        *prediction
		response object
	)
	if err == nil {
		p, response, err = work(body)
	}
	if err != nil {
		code, response = httpStatus(err), object{"error": err.Error()}
	} else {
		w.Header().Set(headerVersion, p.model.Config.Version)
		if p.byID {
			w.Header().Set(headerCache, cacheHeader(p))
		}
	}
	send(w, code, response)
	s.metrics.observe(protocol, strconv.Itoa(code), time.Since(start))
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Header.Get("Inference-Header-Content-Length") != "" {
		return nil, invalid("Inference-Header-Content-Length", "binary tensors are not served over HTTP; use JSON or gRPC")
	}
	// A writer that knows no deadlines is one of a test; the body is bounded either way.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &fault{codes.ResourceExhausted, fmt.Sprintf("body: is longer than %d bytes", maxBody)}
	}
	if err != nil {
		return nil, invalid("body", "could not be read: %v", err)
	}
	return body, nil
}

func cacheHeader(p *prediction) string {
	if !p.lookup.Cached {
		return "off"
	}
	return fmt.Sprintf("hits=%d misses=%d", p.lookup.Hits, p.lookup.Misses)
}

func send(w http.ResponseWriter, code int, response object) {
	body, err := json.Marshal(response)
	if err != nil { // a model whose sums overflow to NaN
		code, body = http.StatusInternalServerError, []byte(`{"error":"the answer is not a number"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A client that has gone away is no concern of the server's.
	_, _ = w.Write(append(body, '\n'))
}

func (s *Server) v1List(w http.ResponseWriter, _ *http.Request) {
	send(w, http.StatusOK, object{"models": []string{s.name}})
}

func (s *Server) v1Ready(w http.ResponseWriter, r *http.Request) {
	code, response := s.modelReady(r.PathValue("model"), "")
	send(w, code, response)
}

func (s *Server) v1Predict(w http.ResponseWriter, r *http.Request) {
	name, verb, _ := strings.Cut(r.PathValue("model"), ":")
	s.answer(w, r, "v1", func(body []byte) (*prediction, object, error) {
		if verb != "predict" {
			return nil, nil, notFound("there is no verb %q, only predict", verb)
		}
		m, err := s.model(name, "")
		if err != nil {
			return nil, nil, err
		}
		rows, err := decodeV1(body)
		if err != nil {
			return nil, nil, err
		}
		p, err := s.predict(m, rows)
		if err != nil {
			return nil, nil, err
		}
		return p, object{"predictions": p.classes, "model_name": s.name, "model_version": m.Config.Version}, nil
	})
}

// modelReady is the readiness of one model, for both protocols.
func (s *Server) modelReady(name, version string) (int, object) {
	if _, err := s.model(name, version); err != nil && httpStatus(err) == http.StatusNotFound {
		return http.StatusNotFound, object{"error": err.Error()}
	}
	if !s.ready() {
		return http.StatusServiceUnavailable, object{"name": name, "ready": false}
	}
	return http.StatusOK, object{"name": name, "ready": true}
}
