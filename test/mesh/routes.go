// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
)

// Routes returns the virtual hosts that istiod sends to the proxy of a pod in a namespace for a port, 80 for example.
func Routes(ctx context.Context, xdsAddress, clientIP, namespace, port string) ([]*routev3.VirtualHost, error) {
	connection, err := grpc.NewClient(xdsAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connecting to istiod: %w", err)
	}
	defer func() { _ = connection.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(connection).StreamAggregatedResources(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the stream of discovery: %w", err)
	}
	metadata, err := structpb.NewStruct(map[string]any{"NAMESPACE": namespace, "CLUSTER_ID": "Kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("encoding the proxy's metadata: %w", err)
	}
	err = stream.Send(&discoveryv3.DiscoveryRequest{
		Node: &corev3.Node{
			Id: fmt.Sprintf("sidecar~%s~proxy.%s~%s.svc.cluster.local", clientIP, namespace, namespace), Metadata: metadata,
		},
		TypeUrl:       "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
		ResourceNames: []string{port},
	})
	if err != nil {
		return nil, fmt.Errorf("asking for routes: %w", err)
	}
	response, err := stream.Recv()
	if err != nil {
		return nil, fmt.Errorf("receiving routes: %w", err)
	}
	var hosts []*routev3.VirtualHost
	for _, resource := range response.GetResources() {
		var routes routev3.RouteConfiguration
		if err := resource.UnmarshalTo(&routes); err != nil {
			return nil, fmt.Errorf("decoding routes: %w", err)
		}
		hosts = append(hosts, routes.GetVirtualHosts()...)
	}
	return hosts, nil
}
