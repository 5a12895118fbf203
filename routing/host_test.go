// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// TestHostsOfAnotherClusterDomain: whatever makes or compares a host knows the domain of the cluster.
func TestHostsOfAnotherClusterDomain(t *testing.T) {
	domain := DomainOf("K8s.Example.org.")
	const host = "v1.ml.svc.k8s.example.org"
	for what, got := range map[string]string{
		"a Service":           domain.ServiceHost("v1", "ml"),
		"a short name":        domain.ResolveHost("v1", "ml"),
		"a Host header":       domain.resolveAuthority("v1.ml.svc:80"),
		"a rollout's Service": domain.Hosts(&v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Name: "v1", Namespace: "ml"}})[0],
	} {
		if got != host {
			t.Errorf("%s: %q, want %q", what, got, host)
		}
	}
	if name, namespace, ok := domain.serviceOf(host); name != "v1" || namespace != "ml" || !ok {
		t.Errorf("%s is Service %q of %q: %t", host, name, namespace, ok)
	}
	if _, _, ok := domain.serviceOf("v1.ml.svc.cluster.local"); ok {
		t.Error("a host of another cluster is taken for a Service of this one")
	}
}
