// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

const (
	fieldManager       = "outrigger-testbed"
	establishedWithin  = readyWithin
	crdKind            = "CustomResourceDefinition"
	namespaceKind      = "Namespace"
	defaultNamespace   = "default"
	establishedPolling = 20 * time.Millisecond
)

var crdResource = schema.GroupVersionResource{
	Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
}

// InstallCRDs applies every custom resource definition found in the .yaml files of the folders, not of those below
// them and not in a kustomization, and returns when all are established. Other objects in these files are an error.
func (t *Testbed) InstallCRDs(ctx context.Context, dirs ...string) error {
	var objects []*unstructured.Unstructured
	for _, dir := range dirs {
		paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil {
			return fmt.Errorf("listing %s: %w", dir, err)
		}
		found, err := readObjects(slices.DeleteFunc(paths, isKustomization)...)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("no custom resource definition in %s", dir)
		}
		objects = append(objects, found...)
	}
	for _, o := range objects {
		if o.GetKind() != crdKind {
			return fmt.Errorf("%s %s is no custom resource definition", o.GetKind(), o.GetName())
		}
	}
	return t.applyObjects(ctx, objects)
}

func isKustomization(path string) bool { return filepath.Base(path) == "kustomization.yaml" }

// Apply server-side applies the documents of each YAML text: definitions and namespaces first, then the rest in order,
// after the definitions are established. A namespaced object without a namespace goes to default.
func (t *Testbed) Apply(ctx context.Context, texts ...string) error {
	var objects []*unstructured.Unstructured
	for _, text := range texts {
		found, err := parseObjects([]byte(text))
		if err != nil {
			return err
		}
		objects = append(objects, found...)
	}
	return t.applyObjects(ctx, objects)
}

// ApplyFiles is Apply for the contents of files.
func (t *Testbed) ApplyFiles(ctx context.Context, paths ...string) error {
	objects, err := readObjects(paths...)
	if err != nil {
		return err
	}
	return t.applyObjects(ctx, objects)
}

func (t *Testbed) applyObjects(ctx context.Context, objects []*unstructured.Unstructured) error {
	early, late := splitObjects(objects)
	for _, o := range early {
		if err := t.applyObject(ctx, o); err != nil {
			return err
		}
	}
	if err := t.awaitDefinitions(ctx, early); err != nil {
		return err
	}
	for _, o := range late {
		if err := t.applyObject(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// splitObjects parts the objects that others need from the rest.
func splitObjects(objects []*unstructured.Unstructured) (early, late []*unstructured.Unstructured) {
	for _, o := range objects {
		if slices.Contains([]string{crdKind, namespaceKind}, o.GetKind()) {
			early = append(early, o)
		} else {
			late = append(late, o)
		}
	}
	return early, late
}

func (t *Testbed) applyObject(ctx context.Context, o *unstructured.Unstructured) error {
	client, err := t.clientFor(o)
	if err != nil {
		return err
	}
	if o.GetKind() == crdKind {
		// Creating takes the API server a third of the time of applying.
		_, err = client.Create(ctx, o, metav1.CreateOptions{FieldManager: fieldManager})
		if !apierrors.IsAlreadyExists(err) {
			return wrapApply(o, err)
		}
	}
	_, err = client.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return wrapApply(o, err)
}

func wrapApply(o *unstructured.Unstructured, err error) error {
	if err != nil {
		return fmt.Errorf("applying %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

func (t *Testbed) clientFor(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	mapping, err := t.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, fmt.Errorf("applying %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return t.dynamic.Resource(mapping.Resource), nil
	}
	if o.GetNamespace() == "" {
		o.SetNamespace(defaultNamespace)
	}
	return t.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace()), nil
}

// awaitDefinitions returns when the kinds that the definitions among the objects define are served. It asks discovery,
// whose answers are small: the definitions themselves can have a megabyte.
func (t *Testbed) awaitDefinitions(ctx context.Context, objects []*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, establishedWithin)
	defer cancel()
	defined := false
	for _, o := range objects {
		if o.GetKind() != crdKind {
			continue
		}
		defined = true
		for {
			served, err := t.isServed(o)
			if served {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("waiting for definition %s: %w", o.GetName(), errors.Join(ctx.Err(), err))
			case <-time.After(establishedPolling):
			}
		}
	}
	if defined {
		t.mapper.Reset()
	}
	return nil
}

// isServed says whether every version that a definition serves is known to discovery.
func (t *Testbed) isServed(definition *unstructured.Unstructured) (bool, error) {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(definition.Object, &crd); err != nil {
		return false, fmt.Errorf("reading the definition: %w", err)
	}
	for _, version := range crd.Spec.Versions {
		if !version.Served {
			continue
		}
		found, err := t.discovery.ServerResourcesForGroupVersion(crd.Spec.Group + "/" + version.Name)
		if err != nil {
			return false, fmt.Errorf("asking for %s: %w", crd.Spec.Group, err)
		}
		if !slices.ContainsFunc(found.APIResources, func(r metav1.APIResource) bool {
			return r.Name == crd.Spec.Names.Plural
		}) {
			return false, nil
		}
	}
	return true, nil
}

func readObjects(paths ...string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading manifests: %w", err)
		}
		found, err := parseObjects(content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		objects = append(objects, found...)
	}
	return objects, nil
}

func parseObjects(content []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decoding YAML: %w", err)
		}
		if len(o.Object) == 0 {
			continue
		}
		if o.GetKind() == "" || o.GetName() == "" {
			return nil, errors.New("decoding YAML: a document lacks kind or metadata.name")
		}
		objects = append(objects, o)
	}
}
