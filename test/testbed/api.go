// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const loopback = "127.0.0.1"

// startAPI starts etcd and the API server and fills in the clients.
func (t *Testbed) startAPI(ctx context.Context, parts []Part) error {
	var err error
	if t.ca, err = newAuthority(t.path("pki")); err != nil {
		return err
	}
	if err := t.writeAdminConfig(); err != nil {
		return err
	}
	if err := t.startProcess(ctx, t.etcd()); err != nil {
		return err
	}
	server, err := t.apiServer(parts)
	if err != nil {
		return err
	}
	return t.launch(ctx, server)
}

// address is where the testbed's servers are reached from this machine and from its pods.
func (t *Testbed) address() string {
	if t.state.NodeIP != "" {
		return t.state.NodeIP
	}
	return loopback
}

// bind is the address that servers listen on: all of a node's, whose network is its own.
func (t *Testbed) bind() string {
	if t.state.NodeIP != "" {
		return "0.0.0.0"
	}
	return loopback
}

func (t *Testbed) hostPort(number int) string {
	return net.JoinHostPort(t.address(), strconv.Itoa(t.port(number)))
}

func (t *Testbed) apiURL() string { return "https://" + t.hostPort(portAPI) }

// etcdSocket: a socket in the testbed's folder needs no port and no password.
func (t *Testbed) etcdSocket() string { return "unix://" + t.path("etcd.sock") }

func (t *Testbed) etcd() component {
	return component{
		name: etcdProgram.name, path: t.bin.programs[etcdProgram.name],
		args: []string{
			"--data-dir", t.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
			"--listen-client-urls", t.etcdSocket(), "--advertise-client-urls", t.etcdSocket(),
			"--listen-peer-urls", "unix://" + t.path("etcd-peer.sock"),
		},
	}
}

func (t *Testbed) apiServer(parts []Part) (component, error) {
	services, own := virtualServices, virtualServiceIP
	if t.options.Size == Node {
		services, own = t.network().services(), t.network().serviceIP(1)
	}
	serving, err := t.ca.issue("kube-apiserver", "kube-apiserver", nil, []string{
		"localhost", loopback, t.address(), own,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	})
	if err != nil {
		return component{}, err
	}
	tokens, err := t.ca.signingKey()
	if err != nil {
		return component{}, err
	}
	args := []string{
		"--etcd-servers=" + t.etcdSocket(),
		"--bind-address=" + t.bind(), "--advertise-address=" + t.address(),
		"--secure-port=" + strconv.Itoa(t.port(portAPI)),
		"--tls-cert-file=" + serving.certPath, "--tls-private-key-file=" + serving.keyPath,
		"--client-ca-file=" + t.ca.path("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + tokens, "--service-account-signing-key-file=" + tokens,
		"--service-cluster-ip-range=" + services,
		"--authorization-mode=Node,RBAC", "--anonymous-auth=false",
		"--allow-privileged=true", "--profiling=false",
	}
	kubelet, err := t.kubeletClientArgs()
	if err != nil {
		return component{}, err
	}
	args = append(args, kubelet...)
	if t.options.Uncached {
		args = append(args, "--watch-cache=false")
	}
	if t.options.Size != Node {
		// Endpoints may not hold the loopback address, which is all that this one has.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	if !slices.Contains(parts, ControllerManager) {
		// Nobody makes the ServiceAccounts that this plugin insists on.
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	return component{
		name: apiServerProgram.name, path: t.bin.programs[apiServerProgram.name], args: args,
		// Reading KServe's definitions leaves much garbage: fewer collections, within bounds, save a fifth of the start.
		env:   []string{"GOGC=200", "GOMEMLIMIT=800MiB"},
		ready: t.apiReady,
	}, nil
}

func (t *Testbed) apiReady(ctx context.Context) error {
	client, err := rest.HTTPClientFor(t.config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	return httpReady(client, t.apiURL()+"/readyz")(ctx)
}

// httpReady returns a question that is answered by status 200 at the address.
func httpReady(client *http.Client, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return fmt.Errorf("asking for readiness: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("asking for readiness: %w", err)
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("asking for readiness: %s", resp.Status)
		}
		return nil
	}
}

// writeAdminConfig issues the administrator's certificate, writes the kubeconfig and makes the clients.
func (t *Testbed) writeAdminConfig() error {
	admin, err := t.ca.issue("admin", "admin", []string{"system:masters"}, nil)
	if err != nil {
		return err
	}
	if err := t.writeKubeconfig(t.state.Kubeconfig, admin); err != nil {
		return err
	}
	t.config, err = clientcmd.BuildConfigFromFlags("", t.state.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig back: %w", err)
	}
	t.config.QPS = -1
	t.config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	if t.discovery, err = discovery.NewDiscoveryClientForConfig(t.config); err != nil {
		return fmt.Errorf("making a discovery client: %w", err)
	}
	t.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(t.discovery))
	if t.dynamic, err = dynamic.NewForConfig(t.config); err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	return nil
}

// userConfig issues a certificate for a component and writes its kubeconfig, whose path it returns.
func (t *Testbed) userConfig(component, user string, groups ...string) (string, error) {
	who, err := t.ca.issue(component+"-client", user, groups, nil)
	if err != nil {
		return "", err
	}
	path := t.ca.path(component + ".kubeconfig")
	return path, t.writeKubeconfig(path, who)
}

func (t *Testbed) writeKubeconfig(path string, who *pair) error {
	c := clientcmdapi.NewConfig()
	c.Clusters["testbed"] = &clientcmdapi.Cluster{Server: t.apiURL(), CertificateAuthorityData: t.ca.pem}
	c.AuthInfos["testbed"] = &clientcmdapi.AuthInfo{ClientCertificateData: who.cert, ClientKeyData: who.key}
	c.Contexts["testbed"] = &clientcmdapi.Context{Cluster: "testbed", AuthInfo: "testbed"}
	c.CurrentContext = "testbed"
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return nil
}
