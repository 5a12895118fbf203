// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"strings"
	"sync/atomic"
)

// DefaultClusterDomain is the DNS domain that a cluster has unless its administrator chose another.
const DefaultClusterDomain = "cluster.local"

// clusterDomain is the DNS domain of Services: one for all that this process knows, since host names are compared by it.
var clusterDomain atomic.Pointer[string]

// SetClusterDomain tells the DNS domain of the cluster's Services, such as cluster.local. It is called before hosts are
// made or compared, and not again.
func SetClusterDomain(domain string) {
	domain = strings.ToLower(strings.Trim(domain, "."))
	clusterDomain.Store(&domain)
}

// ClusterDomain returns the DNS domain of the cluster's Services.
func ClusterDomain() string {
	if domain := clusterDomain.Load(); domain != nil {
		return *domain
	}
	return DefaultClusterDomain
}

// Mesh is the gateway that stands for every caller inside the mesh.
const Mesh = "mesh"

// ServiceHost returns the host name of a Service.
func ServiceHost(name, namespace string) string {
	return name + "." + namespace + ".svc." + ClusterDomain()
}

// ResolveHost returns the full form of a host as a VirtualService of a namespace means it: a name without a dot is a
// Service of that namespace.
func ResolveHost(host, namespace string) string {
	host = strings.ToLower(host)
	if host == "" || strings.ContainsAny(host, ".*") {
		return host
	}
	return ServiceHost(host, namespace)
}

// resolveAuthority returns the full form of a Host header. Knative's gateway knows a Service by three names.
func resolveAuthority(authority string) string {
	authority, _, _ = strings.Cut(strings.ToLower(authority), ":")
	service := strings.TrimSuffix(authority, ".svc")
	if name, namespace, ok := strings.Cut(service, "."); ok && !strings.Contains(namespace, ".") {
		return ServiceHost(name, namespace)
	}
	return authority
}

// resolveGateway returns the full form of a gateway as a VirtualService of a namespace means it.
func resolveGateway(gateway, namespace string) string {
	if gateway == Mesh || strings.Contains(gateway, "/") {
		return gateway
	}
	return namespace + "/" + gateway
}

// serviceOf returns the Service whose host name this is, false if it is that of no Service.
func serviceOf(host string) (name, namespace string, ok bool) {
	service, isService := strings.CutSuffix(host, ".svc."+ClusterDomain())
	name, namespace, ok = strings.Cut(service, ".")
	return name, namespace, isService && ok && !strings.ContainsAny(service, "*") && !strings.Contains(namespace, ".")
}
