// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

const envGPU = "PRELOADER_GPU"

// What the driver takes of the memory of a container that uses GPUs: for itself, and for each GPU. It is meant to be
// ample: a container that reaches its limit is killed with the pull in it, and the check is not worth that.
const (
	driverMemory int64 = 512 << 20
	gpuMemory    int64 = 256 << 20
)

// gpusToCheck returns the GPUs of the model's container, by resource, if they are to be checked; or why there are none
// although an annotation wants them checked.
func gpusToCheck(pod *corev1.Pod, preload Preload) (gpus corev1.ResourceList, problem string) {
	at := slices.IndexFunc(pod.Spec.Containers, runsModel)
	if preload.GPU == "" || at < 0 {
		return nil, ""
	}
	c := &pod.Spec.Containers[at]
	for name, count := range c.Resources.Limits {
		if isGPU(name) && !count.IsZero() {
			gpus = over(gpus, corev1.ResourceList{name: count})
		}
	}
	if len(gpus) > 0 || !preload.GPUAsked {
		return gpus, ""
	}
	return nil, fmt.Sprintf("annotation %s: container %s %s; no GPU is checked", v1alpha1.AnnotationWarmGPU, c.Name, noGPU(c))
}

// noGPU tells why a container has no GPU that can be checked.
func noGPU(c *corev1.Container) string {
	if len(c.Resources.Claims) > 0 {
		return "has its devices by a resource claim, and only those of a device plugin can be lent to the container that " +
			"fetches the model"
	}
	for _, vendor := range []corev1.ResourceName{"amd.com/gpu", "intel.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi"} {
		if _, ok := c.Resources.Limits[vendor]; ok {
			return fmt.Sprintf("has %s, and only NVIDIA's GPUs can be checked", vendor)
		}
	}
	return `has no GPU; give it a limit such as nvidia.com/gpu: "1", or take the annotation away`
}

// runsModel reports whether a container is that of the model, by KServe's names.
func runsModel(c corev1.Container) bool {
	return c.Name == kserve.ContainerPredictor || c.Name == kserve.ContainerWorker
}

// isGPU reports whether a resource is NVIDIA's GPUs: whole ones, ones that are shared by turns, or a MIG device.
func isGPU(name corev1.ResourceName) bool {
	rest, ok := strings.CutPrefix(string(name), "nvidia.com/")
	return ok && (rest == "gpu" || strings.HasPrefix(rest, "gpu.") || strings.HasPrefix(rest, "mig-"))
}

// lendGPUs has the container that fetches the model use the model's GPUs before the model does. The pod needs no more of
// them: the scheduler counts the most that an init container or all containers ask for, and the kubelet gives the devices
// of an init container that has ended to the containers.
func lendGPUs(c *corev1.Container, gpus corev1.ResourceList, mode v1alpha1.PreloadGPU) {
	for name, count := range gpus {
		if _, has := c.Resources.Limits[name]; !has {
			device := corev1.ResourceList{name: count}
			c.Resources.Limits = over(c.Resources.Limits, device)
			c.Resources.Requests = over(c.Resources.Requests, device)
		}
	}
	setEnv(c, envGPU, strings.ToLower(string(mode)))
}

// makeRoomForDriver raises the memory limit of a container that uses GPUs, but not above that of the model's: a namespace
// that allows this one allows that one.
func makeRoomForDriver(pod *corev1.Pod, c *corev1.Container, gpus corev1.ResourceList) {
	limit, limited := c.Resources.Limits[corev1.ResourceMemory]
	if !limited {
		return
	}
	wanted := limit.Value() + driverMemory
	for _, count := range gpus {
		wanted += count.Value() * gpuMemory
	}
	model := &pod.Spec.Containers[slices.IndexFunc(pod.Spec.Containers, runsModel)]
	if most, ok := model.Resources.Limits[corev1.ResourceMemory]; ok {
		wanted = min(wanted, max(limit.Value(), most.Value()))
	}
	if wanted == limit.Value() {
		return
	}
	raised := corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(wanted, resource.BinarySI)}
	// A container that is promised all that it may use stays so.
	if request := c.Resources.Requests[corev1.ResourceMemory]; request.Cmp(limit) == 0 {
		c.Resources.Requests = over(c.Resources.Requests, raised)
	}
	c.Resources.Limits = over(c.Resources.Limits, raised)
}
