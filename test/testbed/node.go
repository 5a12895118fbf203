// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/test/testbed/internal/keep"
)

// Paths inside the node's namespaces, where /run, /var/lib and /var/log are the testbed's own.
const (
	containerdSocket = "/run/containerd/containerd.sock"
	cniPlugins       = "/usr/lib/cni"
	kubeletRoot      = "/var/lib/kubelet"
	kubeletPort      = 10250
)

// debianPackages maps each program that a node needs to its package.
var debianPackages = map[string]string{
	"containerd": "containerd", "containerd-shim-runc-v2": "containerd", "ctr": "containerd",
	"iptables": "iptables", "ip": "iproute2", "conntrack": "conntrack", "memcached": "memcached",
}

// canRunPods says what this machine lacks for a node.
func canRunPods() error {
	if os.Geteuid() != 0 {
		return errors.New("pods need root, as size node has them; sizes api and control (and `make test`) do not")
	}
	var lacking []string
	for program, pkg := range debianPackages {
		if _, err := debianProgram(program); err != nil {
			lacking = append(lacking, fmt.Sprintf("%s (package %s)", program, pkg))
		}
	}
	if !exists(cniPlugins + "/ptp") {
		lacking = append(lacking, cniPlugins+"/ptp (package containernetworking-plugins)")
	}
	if len(lacking) > 0 {
		return fmt.Errorf("not found: %s: run make deps", strings.Join(lacking, ", "))
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	for _, own := range keep.NodeFolders() {
		if strings.HasPrefix(cache+"/", own+"/") {
			return fmt.Errorf("the cache folder %s cannot be seen from a node, which has its own %s: "+
				"set OUTRIGGER_CACHE to a folder elsewhere", cache, own)
		}
	}
	return nil
}

// connectNode makes the link between this machine and the node's network, and the routes to pods and Services. It all
// vanishes with the node's network namespace.
func (t *Testbed) connectNode(ctx context.Context) error {
	pid, err := keep.InitPid(t.dir)
	if err != nil {
		return err
	}
	n := t.network()
	// A link of this slot can only be left from a dead testbed, whose namespace the kernel has not yet taken down.
	_ = exec.CommandContext(ctx, "ip", "link", "del", n.linkName()).Run()
	for _, line := range []string{
		"link add " + n.linkName() + " type veth peer name eth0 netns " + strconv.Itoa(pid),
		"addr add " + n.hostIP() + "/30 dev " + n.linkName(),
		"link set " + n.linkName() + " up",
	} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("connecting the node: ip %s: %w: %s", line, err, out)
		}
	}
	_, err = t.runProcess(ctx, "network", "/bin/sh", "-ec", fmt.Sprintf(`
		ip link set lo up
		ip addr add %s/30 dev eth0
		ip link set eth0 up
		ip route add default via %s
		echo 1 > /proc/sys/net/ipv4/ip_forward`, n.nodeIP(), n.hostIP()))
	if err != nil {
		return fmt.Errorf("connecting the node: %w", err)
	}
	for _, line := range []string{
		"route add " + n.pods() + " via " + n.nodeIP(), "route add " + n.services() + " via " + n.nodeIP(),
	} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("connecting the node: ip %s: %w: %s", line, err, out)
		}
	}
	t.set(func(s *State) { s.NodeIP, s.HostIP, s.Pid = n.nodeIP(), n.hostIP(), pid })
	return nil
}

// kubeletClientArgs lets the API server reach the kubelet, for logs, exec and port-forward.
func (t *Testbed) kubeletClientArgs() ([]string, error) {
	if t.options.Size != Node {
		return nil, nil
	}
	client, err := t.ca.issue("kube-apiserver-kubelet", "kube-apiserver-kubelet-client", []string{"system:masters"}, nil)
	if err != nil {
		return nil, err
	}
	return []string{
		"--kubelet-client-certificate=" + client.certPath, "--kubelet-client-key=" + client.keyPath,
		"--kubelet-certificate-authority=" + t.ca.path("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--enable-admission-plugins=NodeRestriction",
	}, nil
}

// startNode starts containerd, kube-proxy and the kubelet, and returns when the node is ready and advertises what was
// asked for.
func (t *Testbed) startNode(ctx context.Context) error {
	if err := t.startContainerd(ctx); err != nil {
		return err
	}
	if err := t.loadOwnImages(ctx); err != nil {
		return err
	}
	kubelet, err := t.startKubelet(ctx)
	if err != nil {
		return err
	}
	// kube-proxy gives up its first attempts, and some seconds, if the node is not registered.
	registered := kubelet
	registered.ready = t.nodeRegistered
	if err := t.awaitComponent(ctx, registered); err != nil {
		return err
	}
	if err := t.startProxy(ctx); err != nil {
		return err
	}
	if err := t.awaitComponent(ctx, kubelet); err != nil {
		return err
	}
	t.say("the node is ready")
	return nil
}

func (t *Testbed) loadOwnImages(ctx context.Context) error {
	pause, memcached := t.path("tmp/pause.tar"), t.path("tmp/memcached.tar")
	err := BuildImage(ctx, pause, Image{
		Ref: pauseImage, Files: map[string]string{"/pause": t.bin.programs[pauseProgram.name]},
		Entrypoint: []string{"/pause"},
	})
	if err != nil {
		return err
	}
	if err := BuildMemcachedImage(ctx, memcached); err != nil {
		return err
	}
	return t.LoadImage(ctx, pause, memcached)
}

func (t *Testbed) startProxy(ctx context.Context) error {
	kubeconfig, err := t.userConfig("kube-proxy", "system:kube-proxy")
	if err != nil {
		return err
	}
	healthz := t.hostPort(portProxyHealth)
	file, err := t.writeConfig("kube-proxy.yaml", map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": "iptables", "detectLocalMode": "ClusterCIDR", "clusterCIDR": t.network().pods(),
		"hostnameOverride": keep.NodeHostname, "nodePortAddresses": []string{t.network().nodeIP() + "/32"},
		"clientConnection": map[string]any{"kubeconfig": kubeconfig}, "healthzBindAddress": healthz,
		// Limits of connection tracking are the machine's, not this namespace's to set.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		"iptables":  map[string]any{"minSyncPeriod": "100ms", "localhostNodePorts": false},
	})
	if err != nil {
		return err
	}
	return t.launch(ctx, component{
		name: proxyProgram.name, path: t.bin.programs[proxyProgram.name], args: []string{"--config=" + file},
		ready: httpReady(direct(), "http://"+healthz+"/healthz"),
	})
}

func (t *Testbed) startKubelet(ctx context.Context) (component, error) {
	kubeconfig, err := t.userConfig("kubelet", "system:node:"+keep.NodeHostname, "system:nodes")
	if err != nil {
		return component{}, err
	}
	serving, err := t.ca.issue("kubelet-serving", "system:node:"+keep.NodeHostname, nil,
		[]string{keep.NodeHostname, t.network().nodeIP()})
	if err != nil {
		return component{}, err
	}
	file, err := t.writeConfig("kubelet.yaml", t.kubeletConfig(serving))
	if err != nil {
		return component{}, err
	}
	kubelet := component{
		name: kubeletProgram.name, path: t.bin.programs[kubeletProgram.name],
		args: []string{
			"--config=" + file, "--kubeconfig=" + kubeconfig, "--root-dir=" + kubeletRoot,
			"--hostname-override=" + keep.NodeHostname, "--node-ip=" + t.network().nodeIP(),
		},
		ready: t.nodeReady,
	}
	return kubelet, t.startProcess(ctx, kubelet)
}

// kubeletConfig is tuned to work on machines with either version of cgroups and few privileges, to show changed
// ConfigMaps within seconds, and never to collect images, which cannot be pulled again.
func (t *Testbed) kubeletConfig(serving *pair) map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": "0.0.0.0", "port": kubeletPort, "healthzPort": 0,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true},
			"x509": map[string]any{"clientCAFile": t.ca.path("ca.crt")},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   serving.certPath, "tlsPrivateKeyFile": serving.keyPath,
		"clusterDomain": "cluster.local", "clusterDNS": []string{t.network().nodeIP()}, "resolvConf": "/dev/null",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs", "cgroupsPerQOS": true,
		"enforceNodeAllocatable": []string{}, "failCgroupV1": false, "failSwapOn": false,
		"localStorageCapacityIsolation": true, "makeIPTablesUtilChains": false,
		"evictionHard":                map[string]string{"nodefs.available": "1%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"serializeImagePulls": false, "registerNode": true,
		"syncFrequency": "2s", "configMapAndSecretChangeDetectionStrategy": "Watch",
		"nodeStatusUpdateFrequency": "5s", "volumePluginDir": kubeletRoot + "/volumeplugins",
		"kubeAPIQPS": 100, "kubeAPIBurst": 200, "eventRecordQPS": 0,
	}
}

func (t *Testbed) writeConfig(name string, content map[string]any) (string, error) {
	raw, err := yaml.Marshal(content)
	if err != nil {
		return "", fmt.Errorf("encoding %s: %w", name, err)
	}
	file := t.path(name)
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return "", fmt.Errorf("writing %s: %w", name, err)
	}
	return file, nil
}

// nodeRegistered says whether the node has an address in the cluster.
func (t *Testbed) nodeRegistered(ctx context.Context) error {
	node, err := t.node(ctx)
	if err != nil {
		return err
	}
	if len(node.Status.Addresses) == 0 {
		return errors.New("the node has no address yet")
	}
	return nil
}

func (t *Testbed) node(ctx context.Context) (*corev1.Node, error) {
	client, err := kubernetes.NewForConfig(t.config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	node, err := client.CoreV1().Nodes().Get(ctx, keep.NodeHostname, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("asking for the node: %w", err)
	}
	return node, nil
}

// nodeReady says whether the node is ready; once it is, it has the extended resources.
func (t *Testbed) nodeReady(ctx context.Context) error {
	node, err := t.node(ctx)
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return t.advertise(ctx)
		}
	}
	return errors.New("the node is not ready")
}

// advertise adds the extended resources to the node's status, where the kubelet leaves them.
func (t *Testbed) advertise(ctx context.Context) error {
	if len(t.options.ExtendedResources) == 0 {
		return nil
	}
	amounts := t.options.ExtendedResources
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"capacity": amounts, "allocatable": amounts}})
	if err != nil {
		return fmt.Errorf("encoding extended resources: %w", err)
	}
	client, err := kubernetes.NewForConfig(t.config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		_, err := client.CoreV1().Nodes().Patch(ctx, keep.NodeHostname, types.StrategicMergePatchType, patch,
			metav1.PatchOptions{FieldManager: fieldManager}, "status")
		return err
	})
	if err != nil {
		return fmt.Errorf("advertising extended resources: %w", err)
	}
	return nil
}
