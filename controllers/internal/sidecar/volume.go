// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"maps"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// setResources sets what a policy asks for over what KServe gives, resource by resource. A request that would then be
// above its limit comes down to it: the API server would refuse the pod.
func setResources(c *corev1.Container, r *v1alpha1.PreloadResources) {
	if r != nil {
		c.Resources.Requests = over(c.Resources.Requests, r.Requests)
		c.Resources.Limits = over(c.Resources.Limits, r.Limits)
	}
	for name, limit := range c.Resources.Limits {
		if request, ok := c.Resources.Requests[name]; ok && request.Cmp(limit) > 0 {
			c.Resources.Requests = over(c.Resources.Requests, corev1.ResourceList{name: limit})
		}
	}
}

func over(base, list corev1.ResourceList) corev1.ResourceList {
	if len(list) == 0 {
		return base
	}
	merged := maps.Clone(base)
	if merged == nil {
		merged = corev1.ResourceList{}
	}
	maps.Copy(merged, list)
	return merged
}

// setVolume replaces the emptyDir that the model goes to, if it is still as KServe makes it. It reports whether it did,
// and whether the volume is, then, as asked for.
func setVolume(pod *corev1.Pod, c *corev1.Container, want *v1alpha1.PreloadVolume) (replaced, asAsked bool) {
	for _, mount := range c.VolumeMounts {
		if want == nil || !isDestination(c.Args, mount.MountPath) {
			continue
		}
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			if v.Name != mount.Name || v.EmptyDir == nil {
				continue
			}
			source := volumeSource(want)
			if equality.Semantic.DeepEqual(*v.EmptyDir, corev1.EmptyDirVolumeSource{}) {
				v.VolumeSource, replaced = source, true
			}
			asAsked = asAsked || equality.Semantic.DeepEqual(v.VolumeSource, source)
		}
	}
	return replaced, asAsked
}

// isDestination reports whether a destination of the pairs "source destination" is at or below a path.
func isDestination(args []string, path string) bool {
	for i := 1; i < len(args); i += 2 {
		if args[i] == path || strings.HasPrefix(args[i], strings.TrimSuffix(path, "/")+"/") {
			return true
		}
	}
	return false
}

func volumeSource(want *v1alpha1.PreloadVolume) corev1.VolumeSource {
	if e := want.Ephemeral; e != nil {
		return corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				StorageClassName: e.StorageClassName,
				Resources: corev1.VolumeResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceStorage: e.Size},
				},
			}},
		}}
	}
	dir := &corev1.EmptyDirVolumeSource{SizeLimit: want.SizeLimit}
	if want.Medium == v1alpha1.MediumMemory {
		dir.Medium = corev1.StorageMediumMemory
	}
	return corev1.VolumeSource{EmptyDir: dir}
}

// equipStorage gives the container that fetches the model its resources and its volume. What it writes to a volume in
// memory is charged to it, so that its limit rises by the volume's. On disk it is told the volume's limit: the pod would be
// evicted when it has written more, again and again.
func equipStorage(pod *corev1.Pod, c *corev1.Container, preload Preload) {
	replaced, asAsked := setVolume(pod, c, preload.Volume)
	setResources(c, preload.Resources)
	if preload.Volume == nil || preload.Volume.SizeLimit == nil || preload.Volume.Ephemeral != nil {
		return
	}
	if preload.Volume.Medium != v1alpha1.MediumMemory {
		if asAsked && preload.Volume.SizeLimit.Sign() > 0 { // the kubelet takes 0 for no limit
			setEnv(c, envVolumeSize, strconv.FormatInt(preload.Volume.SizeLimit.Value(), 10))
		}
		return
	}
	limit, limited := c.Resources.Limits[corev1.ResourceMemory]
	// The policy's limit was just set anew; KServe's is still there, and was raised when the volume was replaced.
	if limited && (preload.limitsMemory() && asAsked || replaced) {
		limit.Add(*preload.Volume.SizeLimit)
		c.Resources.Limits = over(c.Resources.Limits, corev1.ResourceList{corev1.ResourceMemory: limit})
	}
}

// limitsMemory reports whether the policy sets the memory limit of the container that fetches the model.
func (p Preload) limitsMemory() bool {
	if p.Resources == nil {
		return false
	}
	_, ok := p.Resources.Limits[corev1.ResourceMemory]
	return ok
}
