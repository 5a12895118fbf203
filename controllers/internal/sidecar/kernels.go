// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

const (
	envJITCacheURI = "PRELOADER_JIT_CACHE_URI"
	envJITCacheKey = "PRELOADER_JIT_CACHE_KEY"
	envJITCacheDir = "PRELOADER_JIT_CACHE_DIR"
	kernelsVolume  = "outrigger-jit-cache"
	kernelsDir     = "/mnt/jit-cache"
)

// kernelTrees are the variables by which engines find what they compiled, and the folders that the preloader knows them by.
var kernelTrees = [][2]string{
	{"VLLM_CACHE_ROOT", "vllm"},
	{"TRITON_CACHE_DIR", "triton"},
	{"TORCHINDUCTOR_CACHE_DIR", "inductor"},
	{"CUDA_CACHE_PATH", "cuda"},
	{"FLASHINFER_WORKSPACE_BASE", "flashinfer"},
	{"DG_JIT_CACHE_DIR", "deepgemm"},
	{"TILELANG_CACHE_DIR", "tilelang"},
	{"TORCH_EXTENSIONS_DIR", "torch-extensions"},
}

// bringKernels gives the container that fetches the model and the one that runs it a volume for compiled kernels. It does
// nothing where there is no model server, or where something else is mounted in its place.
func bringKernels(pod *corev1.Pod, c *corev1.Container, cache *v1alpha1.PreloadJITCache) {
	if cache == nil {
		return
	}
	at := slices.IndexFunc(pod.Spec.Containers, func(one corev1.Container) bool {
		return one.Name == kserve.ContainerPredictor || one.Name == kserve.ContainerWorker
	})
	if at < 0 {
		return
	}
	model := &pod.Spec.Containers[at]
	if !canMountKernels(c) || !canMountKernels(model) {
		return
	}
	if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == kernelsVolume }) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: kernelsVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		})
	}
	for _, one := range []*corev1.Container{c, model} {
		mounted := slices.ContainsFunc(one.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == kernelsVolume })
		if !mounted {
			one.VolumeMounts = append(one.VolumeMounts, corev1.VolumeMount{Name: kernelsVolume, MountPath: kernelsDir})
		}
	}
	setEnv(c, envJITCacheURI, cache.URI)
	setEnv(c, envJITCacheDir, kernelsDir)
	setEnv(c, envJITCacheKey, kernelsKey(cache.Key, model.Image))
	for _, tree := range kernelTrees {
		setEnv(model, tree[0], kernelsDir+"/"+tree[1])
	}
}

// canMountKernels reports whether nothing else is mounted where kernels go.
func canMountKernels(c *corev1.Container) bool {
	return !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name != kernelsVolume && strings.TrimSuffix(m.MountPath, "/") == kernelsDir
	})
}

// kernelsKey adds the engine to a key that does not name it.
func kernelsKey(key, image string) string {
	for part := range strings.SplitSeq(key, ",") {
		if strings.HasPrefix(part, "engine=") {
			return key
		}
	}
	return strings.TrimSuffix("engine="+image+","+key, ",")
}
