// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"os"
	"strings"
	"text/template"

	"serverless.xyz/outrigger/test/testbed/internal/keep"
)

// containerd leaves out what a testbed has no use for, and the plugin that makes a folder below /opt.
var containerdConfig = template.Must(template.New("containerd").Parse(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{{.Socket}}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{{.Plugins}}"
  conf_dir = "{{.Network}}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "{{.Runc}}"
`))

// Each pod has a link of its own to the node, so that traffic between pods is routed: Services work without the kernel
// module that shows bridged traffic to iptables.
const networkConfig = `{
  "cniVersion": "0.4.0", "name": "testbed",
  "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses",
      "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

func (t *Testbed) startContainerd(ctx context.Context) error {
	program, err := debianProgram("containerd")
	if err != nil {
		return err
	}
	network := t.path("cni")
	if err := os.Mkdir(network, 0o755); err != nil {
		return fmt.Errorf("making the folder of the pods' network: %w", err)
	}
	pods := fmt.Sprintf(networkConfig, t.network().pods())
	if err := os.WriteFile(t.path("cni/10-testbed.conflist"), []byte(pods), 0o644); err != nil {
		return fmt.Errorf("writing the pods' network: %w", err)
	}
	var config strings.Builder
	err = containerdConfig.Execute(&config, map[string]string{
		"Socket": containerdSocket, "Pause": pauseImage, "Plugins": cniPlugins, "Network": network,
		"Runc": t.bin.programs[runcProgram.name],
	})
	if err != nil {
		return fmt.Errorf("writing containerd's configuration: %w", err)
	}
	if err := os.WriteFile(t.path("containerd.toml"), []byte(config.String()), 0o600); err != nil {
		return fmt.Errorf("writing containerd's configuration: %w", err)
	}
	return t.launch(ctx, component{
		name: "containerd", path: program, args: []string{"--config", t.path("containerd.toml")},
		ready: func(context.Context) error {
			_, err := os.Stat(keep.InNode(t.dir, containerdSocket))
			return err
		},
	})
}
