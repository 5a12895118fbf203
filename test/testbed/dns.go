// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"os"
)

// Records live a second, so that a test sees a changed Service soon. Names outside the cluster are refused at once:
// the testbed forwards nothing.
const dnsConfig = `.:53 {
  bind %s
  errors
  ready %s
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig %s
    pods insecure
    ttl 1
  }
}
`

// startDNS starts CoreDNS on the node's address, where every pod asks.
func (t *Testbed) startDNS(ctx context.Context) error {
	file := t.path("Corefile")
	config := fmt.Sprintf(dnsConfig, t.network().nodeIP(), t.hostPort(portDNSReady), t.state.Kubeconfig)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return fmt.Errorf("writing the configuration of DNS: %w", err)
	}
	return t.launch(ctx, component{
		name: dnsProgram.name, path: t.bin.programs[dnsProgram.name], args: []string{"-conf", file},
		ready: httpReady(direct(), "http://"+t.hostPort(portDNSReady)+"/ready"),
	})
}
