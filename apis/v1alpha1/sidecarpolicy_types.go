// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SidecarPolicySpec says which InferenceServices are equipped, and with what.
//
// +kubebuilder:validation:XValidation:rule="has(self.preload) || has(self.featureCache)",message="a policy needs preload or featureCache, or it would do nothing"
type SidecarPolicySpec struct {
	// selector picks InferenceServices of the policy's namespace by their labels. When empty, it picks all of them.
	// +optional
	// +kubebuilder:default={}
	Selector metav1.LabelSelector `json:"selector,omitzero"`

	// components are the parts of an InferenceService whose pods are equipped.
	// +optional
	// +kubebuilder:default={Predictor}
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	Components []Component `json:"components,omitempty"`

	// priority decides between policies that pick the same InferenceService: for each of preload and featureCache the
	// policy with the highest priority counts, and of equals the one whose name comes first. 0 to 1000.
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
}

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
}

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
	// conditions are Ready and Stalled.
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

	// outdated is the number of running pods of these that were equipped otherwise, or not at all. They change when
	// they are next restarted.
	// +optional
	Outdated int32 `json:"outdated"`
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
