// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func TestModelNames(t *testing.T) {
	predictor := func(args ...string) corev1.Container { return corev1.Container{Name: ContainerPredictor, Args: args} }
	for what, tc := range map[string]struct {
		containers []corev1.Container
		want       []string
	}{
		"of the runtime":                  {[]corev1.Container{predictor("--model_name=fraud-v1", "--model_dir=/mnt/models")}, []string{"fraud-v1"}},
		"of the user, behind the runtime": {[]corev1.Container{predictor("--model_name=fraud-v1", "--model_name=fraud")}, []string{"fraud"}},
		"apart from its flag":             {[]corev1.Container{predictor("--model_name", "fraud", "--http_port", "8080")}, []string{"fraud"}},
		"several of vLLM":                 {[]corev1.Container{predictor("--served-model-name", "b", "a", "--port=1")}, []string{"a", "b"}},
		"in a shell's line": {[]corev1.Container{{
			Name: ContainerPredictor, Command: []string{"sh", "-c", "exec vllm serve /mnt/models --served-model-name fraud"},
		}}, []string{"fraud"}},
		"of MLServer": {[]corev1.Container{{
			Name: ContainerPredictor, Env: []corev1.EnvVar{{Name: "MLSERVER_MODEL_NAME", Value: "fraud"}},
		}}, []string{"fraud"}},
		"of the transformer in front": {
			[]corev1.Container{predictor("--model_name=inner"), {Name: ContainerTransformer, Args: []string{"--model_name=fraud"}}},
			[]string{"fraud"},
		},
		"of the predictor behind a transformer that has none": {
			[]corev1.Container{predictor("--model_name=fraud"), {Name: ContainerTransformer}}, []string{"fraud"},
		},
		"only the kubelet knows": {[]corev1.Container{predictor("--model_name=$(NAME)")}, nil},
		"only the shell knows": {[]corev1.Container{{
			Name: ContainerPredictor, Command: []string{"sh", "-c", `serve --model_name "$NAME"`},
		}}, nil},
		"not told":             {[]corev1.Container{predictor("--model-repository=/mnt/models")}, nil},
		"of another's sidecar": {[]corev1.Container{{Name: "agent", Args: []string{"--model_name=x"}}}, nil},
		"a flag without one":   {[]corev1.Container{predictor("--model_name")}, nil},
	} {
		if diff := cmp.Diff(tc.want, ModelNames(&corev1.Pod{Spec: corev1.PodSpec{Containers: tc.containers}})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}
