// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// TestSamples: the API server takes every sample of Outrigger's kinds, and knows each of its fields.
func TestSamples(t *testing.T) {
	c := startAPI(t)
	files, err := filepath.Glob("../../samples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	taken := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for part := range bytes.SplitSeq(raw, []byte("\n---\n")) {
			object := &unstructured.Unstructured{}
			if err := yaml.Unmarshal(part, &object.Object); err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if object.GroupVersionKind().Group != v1alpha1.GroupName {
				continue
			}
			taken++
			object.SetNamespace("default")
			strict := &client.CreateOptions{Raw: &metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}}
			if err := c.Create(t.Context(), object, client.DryRunAll, strict); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if taken < 8 {
		t.Errorf("only %d objects of %d files are Outrigger's", taken, len(files))
	}
}
