// SPDX-License-Identifier: Apache-2.0

package podwebhook

import (
	"encoding/json"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
)

// overlay returns raw, a pod as the API server sent it, with what differs between before and after, which were decoded
// from it. A field of a later Kubernetes, which decoding drops, so stays in the pod.
func overlay(raw []byte, before, after *corev1.Pod) ([]byte, error) {
	var from, to, onto any
	if err := json.Unmarshal(raw, &onto); err != nil {
		return nil, fmt.Errorf("decoding a pod: %w", err)
	}
	for _, one := range []struct {
		pod  *corev1.Pod
		into *any
	}{{before, &from}, {after, &to}} {
		text, err := json.Marshal(one.pod)
		if err != nil {
			return nil, fmt.Errorf("encoding a pod: %w", err)
		}
		if err := json.Unmarshal(text, one.into); err != nil {
			return nil, fmt.Errorf("decoding a pod: %w", err)
		}
	}
	changed, err := json.Marshal(merge(onto, from, to))
	if err != nil {
		return nil, fmt.Errorf("encoding a pod: %w", err)
	}
	return changed, nil
}

// merge makes of onto what makes to of from. Lists whose items have names match by these, others by index: whoever changes
// a pod adds to their end.
func merge(onto, from, to any) any {
	if reflect.DeepEqual(from, to) {
		return onto
	}
	switch to := to.(type) {
	case map[string]any:
		from, ok := from.(map[string]any)
		if !ok {
			return to
		}
		merged, ok := onto.(map[string]any)
		if !ok {
			merged = map[string]any{}
		}
		for key := range from {
			if _, stays := to[key]; !stays {
				delete(merged, key)
			}
		}
		for key, value := range to {
			if !reflect.DeepEqual(from[key], value) {
				merged[key] = merge(merged[key], from[key], value)
			}
		}
		return merged
	case []any:
		return mergeList(onto, from, to)
	default:
		return to
	}
}

func mergeList(onto, from any, to []any) any {
	before, isList := from.([]any)
	list, alsoList := onto.([]any)
	if !isList || !alsoList || len(list) != len(before) || len(to) < len(before) {
		return to
	}
	places, ok := placesByName(before, to)
	if !ok {
		return to
	}
	merged := make([]any, len(to))
	for i, at := range places {
		merged[i] = to[i]
		if at >= 0 {
			merged[i] = merge(list[at], before[at], to[i])
		}
	}
	return merged
}

// placesByName returns for each item of to its place in from, -1 if it is new there. It fails if one of from is gone.
func placesByName(from, to []any) ([]int, bool) {
	names := map[string]int{}
	for i := range from {
		if name := nameOf(from[i]); name != "" {
			names[name] = i
		}
	}
	named := len(names) == len(from)
	places, found := make([]int, len(to)), 0
	for i := range to {
		places[i] = i
		if at, ok := names[nameOf(to[i])]; named && ok {
			places[i] = at
		} else if named || i >= len(from) {
			places[i] = -1
		}
		if places[i] >= 0 {
			found++
		}
	}
	return places, found == len(from)
}

func nameOf(item any) string {
	object, _ := item.(map[string]any)
	name, _ := object["name"].(string)
	return name
}
