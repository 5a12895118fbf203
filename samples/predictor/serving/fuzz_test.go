// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"serverless.xyz/outrigger/samples/predictor/inference"
)

// checkRows holds for the result of every decoder: a fault that the client may read, or rows within bounds.
func checkRows(t *testing.T, rows []row, err error) {
	t.Helper()
	if err != nil {
		if _, ok := errors.AsType[*fault](err); !ok {
			t.Fatalf("error %v is not meant for the client", err)
		}
		return
	}
	if len(rows) < 1 || len(rows) > maxRows {
		t.Fatalf("%d rows", len(rows))
	}
	for _, r := range rows {
		if err := checkPixels(r); err != nil {
			t.Fatalf("a row that is no pixels: %v", err)
		}
		if r.field == "" {
			t.Fatal("a row without a place")
		}
	}
}

func FuzzDecodeV1(f *testing.F) {
	for _, body := range []string{
		`{"instances":[[1,2.5],[[3],[4]],{"id":"digit-1"}]}`, `{"instances":[null]}`, `{"instances":[[1,null]]}`,
		`{"instances":[ {"id":null} ]}`, `{"instances":[[[[[1]]]]]}`, `{"instances":[[[],[]]]}`, `{"Instances":null}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		rows, err := decodeV1(body)
		checkRows(t, rows, err)
	})
}

func FuzzDecodeV2(f *testing.F) {
	for _, body := range []string{
		`{"id":"1","inputs":[{"name":"pixels","datatype":"FP32","shape":[1,2],"data":[1,2]}],"outputs":[{"name":"label"}]}`,
		`{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[2,1],"data":[[1],[2]]}]}`,
		`{"inputs":[{"name":"id","datatype":"BYTES","shape":[2],"data":["a","b"]}]}`,
		`{"inputs":[{"name":"id","datatype":"BYTES","shape":[1],"data":[null]},null]}`,
		`{"inputs":[{"name":"pixels","datatype":"FP32","shape":[4294967296,4294967296],"data":[]}]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		_, rows, err := decodeV2(body)
		checkRows(t, rows, err)
	})
}

func FuzzDecodeProto(f *testing.F) {
	type input = inference.ModelInferRequest_InferInputTensor
	for _, request := range []*inference.ModelInferRequest{
		{},
		{Inputs: []*input{{
			Name: "pixels", Datatype: "FP32", Shape: []int64{1, 2},
			Contents: &inference.InferTensorContents{Fp32Contents: []float32{1, 2}},
		}}},
		{
			Inputs:           []*input{{Name: "id", Datatype: "BYTES", Shape: []int64{2}}},
			RawInputContents: [][]byte{{1, 0, 0, 0, 'a', 0, 0, 0, 0}},
		},
		{
			Inputs:           []*input{{Name: "pixels", Datatype: "UINT8", Shape: []int64{1, 3}}},
			RawInputContents: [][]byte{{1, 2, 3}},
		},
	} {
		data, err := proto.Marshal(request)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var request inference.ModelInferRequest
		if proto.Unmarshal(data, &request) != nil {
			return
		}
		rows, err := decodeProto(&request)
		checkRows(t, rows, err)
	})
}
