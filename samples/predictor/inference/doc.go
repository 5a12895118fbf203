// SPDX-License-Identifier: Apache-2.0

// Package inference holds the Go types, client and server of the Open Inference Protocol (V2) over gRPC, generated
// from grpc_predict_v2.proto. Nothing in it is written by hand but this comment; the .proto keeps its authors'
// Apache-2.0 notice. To make it again, with protoc (Debian's protobuf-compiler), protoc-gen-go and
// protoc-gen-go-grpc on the PATH, run go generate here.
package inference

//go:generate protoc -I .. --go_out=.. --go_opt=paths=source_relative --go-grpc_out=.. --go-grpc_opt=paths=source_relative inference/grpc_predict_v2.proto
