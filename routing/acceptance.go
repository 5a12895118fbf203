// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Acceptance implements Provider. A parent has taken the route up when a controller says of it, for the present
// generation, that the route is accepted and that all its destinations are known. More controllers than one may speak of
// a parent; one that accepts is enough.
func (httpRoutes) Acceptance(route *unstructured.Unstructured) Acceptance {
	if route == nil {
		return Acceptance{}
	}
	status, _ := route.Object["status"].(map[string]any)
	reports := mapsAt(status, "parents")
	accepted := true
	for _, ref := range mapsAt(specOf(route), "parentRefs") {
		taken, refusal := acceptanceBy(ref, reports, route)
		if !taken && refusal != "" {
			return Acceptance{Refusal: refusal}
		}
		accepted = accepted && taken
	}
	return Acceptance{Accepted: accepted}
}

// acceptanceBy returns whether a parent has taken the route up, and else why not, "" if it has not said so.
func acceptanceBy(ref map[string]any, reports []map[string]any, route *unstructured.Unstructured) (bool, string) {
	refusal := ""
	for _, report := range reports {
		of, _ := report["parentRef"].(map[string]any)
		if !sameParent(ref, of, route.GetNamespace()) {
			continue
		}
		yes := map[string]bool{}
		for _, condition := range mapsAt(report, "conditions") {
			kind := stringAt(condition, "type")
			if numberAt(condition, "observedGeneration", 0) < route.GetGeneration() {
				continue
			}
			yes[kind] = condition["status"] == "True"
			if (kind == "Accepted" || kind == "ResolvedRefs") && condition["status"] == "False" {
				refusal = fmt.Sprintf("%s %q of HTTPRoute %q: %s (%s)", stringAt(ref, "kind"), stringAt(ref, "name"),
					route.GetName(), stringAt(condition, "message"), stringAt(condition, "reason"))
			}
		}
		if yes["Accepted"] && yes["ResolvedRefs"] {
			return true, ""
		}
	}
	return false, refusal
}

// sameParent reports whether two references lead to one parent. Absent fields have the Gateway API's defaults.
func sameParent(a, b map[string]any, namespace string) bool {
	for field, fallback := range map[string]string{
		"group": gatewayGroup, "kind": gatewayKind, "namespace": namespace, "name": "", "sectionName": "",
	} {
		if withDefault(a, field, fallback) != withDefault(b, field, fallback) {
			return false
		}
	}
	return numberAt(a, "port", 0) == numberAt(b, "port", 0)
}

func withDefault(ref map[string]any, field, fallback string) string {
	if value, ok := ref[field].(string); ok {
		return value
	}
	return fallback
}
