// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"encoding/json"
	"net/http"
	"slices"
)

// serverName and serverVersion are the metadata of the server itself; models have versions of their own.
const (
	serverName    = "outrigger-sample-predictor"
	serverVersion = "1"
	platform      = "outrigger_digits"
)

// v2Tensor is a tensor of a request, and of metadata when Data is empty.
type v2Tensor struct {
	Name     string          `json:"name"`
	Datatype string          `json:"datatype"`
	Shape    []int64         `json:"shape"`
	Data     json.RawMessage `json:"data,omitempty"`
}

// v2Output is a tensor of a response.
type v2Output struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
	Data     any     `json:"data"`
}

func (s *Server) v2Server(w http.ResponseWriter, _ *http.Request) {
	send(w, http.StatusOK, object{"name": serverName, "version": serverVersion, "extensions": []string{}})
}

func (s *Server) v2Ready(w http.ResponseWriter, _ *http.Request) {
	code := http.StatusOK
	if !s.ready() {
		code = http.StatusServiceUnavailable
	}
	send(w, code, object{"ready": s.ready()})
}

func (s *Server) v2ModelReady(w http.ResponseWriter, r *http.Request) {
	code, response := s.modelReady(r.PathValue("model"), r.PathValue("version"))
	send(w, code, response)
}

func (s *Server) v2Metadata(w http.ResponseWriter, r *http.Request) {
	m, err := s.model(r.PathValue("model"), r.PathValue("version"))
	if err != nil {
		send(w, httpStatus(err), object{"error": err.Error()})
		return
	}
	send(w, http.StatusOK, object{
		"name": s.name, "versions": []string{m.Config.Version}, "platform": platform,
		"inputs": m.inputs(), "outputs": m.outputs(),
	})
}

// inputs lists the tensors that a request may bring; -1 is any number of rows.
func (m *loaded) inputs() []v2Tensor {
	inputs := []v2Tensor{{Name: inputPixels, Datatype: "FP32", Shape: []int64{-1, int64(m.Config.Input.Pixels)}}}
	if m.source != nil {
		inputs = append(inputs, v2Tensor{Name: inputID, Datatype: "BYTES", Shape: []int64{-1}})
	}
	return inputs
}

func (m *loaded) outputs() []v2Tensor {
	return []v2Tensor{
		{Name: outputLabel, Datatype: datatypeOf(outputLabel), Shape: []int64{-1}},
		{
			Name: outputProbabilities, Datatype: datatypeOf(outputProbabilities),
			Shape: []int64{-1, int64(len(m.Config.Labels))},
		},
	}
}

// v2Request is the JSON body of an inference request.
type v2Request struct {
	ID      string     `json:"id"`
	Inputs  []v2Tensor `json:"inputs"`
	Outputs []struct {
		Name string `json:"name"`
	} `json:"outputs"`
}

func (s *Server) v2Infer(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, "v2", func(body []byte) (*prediction, object, error) {
		m, err := s.model(r.PathValue("model"), r.PathValue("version"))
		if err != nil {
			return nil, nil, err
		}
		request, rows, err := decodeV2(body)
		if err != nil {
			return nil, nil, err
		}
		wanted := make([]string, len(request.Outputs))
		for i, output := range request.Outputs {
			wanted[i] = output.Name
		}
		if wanted, err = wantedOutputs(wanted); err != nil {
			return nil, nil, err
		}
		p, err := s.predict(m, rows)
		if err != nil {
			return nil, nil, err
		}
		response := p.v2Response(s.name, request.ID, wanted)
		return p, response, nil
	})
}

// decodeV2 reads the body of a V2 inference request over HTTP.
func decodeV2(body []byte) (*v2Request, []row, error) {
	var request v2Request
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, nil, invalid("body", "is not a V2 request: %v", err)
	}
	inputs := make([]tensor, len(request.Inputs))
	for i, in := range request.Inputs {
		inputs[i] = tensor{name: in.Name, datatype: in.Datatype, shape: in.Shape}
		if i > 0 {
			continue // only their number is of interest
		}
		if err := inputs[i].readJSON(in.Data); err != nil {
			return nil, nil, err
		}
	}
	rows, err := rowsOf(inputs)
	return &request, rows, err
}

func (t *tensor) readJSON(data json.RawMessage) error {
	const field = "inputs[0].data"
	if len(data) == 0 || data[0] != '[' {
		return invalid(field, "is missing or not a list")
	}
	if t.datatype == "BYTES" {
		if err := json.Unmarshal(data, &t.texts); err != nil {
			return invalid(field, "is not a list of strings: %v", err)
		}
		return nil
	}
	var err error
	t.numbers, err = flatten(field, data, maxDepth)
	return err
}

// wantedOutputs checks the outputs that a request names; none means all.
func wantedOutputs(names []string) ([]string, error) {
	all := []string{outputLabel, outputProbabilities}
	if len(names) == 0 {
		return all, nil
	}
	for i, name := range names {
		if !slices.Contains(all, name) {
			return nil, invalid("outputs", "entry %d is %q, want %q or %q", i, name, outputLabel, outputProbabilities)
		}
	}
	return names, nil
}

func datatypeOf(output string) string {
	if output == outputProbabilities {
		return "FP32"
	}
	return "INT64"
}

// shape returns the shape of an output for the rows predicted.
func (p *prediction) shape(output string) []int64 {
	if output == outputLabel {
		return []int64{int64(len(p.classes))}
	}
	return []int64{int64(len(p.classes)), int64(len(p.model.Config.Labels))}
}

func (p *prediction) v2Response(name, id string, wanted []string) object {
	outputs := make([]v2Output, len(wanted))
	for i, output := range wanted {
		outputs[i] = v2Output{Name: output, Datatype: datatypeOf(output), Shape: p.shape(output), Data: p.classes}
		if output == outputProbabilities {
			outputs[i].Data = slices.Concat(p.probabilities...)
		}
	}
	response := object{"model_name": name, "model_version": p.model.Config.Version, "outputs": outputs}
	if id != "" {
		response["id"] = id
	}
	if p.byID && p.lookup.Cached {
		response["parameters"] = object{paramHits: p.lookup.Hits, paramMisses: p.lookup.Misses}
	}
	return response
}
