// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

const (
	// DriftWindow is the time over which repairs are counted.
	DriftWindow = time.Minute
	// DriftPause is how long a route is left to whoever keeps changing it, and how long a repair is remembered.
	DriftPause = 10 * time.Minute
	// maxRepairs bounds what is remembered; the API allows no larger budget.
	maxRepairs = 60
)

// Fingerprint returns a short text that tells the routed part of a route from any other. That of a rendered route is
// also that of the stored one, until somebody changes it.
func Fingerprint(route *unstructured.Unstructured) (string, error) {
	provider, spec := kindOf(route), specOf(route)
	if provider == nil {
		return "", fmt.Errorf("%s is no route", route.GetKind())
	}
	raw, err := json.Marshal(routedPart(provider, spec)) // map keys come out sorted
	if err != nil {
		return "", fmt.Errorf("encoding %s %q: %w", route.GetKind(), route.GetName(), err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8]), nil
}

// routedPart returns those fields of a spec that decide where requests go. A field of a field is named with a dot.
func routedPart(provider Provider, spec map[string]any) map[string]any {
	routed := map[string]any{}
	for _, field := range provider.Fields() {
		path := strings.Split(field, ".")
		if value, found, err := unstructured.NestedFieldNoCopy(spec, path...); err == nil && found && value != nil {
			_ = unstructured.SetNestedField(routed, runtime.DeepCopyJSONValue(value), path...) // routed has only maps
		}
	}
	return routed
}

// Opponent returns the field manager, other than ours, that last set one of these fields of a route's spec; "" if there
// is none. The API server takes a field away from its former managers when another one changes it.
func Opponent(route *unstructured.Unstructured, ours string, fields ...string) string {
	var latest *metav1.ManagedFieldsEntry
	entries := route.GetManagedFields()
	for i := range entries {
		entry := &entries[i]
		if entry.Manager == ours || entry.Subresource != "" || !sets(entry, fields) {
			continue
		}
		if latest == nil || latest.Time.Before(entry.Time) {
			latest = entry
		}
	}
	if latest == nil {
		return ""
	}
	return latest.Manager
}

func sets(entry *metav1.ManagedFieldsEntry, fields []string) bool {
	if entry.FieldsV1 == nil {
		return false
	}
	var set map[string]any
	if json.Unmarshal(entry.FieldsV1.Raw, &set) != nil {
		return false
	}
	return slices.ContainsFunc(fields, func(field string) bool {
		path := []string{"f:spec"}
		for step := range strings.SplitSeq(field, ".") {
			path = append(path, "f:"+step)
		}
		_, found, err := unstructured.NestedFieldNoCopy(set, path...)
		return found && err == nil
	})
}

// Repair decides whether a route that somebody changed is put right now, from the times of earlier repairs. If it is
// not, the second result is when to decide again, zero for when something changes.
//
// A budget of repairs a minute keeps two controllers from chasing each other: once it is spent, the route is left as it
// is for DriftPause, counted from the last repair.
func Repair(policy v1alpha1.DriftPolicy, repairs []time.Time, now time.Time) (bool, time.Time) {
	if policy.Action == v1alpha1.DriftHold {
		return false, time.Time{}
	}
	budget := max(1, int(policy.MaxRepairsPerMinute))
	for i := len(repairs) - 1; i >= budget-1; i-- {
		until := repairs[i].Add(DriftPause)
		if repairs[i].Sub(repairs[i-budget+1]) < DriftWindow && now.Before(until) {
			return false, until
		}
	}
	return true, time.Time{}
}

// Remember returns the times of repairs that still matter, the newest last.
func Remember(repairs []time.Time, now time.Time) []time.Time {
	kept := slices.DeleteFunc(slices.Clone(repairs), func(at time.Time) bool { return now.Sub(at) >= DriftPause })
	return kept[max(0, len(kept)-maxRepairs):]
}
