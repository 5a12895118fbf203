// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// SidecarPolicySpec says which InferenceServices are equipped, and with what.
//
// +kubebuilder:validation:XValidation:rule="has(self.preload) || has(self.featureCache) || has(self.containers) || has(self.initContainers) || has(self.volumes) || has(self.env)",message="a policy needs preload, featureCache, containers, initContainers, volumes or env, or it would do nothing"
type SidecarPolicySpec struct {
	// selector picks InferenceServices of the policy's namespace by their labels. When empty, it picks all of them.
	// +optional
	// +kubebuilder:default={}
	Selector metav1.LabelSelector `json:"selector,omitzero"`

	// condition is a CEL expression over the InferenceService, in the variable isvc, that must be true for it to be
	// picked, such as "isvc.spec.predictor.model.modelFormat.name == 'pytorch'". An InferenceService without a field
	// that the expression reads is not picked. The annotation that names this policy overrides selector and condition.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	Condition string `json:"condition,omitempty"`

	// components are the parts of an InferenceService whose pods are equipped.
	// +optional
	// +kubebuilder:default={Predictor}
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	Components []Component `json:"components,omitempty"`

	// priority decides between policies that pick the same InferenceService: for each of preload and featureCache, and for
	// each name among containers, initContainers, volumes and env, the policy with the highest priority counts, and of
	// equals the one whose name comes first. 0 to 1000.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Priority int32 `json:"priority,omitempty"`

	// preload has models with an s3:// address fetched by Outrigger's preloader in place of KServe's
	// storage-initializer. Other addresses are left to KServe.
	// +optional
	Preload *Preload `json:"preload,omitempty"`

	// featureCache gives pods a local address of a Memcached, in the environment variable FEATURE_CACHE_ADDR.
	// +optional
	FeatureCache *FeatureCache `json:"featureCache,omitempty"`

	// containers are run beside the model. Each is written as in a pod. One named kserve-container, transformer-container
	// or worker-container adds env, envFrom and volumeMounts to that of KServe's, and may have nothing else.
	//
	// In strings of containers, initContainers, volumes and env, ${isvc.FIELD} stands for a CEL expression over the
	// InferenceService, such as ${isvc.metadata.name}, and ${modelUri} for the address of its model. Fields that take the
	// pod nearer to its node are refused: host ports, host paths, privileges and added capabilities. All of it comes into
	// force once the API server has accepted a pod with it, dry.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:XPreserveUnknownFields
	Containers []runtime.RawExtension `json:"containers,omitempty"`

	// initContainers are run before the model starts and after it was fetched, in this order. Each is written as in a pod;
	// with restartPolicy Always it goes on beside the model.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:XPreserveUnknownFields
	InitContainers []runtime.RawExtension `json:"initContainers,omitempty"`

	// volumes are added to the pod. Each is written as in a pod and is an emptyDir, configMap, secret, downwardAPI,
	// projected, ephemeral or persistentVolumeClaim.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:XPreserveUnknownFields
	Volumes []runtime.RawExtension `json:"volumes,omitempty"`

	// env is set in the container of the model or transformer, and in workers of a model that spans nodes, where the
	// InferenceService does not set a variable of that name itself. Each is written as in a pod.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:XPreserveUnknownFields
	Env []runtime.RawExtension `json:"env,omitempty"`

	// rollout says what a change of the policy does to pods that run. OnNextRestart leaves them as they are until
	// something else restarts them. Always has KServe replace them, once for each change, some InferenceServices at a
	// time (a tenth of those picked, and one), after the API server has accepted a trial pod of each. What is taken out
	// of a policy, or a policy that is deleted, restarts nothing.
	// +optional
	// +kubebuilder:default=OnNextRestart
	Rollout PolicyRollout `json:"rollout,omitempty"`

	// onMissedInjection says what happens to pods that started while the webhook did not answer. Report counts them in
	// the status. Restart has KServe replace all pods of the component, once the webhook answers again, at most every ten
	// minutes.
	// +optional
	// +kubebuilder:default=Report
	OnMissedInjection MissedInjection `json:"onMissedInjection,omitempty"`
}

// PolicyRollout says what a change of a policy does to pods that run.
//
// +enum
// +kubebuilder:validation:Enum=Always;OnNextRestart
type PolicyRollout string

// Ways to roll a change out.
const (
	// RolloutAlways has pods replaced.
	RolloutAlways PolicyRollout = "Always"
	// RolloutOnNextRestart waits until something else restarts pods.
	RolloutOnNextRestart PolicyRollout = "OnNextRestart"
)

// MissedInjection says what happens to pods that started while the webhook did not answer.
//
// +enum
// +kubebuilder:validation:Enum=Report;Restart
type MissedInjection string

// What may happen to pods that were missed.
const (
	// MissedReport counts them.
	MissedReport MissedInjection = "Report"
	// MissedRestart has them replaced.
	MissedRestart MissedInjection = "Restart"
)

// Component is a part of an InferenceService.
//
// +enum
// +kubebuilder:validation:Enum=Predictor;Transformer
type Component string

// Components of an InferenceService.
const (
	// ComponentPredictor is the part that runs the model.
	ComponentPredictor Component = "Predictor"
	// ComponentTransformer is the part that prepares requests and answers.
	ComponentTransformer Component = "Transformer"
)

// Preload sets how a model is fetched.
type Preload struct {
	// image is the preloader image. When unset, the one that the manager was started with is used.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image,omitempty"`

	// verify sets how much proof of integrity a fetched file needs. Auto takes the best that the store offers,
	// Require fails the pod when the store offers no checksum, Off checks sizes only.
	// +optional
	// +kubebuilder:default=Auto
	Verify VerifyMode `json:"verify,omitempty"`

	// io sets what fetching does with the node's memory. Auto judges by how much of it is left. Warm leaves the model in
	// the page cache for the model server to read, and fails where the container's limit has no room for it. Bounded
	// leaves no more behind than fits. Direct passes the page cache by.
	// +optional
	// +kubebuilder:default=Auto
	IO PreloadIO `json:"io,omitempty"`

	// gpu says what is done about the GPUs of the model's container, if it has any of NVIDIA's. Preflight checks them while
	// the model is fetched, which takes no time of its own. Load also loads the model into their memory once it is there,
	// to prove that it fits and arrives intact; it does not stay there. Whatever is found stands in the log and in the
	// container's termination message, and the pod starts. The image, if set, must hold the GPU program.
	// +optional
	// +kubebuilder:default=Off
	GPU PreloadGPU `json:"gpu,omitempty"`

	// resources are the requests and limits of the container that fetches the model, in place of those that KServe
	// gives to all. Those that are unset stay KServe's.
	// +optional
	Resources *PreloadResources `json:"resources,omitempty"`

	// volume is where the model is kept, in place of KServe's emptyDir. A volume that the InferenceService itself
	// declares is left alone.
	// +optional
	Volume *PreloadVolume `json:"volume,omitempty"`

	// nodeCache keeps fetched models for other pods of the node, which take and prove them in place of fetching them. When
	// unset, every pod fetches for itself.
	// +optional
	NodeCache *PreloadNodeCache `json:"nodeCache,omitempty"`

	// jitCache brings, with the model, kernels that an engine has compiled before, if they fit engine, GPU, driver and
	// model. Nothing that goes wrong with them keeps a pod from starting. The model server's engines are told to keep what
	// they compile in the pod's volume outrigger-jit-cache, at /mnt/jit-cache, from where preloader publish-cache takes it.
	// +optional
	JITCache *PreloadJITCache `json:"jitCache,omitempty"`
}

// PreloadJITCache is where compiled kernels are published.
type PreloadJITCache struct {
	// uri is the folder in S3 that they are published to, such as s3://models/jit. Whoever may write there can run code in
	// the model servers that read from it. It is reached with the credentials of the model.
	// +required
	// +kubebuilder:validation:Pattern=`^s3://[a-z0-9][a-z0-9.-]*/[^\s]+$`
	// +kubebuilder:validation:MaxLength=1024
	URI string `json:"uri"`

	// key adds to what the kernels depend on, such as tp=2,mig=1g.10gb. When it has no part engine, that is the image of
	// the model server.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-z][a-z0-9-]*=[^,]+(,[a-z][a-z0-9-]*=[^,]+)*$`
	// +kubebuilder:validation:MaxLength=1024
	Key string `json:"key,omitempty"`
}

// PreloadNodeCache is where pods of a node share fetched models.
type PreloadNodeCache struct {
	// claimName names a PersistentVolumeClaim of the policy's namespace that the pods mount, writable for the user of the
	// container that fetches the model. When unset, it is a directory of the node below the one that the administrator
	// has chosen by --node-cache-path, one for each namespace.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ClaimName string `json:"claimName,omitempty"`

	// size is the most that is kept there. When unset, half of the file system.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
}

// PreloadIO sets what fetching does with the node's memory.
//
// +enum
// +kubebuilder:validation:Enum=Auto;Warm;Bounded;Direct
type PreloadIO string

// Ways to write a model.
const (
	// PreloadAuto judges by the memory that is left.
	PreloadAuto PreloadIO = "Auto"
	// PreloadWarm leaves the model in the page cache.
	PreloadWarm PreloadIO = "Warm"
	// PreloadBounded leaves no more in the page cache than fits.
	PreloadBounded PreloadIO = "Bounded"
	// PreloadDirect passes the page cache by.
	PreloadDirect PreloadIO = "Direct"
)

// PreloadGPU says what is done about the GPUs of a pod.
//
// +enum
// +kubebuilder:validation:Enum=Off;Preflight;Load
type PreloadGPU string

// What may be done about the GPUs of a pod.
const (
	// PreloadGPUOff leaves them alone.
	PreloadGPUOff PreloadGPU = "Off"
	// PreloadGPUPreflight checks them while the model is fetched.
	PreloadGPUPreflight PreloadGPU = "Preflight"
	// PreloadGPULoad also loads the model into their memory, to prove that it fits.
	PreloadGPULoad PreloadGPU = "Load"
)

// PreloadResources are the requests and limits of the container that fetches the model.
type PreloadResources struct {
	// requests are set over KServe's, resource by resource.
	// +optional
	Requests corev1.ResourceList `json:"requests,omitempty"`

	// limits are set over KServe's, resource by resource.
	// +optional
	Limits corev1.ResourceList `json:"limits,omitempty"`
}

// PreloadVolume is where a model is kept in a pod.
//
// +kubebuilder:validation:XValidation:rule="!has(self.ephemeral) || (!has(self.sizeLimit) && (!has(self.medium) || self.medium == 'Disk'))",message="an ephemeral volume has its own size: leave out sizeLimit and medium, or leave out ephemeral"
// +kubebuilder:validation:XValidation:rule="!has(self.medium) || self.medium != 'Memory' || has(self.sizeLimit)",message="medium Memory needs a sizeLimit: without one a model could take all memory of the node"
type PreloadVolume struct {
	// medium says where the emptyDir is: on the node's Disk, or in its Memory, where the model counts against the
	// memory of the pod.
	// +optional
	// +kubebuilder:default=Disk
	Medium VolumeMedium `json:"medium,omitempty"`

	// sizeLimit is the most that the emptyDir may hold; a model that is larger is refused before it is fetched. Without it
	// the node's disk is the limit.
	// +optional
	SizeLimit *resource.Quantity `json:"sizeLimit,omitempty"`

	// ephemeral keeps the model on a volume that is made for the pod and goes with it.
	// +optional
	Ephemeral *EphemeralVolume `json:"ephemeral,omitempty"`
}

// VolumeMedium says where an emptyDir is.
//
// +enum
// +kubebuilder:validation:Enum=Disk;Memory
type VolumeMedium string

// Media of an emptyDir.
const (
	// MediumDisk is the node's disk.
	MediumDisk VolumeMedium = "Disk"
	// MediumMemory is the node's memory.
	MediumMemory VolumeMedium = "Memory"
)

// EphemeralVolume is a volume that is made for one pod.
type EphemeralVolume struct {
	// size is what is requested.
	// +required
	Size resource.Quantity `json:"size"`

	// storageClassName names the class; when unset, the cluster's default is used.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	StorageClassName *string `json:"storageClassName,omitempty"`
}

// VerifyMode sets how much proof of integrity a fetched file needs.
//
// +enum
// +kubebuilder:validation:Enum=Auto;Require;Off
type VerifyMode string

// Modes of verification.
const (
	// VerifyAuto takes the best proof that the store offers.
	VerifyAuto VerifyMode = "Auto"
	// VerifyRequire fails when the store offers no checksum.
	VerifyRequire VerifyMode = "Require"
	// VerifyOff checks sizes only.
	VerifyOff VerifyMode = "Off"
)

// FeatureCache names the cache that pods use.
type FeatureCache struct {
	// memcachedRef names a Memcached of the policy's namespace.
	// +required
	MemcachedRef LocalObjectReference `json:"memcachedRef"`

	// mode says where the feature cache runs. Sidecar puts one into every pod. Shared has one on every node for all pods
	// there, at the same port, which costs less memory and one hop on the node; an InferenceService that names its cache
	// by annotation keeps the mode of the policy that picks it.
	// +optional
	// +kubebuilder:default=Sidecar
	Mode FeatureCacheMode `json:"mode,omitempty"`
}

// FeatureCacheMode says where a feature cache runs.
//
// +enum
// +kubebuilder:validation:Enum=Sidecar;Shared
type FeatureCacheMode string

// Places of a feature cache.
const (
	// FeatureCacheSidecar is every pod.
	FeatureCacheSidecar FeatureCacheMode = "Sidecar"
	// FeatureCacheShared is every node.
	FeatureCacheShared FeatureCacheMode = "Shared"
)

// LocalObjectReference names an object of the same namespace.
type LocalObjectReference struct {
	// name is the name of the object.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// SidecarPolicyStatus is what a SidecarPolicy has come to.
type SidecarPolicyStatus struct {
	// conditions are Ready, Stalled, Accepted and RolledOut.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// observedGeneration is the generation of the spec that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// matched is the number of InferenceServices that the policy picks.
	// +optional
	Matched int32 `json:"matched"`

	// injected is the number of running pods of these that carry what the policies now ask for.
	// +optional
	Injected int32 `json:"injected"`

	// outdated is the number of running pods of these that were equipped otherwise, or not at all because they are older
	// than the policy. They change when they are next restarted, or as spec.rollout says.
	// +optional
	Outdated int32 `json:"outdated"`

	// missed is the number of running pods of these that are younger than the policy and yet were not equipped: the
	// webhook did not answer when they were created.
	// +optional
	Missed int32 `json:"missed"`

	// rolling is the number of InferenceServices whose pods KServe is replacing because of this policy.
	// +optional
	Rolling int32 `json:"rolling"`

	// changedTime is when the manager first saw the spec as it is.
	// +optional
	ChangedTime *metav1.Time `json:"changedTime,omitempty"`

	// behind names pods that are outdated or missed, the first ten by name.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=10
	Behind []PodBehind `json:"behind,omitempty"`

	// conflicts tells which parts of this policy other policies decide otherwise for InferenceServices that both pick,
	// the first ten by part and policy.
	// +optional
	// +listType=map
	// +listMapKey=part
	// +listMapKey=policy
	// +kubebuilder:validation:MaxItems=10
	Conflicts []PolicyConflict `json:"conflicts,omitempty"`
}

// PodBehind is a pod that does not carry what the policies now ask for.
type PodBehind struct {
	// name is the pod's name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// why is Outdated or Missed.
	// +required
	Why BehindWhy `json:"why"`
}

// BehindWhy says why a pod does not carry what the policies now ask for.
//
// +enum
// +kubebuilder:validation:Enum=Outdated;Missed
type BehindWhy string

// Reasons for a pod to be behind.
const (
	// BehindOutdated says that the pod was equipped before the policies or the InferenceService were changed.
	BehindOutdated BehindWhy = "Outdated"
	// BehindMissed says that the webhook did not answer when the pod was created.
	BehindMissed BehindWhy = "Missed"
)

// PolicyConflict is a part of a policy that another policy decides.
type PolicyConflict struct {
	// part is the field of the spec: preload, featureCache, containers, initContainers, volumes or env.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	Part string `json:"part"`

	// policy is the SidecarPolicy that decides: its priority is higher, or equal and its name comes first.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Policy string `json:"policy"`

	// inferenceServices is the number of InferenceServices that this concerns.
	// +required
	// +kubebuilder:validation:Minimum=1
	InferenceServices int32 `json:"inferenceServices"`
}

// SidecarPolicy equips the pods of InferenceServices of its namespace with a preloader and a feature cache.
// Annotations on an InferenceService win over policies.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=scp,categories=outrigger
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Matched",type=integer,JSONPath=`.status.matched`
// +kubebuilder:printcolumn:name="Injected",type=integer,JSONPath=`.status.injected`
// +kubebuilder:printcolumn:name="Outdated",type=integer,JSONPath=`.status.outdated`
// +kubebuilder:printcolumn:name="Missed",type=integer,JSONPath=`.status.missed`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type SidecarPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says which InferenceServices are equipped, and with what.
	// +required
	Spec SidecarPolicySpec `json:"spec"`
	// status is what the policy has come to.
	// +optional
	Status SidecarPolicyStatus `json:"status,omitzero"`
}

// SidecarPolicyList is a list of SidecarPolicy objects.
//
// +kubebuilder:object:root=true
type SidecarPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SidecarPolicy `json:"items"`
}
