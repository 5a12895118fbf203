// SPDX-License-Identifier: Apache-2.0

// Package testbed runs a real Kubernetes on one plain Linux machine, without Docker and without an image registry: the
// servers are built from their Go modules, pinned in test/testbed/modules, and the rest comes from Debian packages.
//
// There are three sizes behind one call, [Start]. [API] is etcd and the API server, for integration tests, up in
// seconds. [Control] adds the controller manager, the scheduler, KServe's manager, Istio's control plane, the Gateway
// API's kinds and an S3 server. [Node] adds, for root on Linux, containerd, the kubelet, kube-proxy and cluster DNS, so
// that pods run. Single parts can be had or left out.
//
// Nothing of a testbed outlives its owner, unless the owner asks for it with [Testbed.Detach]: see package keep. Several
// testbeds run at once, each with its own ports and folders, and a node with its own namespaces, so that two nodes of
// one machine share no bridge, mount or iptables rule.
package testbed
