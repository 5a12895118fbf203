// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// RefusedError says why a route cannot be adopted, or cannot be written as asked.
type RefusedError struct {
	// Reason is a reason constant of the API package.
	Reason string
	// Message is a sentence that names the mend.
	Message string
}

// Error implements error.
func (e *RefusedError) Error() string { return e.Message }

func refuse(reason, format string, args ...any) *RefusedError {
	return &RefusedError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Binding is the place in a user's route whose weights a rollout sets.
type Binding struct {
	uid            string
	rule           string // its name
	path           string // of the rule, as JSON Pointer
	stable, canary boundDestination
	// percent is the path of the one number that says the canary's share, empty where each side has a weight; guards are
	// those of its place.
	percent string
	guards  []operation
	// unset tells that the number is not there, which says 100.
	unset bool
}

// boundDestination is one destination of the bound rule.
type boundDestination struct {
	path   string
	guards []operation
	weight int64
}

// layout says where a kind of route keeps what a binding needs.
type layout struct {
	kind         string // in messages
	rules        string // the list of rules in the spec
	destinations string // the list of destinations in a rule
	reference    string // the field of the rollout that names the rule
	read         func(entry map[string]any, namespace string) readEntry
}

// readEntry is what a destination of a route says.
type readEntry struct {
	// host is the full host name of the Service that it leads to, "" if none, and authority that of the Host header that
	// it sets, "" if none.
	host, authority string
	// identity is what tells it from others, by the paths in it as JSON Pointers.
	identity map[string]any
	weight   int64
}

// String names the destination in a message.
func (e readEntry) String() string {
	if e.authority != "" {
		return fmt.Sprintf("%q with the Host header %q", e.host, e.authority)
	}
	return strconv.Quote(e.host)
}

// bind finds the named rule of a route and in it the destinations of the two sides. The rule must have one destination
// for each side, and no third one that gets traffic. A route that another controller keeps is refused, because that
// controller would put the weights back.
func bind(live *unstructured.Unstructured, rule string, stable, canary Destination, in layout) (*Binding, error) {
	if owner := metav1.GetControllerOf(live); owner != nil {
		return nil, refuse(
			v1alpha1.ReasonRouteControlled,
			"%s %q is kept by %s %q, which would undo every change; make a %s of your own, or use mode Owned",
			in.kind, live.GetName(), owner.Kind, owner.Name, in.kind,
		)
	}
	index, found, err := findRule(live, rule, in)
	if err != nil {
		return nil, err
	}
	b := &Binding{uid: string(live.GetUID()), rule: rule, path: "/spec/" + in.rules + "/" + strconv.Itoa(index)}
	if err := b.findDestinations(live, found, stable, canary, in); err != nil {
		return nil, err
	}
	return b, nil
}

// findRule returns the one rule of a name.
func findRule(live *unstructured.Unstructured, name string, in layout) (int, map[string]any, error) {
	list, _ := specOf(live)[in.rules].([]any)
	index, found := -1, map[string]any(nil)
	for i, element := range list {
		rule, ok := element.(map[string]any)
		if !ok || rule["name"] != name {
			continue
		}
		if found != nil {
			return 0, nil, refuse(v1alpha1.ReasonRouteAmbiguous,
				"%s %q has more than one HTTP route named %q; give each a name of its own", in.kind, live.GetName(), name)
		}
		index, found = i, rule
	}
	if found == nil {
		return 0, nil, refuse(v1alpha1.ReasonRouteNotFound,
			"%s %q has no HTTP route named %q; set spec.%s[].name there, or %s here",
			in.kind, live.GetName(), name, in.rules, in.reference)
	}
	return index, found, nil
}

func (b *Binding) findDestinations(
	live *unstructured.Unstructured, rule map[string]any, stable, canary Destination, in layout,
) error {
	list, _ := rule[in.destinations].([]any)
	sides := []struct {
		of    Destination
		into  *boundDestination
		found int
	}{{of: stable, into: &b.stable}, {of: canary, into: &b.canary}}
	for i, element := range list {
		entry, ok := element.(map[string]any)
		if !ok {
			return refuse(v1alpha1.ReasonRouteNotFound, "route %q of %s %q has a malformed destination; correct it",
				b.rule, in.kind, live.GetName())
		}
		read := in.read(entry, live.GetNamespace())
		bound := boundDestination{path: b.path + "/" + in.destinations + "/" + strconv.Itoa(i), weight: read.weight}
		for _, path := range slices.Sorted(maps.Keys(read.identity)) {
			bound.guards = append(bound.guards, operation{Op: "test", Path: bound.path + "/" + path, Value: read.identity[path]})
		}
		third := true
		for i := range sides {
			if sides[i].of.is(read.host, read.authority) {
				*sides[i].into, third = bound, false
				sides[i].found++
			}
		}
		if third && read.weight != 0 {
			return refuse(v1alpha1.ReasonRouteAmbiguous,
				"route %q of %s %q gives weight %d to a third destination, %s; set its weight to 0 or remove it",
				b.rule, in.kind, live.GetName(), read.weight, read)
		}
	}
	for _, side := range sides {
		switch side.found {
		case 1:
		case 0:
			return refuse(v1alpha1.ReasonRouteNotFound, "route %q of %s %q has no destination %s; add it with weight 0",
				b.rule, in.kind, live.GetName(), side.of)
		default:
			return refuse(v1alpha1.ReasonRouteAmbiguous, "route %q of %s %q has more than one destination %s; keep one",
				b.rule, in.kind, live.GetName(), side.of)
		}
	}
	return nil
}

// Weights returns the weights that the route has.
func (b *Binding) Weights() v1alpha1.WeightPair {
	return v1alpha1.WeightPair{Stable: bounded(b.stable.weight), Canary: bounded(b.canary.weight)}
}

// bounded fits a weight into the API's type; Istio's own is no larger.
func bounded(weight int64) int32 {
	return int32(min(max(weight, 0), math.MaxInt32))
}

// Carries reports whether the route has these weights already.
func (b *Binding) Carries(weights v1alpha1.WeightPair) bool {
	return b.stable.weight == int64(weights.Stable) && b.canary.weight == int64(weights.Canary)
}

// Unset reports whether the place says nothing, which has the meaning of its Weights.
func (b *Binding) Unset() bool { return b.unset }

// Encode returns the JSON Patch that sets the two weights, or has the place say nothing again.
func (b *Binding) Encode(weights v1alpha1.WeightPair, unset bool) ([]byte, error) {
	if unset {
		return b.Clear()
	}
	return b.Patch(weights)
}

// Clear returns a JSON Patch that has a place say nothing again.
func (b *Binding) Clear() ([]byte, error) {
	patch := append([]operation{{Op: "test", Path: "/metadata/uid", Value: b.uid}}, b.guards...)
	return encode(b.rule, append(patch, operation{Op: "remove", Path: b.percent}))
}

// operation is one step of a JSON Patch, RFC 6902.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Patch returns a JSON Patch that sets the two weights and nothing else. Its tests are evaluated by the API server on
// the stored object: if the rule has moved, or the destinations have changed places, since the route was read, the
// patch fails as a whole. The old weights are not tested, or a foreign edit of them could never be repaired.
func (b *Binding) Patch(weights v1alpha1.WeightPair) ([]byte, error) {
	patch := []operation{{Op: "test", Path: "/metadata/uid", Value: b.uid}}
	if b.percent != "" {
		return encode(b.rule, append(append(patch, b.guards...), operation{Op: "add", Path: b.percent, Value: weights.Canary}))
	}
	patch = append(patch, operation{Op: "test", Path: b.path + "/name", Value: b.rule})
	patch = append(patch, b.stable.guards...)
	patch = append(patch, b.canary.guards...)
	patch = append(patch,
		operation{Op: "add", Path: b.stable.path + "/weight", Value: weights.Stable},
		operation{Op: "add", Path: b.canary.path + "/weight", Value: weights.Canary},
	)
	return encode(b.rule, patch)
}

func encode(rule string, patch []operation) ([]byte, error) {
	raw, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("encoding patch of route %q: %w", rule, err)
	}
	return raw, nil
}

// Set returns a copy of the route with these weights, as the patch makes it.
func (b *Binding) Set(route *unstructured.Unstructured, weights v1alpha1.WeightPair) (*unstructured.Unstructured, error) {
	after := route.DeepCopy()
	if b.percent != "" {
		err := unstructured.SetNestedField(after.Object, int64(weights.Canary), strings.Split(b.percent[1:], "/")...)
		if err != nil {
			return nil, fmt.Errorf("%s %q has nothing at %s: %w", route.GetKind(), route.GetName(), b.percent, err)
		}
		return after, nil
	}
	for _, side := range []struct {
		at     boundDestination
		weight int32
	}{{b.stable, weights.Stable}, {b.canary, weights.Canary}} {
		entry, err := entryAt(after, side.at.path)
		if err != nil {
			return nil, err
		}
		entry["weight"] = int64(side.weight)
	}
	return after, nil
}

// entryAt returns the object at a path of keys and indices.
func entryAt(route *unstructured.Unstructured, path string) (map[string]any, error) {
	var at any = route.Object
	for step := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		switch parent := at.(type) {
		case map[string]any:
			at = parent[step]
		case []any:
			index, err := strconv.Atoi(step)
			if err != nil || index < 0 || index >= len(parent) {
				return nil, fmt.Errorf("%s %q has nothing at %s", route.GetKind(), route.GetName(), path)
			}
			at = parent[index]
		default:
			return nil, fmt.Errorf("%s %q has nothing at %s", route.GetKind(), route.GetName(), path)
		}
	}
	entry, ok := at.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s %q has no destination at %s", route.GetKind(), route.GetName(), path)
	}
	return entry, nil
}
