// SPDX-License-Identifier: Apache-2.0

package podwebhook

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// TestOverlayMatchesByName: containers that change places keep the fields of a later Kubernetes, each its own.
func TestOverlayMatchesByName(t *testing.T) {
	const raw = `{"metadata":{},"spec":{"containers":[{"name":"m","args":["1"]}],"initContainers":[` +
		`{"name":"a","image":"a:1","later":"of a"},{"name":"b","image":"b:1","later":"of b"}]}}`
	var before corev1.Pod
	if err := json.Unmarshal([]byte(raw), &before); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*corev1.PodSpec)
		want   string
	}{
		"moved": {
			change: func(s *corev1.PodSpec) {
				s.InitContainers = []corev1.Container{s.InitContainers[1], s.InitContainers[0]}
			},
			want: `[{"name":"b","image":"b:1","later":"of b"},{"name":"a","image":"a:1","later":"of a"}]`,
		},
		"one put between, and one changed": {
			change: func(s *corev1.PodSpec) {
				s.InitContainers = []corev1.Container{s.InitContainers[0], {Name: "new"}, s.InitContainers[1]}
				s.InitContainers[2].Image = "b:2"
			},
			want: `[{"name":"a","image":"a:1","later":"of a"},{"name":"new"},{"name":"b","image":"b:2","later":"of b"}]`,
		},
		"one taken away": {
			change: func(s *corev1.PodSpec) { s.InitContainers = s.InitContainers[:1] },
			want:   `[{"name":"a","image":"a:1"}]`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			after := before.DeepCopy()
			tc.change(&after.Spec)
			got, err := overlay([]byte(raw), &before, after)
			if err != nil {
				t.Fatal(err)
			}
			var pod struct {
				Spec struct{ InitContainers []map[string]any }
			}
			if err := json.Unmarshal(got, &pod); err != nil {
				t.Fatal(err)
			}
			var want []map[string]any
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			for _, list := range [][]map[string]any{want, pod.Spec.InitContainers} {
				for i := range list {
					delete(list[i], "resources") // empty where the types put it
				}
			}
			if diff := cmp.Diff(want, pod.Spec.InitContainers); diff != "" {
				t.Errorf("init containers (-want +got):\n%s", diff)
			}
		})
	}
}
