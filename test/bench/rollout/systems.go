// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// system is something that moves traffic by a VirtualService.
type system interface {
	name() string
	// start runs the controller, and makes what its canaries share.
	start(ctx context.Context, program string) error
	// stages bring canaries to where they have a share and rest.
	stages() []stage
	// wish returns an edit that asks for another share of the i-th canary, and what tells whether a route has it.
	wish(i int) (carries func(*unstructured.Unstructured) bool, edit func(context.Context) error)
	// rest ends an edit.
	rest(ctx context.Context, i int) error
	// key is the route of the i-th canary.
	key(i int) types.NamespacedName
	// ticks tells whether it acts when its time has come, and not when something changes. So many wishes of such a
	// system are waited for together, or it would take hours.
	ticks() bool
}

// stage is a part of the way: it is done to every canary, and over when an object of each is as it should be.
type stage struct {
	do   func(ctx context.Context, i int) error
	kind schema.GroupVersionKind
	done func(*unstructured.Unstructured) bool
}

// setUp is how long a stage may take.
const setUp = 5 * time.Minute

// prepare makes all canaries of a system and brings them to where they rest.
func (l *lab) prepare(ctx context.Context, s system, n int) error {
	for i, stage := range s.stages() {
		if stage.do != nil {
			if err := each(n, hands, func(i int) error { return stage.do(ctx, i) }); err != nil {
				return err
			}
		}
		if err := l.awaitStage(ctx, s, stage, n); err != nil {
			return fmt.Errorf("stage %d: %w", i+1, err)
		}
	}
	return each(n, hands, func(i int) error { return s.rest(ctx, i) })
}

// awaitStage looks every second, in one request, how many canaries are there.
func (l *lab) awaitStage(ctx context.Context, s system, stage stage, n int) error {
	for began := time.Now(); ; {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(stage.kind.GroupVersion().WithKind(stage.kind.Kind + "List"))
		if err := l.client.List(ctx, list, client.InNamespace(s.key(0).Namespace)); err != nil {
			return fmt.Errorf("listing %ss: %w", stage.kind.Kind, err)
		}
		done := map[string]bool{}
		for i := range list.Items {
			done[list.Items[i].GetName()] = stage.done(&list.Items[i])
		}
		missing := ""
		for i := range n {
			if name := s.key(i).Name; !done[name] {
				missing = name
			}
		}
		if missing == "" {
			return nil
		}
		if time.Since(began) > setUp {
			return fmt.Errorf("%s %s is not where it should be after %s", stage.kind.Kind, missing, setUp)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// canaryShare is the weight of the last destination of a route, 0 if there is but one.
func canaryShare(route *unstructured.Unstructured) int64 {
	if route == nil {
		return 0
	}
	rules, _, _ := unstructured.NestedSlice(route.Object, "spec", "http")
	for _, rule := range rules {
		destinations, _, _ := unstructured.NestedSlice(rule.(map[string]any), "route")
		if len(destinations) > 1 {
			weight, _ := destinations[1].(map[string]any)["weight"].(int64)
			return weight
		}
	}
	return 0
}

func has(percent int64) func(*unstructured.Unstructured) bool {
	return func(route *unstructured.Unstructured) bool { return canaryShare(route) == percent }
}

// inPhase tells of an object whether its status has this phase.
func inPhase(want string) func(*unstructured.Unstructured) bool {
	return func(object *unstructured.Unstructured) bool {
		phase, _, _ := unstructured.NestedString(object.Object, "status", "phase")
		return phase == want
	}
}

func nth(namespace string, i int) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: fmt.Sprintf("c-%d", i)}
}

func fill(text string, key types.NamespacedName) string {
	return strings.NewReplacer("NAMESPACE", key.Namespace, "NAME", key.Name).Replace(text)
}

// nextModel is an edit of what pods are made from.
const nextModel = `{"spec":{"template":{"spec":{"containers":[{"name":"model","image":"model:2"}]}}}}`
