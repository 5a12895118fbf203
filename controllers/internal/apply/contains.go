// SPDX-License-Identifier: Apache-2.0

package apply

import (
	"encoding/json"
	"math"
)

// Contains reports whether live has every field of want with the same value. Elements of a list are matched by their
// name, or by containerPort and port where they have no name, and by position otherwise, so that elements which others
// added do not count as a difference. A zero value that is absent from live counts as present, since typed objects drop
// such values.
func Contains(live, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		return containsMap(live, want)
	case []any:
		return containsList(live, want)
	default:
		return equalScalar(live, want)
	}
}

func containsMap(live any, want map[string]any) bool {
	have, ok := live.(map[string]any)
	if !ok {
		return live == nil && isZero(want)
	}
	for key, value := range want {
		if !Contains(have[key], value) {
			return false
		}
	}
	return true
}

func containsList(live any, want []any) bool {
	have, ok := live.([]any)
	if !ok {
		return live == nil && len(want) == 0
	}
	key := listKey(want)
	if key == "" && len(have) != len(want) {
		return false
	}
	for i, value := range want {
		var candidate any
		if key == "" {
			candidate = have[i]
		} else {
			candidate = find(have, key, value.(map[string]any)[key]) //nolint:forcetypeassert // listKey checked.
		}
		if candidate == nil || !Contains(candidate, value) {
			return false
		}
	}
	return true
}

// listKey returns the field by which all elements of a list are told apart, or "" if they have none.
func listKey(list []any) string {
	for _, key := range []string{"name", "containerPort", "port", "uid", "type"} {
		if allHave(list, key) {
			return key
		}
	}
	return ""
}

func allHave(list []any, key string) bool {
	for _, element := range list {
		m, ok := element.(map[string]any)
		if !ok || m[key] == nil {
			return false
		}
	}
	return len(list) > 0
}

func find(list []any, key string, value any) any {
	for _, element := range list {
		if m, ok := element.(map[string]any); ok && equalScalar(m[key], value) {
			return element
		}
	}
	return nil
}

func equalScalar(live, want any) bool {
	if live == nil {
		return isZero(want)
	}
	a, aIsNumber := number(live)
	b, bIsNumber := number(want)
	if aIsNumber && bIsNumber {
		return a == b
	}
	return live == want
}

func isZero(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case string:
		return value == ""
	case bool:
		return !value
	case map[string]any:
		for _, v := range value {
			if !isZero(v) {
				return false
			}
		}
		return true
	case []any:
		return len(value) == 0
	default:
		n, ok := number(value)
		return ok && n == 0
	}
}

func number(value any) (float64, bool) {
	switch value := value.(type) {
	case int64:
		return float64(value), true
	case int32:
		return float64(value), true
	case int:
		return float64(value), true
	case float64:
		return value, true
	case json.Number:
		n, err := value.Float64()
		return n, err == nil && !math.IsNaN(n)
	default:
		return 0, false
	}
}
