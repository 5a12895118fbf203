// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"serverless.xyz/outrigger/samples/predictor/inference"
	"serverless.xyz/outrigger/samples/predictor/model"
	"serverless.xyz/outrigger/test/mesh"
)

// Traffic calls a model through Istio's routes: its client gets its configuration from istiod by xDS and obeys it, as a
// proxyless gRPC service of the mesh does.
type Traffic struct {
	connection *grpc.ClientConn
	client     inference.GRPCInferenceServiceClient
	modelName  string
	digits     []model.Digit
}

// NewTraffic returns a caller of host:port, which must be routed by the mesh of the testbed.
func (c *Cluster) NewTraffic(namespace, host, modelName string) (*Traffic, error) {
	connection, err := mesh.Dial(c.XDSAddress(), c.HostIP(), namespace, host)
	if err != nil {
		return nil, err
	}
	digits, err := model.HeldOut()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading held-out digits: %w", err), connection.Close())
	}
	return &Traffic{
		connection: connection, client: inference.NewGRPCInferenceServiceClient(connection),
		modelName: modelName, digits: digits,
	}, nil
}

// Close ends the connection.
func (t *Traffic) Close() error { return t.connection.Close() }

// Shares is what a number of requests came to.
type Shares struct {
	// Requests were sent, Failed of them failed.
	Requests, Failed int
	// ByVersion counts answers by the version of the model that gave them.
	ByVersion map[string]int
	// FirstError is that of the first request that failed.
	FirstError error
}

// Percent returns the share of the answers that a version gave.
func (s Shares) Percent(version string) float64 {
	return 100 * float64(s.ByVersion[version]) / float64(max(1, s.Requests-s.Failed))
}

// Send sends a number of requests, eight at a time, and counts who answers.
func (t *Traffic) Send(ctx context.Context, requests int) Shares {
	shares := Shares{Requests: requests, ByVersion: map[string]int{}}
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(requests); i = next.Add(1) - 1 {
				version, err := t.call(ctx, t.digits[int(i)%len(t.digits)].ID)
				mu.Lock()
				if err != nil {
					shares.Failed++
					if shares.FirstError == nil {
						shares.FirstError = err
					}
				} else {
					shares.ByVersion[version]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return shares
}

// Await waits until the host is routed and somebody answers.
func (t *Traffic) Await(ctx context.Context) error {
	_, err := t.call(ctx, t.digits[0].ID, grpc.WaitForReady(true))
	return err
}

// call asks for one held-out digit by its id and returns the version that answered.
func (t *Traffic) call(ctx context.Context, id string, options ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	answer, err := t.client.ModelInfer(ctx, &inference.ModelInferRequest{
		ModelName: t.modelName,
		Inputs: []*inference.ModelInferRequest_InferInputTensor{{
			Name: "id", Datatype: "BYTES", Shape: []int64{1},
			Contents: &inference.InferTensorContents{BytesContents: [][]byte{[]byte(id)}},
		}},
	}, options...)
	if err != nil {
		return "", fmt.Errorf("asking for %s: %w", id, err)
	}
	return answer.GetModelVersion(), nil
}
