// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"slices"
	"strings"

	"github.com/kserve/kserve/pkg/constants"
	corev1 "k8s.io/api/core/v1"
)

// nameFlags are those by which model servers are told the name of their model, with one or with two dashes between
// words: KServe's own servers and the transformer, and vLLM's, which takes several names.
var nameFlags = []string{constants.ArgumentModelName, "--model-name", "--served-model-name", "--served_model_name"}

// ModelNames returns the names by which requests to a pod call its model, sorted: by the last of the flags that its
// server is started with, since KServe puts a user's arguments behind those of the runtime, or else by MLServer's
// variable. None are returned if the pod does not tell, as that of Triton, whose models bring their names along.
func ModelNames(pod *corev1.Pod) []string {
	for _, name := range []string{ContainerTransformer, ContainerPredictor} {
		i := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == name })
		if i < 0 {
			continue
		}
		if names := modelNames(&pod.Spec.Containers[i]); len(names) > 0 {
			slices.Sort(names)
			return names
		}
	}
	return nil
}

func modelNames(container *corev1.Container) []string {
	var words []string
	for _, argument := range slices.Concat(container.Command, container.Args) {
		words = append(words, strings.Fields(argument)...) // a shell's command line is one argument
	}
	var names []string
	for i, word := range words {
		flag, value, joined := strings.Cut(word, "=")
		if !slices.Contains(nameFlags, flag) {
			continue
		}
		names = nil
		if joined {
			names = append(names, value)
		}
		for _, next := range words[i+1:] {
			if joined || strings.HasPrefix(next, "-") {
				break
			}
			names = append(names, next)
		}
	}
	for i := range container.Env {
		if len(names) == 0 && container.Env[i].Name == constants.MLServerModelNameEnv && container.Env[i].Value != "" {
			names = []string{container.Env[i].Value}
		}
	}
	if slices.ContainsFunc(names, func(name string) bool { return strings.ContainsAny(name, "$\"'\\") }) {
		return nil // only the shell or the kubelet knows
	}
	return names
}
