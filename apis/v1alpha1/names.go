// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Annotations that a user sets on an InferenceService. KServe copies them to the pods of every component, so adding,
// changing or removing one restarts those pods.
const (
	// AnnotationPreload set to "true" has the model fetched by Outrigger's preloader; "false" forbids it whatever a
	// policy says. A digest as a pull tells it, "sha256:...", has it fetched and takes that content alone; a model of
	// several sources has one for each, separated by commas.
	AnnotationPreload = GroupName + "/preload"
	// AnnotationWarmGPU set to "true" or "preflight" has the GPUs of the pod checked while the model is fetched, which
	// brings the preloader; "load" also loads the model into them, to prove that it fits and arrives intact. "false"
	// forbids both whatever a policy says. GPU memory is freed when the check ends: the model server loads the model anew.
	AnnotationWarmGPU = GroupName + "/warm-gpu"
	// AnnotationFeatureCache names the Memcached, in the same namespace, that the pods use as their feature cache;
	// "none" forbids a feature cache whatever a policy says.
	AnnotationFeatureCache = GroupName + "/feature-cache"
	// AnnotationSidecarPolicy names the one SidecarPolicy to use instead of those whose selector matches; "none" takes
	// the InferenceService out of all policies.
	AnnotationSidecarPolicy = GroupName + "/sidecar-policy"
)

// AnnotationNone is the value of AnnotationFeatureCache and AnnotationSidecarPolicy that switches the feature off.
const AnnotationNone = "none"

// Annotations and labels that Outrigger sets.
const (
	// AnnotationInjected is set by the pod webhook on every pod that it equipped; its value identifies the plan, so
	// that pods with an outdated plan can be told apart.
	AnnotationInjected = GroupName + "/injected"
	// AnnotationInjectedParts is set beside AnnotationInjected; its value identifies each part of the plan, so that pods
	// that lack a part are told from those that have one too many.
	AnnotationInjectedParts = GroupName + "/injected-parts"
	// AnnotationProblems is set by the pod webhook on a pod that it could not equip as asked; its value says why.
	AnnotationProblems = GroupName + "/problems"
	// AnnotationRollout is set in the annotations of an InferenceService's component, in its spec, to have KServe replace
	// the pods of that component. Its value is the plan that the new pods are to carry, and after a dot, if that plan was
	// rolled out before, when the youngest pod that came without it was created, in seconds since 1970.
	AnnotationRollout = GroupName + "/rollout"
	// AnnotationAppliedHash is set on every object that Outrigger applies; its value identifies what was applied, so
	// that an object that is up to date is not written again, also after a restart of the manager.
	AnnotationAppliedHash = GroupName + "/applied-hash"
	// AnnotationChangedAt is set on the ConfigMap of a ring: the time, in RFC 3339, when the ring's members last changed.
	AnnotationChangedAt = GroupName + "/changed-at"
	// AnnotationFormerServers is set on the ConfigMap of a ring: the instances that have left the ring and may still hold what
	// they held, such as 2=10.0.0.3:11211, separated by commas.
	AnnotationFormerServers = GroupName + "/former-servers"
	// LabelManagedBy with the value ManagedBy is on every object that Outrigger creates, and limits what its caches hold.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// LabelName tells the application: "memcached" on the pods of a Memcached.
	LabelName = "app.kubernetes.io/name"
	// LabelInstance names the Outrigger object that an object was created for.
	LabelInstance = "app.kubernetes.io/instance"
)

// ManagedBy is the value of LabelManagedBy.
const ManagedBy = "outrigger"

// Names that pods of InferenceServices see.
const (
	// EnvFeatureCacheAddr is the environment variable that gives the predictor the address of its feature cache as
	// host:port; it speaks the memcached text protocol.
	EnvFeatureCacheAddr = "FEATURE_CACHE_ADDR"
	// ContainerFeatureCache is the name of the feature cache's container in a pod.
	ContainerFeatureCache = "feature-cache"
)

// RingConfigMapKey is the key of the ring document in the ConfigMap that RingConfigMapName names.
const RingConfigMapKey = "ring.json"

// RingConfigMapName returns the name of the ConfigMap that holds the ring document of a Memcached.
func RingConfigMapName(memcached string) string {
	return memcached + "-ring"
}

// NodeCacheName returns the name of the DaemonSet and the Service of the feature caches of a Memcached that run one a
// node.
func NodeCacheName(memcached string) string {
	return memcached + "-node-cache"
}
