// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// listOf reads all objects of a kind in a namespace into a copy of the list.
func listOf(ctx context.Context, c client.Reader, namespace string, kind client.ObjectList) ([]client.Object, error) {
	list := kind.DeepCopyObject().(client.ObjectList) //nolint:forcetypeassert // a copy of a list is one.
	if err := c.List(ctx, list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("listing %T: %w", kind, err)
	}
	var objects []client.Object
	err := meta.EachListItem(list, func(o runtime.Object) error {
		objects = append(objects, o.(client.Object)) //nolint:forcetypeassert // list items have metadata.
		return nil
	})
	return objects, err
}

// versions returns the resourceVersion of every object, by UID.
func versions(ctx context.Context, w *World, kinds []client.ObjectList) (map[string]string, error) {
	found := map[string]string{}
	for _, kind := range kinds {
		objects, err := listOf(ctx, w.Client, w.Namespace, kind)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			found[string(o.GetUID())] = o.GetResourceVersion()
		}
	}
	return found, nil
}

var timestamps = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)

// snapshot returns the text of every object, by kind and name, without what the API server counts and without times.
func (s Scenario) snapshot(t *testing.T, w *World) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, kind := range s.Kinds {
		objects, err := listOf(t.Context(), w.Client, w.Namespace, kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			if isSystem(o) {
				continue
			}
			gvk, err := apiutil.GVKForObject(o, w.Client.Scheme())
			if err != nil {
				t.Fatal(err)
			}
			o.SetUID("")
			o.SetResourceVersion("")
			o.SetGeneration(0)
			o.SetManagedFields(nil)
			owners := o.GetOwnerReferences()
			for i := range owners {
				owners[i].UID = ""
			}
			o.SetOwnerReferences(owners)
			texts[gvk.Kind+"/"+o.GetName()] = s.text(t, w, o)
		}
	}
	return texts
}

var counted = regexp.MustCompile(`"(observedGeneration|applied-hash|outrigger.serverless.xyz/applied-hash)": ?("[^"]*"|\d+),?`)

func (s Scenario) text(t *testing.T, w *World, o client.Object) string {
	t.Helper()
	raw, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text := timestamps.ReplaceAllString(string(raw), "TIME")
	// The hash covers the owner's UID.
	text = counted.ReplaceAllString(text, "")
	text = strings.ReplaceAll(text, w.Namespace, "NAMESPACE")
	if s.Forget != nil {
		text = s.Forget(text)
	}
	return text
}
