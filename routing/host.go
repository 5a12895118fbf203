// SPDX-License-Identifier: Apache-2.0

package routing

import "strings"

// Domain is the DNS domain of a cluster's Services, in lower case and without dots at its ends. Whatever makes or compares
// host names is a method of it.
type Domain string

// DefaultDomain is the domain that a cluster has unless its administrator chose another.
const DefaultDomain Domain = "cluster.local"

// DomainOf returns the domain of this name, the default one for "".
func DomainOf(name string) Domain {
	if name = strings.ToLower(strings.Trim(name, ".")); name != "" {
		return Domain(name)
	}
	return DefaultDomain
}

// Mesh is the gateway that stands for every caller inside the mesh.
const Mesh = "mesh"

// ServiceHost returns the host name of a Service.
func (d Domain) ServiceHost(name, namespace string) string {
	return name + "." + namespace + ".svc." + string(d)
}

// ResolveHost returns the full form of a host as a VirtualService of a namespace means it: a name without a dot is a
// Service of that namespace.
func (d Domain) ResolveHost(host, namespace string) string {
	host = strings.ToLower(host)
	if host == "" || strings.ContainsAny(host, ".*") {
		return host
	}
	return d.ServiceHost(host, namespace)
}

// resolveAuthority returns the full form of a Host header. Knative's gateway knows a Service by three names.
func (d Domain) resolveAuthority(authority string) string {
	authority, _, _ = strings.Cut(strings.ToLower(authority), ":")
	service := strings.TrimSuffix(authority, ".svc")
	if name, namespace, ok := strings.Cut(service, "."); ok && !strings.Contains(namespace, ".") {
		return d.ServiceHost(name, namespace)
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
func (d Domain) serviceOf(host string) (name, namespace string, ok bool) {
	service, isService := strings.CutSuffix(host, ".svc."+string(d))
	name, namespace, ok = strings.Cut(service, ".")
	return name, namespace, isService && ok && !strings.ContainsAny(service, "*") && !strings.Contains(namespace, ".")
}
