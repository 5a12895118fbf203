// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/test/testbed"
)

// shown is what kubectl knows of a kind.
type shown struct{ shortNames, categories, subresources, columns []string }

// TestKindsAsKubectlShowsThem asks the API server what kubectl asks it.
func TestKindsAsKubectlShowsThem(t *testing.T) {
	startAPI(t)
	clients, err := kubernetes.NewForConfig(testbed.Shared(t, testbed.API).Config())
	if err != nil {
		t.Fatal(err)
	}
	list, err := clients.Discovery().ServerResourcesForGroupVersion(v1alpha1.GroupVersion.String())
	if err != nil {
		t.Fatal(err)
	}
	ours := []string{"outrigger"}
	for resource, want := range map[string]shown{
		"canaryrollouts": {
			[]string{"cro"},
			ours,
			[]string{"status"},
			[]string{"Name", "Stable", "Canary", "Desired", "Applied", "Phase", "Ready", "Reason", "Age"},
		},
		"memcacheds": {
			[]string{"mc"},
			ours,
			[]string{"scale", "status"},
			[]string{"Name", "Phase", "Size", "Ready", "Standby", "Connections", "Reason", "Age"},
		},
		"sidecarpolicies": {
			[]string{"scp"},
			ours,
			[]string{"status"},
			[]string{"Name", "Ready", "Reason", "Matched", "Injected", "Outdated", "Missed", "Age"},
		},
	} {
		got := shown{}
		for _, one := range list.APIResources {
			if one.Name == resource {
				got.shortNames, got.categories = one.ShortNames, one.Categories
			}
			if sub, found := strings.CutPrefix(one.Name, resource+"/"); found {
				got.subresources = append(got.subresources, sub)
			}
		}
		slices.Sort(got.subresources)
		var table metav1.Table
		raw, err := clients.RESTClient().Get().AbsPath("/apis", v1alpha1.GroupVersion.String(), resource).
			SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(t.Context()).Raw()
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &table); err != nil {
			t.Fatal(err)
		}
		for _, column := range table.ColumnDefinitions {
			got.columns = append(got.columns, column.Name)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(shown{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", resource, diff)
		}
	}
}
