// SPDX-License-Identifier: Apache-2.0

// Package memcached is the data path of the feature cache: the ring that says which memcached server owns a key, the
// document that publishes that ring, a small client with deadlines and back-off, and the proxy that gives any memcached
// client one local address in front of all servers.
//
// Contract: cache trouble never fails a caller of the proxy. A server that is dead, slow or speaks garbage, and a ring
// without servers, look like a cache that does not have the key: a miss to a read, NOT_STORED or NOT_FOUND to a write.
// Only a delete that reached no server says so (SERVER_ERROR), because someone relies on it. The package never moves a
// key to another server because its owner is down: the owner would come back with values that missed every update.
//
// The package imports nothing from Kubernetes.
package memcached
