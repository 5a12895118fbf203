// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"encoding/json"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Claim is something that only one policy can decide.
type Claim struct {
	// Part is the field of the policy.
	Part string
	// Value is what the policy has there, comparable by reflect.DeepEqual.
	Value any
}

// Claims returns all that a policy would decide if no other did, by what it is about: two policies with the same key
// cannot both have their way.
func Claims(spec *v1alpha1.SidecarPolicySpec) map[string]Claim {
	claims := map[string]Claim{}
	if spec.Preload != nil {
		claims["preload"] = Claim{Part: "preload", Value: spec.Preload}
	}
	if spec.FeatureCache != nil {
		claims["featureCache"] = Claim{Part: "featureCache", Value: spec.FeatureCache}
	}
	for _, list := range []struct {
		part, space string
		items       []runtime.RawExtension
	}{
		{"containers", "containers", spec.Containers},
		{"initContainers", "containers", spec.InitContainers},
		{"volumes", "volumes", spec.Volumes},
		{"env", "env", spec.Env},
	} {
		for i := range list.items {
			item := map[string]any{}
			if json.Unmarshal(list.items[i].Raw, &item) != nil {
				continue // reported as an error of the policy
			}
			name, _ := item["name"].(string)
			if list.part != "containers" || !slices.Contains(addable, name) {
				claims[list.space+"/"+name] = Claim{Part: list.part, Value: item}
			}
		}
	}
	return claims
}
