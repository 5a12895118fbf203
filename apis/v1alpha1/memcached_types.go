// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MemcachedSpec is the wanted state of a Memcached.
//
// +kubebuilder:validation:XValidation:rule="!has(self.scalingWindow) || (duration(self.scalingWindow) >= duration('0s') && duration(self.scalingWindow) <= duration('24h'))",message="scalingWindow must be between 0s and 24h"
type MemcachedSpec struct {
	// size is the number of instances that serve, 0 to 100. 0 stops all of them: every look-up is then a miss.
	// The /scale subresource writes this field.
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Size int32 `json:"size"`

	// scalingWindow is how long the number of serving instances must have stayed as it is before it may shrink,
	// 0s to 24h. Growing never waits. A shrink that is asked for earlier happens when the window has passed.
	// +optional
	// +kubebuilder:default="60s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=24
	ScalingWindow *metav1.Duration `json:"scalingWindow,omitempty"`

	// coldStartBuffer is the number of instances, 0 to 100, that are started beyond size and hold no keys. When size
	// grows, these serve at once; others are started in their place.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	ColdStartBuffer int32 `json:"coldStartBuffer,omitempty"`

	// image is the memcached image to run. When unset, the one that the manager was started with is used. Changing it
	// restarts the instances one at a time; what they held is lost.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image,omitempty"`

	// instance sets what one memcached process may use. Changing it restarts the instances one at a time; what they
	// held is lost.
	// +optional
	// +kubebuilder:default={}
	Instance MemcachedInstance `json:"instance,omitzero"`
}

// MemcachedInstance sets what one memcached process may use.
//
// +kubebuilder:validation:XValidation:rule="!has(self.memory) || !has(self.maxItemSize) || quantity(string(self.maxItemSize)).add(quantity(string(self.maxItemSize))).compareTo(quantity(string(self.memory))) <= 0",message="maxItemSize must be at most half of memory, or memcached does not start"
type MemcachedInstance struct {
	// memory is what one instance may use for items, 16Mi to 1Ti, a whole number of Mi. The pod's memory limit is
	// this plus what connections and the hash table take.
	// +optional
	// +kubebuilder:default="256Mi"
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('16Mi')) >= 0 && quantity(string(self)).compareTo(quantity('1Ti')) <= 0",message="memory must be between 16Mi and 1Ti"
	Memory resource.Quantity `json:"memory,omitempty"`

	// threads is the number of worker threads of one instance, 1 to 64.
	// +optional
	// +kubebuilder:default=4
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	Threads int32 `json:"threads,omitempty"`

	// maxConnections is the number of client connections that one instance accepts at once, 16 to 65536.
	// +optional
	// +kubebuilder:default=4096
	// +kubebuilder:validation:Minimum=16
	// +kubebuilder:validation:Maximum=65536
	MaxConnections int32 `json:"maxConnections,omitempty"`

	// maxItemSize is the largest item that one instance stores, key and overhead included: 512Ki to 512Mi, a whole multiple
	// of 512Ki, and at most half of memory. memcached does not start with any other.
	// +optional
	// +kubebuilder:default="1Mi"
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('512Ki')) >= 0 && quantity(string(self)).compareTo(quantity('512Mi')) <= 0",message="maxItemSize must be between 512Ki and 512Mi"
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).isInteger() && quantity(string(self)).asInteger() % 524288 == 0",message="maxItemSize must be a whole multiple of 512Ki, or memcached does not start"
	MaxItemSize resource.Quantity `json:"maxItemSize,omitempty"`
}

// MemcachedPhase is the one-word state of a Memcached.
//
// +enum
// +kubebuilder:validation:Enum=Running;Scaling;Error
type MemcachedPhase string

// Phases of a Memcached.
const (
	// MemcachedRunning means that exactly as many instances serve as asked, and all are ready.
	MemcachedRunning MemcachedPhase = "Running"
	// MemcachedScaling means that the number of serving or standby instances is on its way to what is asked.
	MemcachedScaling MemcachedPhase = "Scaling"
	// MemcachedError means that a user must act; the Stalled condition says how.
	MemcachedError MemcachedPhase = "Error"
)

// MemcachedStatus is the observed state of a Memcached.
type MemcachedStatus struct {
	// conditions are Ready, Available, MetricsAvailable and Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// observedGeneration is the generation of the spec that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// phase is Running, Scaling or Error.
	// +optional
	Phase MemcachedPhase `json:"phase,omitempty"`

	// size is the number of instances in the ring: those that hold keys.
	// +optional
	Size int32 `json:"size"`

	// readyInstances is the number of instances in the ring that are ready.
	// +optional
	ReadyInstances int32 `json:"readyInstances"`

	// standbyInstances is the number of ready instances outside the ring.
	// +optional
	StandbyInstances int32 `json:"standbyInstances"`

	// activeConnections is the sum of the client connections of the instances in the ring, as they report it, without
	// the connection that asks. It is read every 15 seconds.
	// +optional
	ActiveConnections int64 `json:"activeConnections"`

	// lastScaleTime is when the set of instances in the ring last changed.
	// +optional
	LastScaleTime *metav1.Time `json:"lastScaleTime,omitempty"`

	// ring describes the consistent-hash ring that clients use.
	// +optional
	Ring MemcachedRing `json:"ring,omitzero"`

	// selector matches the pods of all instances; it serves the /scale subresource.
	// +optional
	Selector string `json:"selector,omitempty"`
}

// MemcachedRing describes the ring of a Memcached. The servers themselves are in the ConfigMap named <name>-ring.
type MemcachedRing struct {
	// epoch grows by one whenever the set of instances in the ring changes.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
}

// Memcached is a feature cache: a number of memcached instances behind one consistent-hash ring.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.size,statuspath=.status.readyInstances,selectorpath=.status.selector
// +kubebuilder:resource:shortName=mc,categories=outrigger
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Size",type=integer,JSONPath=`.spec.size`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readyInstances`
// +kubebuilder:printcolumn:name="Standby",type=integer,JSONPath=`.status.standbyInstances`
// +kubebuilder:printcolumn:name="Connections",type=integer,JSONPath=`.status.activeConnections`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 46 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name must be a DNS label of at most 46 characters that starts with a letter, because instances and their Service are named after it"
type Memcached struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is the wanted state.
	// +required
	Spec MemcachedSpec `json:"spec"`
	// status is the observed state.
	// +optional
	Status MemcachedStatus `json:"status,omitzero"`
}

// MemcachedList is a list of Memcached objects.
//
// +kubebuilder:object:root=true
type MemcachedList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Memcached `json:"items"`
}
