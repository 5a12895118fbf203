// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the three kinds of Outrigger: Memcached, SidecarPolicy and CanaryRollout.
//
// A field is here only if the controllers obey it. Every field is bounded, so that a value that cannot work is refused
// by the API server and never reaches a controller. The package imports nothing but Kubernetes API machinery.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +groupName=outrigger.serverless.xyz
package v1alpha1
