// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// maxDecisions bounds how many decisions are kept for a namespace, some kilobytes each.
const maxDecisions = 10_000

// Memo keeps decisions, so that many who ask about the same InferenceServices under the same policies have each decided
// once. What a decision is follows from what it is about, so that this is no state. The zero value is ready for use.
type Memo struct {
	mu          sync.Mutex
	byNamespace map[string]*memoOfNamespace
}

// memoOfNamespace holds the decisions under one set of policies.
type memoOfNamespace struct {
	policies  string
	decisions map[memoKey]decided
}

type memoKey struct {
	service   types.UID
	component v1alpha1.Component
}

// decided is a decision about one version of an InferenceService.
type decided struct {
	version  string
	decision Decision
}

// Policies are all policies of a namespace, under a name that changes with them.
type Policies struct {
	list []v1alpha1.SidecarPolicy
	name string
}

// PoliciesOf names policies; the order of the list does not matter.
func PoliciesOf(list []v1alpha1.SidecarPolicy) Policies {
	names := make([]string, len(list))
	for i := range list {
		p := &list[i]
		names[i] = fmt.Sprintf("%s %s %d", p.Name, p.UID, p.Generation)
		if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAccepted); c != nil {
			names[i] += fmt.Sprintf(" %s %d", c.Status, c.ObservedGeneration)
		}
	}
	slices.Sort(names)
	return Policies{list: list, name: strings.Join(names, "\n")}
}

// Resolve returns what Resolve returns for a component of an InferenceService. Nobody may change it.
func (m *Memo) Resolve(isvc *kserve.InferenceService, component v1alpha1.Component, policies Policies) Decision {
	key := memoKey{isvc.UID, component}
	m.mu.Lock()
	here := m.byNamespace[isvc.Namespace]
	if here == nil || here.policies != policies.name {
		here = &memoOfNamespace{policies: policies.name, decisions: map[memoKey]decided{}}
		if m.byNamespace == nil {
			m.byNamespace = map[string]*memoOfNamespace{}
		}
		m.byNamespace[isvc.Namespace] = here
	}
	known, ok := here.decisions[key]
	m.mu.Unlock()
	if ok && known.version == isvc.ResourceVersion && isvc.ResourceVersion != "" {
		return known.decision
	}
	d := Resolve(SubjectOf(isvc, component), policies.list)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(here.decisions) >= maxDecisions {
		clear(here.decisions) // most are about InferenceServices that are gone
	}
	here.decisions[key] = decided{isvc.ResourceVersion, d}
	return d
}
