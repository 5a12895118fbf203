// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"net"
	"strconv"
)

const istioObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "{}"}
`

// startIstio starts istiod beside the cluster: it reads the cluster as the administrator, serves xDS in plain text and
// injects nothing, so that it needs no certificates of its own.
func (t *Testbed) startIstio(ctx context.Context) error {
	if err := t.Apply(ctx, istioObjects); err != nil {
		return err
	}
	listen := func(port int) string { return net.JoinHostPort(t.bind(), strconv.Itoa(t.port(port))) }
	err := t.launch(ctx, component{
		name: "istiod", path: t.bin.programs[istiodProgram.name],
		args: []string{
			"discovery", "--kubeconfig", t.state.Kubeconfig, "--secureGRPCAddr", "", "--httpsAddr", "",
			"--grpcAddr", listen(portXDS), "--httpAddr", listen(portIstioHTTP),
			"--monitoringAddr", listen(portIstioMonitoring), "--ctrlz_port", "0", "--profile=false",
			"--log_output_level", "default:warn",
		},
		env:   []string{"PILOT_CERT_PROVIDER=none", "POD_NAMESPACE=istio-system", "POD_NAME=istiod", "REVISION=default"},
		ready: httpReady(direct(), "http://"+t.hostPort(portIstioHTTP)+"/ready"),
	})
	if err != nil {
		return err
	}
	t.set(func(s *State) { s.XDSAddress = t.hostPort(portXDS) })
	return nil
}
