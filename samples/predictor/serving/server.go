// SPDX-License-Identifier: Apache-2.0

// Package serving answers prediction requests for one model on one port: KServe's V1 protocol and the Open Inference
// protocol (V2) over HTTP/1.1 and HTTP/2 in clear text, V2 over gRPC, gRPC health, and Prometheus metrics. Whatever
// the protocol, a request becomes the same rows, is checked by the same rules and refused with the same words, and
// every answer says which version of the model gave it.
package serving

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"serverless.xyz/outrigger/samples/predictor/classifier"
	"serverless.xyz/outrigger/samples/predictor/features"
	"serverless.xyz/outrigger/samples/predictor/inference"
)

const (
	// maxBody bounds a request's body, in bytes, over HTTP and gRPC.
	maxBody = 16 << 20
	// maxRows bounds the instances of one request.
	maxRows = 1024
	// readTimeout bounds how long a client may take to send a body; answers take no such time to write.
	readTimeout = 15 * time.Second
)

// Server holds what requests need. Make one with New; it is not ready before SetModel.
type Server struct {
	name     string
	log      *slog.Logger
	serving  atomic.Pointer[loaded]
	draining atomic.Bool
	// outage is true while the cache is in trouble, so that the log tells of changes and not of every request.
	outage  atomic.Bool
	health  *health.Server
	grpc    *grpc.Server
	metrics *metrics
}

// loaded is what is served: a model and, if it has any, the features it can look up by id.
type loaded struct {
	*classifier.Model
	source *features.Source
}

// New returns a server for the model of that name. Until SetModel it is live and not ready.
func New(name string, log *slog.Logger) *Server {
	s := &Server{name: name, log: log, health: health.NewServer(), metrics: newMetrics()}
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxBody), grpc.UnaryInterceptor(s.observeGRPC))
	inference.RegisterGRPCInferenceServiceServer(s.grpc, &grpcService{server: s})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.setHealth(healthpb.HealthCheckResponse_NOT_SERVING)
	return s
}

// SetModel makes the server ready. The source may be nil: then instances are given by their pixels only.
func (s *Server) SetModel(model *classifier.Model, source *features.Source, loadTime time.Duration) {
	s.serving.Store(&loaded{Model: model, source: source})
	s.metrics.setModel(s.name, model.Config.Version, loadTime)
	s.setHealth(healthpb.HealthCheckResponse_SERVING)
}

// Drain makes every readiness answer no, for good, while requests are still answered.
func (s *Server) Drain() {
	s.draining.Store(true)
	s.health.Shutdown()
}

// HTTPServer returns a server for all protocols. Its Shutdown lets requests in flight finish.
func (s *Server) HTTPServer() *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           s.Handler(),
		Protocols:         &protocols,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
}

// Handler returns the handler of all protocols: gRPC by its content type, everything else by path.
func (s *Server) Handler() http.Handler {
	mux := s.routes()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			s.grpc.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *Server) setHealth(status healthpb.HealthCheckResponse_ServingStatus) {
	s.health.SetServingStatus("", status)
	s.health.SetServingStatus(inference.GRPCInferenceService_ServiceDesc.ServiceName, status)
}

// ready is true while the server wants new requests.
func (s *Server) ready() bool {
	return s.serving.Load() != nil && !s.draining.Load()
}

// model returns what to answer a request with, or why it cannot be answered. An empty version means any.
func (s *Server) model(name, version string) (*loaded, error) {
	if name != s.name {
		return nil, notFound("model %q is not served here, only %q", name, s.name)
	}
	m := s.serving.Load()
	if m == nil {
		return nil, unavailable("model %q is still loading", name)
	}
	if version != "" && version != m.Config.Version {
		return nil, notFound("model %q has no version %q, only %q", name, version, m.Config.Version)
	}
	return m, nil
}

// prediction is the answer to a request, in the order of its rows.
type prediction struct {
	model         *loaded
	classes       []int
	probabilities [][]float32
	// byID is true if the request named entities; only then does lookup mean anything.
	byID   bool
	lookup features.Stats
}

// predict answers rows that a decoder has checked on their own; here they meet the model.
func (s *Server) predict(m *loaded, rows []row) (*prediction, error) {
	p := &prediction{model: m}
	if err := s.lookUp(m, rows, p); err != nil {
		return nil, err
	}
	for _, r := range rows {
		if len(r.pixels) != m.Config.Input.Pixels {
			return nil, invalid(r.field, "has %d pixels, want %d", len(r.pixels), m.Config.Input.Pixels)
		}
		class, probabilities := m.Predict(r.pixels)
		p.classes = append(p.classes, class)
		p.probabilities = append(p.probabilities, probabilities)
	}
	return p, nil
}

// lookUp gives pixels to the rows that came as an id, all by one lookup.
func (s *Server) lookUp(m *loaded, rows []row, p *prediction) error {
	var ids []string
	var places []int
	for i, r := range rows {
		if r.pixels == nil {
			ids, places = append(ids, r.id), append(places, i)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	p.byID = true
	if m.source == nil {
		return invalid(rows[places[0]].field, "names an entity, but this model has no feature store; send pixels")
	}
	found, stats, err := m.source.Lookup(ids)
	s.noteLookup(stats)
	if err != nil {
		if unknown, ok := errors.AsType[*features.UnknownError](err); ok {
			return invalid(rows[places[unknown.Index]].field, "%s", unknown.Reason)
		}
		return err
	}
	p.lookup = stats
	for i, place := range places {
		pixels := make([]float32, len(found[i]))
		for j, b := range found[i] {
			pixels[j] = float32(b)
		}
		rows[place].pixels = pixels
	}
	return nil
}

func (s *Server) noteLookup(stats features.Stats) {
	s.metrics.hits.Add(float64(stats.Hits))
	s.metrics.misses.Add(float64(stats.Misses))
	if stats.Trouble != nil {
		s.metrics.trouble.Inc()
	}
	if was := s.outage.Swap(stats.Trouble != nil); !was && stats.Trouble != nil {
		s.log.Warn("Feature cache in trouble, reading from the store", "error", stats.Trouble)
	} else if was && stats.Trouble == nil && stats.Cached {
		s.log.Info("Feature cache answers again")
	}
}
