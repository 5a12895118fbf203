// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"serverless.xyz/outrigger/test/testbed"
)

const boatDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.test.example}
spec:
  group: test.example
  names: {kind: Boat, plural: boats, singular: boat, listKind: BoatList}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

var boats = schema.GroupVersionResource{Group: "test.example", Version: "v1", Resource: "boats"}

func TestApplyWaitsForDefinitions(t *testing.T) {
	tb := testbed.Shared(t, testbed.API)
	// The definition comes last in the text and its object first.
	text := "apiVersion: test.example/v1\nkind: Boat\nmetadata: {name: b, namespace: harbour}\n---\n" +
		"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: harbour}\n---" + boatDefinition
	if err := tb.Apply(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	client := dynamic.NewForConfigOrDie(tb.Config())
	if _, err := client.Resource(boats).Namespace("harbour").Get(t.Context(), "b", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

func TestInstallCRDs(t *testing.T) {
	tb := testbed.Shared(t, testbed.API)
	for name, tc := range map[string]struct {
		content string
		wantErr bool
	}{
		"a definition":             {content: boatDefinition},
		"something else":           {content: "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n", wantErr: true},
		"an empty file":            {content: "---\n", wantErr: true},
		"YAML that does not parse": {content: "a: [", wantErr: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := tb.InstallCRDs(t.Context(), dir); (err != nil) != tc.wantErr {
				t.Errorf("error %v, want one: %t", err, tc.wantErr)
			}
		})
	}
}
