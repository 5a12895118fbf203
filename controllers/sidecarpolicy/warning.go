// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

// maxWarning bounds the message of a warning in bytes.
const maxWarning = 1024

// components are all parts of an InferenceService that can be equipped.
var components = []v1alpha1.Component{v1alpha1.ComponentPredictor, v1alpha1.ComponentTransformer}

// around is what the warning of an InferenceService depends on, beside itself.
type around struct {
	// decisions are what is decided for each component that the InferenceService has.
	decisions map[v1alpha1.Component]sidecar.Decision
	// pods are those of the InferenceService that are not being deleted.
	pods []metav1.ObjectMeta
	// memcacheds tells of each that the InferenceService would use whether it exists.
	memcacheds map[string]bool
}

// caches returns the names of the Memcacheds that the components would use.
func (a around) caches() []string {
	var names []string
	for _, component := range components {
		cache := a.decisions[component].Plan.FeatureCache
		if cache != nil && !slices.Contains(names, cache.Memcached) {
			names = append(names, cache.Memcached)
		}
	}
	return names
}

// warningFor tells what an InferenceService's pods do not get, or nil.
func warningFor(isvc *kserve.InferenceService, seen around) *kserve.Warning {
	var problems []sidecar.Problem
	add := func(p sidecar.Problem) {
		if !slices.Contains(problems, p) {
			problems = append(problems, p)
		}
	}
	for _, component := range components {
		decision, ok := seen.decisions[component]
		if !ok {
			continue
		}
		if p, ok := forbidden(isvc, component); ok && !decision.Plan.IsZero() {
			add(p)
		}
		for _, p := range decision.Problems {
			if p.Reason != v1alpha1.ReasonInvalidPolicy { // the policy's own status says so, to its author
				add(p)
			}
		}
		if cache := decision.Plan.FeatureCache; cache != nil && !seen.memcacheds[cache.Memcached] {
			add(sidecar.Problem{
				Reason: v1alpha1.ReasonMemcachedNotFound,
				Message: fmt.Sprintf("there is no Memcached %q in this namespace; until it is created every read of the "+
					"feature cache is a miss", cache.Memcached),
			})
		}
		if p, ok := unfetchable(isvc, component); ok {
			add(p)
		}
	}
	for _, text := range podProblems(seen.pods) {
		reason := v1alpha1.ReasonNoRoom
		if strings.Contains(text, v1alpha1.AnnotationWarmGPU) { // a pod carries no more than the text
			reason = v1alpha1.ReasonNoGPU
		}
		add(sidecar.Problem{Reason: reason, Message: text})
	}
	if len(problems) == 0 {
		return nil
	}
	text := sidecar.Join(problems) + "."
	if len(text) > maxWarning {
		text = strings.ToValidUTF8(text[:maxWarning-3], "") + "..."
	}
	return &kserve.Warning{Type: v1alpha1.ConditionSidecarsIncomplete, Reason: problems[0].Reason, Message: text}
}

// unfetchable reports a preloader that an annotation asks for, of a model that it cannot fetch. A policy is meant for
// many InferenceServices, so that there it is no mistake.
func unfetchable(isvc *kserve.InferenceService, component v1alpha1.Component) (sidecar.Problem, bool) {
	annotations := kserve.AnnotationsOf(isvc, component)
	var asked string
	switch gpu := annotations[v1alpha1.AnnotationWarmGPU]; {
	case sidecar.AsksForPreloader(annotations[v1alpha1.AnnotationPreload]):
		asked = v1alpha1.AnnotationPreload
	case gpu == "true" || gpu == "preflight" || gpu == "load":
		asked = v1alpha1.AnnotationWarmGPU
	default:
		return sidecar.Problem{}, false
	}
	why := notFetched(isvc, component)
	return sidecar.Problem{
		Reason: v1alpha1.ReasonInvalidAnnotation, Message: fmt.Sprintf("annotation %s: %s; it is left to KServe", asked, why),
	}, why != ""
}

// notFetched tells why the preloader cannot fetch a component's model, or "". What is said of a whole InferenceService
// holds for its transformer too, which need not have a model.
func notFetched(isvc *kserve.InferenceService, component v1alpha1.Component) string {
	isPredictor := component == v1alpha1.ComponentPredictor
	if name := kserve.LocalModel(isvc); isPredictor && name != "" {
		return fmt.Sprintf("the model is on the node already, by LocalModelCache %q, and nothing is fetched", name)
	}
	for _, uri := range kserve.StorageURIs(isvc, component) {
		if !sidecar.CanPreload(uri) {
			return fmt.Sprintf("the preloader fetches s3:// addresses, and %q is none", uri)
		}
	}
	if isPredictor && !kserve.FetchesModel(isvc, component) {
		return "the predictor has neither storageUri nor storage, so that there is nothing to fetch"
	}
	return ""
}

// forbidden reports what KServe's Knative mode cannot have. KServe says so too; this says what to do about it.
func forbidden(isvc *kserve.InferenceService, component v1alpha1.Component) (sidecar.Problem, bool) {
	refusal := kserve.RefusalByKnative(isvc, component)
	return sidecar.Problem{
		Reason: v1alpha1.ReasonForbiddenByKnative,
		Message: fmt.Sprintf("Knative refuses the %s, so that no pod of it is there to be equipped: %s; its ConfigMap "+
			"config-features allows such things (a list of storageUris needs kubernetes.podspec-init-containers and "+
			"kubernetes.podspec-volumes-emptydir), or do without them", strings.ToLower(string(component)), refusal),
	}, refusal != ""
}
