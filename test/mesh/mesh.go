// SPDX-License-Identifier: Apache-2.0

// Package mesh calls a host by the routes that istiod sends, as a proxyless gRPC service of the mesh does.
package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
)

// Dial returns a connection to host:port of the mesh, for a client in a namespace whose node has the address clientIP.
// xdsAddress is istiod's port for xDS without TLS. Calls go where Istio's routes send them at that moment.
func Dial(xdsAddress, clientIP, namespace, host string) (*grpc.ClientConn, error) {
	bootstrap, err := json.Marshal(map[string]any{
		"xds_servers": []any{map[string]any{
			"server_uri":      xdsAddress,
			"channel_creds":   []any{map[string]any{"type": "insecure"}},
			"server_features": []string{"xds_v3"},
		}},
		"node": map[string]any{
			"id": fmt.Sprintf("sidecar~%s~client.%s~%s.svc.cluster.local", clientIP, namespace, namespace),
			"metadata": map[string]any{
				"GENERATOR": "grpc", "NAMESPACE": namespace, "CLUSTER_ID": "Kubernetes",
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("writing the xDS bootstrap: %w", err)
	}
	resolver, err := xds.NewXDSResolverWithConfigForTesting(bootstrap)
	if err != nil {
		return nil, fmt.Errorf("making the xDS resolver: %w", err)
	}
	connection, err := grpc.NewClient("xds:///"+host, grpc.WithResolvers(resolver),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(repeatUnrouted))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", host, err)
	}
	return connection, nil
}

// repeatUnrouted repeats a call that never left the client. grpc-go takes new routes into use a moment before its
// balancer knows the clusters that they name, and fails what is called in between with this very text; no route can
// prevent that, and a proxy, which learns clusters before routes, has no such moment.
func repeatUnrouted(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	for {
		err := invoke(ctx, method, request, reply, connection, options...)
		unrouted := status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "unknown cluster selected for RPC")
		if !unrouted || ctx.Err() != nil {
			return err
		}
	}
}
