// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
)

// Warning is a condition that others may put on an InferenceService. KServe keeps conditions that it does not know, but
// counts every one that is False or Unknown against Ready unless it is marked as less than an error: so a Warning is
// True or not there at all, and marked.
type Warning struct {
	// Type is the condition's type, Reason one word in CamelCase, Message one sentence.
	Type, Reason, Message string
}

// WarningOf returns the warning of a type that an InferenceService carries, or nil.
func WarningOf(isvc *InferenceService, kind string) *Warning {
	c := isvc.Status.GetCondition(apis.ConditionType(kind))
	if c == nil || c.Status != corev1.ConditionTrue {
		return nil
	}
	return &Warning{Type: kind, Reason: c.Reason, Message: c.Message}
}

// WarningPatch returns a JSON merge patch for the status of an InferenceService that makes it carry want, or no warning
// of the type if want is nil. It fails with a conflict if the InferenceService has changed since it was read. A
// condition is replaced together with its neighbours, which is why it names the version.
func WarningPatch(isvc *InferenceService, kind string, want *Warning, now time.Time) ([]byte, error) {
	conditions := slices.Clone([]apis.Condition(isvc.Status.Conditions))
	at := slices.IndexFunc(conditions, func(c apis.Condition) bool { return c.Type == apis.ConditionType(kind) })
	switch {
	case want == nil && at >= 0:
		conditions = slices.Delete(conditions, at, at+1)
	case want != nil:
		c := apis.Condition{
			Type: apis.ConditionType(kind), Status: corev1.ConditionTrue, Severity: apis.ConditionSeverityWarning,
			Reason: want.Reason, Message: want.Message,
			LastTransitionTime: apis.VolatileTime{Inner: metav1.NewTime(now)},
		}
		if at < 0 {
			conditions = append(conditions, c)
			break
		}
		c.LastTransitionTime = conditions[at].LastTransitionTime
		conditions[at] = c
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": isvc.ResourceVersion},
		"status":   map[string]any{"conditions": conditions},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding conditions: %w", err)
	}
	return patch, nil
}
