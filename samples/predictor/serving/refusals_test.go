// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"serverless.xyz/outrigger/samples/predictor/inference"
)

// refusal is a request over HTTP and what it should be answered with.
type refusal struct {
	body       string
	wantStatus int
	wantSay    string
}

func (r *running) wantRefusals(t *testing.T, path string, cases map[string]refusal) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := r.post(t, path, tc.body)
			message, _ := got.fields["error"].(string)
			if got.status != tc.wantStatus || !strings.Contains(message, tc.wantSay) {
				t.Errorf("status %d, error %.300q; want %d and %q", got.status, message, tc.wantStatus, tc.wantSay)
			}
		})
	}
}

func TestV1RefusesRequests(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	ones := "[" + strings.Repeat("1,", 783) + "1]"
	deep := strings.Repeat("[", 9) + strings.Repeat("]", 9)
	of := func(instances string) string { return `{"instances":[` + instances + `]}` }
	server.wantRefusals(t, "/v1/models/mnist:predict", map[string]refusal{
		"no JSON":            {"pixels", 400, "body: "},
		"empty body":         {"", 400, "body: "},
		"body too long":      {of(`"` + strings.Repeat("x", maxBody) + `"`), 413, "body: is longer"},
		"no instances":       {"{}", 400, "instances: is missing"},
		"empty instances":    {of(""), 400, "instances: has 0 entries"},
		"too many rows":      {of(strings.Repeat("[],", maxRows) + "[]"), 400, "instances: has 1025 entries, want 1 to 1024"},
		"text for instances": {`{"instances":"all"}`, 400, "body: "},
		"null instance":      {of("null"), 400, "instances[0]: "},
		"text instance":      {of(`"digit-1"`), 400, "instances[0]: "},
		"number instance":    {of(ones + ",7"), 400, "instances[1]: "},
		"too few pixels":     {of("[1,2,3]"), 400, "instances[0]: has 3 pixels, want 784"},
		"no pixels":          {of("[]"), 400, "instances[0]: has 0 pixels"},
		"null pixel":         {of("[1,null]"), 400, "instances[0][1]: "},
		"text pixel":         {of(`[1,"2"]`), 400, "instances[0][1]: "},
		"pixel too large":    {of(ones + ",[256]"), 400, "instances[1]: pixel 0 is 256, want 0 to 255"},
		"pixel negative":     {of("[0,-1]"), 400, "instances[0]: pixel 1 is -1"},
		"pixel beyond float": {of("[1e39]"), 400, "instances[0][0]: "},
		"lists too deep":     {of(deep), 400, "levels deep"},
		"rows of two widths": {of("[[1],[1,2]]"), 400, "instances[0][1]: is not of the same shape"},
		"a row among pixels": {of("[1,[1]]"), 400, "instances[0][1]: is not of the same shape"},
		"unknown entity":     {of(`{"id":"digit-0"},{"id":"x"}`), 400, `instances[1]: the feature store holds no "x"`},
		"entity without id":  {of("{}"), 400, "instances[0].id: is missing"},
		"entity with more":   {of(`{"id":"digit-1","image":[]}`), 400, `instances[0]: is not an entity`},
		"number for an id":   {of(`{"id":1}`), 400, "instances[0]: "},
		"id with a newline":  {of(`{"id":"a\r\nflush_all"}`), 400, "instances[0]: must be 1 to 200 printable ASCII"},
	})
}

func TestV2RefusesRequests(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	ones := "[" + strings.Repeat("1,", 783) + "1]"
	// of makes a request of one input; empty fields are left out.
	of := func(name, datatype, shape, data string) string {
		input := []string{`"name":"` + name + `"`, `"datatype":"` + datatype + `"`}
		if shape != "" {
			input = append(input, `"shape":`+shape)
		}
		if data != "" {
			input = append(input, `"data":`+data)
		}
		return `{"inputs":[{` + strings.Join(input, ",") + `}]}`
	}
	one := strings.TrimSuffix(of("id", "BYTES", "[1]", `["digit-1"]`), "]}")
	huge := "[16,16777216,16777216,16777216,16777216]"
	server.wantRefusals(t, "/v2/models/mnist/infer", map[string]refusal{
		"no JSON":            {"[", 400, "body: "},
		"no inputs":          {"{}", 400, "inputs: has 0 tensors"},
		"two inputs":         {one + ",{}]}", 400, "inputs: has 2 tensors"},
		"unknown output":     {one + `],"outputs":[{"name":"label"},{"name":"x"}]}`, 400, `outputs: entry 1 is "x"`},
		"unknown input":      {of("image", "FP32", "[1,784]", ones), 400, `inputs[0].name: is "image"`},
		"unknown type":       {of("pixels", "INT8", "[1,784]", ones), 400, `inputs[0].datatype: is "INT8"`},
		"ids as numbers":     {of("id", "FP32", "[1]", "[1]"), 400, `inputs[0].datatype: is "FP32", want BYTES`},
		"pixels as text":     {of("pixels", "BYTES", "[1]", `["1"]`), 400, `inputs[0].datatype: is "BYTES", want FP32`},
		"no data":            {of("pixels", "FP32", "[1,784]", ""), 400, "inputs[0].data: is missing"},
		"null for data":      {of("pixels", "FP32", "[1,784]", "null"), 400, "inputs[0].data: is missing"},
		"number among ids":   {of("id", "BYTES", "[1]", "[1]"), 400, "inputs[0].data: "},
		"no shape":           {of("pixels", "FP32", "", ones), 400, "inputs[0].shape: is []"},
		"negative shape":     {of("pixels", "FP32", "[1,-784]", ones), 400, "inputs[0].shape: "},
		"zero rows":          {of("pixels", "FP32", "[0,784]", "[]"), 400, "inputs[0].shape: "},
		"too many rows":      {of("id", "BYTES", "[1025]", "[]"), 400, "inputs[0].shape: is [1025], want 1 to 1024"},
		"shape that wraps":   {of("pixels", "FP32", huge, "[]"), 400, "inputs[0].shape: "},
		"shape and data":     {of("pixels", "FP32", "[2,784]", ones), 400, "is [2 784], which does not fit the 784 elements"},
		"two ids a row":      {of("id", "BYTES", "[1,2]", `["a","b"]`), 400, "inputs[0].shape: is [1 2], want one id a row"},
		"another width":      {of("pixels", "FP32", "[784,1]", ones), 400, "inputs[0] row 0: has 1 pixels, want 784"},
		"unknown entity":     {of("id", "BYTES", "[2]", `["digit-1","x"]`), 400, `row 1: the feature store holds no "x"`},
		"rows of two widths": {of("pixels", "FP32", "[3]", "[[1],[1,2]]"), 400, "inputs[0].data[1]: is not of the same"},
	})
}

func TestHTTPRefusesOtherModels(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	for path, wantSay := range map[string]string{
		"/v1/models/other:predict":           `model "other" is not served here, only "mnist"`,
		"/v1/models/mnist:explain":           `no verb "explain"`,
		"/v1/models/mnist":                   `no verb ""`,
		"/v2/models/other/infer":             `model "other"`,
		"/v2/models/mnist/versions/v9/infer": `no version "v9", only "v1"`,
	} {
		server.wantRefusals(t, path, map[string]refusal{path: {"{}", 404, wantSay}})
	}
}

func TestBinaryTensorsOverHTTPAreRefused(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
		"http://"+server.addr+"/v2/models/mnist/infer", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Inference-Header-Content-Length", "2")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d, want 400", response.StatusCode)
	}
}

func TestGRPCRefusesRequests(t *testing.T) {
	type input = inference.ModelInferRequest_InferInputTensor
	type output = inference.ModelInferRequest_InferRequestedOutputTensor
	server := start(t).serve(t, "v1", nil)
	zeros := make([]float32, 784)
	nan := slices.Clone(zeros)
	nan[7] = float32(math.NaN())
	floats := func(values []float32) *inference.InferTensorContents {
		return &inference.InferTensorContents{Fp32Contents: values}
	}
	image := &input{Name: "pixels", Datatype: "FP32", Shape: []int64{1, 784}}
	filled := &input{Name: "pixels", Datatype: "FP32", Shape: []int64{1, 784}, Contents: floats(zeros)}
	ids := &input{Name: "id", Datatype: "BYTES", Shape: []int64{1}}
	cases := map[string]struct {
		request  *inference.ModelInferRequest
		wantCode codes.Code
		wantSay  string
	}{
		"no inputs": {&inference.ModelInferRequest{}, codes.InvalidArgument, "inputs: has 0 tensors"},
		"two inputs": {
			&inference.ModelInferRequest{Inputs: []*input{filled, filled}}, codes.InvalidArgument, "inputs: has 2 tensors",
		},
		"no contents": {
			&inference.ModelInferRequest{Inputs: []*input{image}}, codes.InvalidArgument, "inputs[0].shape: ",
		},
		"contents in the list of another type": {
			&inference.ModelInferRequest{Inputs: []*input{{
				Name: "pixels", Datatype: "UINT8", Shape: []int64{1, 784}, Contents: floats(zeros),
			}}}, codes.InvalidArgument, "does not fit the 0 elements",
		},
		"a pixel that is not a number": {
			&inference.ModelInferRequest{Inputs: []*input{{
				Name: "pixels", Datatype: "FP32", Shape: []int64{1, 784}, Contents: floats(nan),
			}}}, codes.InvalidArgument, "inputs[0] row 0: pixel 7 is NaN",
		},
		"a byte of 256": {
			&inference.ModelInferRequest{Inputs: []*input{{
				Name: "pixels", Datatype: "UINT8", Shape: []int64{1, 1},
				Contents: &inference.InferTensorContents{UintContents: []uint32{256}},
			}}}, codes.InvalidArgument, "inputs[0] row 0: pixel 0 is 256",
		},
		"raw contents for another number of inputs": {
			&inference.ModelInferRequest{Inputs: []*input{image}, RawInputContents: [][]byte{{}, {}}},
			codes.InvalidArgument, "raw_input_contents: has 2 entries for 1 inputs",
		},
		"raw and typed contents": {
			&inference.ModelInferRequest{Inputs: []*input{filled}, RawInputContents: [][]byte{make([]byte, 784*4)}},
			codes.InvalidArgument, "inputs[0].contents: must be empty",
		},
		"raw floats cut": {
			&inference.ModelInferRequest{Inputs: []*input{image}, RawInputContents: [][]byte{make([]byte, 784*4-1)}},
			codes.InvalidArgument, "raw_input_contents[0]: has 3135 bytes",
		},
		"raw floats too short": {
			&inference.ModelInferRequest{Inputs: []*input{image}, RawInputContents: [][]byte{make([]byte, 784)}},
			codes.InvalidArgument, "does not fit the 196 elements",
		},
		"raw text cut in its length": {
			&inference.ModelInferRequest{Inputs: []*input{ids}, RawInputContents: [][]byte{{1, 0}}},
			codes.InvalidArgument, "raw_input_contents[0]: ends inside a text",
		},
		"raw text cut": {
			&inference.ModelInferRequest{Inputs: []*input{ids}, RawInputContents: [][]byte{{2, 0, 0, 0, 'x'}}},
			codes.InvalidArgument, "raw_input_contents[0]: ends inside a text",
		},
		"raw text of four billion bytes": {
			&inference.ModelInferRequest{Inputs: []*input{ids}, RawInputContents: [][]byte{{255, 255, 255, 255, 'x'}}},
			codes.InvalidArgument, "raw_input_contents[0]: ends inside a text",
		},
		"unknown output": {
			&inference.ModelInferRequest{Inputs: []*input{filled}, Outputs: []*output{{Name: "x"}}},
			codes.InvalidArgument, `outputs: entry 0 is "x"`,
		},
		"another model":   {&inference.ModelInferRequest{ModelName: "other"}, codes.NotFound, `model "other"`},
		"another version": {&inference.ModelInferRequest{ModelVersion: "v9"}, codes.NotFound, `no version "v9"`},
		"request too long": {
			&inference.ModelInferRequest{Inputs: []*input{image}, RawInputContents: [][]byte{make([]byte, maxBody)}},
			codes.ResourceExhausted, "larger than max",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.request.GetModelName() == "" {
				tc.request.ModelName = "mnist"
			}
			_, err := server.infer.ModelInfer(call(t), tc.request)
			if status.Code(err) != tc.wantCode || !strings.Contains(err.Error(), tc.wantSay) {
				t.Errorf("error %v, want %s and %q", err, tc.wantCode, tc.wantSay)
			}
		})
	}
}

func TestOtherModelsAreNotFound(t *testing.T) {
	server := start(t).serve(t, "v1", nil)
	for _, path := range []string{
		"/v1/models/other", "/v2/models/other", "/v2/models/other/ready", "/v2/models/mnist/versions/v9/ready",
	} {
		if got := server.get(t, path); got.status != http.StatusNotFound || got.fields["error"] == nil {
			t.Errorf("GET %s: %d %s, want 404", path, got.status, got.text)
		}
	}
	_, err := server.infer.ModelReady(call(t), &inference.ModelReadyRequest{Name: "other"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("ModelReady error = %v, want NotFound", err)
	}
	_, err = server.infer.ModelMetadata(call(t), &inference.ModelMetadataRequest{Name: "other"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("ModelMetadata error = %v, want NotFound", err)
	}
}
