// SPDX-License-Identifier: Apache-2.0

package kserve

import (
	"slices"
	"strings"

	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	corev1 "k8s.io/api/core/v1"
)

// Arguments and variables by which model servers are told the name of their model, "-" and "_" being alike.
var (
	modelNameArguments = []string{"--model-name", "--served-model-name"}
	modelNameVariables = []string{"MODEL_NAME", "MLSERVER_MODEL_NAME", "SERVED_MODEL_NAME"}
)

// ModelName returns the name by which a variant of an InferenceService serves its model, as far as the InferenceService
// itself gives it: "" if it does not. Most runtimes then take the name of the InferenceService.
func ModelName(isvc *InferenceService, variant string) string {
	predictors := []*v1beta1.PredictorSpec{&isvc.Spec.Predictor}
	if canary := canaryNamed(isvc, variant); variant != "" && canary != nil {
		predictors = []*v1beta1.PredictorSpec{&canary.Predictor, &isvc.Spec.Predictor}
	}
	for _, predictor := range predictors {
		for _, container := range containersOf(predictor) {
			if name := modelNameIn(container); name != "" {
				return name
			}
		}
	}
	return ""
}

func containersOf(predictor *v1beta1.PredictorSpec) []*corev1.Container {
	var containers []*corev1.Container
	if predictor.Model != nil {
		containers = append(containers, &predictor.Model.Container)
	}
	for i := range predictor.Containers {
		if name := predictor.Containers[i].Name; name == "" || name == ContainerPredictor {
			containers = append(containers, &predictor.Containers[i])
		}
	}
	return containers
}

// modelNameIn returns the name that a container is given, "" if none or a template.
func modelNameIn(container *corev1.Container) string {
	found := ""
	words := append(slices.Clone(container.Command), container.Args...)
	for i, word := range words {
		option, value, given := strings.Cut(word, "=")
		if !slices.Contains(modelNameArguments, strings.ReplaceAll(option, "_", "-")) {
			continue
		}
		if !given && i+1 < len(words) {
			value = words[i+1]
		}
		found = value // the last one counts
	}
	for _, variable := range container.Env {
		if found == "" && slices.Contains(modelNameVariables, variable.Name) {
			found = variable.Value
		}
	}
	if strings.ContainsAny(found, "{$") {
		return ""
	}
	return found
}
