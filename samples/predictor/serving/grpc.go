// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"context"
	"encoding/binary"
	"math"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"serverless.xyz/outrigger/samples/predictor/inference"
)

// The V2 response parameters that say where the features came from.
const (
	paramHits   = "feature_cache_hits"
	paramMisses = "feature_cache_misses"
)

// grpcService speaks protocol V2 over gRPC for a Server.
type grpcService struct {
	inference.UnimplementedGRPCInferenceServiceServer

	server *Server
}

// observeGRPC counts predictions only; probes would drown them.
func (s *Server) observeGRPC(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	start := time.Now()
	response, err := next(ctx, request)
	if info.FullMethod == inference.GRPCInferenceService_ModelInfer_FullMethodName {
		s.metrics.observe("grpc", status.Code(err).String(), time.Since(start))
	}
	return response, err
}

// ServerLive says that the process answers.
func (g *grpcService) ServerLive(context.Context, *inference.ServerLiveRequest) (*inference.ServerLiveResponse, error) {
	return &inference.ServerLiveResponse{Live: true}, nil
}

// ServerReady says whether the server wants requests.
func (g *grpcService) ServerReady(
	context.Context, *inference.ServerReadyRequest,
) (*inference.ServerReadyResponse, error) {
	return &inference.ServerReadyResponse{Ready: g.server.ready()}, nil
}

// ModelReady says whether the model wants requests; another model is not found.
func (g *grpcService) ModelReady(
	_ context.Context, r *inference.ModelReadyRequest,
) (*inference.ModelReadyResponse, error) {
	_, err := g.server.model(r.GetName(), r.GetVersion())
	if err != nil && httpStatus(err) == http.StatusNotFound {
		return nil, err
	}
	return &inference.ModelReadyResponse{Ready: g.server.ready()}, nil
}

// ServerMetadata names the server.
func (g *grpcService) ServerMetadata(
	context.Context, *inference.ServerMetadataRequest,
) (*inference.ServerMetadataResponse, error) {
	return &inference.ServerMetadataResponse{Name: serverName, Version: serverVersion}, nil
}

// ModelMetadata describes the model's inputs and outputs.
func (g *grpcService) ModelMetadata(
	_ context.Context, r *inference.ModelMetadataRequest,
) (*inference.ModelMetadataResponse, error) {
	m, err := g.server.model(r.GetName(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	return &inference.ModelMetadataResponse{
		Name: g.server.name, Versions: []string{m.Config.Version}, Platform: platform,
		Inputs: tensorMetadata(m.inputs()), Outputs: tensorMetadata(m.outputs()),
	}, nil
}

func tensorMetadata(tensors []v2Tensor) []*inference.ModelMetadataResponse_TensorMetadata {
	out := make([]*inference.ModelMetadataResponse_TensorMetadata, len(tensors))
	for i, t := range tensors {
		out[i] = &inference.ModelMetadataResponse_TensorMetadata{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
	}
	return out
}

// ModelInfer predicts. It answers with raw contents if the request came with them, else with typed contents.
func (g *grpcService) ModelInfer(
	_ context.Context, r *inference.ModelInferRequest,
) (*inference.ModelInferResponse, error) {
	m, err := g.server.model(r.GetModelName(), r.GetModelVersion())
	if err != nil {
		return nil, err
	}
	rows, err := decodeProto(r)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(r.GetOutputs()))
	for i, output := range r.GetOutputs() {
		names[i] = output.GetName()
	}
	wanted, err := wantedOutputs(names)
	if err != nil {
		return nil, err
	}
	p, err := g.server.predict(m, rows)
	if err != nil {
		return nil, err
	}
	return p.protoResponse(g.server.name, r.GetId(), wanted, len(r.GetRawInputContents()) > 0), nil
}

// decodeProto reads the inputs of a V2 inference request over gRPC.
func decodeProto(r *inference.ModelInferRequest) ([]row, error) {
	raw := r.GetRawInputContents()
	if len(raw) > 0 && len(raw) != len(r.GetInputs()) {
		return nil, invalid("raw_input_contents", "has %d entries for %d inputs", len(raw), len(r.GetInputs()))
	}
	inputs := make([]tensor, len(r.GetInputs()))
	for i, in := range r.GetInputs() {
		inputs[i] = tensor{name: in.GetName(), datatype: in.GetDatatype(), shape: in.GetShape()}
		if i > 0 {
			continue // only their number is of interest
		}
		if len(raw) == 0 {
			inputs[i].readContents(in.GetContents())
			continue
		}
		if in.GetContents() != nil {
			return nil, invalid("inputs[0].contents", "must be empty beside raw_input_contents")
		}
		if err := inputs[i].readRaw(raw[i]); err != nil {
			return nil, err
		}
	}
	return rowsOf(inputs)
}

// readContents takes the elements from the list that the data type belongs to; another list counts as no elements.
func (t *tensor) readContents(contents *inference.InferTensorContents) {
	switch t.datatype {
	case "FP32":
		t.numbers = contents.GetFp32Contents()
	case "UINT8":
		t.numbers = make([]float32, len(contents.GetUintContents()))
		for i, v := range contents.GetUintContents() {
			t.numbers[i] = float32(v)
		}
	case "BYTES":
		t.texts = make([]string, len(contents.GetBytesContents()))
		for i, v := range contents.GetBytesContents() {
			t.texts[i] = string(v)
		}
	}
}

// readRaw takes the elements from bytes: little endian, and each text after its length in four bytes.
func (t *tensor) readRaw(data []byte) error {
	const field = "raw_input_contents[0]"
	switch t.datatype {
	case "FP32":
		if len(data)%4 != 0 {
			return invalid(field, "has %d bytes, which are no whole number of FP32", len(data))
		}
		t.numbers = make([]float32, len(data)/4)
		for i := range t.numbers {
			t.numbers[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
	case "UINT8":
		t.numbers = make([]float32, len(data))
		for i, v := range data {
			t.numbers[i] = float32(v)
		}
	case "BYTES":
		for len(data) > 0 {
			if len(data) < 4 || uint64(binary.LittleEndian.Uint32(data)) > uint64(len(data)-4) {
				return invalid(field, "ends inside a text")
			}
			n := binary.LittleEndian.Uint32(data)
			t.texts = append(t.texts, string(data[4:4+n]))
			data = data[4+n:]
		}
	}
	return nil
}

func (p *prediction) protoResponse(name, id string, wanted []string, raw bool) *inference.ModelInferResponse {
	response := &inference.ModelInferResponse{ModelName: name, ModelVersion: p.model.Config.Version, Id: id}
	for _, output := range wanted {
		out := &inference.ModelInferResponse_InferOutputTensor{
			Name: output, Datatype: datatypeOf(output), Shape: p.shape(output),
		}
		if raw {
			response.RawOutputContents = append(response.RawOutputContents, p.raw(output))
		} else {
			out.Contents = p.typed(output)
		}
		response.Outputs = append(response.Outputs, out)
	}
	if p.byID && p.lookup.Cached {
		response.Parameters = map[string]*inference.InferParameter{
			paramHits: intParameter(p.lookup.Hits), paramMisses: intParameter(p.lookup.Misses),
		}
	}
	return response
}

// typed returns one output as a list of its own type.
func (p *prediction) typed(output string) *inference.InferTensorContents {
	if output == outputProbabilities {
		return &inference.InferTensorContents{Fp32Contents: slices.Concat(p.probabilities...)}
	}
	labels := make([]int64, len(p.classes))
	for i, class := range p.classes {
		labels[i] = int64(class)
	}
	return &inference.InferTensorContents{Int64Contents: labels}
}

// raw returns one output as bytes, little endian.
func (p *prediction) raw(output string) []byte {
	var data []byte
	if output == outputProbabilities {
		for _, v := range slices.Concat(p.probabilities...) {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
		return data
	}
	for _, class := range p.classes {
		data = binary.LittleEndian.AppendUint64(data, uint64(class))
	}
	return data
}

func intParameter(n int) *inference.InferParameter {
	return &inference.InferParameter{ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: int64(n)}}
}
