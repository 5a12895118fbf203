// SPDX-License-Identifier: Apache-2.0

// Package memcached is the data path of the feature cache: the ring that says which memcached server owns a key, the
// document that publishes that ring, a small client with deadlines and back-off, and the proxy that gives any memcached
// client one local address in front of all servers.
//
// Contract: cache trouble never fails a caller of the proxy. A server that is dead, slow or speaks garbage, and a ring
// without servers, look like a miss to a read. A write that reached no server says so in one line of the protocol
// ("SERVER_ERROR ..."), which no client takes for a stored value. The package never moves a key to another server
// because its owner is down: the owner would come back with values that missed every update since.
//
// The package imports nothing from Kubernetes.
package memcached
