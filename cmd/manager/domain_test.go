// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestDomainIn(t *testing.T) {
	for name, tc := range map[string]struct{ resolv, want string }{
		"a pod's": {
			"nameserver 10.96.0.10\nsearch ml.svc.k8s.example.org svc.k8s.example.org k8s.example.org node.example.org\noptions ndots:5\n",
			"k8s.example.org",
		},
		"a pod's in a namespace called svc": {"search svc.svc.cluster.local svc.cluster.local cluster.local\n", "cluster.local"},
		"with dots and capitals":            {"search ml.svc.Acme.Corp. SVC.Acme.Corp. Acme.Corp.", "acme.corp"},
		"a node's":                          {"nameserver 192.0.2.1\nsearch example.org\n", "cluster.local"},
		"none":                              {"", "cluster.local"},
		"nonsense":                          {"search svc. svc.-a svc._b\nsearch", "cluster.local"},
	} {
		if got := domainIn(tc.resolv); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestClusterDomainIsChecked(t *testing.T) {
	if got, err := clusterDomain("K8s.Example.org."); err != nil || got != "k8s.example.org" {
		t.Errorf("%q, %v; want k8s.example.org", got, err)
	}
	if got, err := clusterDomain("not a domain"); err == nil {
		t.Errorf("%q, want an error", got)
	}
}
