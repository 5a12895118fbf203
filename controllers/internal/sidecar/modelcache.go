// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"path"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

const (
	envNodeCache     = "PRELOADER_NODE_CACHE"
	envNodeCacheSize = "PRELOADER_NODE_CACHE_SIZE"
	modelCacheVolume = "outrigger-models"
	modelCacheDir    = "/var/cache/outrigger/models"
)

// shareModels mounts the directory that pods of a node share, from which the preloader takes models that another pod has
// fetched. It does nothing where the policy means the node's own directory and the administrator has chosen none.
func shareModels(pod *corev1.Pod, c *corev1.Container, cache *v1alpha1.PreloadNodeCache, settings Settings) {
	source, ok := modelCacheSource(pod.Namespace, cache, settings)
	if !ok || slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == modelCacheVolume }) {
		return
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: modelCacheVolume, VolumeSource: source})
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: modelCacheVolume, MountPath: modelCacheDir})
	setEnv(c, envNodeCache, modelCacheDir)
	if cache.Size != nil {
		setEnv(c, envNodeCacheSize, strconv.FormatInt(cache.Size.Value(), 10))
	}
}

// modelCacheSource returns the volume, and whether there is any. Namespaces share no directory of a node: whoever can
// write to one could change the models of all who link to it.
func modelCacheSource(
	namespace string, cache *v1alpha1.PreloadNodeCache, settings Settings,
) (source corev1.VolumeSource, ok bool) {
	switch {
	case cache == nil:
		return source, false
	case cache.ClaimName != "":
		source.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: cache.ClaimName}
		return source, true
	case settings.NodeCachePath == "" || namespace == "":
		return source, false
	default:
		kind := corev1.HostPathDirectoryOrCreate
		source.HostPath = &corev1.HostPathVolumeSource{Path: path.Join(settings.NodeCachePath, namespace), Type: &kind}
		return source, true
	}
}
