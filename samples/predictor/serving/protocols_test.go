// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"serverless.xyz/outrigger/samples/predictor/inference"
	"serverless.xyz/outrigger/samples/predictor/model"
)

// batch is the same digits in every shape that the protocols know.
type batch struct {
	digits []model.Digit
	flat   []float32
	bytes  []uint32
	raw8   []byte
	raw32  []byte
	ids    []string
	rawIDs []byte
}

func newBatch(digits []model.Digit) batch {
	b := batch{digits: digits}
	for _, d := range digits {
		for _, p := range d.Pixels {
			b.flat = append(b.flat, float32(p))
			b.bytes = append(b.bytes, uint32(p))
			b.raw32 = binary.LittleEndian.AppendUint32(b.raw32, math.Float32bits(float32(p)))
		}
		b.raw8 = append(b.raw8, d.Pixels...)
		b.ids = append(b.ids, d.ID)
		b.rawIDs = append(binary.LittleEndian.AppendUint32(b.rawIDs, uint32(len(d.ID))), d.ID...)
	}
	return b
}

// rows cuts the flat pixels into n lists of width.
func (b batch) rows(width int) [][]float32 {
	var out [][]float32
	for at := 0; at < len(b.flat); at += width {
		out = append(out, b.flat[at:at+width])
	}
	return out
}

// The same digits in every form must give the labels that the training script computed.
func TestProtocolsAgree(t *testing.T) {
	digits := heldOut(t)[:40]
	b, n := newBatch(digits), int64(len(digits))
	pixels, id := []int64{n, 784}, []int64{n}
	texts := &inference.InferTensorContents{BytesContents: asBytes(b.ids)}
	for version, trained := range map[string]func(model.Digit) int{
		"v1": func(d model.Digit) int { return d.V1 },
		"v2": func(d model.Digit) int { return d.V2 },
	} {
		server := start(t).serve(t, version, nil)
		want := make([]int, n)
		for i, d := range digits {
			want[i] = trained(d)
		}
		images := make([][][]float32, n)
		for i := range images {
			images[i] = newBatch(digits[i : i+1]).rows(28)
		}
		entities := make([]map[string]string, n)
		for i, d := range digits {
			entities[i] = map[string]string{"id": d.ID}
		}
		for name, predict := range map[string]func(*testing.T) []int{
			"V1, flat pixels":    server.v1(b.rows(784)),
			"V1, rows of 28":     server.v1(images),
			"V1, ids":            server.v1(entities),
			"V2, flat FP32":      server.v2("pixels", "FP32", pixels, b.flat),
			"V2, nested UINT8":   server.v2("pixels", "UINT8", []int64{n, 28, 28}, images),
			"V2, ids":            server.v2("id", "BYTES", id, b.ids),
			"gRPC, FP32":         server.typed("pixels", "FP32", pixels, &inference.InferTensorContents{Fp32Contents: b.flat}),
			"gRPC, UINT8":        server.typed("pixels", "UINT8", pixels, &inference.InferTensorContents{UintContents: b.bytes}),
			"gRPC, ids":          server.typed("id", "BYTES", []int64{n, 1}, texts),
			"gRPC, raw FP32":     server.raw("pixels", "FP32", pixels, b.raw32),
			"gRPC, raw UINT8":    server.raw("pixels", "UINT8", pixels, b.raw8),
			"gRPC, ids in bytes": server.raw("id", "BYTES", id, b.rawIDs),
		} {
			t.Run(version+", "+name, func(t *testing.T) {
				if diff := cmp.Diff(want, predict(t)); diff != "" {
					t.Errorf("labels (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func asBytes(texts []string) [][]byte {
	out := make([][]byte, len(texts))
	for i, text := range texts {
		out[i] = []byte(text)
	}
	return out
}

func (r *running) v1(instances any) func(*testing.T) []int {
	return func(t *testing.T) []int {
		t.Helper()
		got := r.post(t, "/v1/models/mnist:predict", marshal(t, object{"instances": instances}))
		if got.status != http.StatusOK || got.fields["model_version"] != got.header.Get("X-Model-Version") {
			t.Fatalf("status %d, %.200s", got.status, got.text)
		}
		return ints(t, got.fields["predictions"])
	}
}

func (r *running) v2(name, datatype string, shape []int64, data any) func(*testing.T) []int {
	return func(t *testing.T) []int {
		t.Helper()
		got := r.post(t, "/v2/models/mnist/infer", marshal(t, object{"id": "a-7", "inputs": []object{
			{"name": name, "datatype": datatype, "shape": shape, "data": data},
		}}))
		if got.status != http.StatusOK || got.fields["id"] != "a-7" ||
			got.fields["model_version"] != got.header.Get("X-Model-Version") {
			t.Fatalf("status %d, %.200s", got.status, got.text)
		}
		outputs, _ := got.fields["outputs"].([]any)
		if len(outputs) != 2 {
			t.Fatalf("outputs %.200s", got.text)
		}
		label, _ := outputs[0].(map[string]any)
		if label["name"] != "label" || label["datatype"] != "INT64" || fmt.Sprint(label["shape"]) != fmt.Sprint(shape[:1]) {
			t.Errorf("first output is %v %v %v", label["name"], label["datatype"], label["shape"])
		}
		return ints(t, label["data"])
	}
}

// ints reads a JSON list of whole numbers.
func ints(t *testing.T, value any) []int {
	t.Helper()
	list, ok := value.([]any)
	if !ok {
		t.Fatalf("%v is no list", value)
	}
	out := make([]int, len(list))
	for i, v := range list {
		number, ok := v.(float64)
		if !ok {
			t.Fatalf("%v is no number", v)
		}
		out[i] = int(number)
	}
	return out
}

func (r *running) typed(
	name, datatype string, shape []int64, contents *inference.InferTensorContents,
) func(*testing.T) []int {
	return func(t *testing.T) []int {
		t.Helper()
		response, err := r.infer.ModelInfer(call(t), &inference.ModelInferRequest{
			ModelName: "mnist",
			Inputs: []*inference.ModelInferRequest_InferInputTensor{
				{Name: name, Datatype: datatype, Shape: shape, Contents: contents},
			},
			Outputs: []*inference.ModelInferRequest_InferRequestedOutputTensor{{Name: "label"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(response.GetOutputs()) != 1 || len(response.GetRawOutputContents()) != 0 {
			t.Fatalf("a typed request for one output was answered with %v", response)
		}
		labels := response.GetOutputs()[0].GetContents().GetInt64Contents()
		out := make([]int, len(labels))
		for i, label := range labels {
			out[i] = int(label)
		}
		return out
	}
}

func (r *running) raw(name, datatype string, shape []int64, data []byte) func(*testing.T) []int {
	return func(t *testing.T) []int {
		t.Helper()
		response, err := r.infer.ModelInfer(call(t), &inference.ModelInferRequest{
			ModelName:        "mnist",
			Inputs:           []*inference.ModelInferRequest_InferInputTensor{{Name: name, Datatype: datatype, Shape: shape}},
			RawInputContents: [][]byte{data},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(response.GetRawOutputContents()) != 2 || response.GetOutputs()[0].GetContents() != nil {
			t.Fatalf("a raw request was not answered with two raw outputs")
		}
		labels := response.GetRawOutputContents()[0]
		out := make([]int, len(labels)/8)
		for i := range out {
			out[i] = int(binary.LittleEndian.Uint64(labels[8*i:]))
		}
		checkRawProbabilities(t, response.GetRawOutputContents()[1], out)
		return out
	}
}

// checkRawProbabilities decodes the second output and checks that the label is where its greatest number is.
func checkRawProbabilities(t *testing.T, data []byte, labels []int) {
	t.Helper()
	if len(data) != len(labels)*10*4 {
		t.Fatalf("%d bytes of probabilities for %d rows", len(data), len(labels))
	}
	for i, label := range labels {
		best, at := float32(-1), -1
		for j := range 10 {
			if p := math.Float32frombits(binary.LittleEndian.Uint32(data[4*(10*i+j):])); p > best {
				best, at = p, j
			}
		}
		if at != label {
			t.Errorf("row %d: label %d, but %d is the most probable", i, label, at)
		}
	}
}

// One port takes every protocol; that is what lets a Service with one port carry them all.
func TestOnePortSpeaksHTTP1AndHTTP2(t *testing.T) {
	server := start(t).serve(t, "v2", nil)
	body := `{"instances":[{"id":"digit-0"}]}`
	one := server.post(t, "/v1/models/mnist:predict", body)
	two := server.do(t, h2c(), http.MethodPost, "/v1/models/mnist:predict", body)
	if one.status != http.StatusOK || one.text != two.text {
		t.Errorf("HTTP/1.1: %d %s; HTTP/2: %d %s", one.status, one.text, two.status, two.text)
	}
	if _, err := server.infer.ServerLive(call(t), &inference.ServerLiveRequest{}); err != nil {
		t.Errorf("gRPC: %v", err)
	}
}

func TestMetadataDescribesTheModel(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	got, err := server.infer.ModelMetadata(call(t), &inference.ModelMetadataRequest{Name: "mnist"})
	if err != nil {
		t.Fatal(err)
	}
	type metadata = inference.ModelMetadataResponse_TensorMetadata
	want := &inference.ModelMetadataResponse{
		Name: "mnist", Versions: []string{"v1"}, Platform: "outrigger_digits",
		Inputs: []*metadata{
			{Name: "pixels", Datatype: "FP32", Shape: []int64{-1, 784}},
			{Name: "id", Datatype: "BYTES", Shape: []int64{-1}},
		},
		Outputs: []*metadata{
			{Name: "label", Datatype: "INT64", Shape: []int64{-1}},
			{Name: "probabilities", Datatype: "FP32", Shape: []int64{-1, 10}},
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	for path, want := range map[string]string{
		"/v1/models":                         `{"models":["mnist"]}`,
		"/v1/models/mnist":                   `{"name":"mnist","ready":true}`,
		"/v2":                                `{"extensions":[],"name":"outrigger-sample-predictor","version":"1"}`,
		"/v2/health/live":                    `{"live":true}`,
		"/v2/health/ready":                   `{"ready":true}`,
		"/v2/models/mnist/ready":             `{"name":"mnist","ready":true}`,
		"/v2/models/mnist/versions/v1/ready": `{"name":"mnist","ready":true}`,
		"/v2/models/mnist": `{"inputs":[{"name":"pixels","datatype":"FP32","shape":[-1,784]},` +
			`{"name":"id","datatype":"BYTES","shape":[-1]}],"name":"mnist",` +
			`"outputs":[{"name":"label","datatype":"INT64","shape":[-1]},` +
			`{"name":"probabilities","datatype":"FP32","shape":[-1,10]}],"platform":"outrigger_digits","versions":["v1"]}`,
	} {
		if got := server.get(t, path); got.status != http.StatusOK || got.text != want+"\n" {
			t.Errorf("GET %s: %d %s, want %s", path, got.status, got.text, want)
		}
	}
}
