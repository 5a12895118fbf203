// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Size says how much of a cluster a testbed is. A larger size has every part of the smaller ones.
type Size int

const (
	// API is etcd and the API server. It needs no root. Pods can be created but nothing acts on them, and namespaces
	// get no default ServiceAccount, which the API server therefore does not ask for.
	API Size = iota
	// Control is API with every controller and server that runs without a node. It needs no root.
	Control
	// Node is Control with a node that runs pods. It needs root on Linux.
	Node
)

// ParseSize returns the size named api, control or node.
func ParseSize(name string) (Size, error) {
	for _, s := range []Size{API, Control, Node} {
		if s.String() == name {
			return s, nil
		}
	}
	return API, fmt.Errorf("size %q is none of api, control and node", name)
}

// String returns the size's name: api, control or node.
func (s Size) String() string {
	switch s {
	case API:
		return "api"
	case Control:
		return "control"
	case Node:
		return "node"
	default:
		return fmt.Sprintf("size %d", int(s))
	}
}

// Part is something that a testbed can have beside etcd and the API server.
type Part string

// The parts, each in [Control] and [Node] unless said otherwise.
const (
	// ControllerManager is kube-controller-manager.
	ControllerManager Part = "controller-manager"
	// Scheduler is kube-scheduler.
	Scheduler Part = "scheduler"
	// GatewayAPI is the Gateway API's custom resource definitions, without a controller.
	GatewayAPI Part = "gateway-api"
	// S3 is versitygw, an S3 server on a folder.
	S3 Part = "s3"
	// Istio is istiod with its custom resource definitions; it serves xDS in plain text.
	Istio Part = "istio"
	// KServe is KServe's manager with its custom resource definitions, configuration and webhooks. It brings GatewayAPI.
	KServe Part = "kserve"
	// Knative is Knative Serving's controller and webhook, for KServe's Knative mode. Nothing routes or scales. No size
	// has it: it runs where [Options.With] names it.
	Knative Part = "knative"
	// Prometheus is Debian's Prometheus. No size has it: it runs where [Options.Prometheus] is set.
	Prometheus Part = "prometheus"
	// Pods is the node: containerd, kubelet, kube-proxy and DNS for cluster.local. Only Node has it, and Node always.
	Pods Part = "pods"
)

// Options says what testbed to start. The zero value is a testbed of size API.
type Options struct {
	// Size is the preset that With and Without change.
	Size Size
	// With adds single parts to the size's. Pods cannot be added: it needs size Node.
	With []Part
	// Without leaves out single parts of the size's.
	Without []Part
	// Uncached has the API server serve lists and watches from etcd itself. That is for tests that read what they have
	// just written: with its cache, every list waits until etcd has reported to it, ten times a second, if anything at
	// all was written since. Without, each watch costs the API server about as much as all of one kind together do with.
	Uncached bool
	// Prometheus is the text of a Prometheus configuration, which makes the testbed run one. Empty means none.
	Prometheus string
	// ExtendedResources is what the node advertises beside CPU and memory, name to quantity. Needs size Node.
	ExtendedResources map[string]string
	// KServeConfig replaces keys of KServe's ConfigMap inferenceservice-config. Its values are JSON, as KServe's own.
	KServeConfig map[string]string
	// Progress is told in lines what takes long. Nil means standard error for builds and silence for the rest.
	Progress io.Writer
}

var (
	controlParts = []Part{ControllerManager, Scheduler, GatewayAPI, S3, Istio, KServe}
	// addableParts are all that With and Without may name.
	addableParts = append(slices.Clone(controlParts), Knative)
)

// parts returns what these options ask for, in the order of starting.
func (o Options) parts() ([]Part, error) {
	var parts []Part
	if o.Size >= Control {
		parts = append(parts, controlParts...)
	}
	for _, p := range o.With {
		if !slices.Contains(addableParts, p) {
			return nil, fmt.Errorf("part %q cannot be added: it is none of %s", p, joinParts(addableParts))
		}
		if !slices.Contains(parts, p) {
			parts = append(parts, p)
		}
	}
	for _, p := range o.Without {
		if !slices.Contains(addableParts, p) {
			return nil, fmt.Errorf("part %q cannot be left out: it is none of %s", p, joinParts(addableParts))
		}
		parts = slices.DeleteFunc(parts, func(q Part) bool { return p == q })
	}
	if slices.Contains(parts, KServe) && !slices.Contains(parts, GatewayAPI) {
		parts = append(parts, GatewayAPI)
	}
	slices.SortFunc(parts, func(a, b Part) int { return slices.Index(addableParts, a) - slices.Index(addableParts, b) })
	if o.Prometheus != "" {
		parts = append(parts, Prometheus)
	}
	if o.Size == Node {
		parts = append(parts, Pods)
	}
	return parts, o.checkResources()
}

func (o Options) checkResources() error {
	if len(o.ExtendedResources) > 0 && o.Size != Node {
		return fmt.Errorf("extended resources need size node, not %s", o.Size)
	}
	for name, amount := range o.ExtendedResources {
		if _, err := resource.ParseQuantity(amount); err != nil {
			return fmt.Errorf("extended resource %s: %q is no amount: %w", name, amount, err)
		}
	}
	return nil
}

func joinParts(parts []Part) string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = string(p)
	}
	return strings.Join(names, ", ")
}
