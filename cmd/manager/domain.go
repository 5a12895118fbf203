// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"serverless.xyz/outrigger/routing"
)

// clusterDomain returns the DNS domain of the cluster's Services: the one that was asked for or, if that is empty, the one
// that the kubelet gave this pod.
func clusterDomain(asked string) (string, error) {
	if asked == "" {
		resolv, err := os.ReadFile("/etc/resolv.conf")
		if err != nil {
			return string(routing.DefaultDomain), nil //nolint:nilerr // a pod need not have one.
		}
		return domainIn(string(resolv)), nil
	}
	domain := strings.ToLower(strings.Trim(asked, "."))
	if problems := validation.IsDNS1123Subdomain(domain); len(problems) > 0 {
		return "", fmt.Errorf("--cluster-domain: %q is no DNS domain: %s", asked, problems[0])
	}
	return domain, nil
}

// domainIn finds the domain in a resolv.conf: the kubelet has pods search <namespace>.svc.<domain> and svc.<domain>, of
// which the former begins like the latter for a namespace of that name. Without them, as in the network of the node, it is
// the one that clusters have by default.
func domainIn(resolv string) string {
	found := ""
	for line := range strings.Lines(resolv) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "search" {
			continue
		}
		for _, word := range words[1:] {
			domain, ok := strings.CutPrefix(strings.ToLower(strings.Trim(word, ".")), "svc.")
			if ok && len(validation.IsDNS1123Subdomain(domain)) == 0 && (found == "" || len(domain) < len(found)) {
				found = domain
			}
		}
	}
	if found == "" {
		return string(routing.DefaultDomain)
	}
	return found
}
