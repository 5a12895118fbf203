// SPDX-License-Identifier: Apache-2.0

// Package sidecar decides what the pods of an InferenceService are equipped with, and writes it into a pod.
//
// Both are pure. The pod webhook uses them to equip new pods, the SidecarPolicy controller to tell which pods carry
// what is asked for now.
package sidecar

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Problem is something that was asked for and cannot be had.
type Problem struct {
	// Reason is a reason constant of the API package.
	Reason string
	// Message is a sentence without its full stop; it names the annotation, field or container, and the mend.
	Message string
	// Policy is the SidecarPolicy that cannot be understood, "" if the problem is another.
	Policy string
}

// Plan says what a pod gets. The zero Plan is nothing.
type Plan struct {
	// Preload is how the model is fetched; nil leaves it to KServe.
	Preload *Preload `json:"preload,omitempty"`
	// FeatureCache is the cache to connect; nil connects none.
	FeatureCache *FeatureCache `json:"featureCache,omitempty"`
	// Sidecars are what policies add, those that decide first coming first.
	Sidecars []Sidecars `json:"sidecars,omitempty"`
}

// Preload says how the model is fetched.
type Preload struct {
	// Image is empty for the manager's default.
	Image string `json:"image,omitempty"`
	// Verify is how much proof of integrity is needed.
	Verify v1alpha1.VerifyMode `json:"verify"`
	// IO is what fetching does with the node's memory; empty for Auto.
	IO v1alpha1.PreloadIO `json:"io,omitempty"`
	// Pin is the digest of the content that is wanted, one a source; empty for any.
	Pin string `json:"pin,omitempty"`
	// GPU is what is done about the model's GPUs; empty for nothing.
	GPU v1alpha1.PreloadGPU `json:"gpu,omitempty"`
	// GPUAsked is true if an annotation asks for GPU: then a pod without a GPU is a mistake.
	GPUAsked bool `json:"-"`
	// Resources are set over KServe's; nil leaves those.
	Resources *v1alpha1.PreloadResources `json:"resources,omitempty"`
	// Volume is where the model goes; nil leaves KServe's emptyDir.
	Volume *v1alpha1.PreloadVolume `json:"volume,omitempty"`
	// NodeCache is what pods of a node share; nil for nothing.
	NodeCache *v1alpha1.PreloadNodeCache `json:"nodeCache,omitempty"`
	// JITCache is where compiled kernels come from; nil for nowhere.
	JITCache *v1alpha1.PreloadJITCache `json:"jitCache,omitempty"`
}

// FeatureCache says which cache to connect.
type FeatureCache struct {
	// Memcached is the name of the Memcached in the pod's namespace.
	Memcached string `json:"memcached"`
	// Shared is true for the one that runs on the pod's node, false for one of the pod's own.
	Shared bool `json:"shared,omitempty"`
}

// Carries reports whether a pod with these annotations was connected to just this cache.
func (c FeatureCache) Carries(annotations map[string]string) bool {
	return slices.Contains(strings.Split(annotations[v1alpha1.AnnotationInjectedParts], ","),
		carriedText(PartFeatureCache, hashOf(&c)))
}

// IsZero reports whether the plan asks for nothing.
func (p Plan) IsZero() bool { return p.Preload == nil && p.FeatureCache == nil && len(p.Sidecars) == 0 }

// Part is a part of a plan: the name of the field of a policy that asks for it, or that of a policy that adds sidecars.
type Part string

// Parts of a plan.
const (
	// PartPreload is how the model is fetched.
	PartPreload Part = "preload"
	// PartFeatureCache is the cache to connect.
	PartFeatureCache Part = "featureCache"
)

// Parts returns what identifies each part that the plan has.
func (p Plan) Parts() map[Part]string {
	parts := map[Part]string{}
	if p.Preload != nil {
		parts[PartPreload] = hashOf(p.Preload)
	}
	if p.FeatureCache != nil {
		parts[PartFeatureCache] = hashOf(p.FeatureCache)
	}
	for i := range p.Sidecars {
		parts[partSidecars(p.Sidecars[i].Policy)] = hashOf(&p.Sidecars[i])
	}
	return parts
}

// Marks are what pods that carry a plan are marked with.
type Marks struct {
	// Hash identifies the plan; "" that of nothing.
	Hash string

	// Parts identify each part.
	Parts map[Part]string
}

// Marks returns the marks of the plan.
func (p Plan) Marks() Marks { return Marks{Hash: p.Hash(), Parts: p.Parts()} }

// Lacking returns the parts of the plan that a pod with these annotations does not carry as they are.
func (m Marks) Lacking(annotations map[string]string) []Part {
	if annotations[v1alpha1.AnnotationInjected] == m.Hash {
		return nil
	}
	carried := strings.Split(annotations[v1alpha1.AnnotationInjectedParts], ",")
	var lacking []Part
	for part, hash := range m.Parts {
		if !slices.Contains(carried, carriedText(part, hash)) {
			lacking = append(lacking, part)
		}
	}
	slices.Sort(lacking)
	return lacking
}

// partsText is the value of AnnotationInjectedParts for those parts of the plan that were written into a pod.
func (p Plan) partsText(written []Part) string {
	var list []string
	for part, hash := range p.Parts() {
		if slices.Contains(written, part) {
			list = append(list, carriedText(part, hash))
		}
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

func carriedText(part Part, hash string) string { return string(part) + "=" + hash }

// Hash identifies the plan. It does not cover the manager's default images, so that an upgrade of the manager leaves no
// pod outdated.
func (p Plan) Hash() string {
	if p.IsZero() {
		return ""
	}
	return hashOf(p)
}

func hashOf(plain any) string {
	raw, err := json.Marshal(plain)
	if err != nil {
		panic(fmt.Sprintf("encoding a plan of plain values: %v", err)) // cannot happen
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:6])
}
