// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// trialGPU is the GPU of a trial pod of a policy that has GPUs checked.
const trialGPU corev1.ResourceName = "nvidia.com/gpu"

// CanBreakPods reports whether a policy has anything that could make a pod invalid.
func CanBreakPods(spec *v1alpha1.SidecarPolicySpec) bool {
	return HasSidecars(spec) || spec.Preload != nil &&
		(spec.Preload.Resources != nil || spec.Preload.Volume != nil || spec.Preload.NodeCache != nil ||
			spec.Preload.JITCache != nil || checksGPUs(spec))
}

func checksGPUs(spec *v1alpha1.SidecarPolicySpec) bool {
	return spec.Preload != nil && spec.Preload.GPU != "" && spec.Preload.GPU != v1alpha1.PreloadGPUOff
}

// Trial returns a pod of a model as KServe would make it, and one that a policy equipped besides, with templates filled
// by a placeholder. If the API server accepts the first and refuses the second, the policy is to blame.
func Trial(policy *v1alpha1.SidecarPolicy, settings Settings) (plain, equipped *corev1.Pod, err error) {
	var plan Plan
	if policy.Spec.Preload != nil {
		plan.Preload = preloadOf(policy.Spec.Preload)
	}
	if policy.Spec.FeatureCache != nil {
		plan.FeatureCache = featureCacheOf(policy.Spec.FeatureCache)
	}
	plain = trialPod(policy)
	if HasSidecars(&policy.Spec) {
		content, err := withPlaceholders(&policy.Spec)
		if err != nil {
			return nil, nil, err
		}
		plan.Sidecars = []Sidecars{{Policy: policy.Name, Content: content}}
		addMissingVolumes(plain, &content)
	}
	equipped = plain.DeepCopy()
	if problems := Inject(equipped, plan, settings); len(problems) > 0 {
		return nil, nil, errorOf(problems)
	}
	return plain, equipped, nil
}

// trialPod returns a pod that no quota or profile has reason to refuse, with KServe's containers. It does not carry
// KServe's labels, so that no webhook takes it for a model.
func trialPod(policy *v1alpha1.SidecarPolicy) *corev1.Pod {
	const volume = "kserve-provision-location"
	little := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("100Mi"),
	}
	container := func(name string) corev1.Container {
		return corev1.Container{
			Name: name, Image: "trial.invalid/" + name, Args: []string{s3Scheme + "trial", "/mnt/models"},
			Resources:    corev1.ResourceRequirements{Requests: little, Limits: little},
			VolumeMounts: []corev1.VolumeMount{{Name: volume, MountPath: "/mnt/models"}},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), RunAsNonRoot: new(true),
				Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
		}
	}
	model := container(kserve.ContainerPredictor)
	if checksGPUs(&policy.Spec) {
		device := corev1.ResourceList{trialGPU: resource.MustParse("1")}
		model.Resources.Limits, model.Resources.Requests = over(little, device), over(little, device)
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: policy.Namespace, Name: "trial-" + policy.Name[:min(len(policy.Name), 200)]},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{container(kserve.ContainerStorageInitializer)},
			Containers:     []corev1.Container{model, container(kserve.ContainerTransformer)},
			Volumes: []corev1.Volume{{
				Name: volume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
			}},
		},
	}
}

// addMissingVolumes adds the volumes that content mounts and leaves to the pod: a real one may have them.
func addMissingVolumes(pod *corev1.Pod, content *Content) {
	for _, c := range slices.Concat(content.Containers, content.InitContainers) {
		for _, mount := range c.VolumeMounts {
			isIt := func(v corev1.Volume) bool { return v.Name == mount.Name }
			if !slices.ContainsFunc(pod.Spec.Volumes, isIt) && !slices.ContainsFunc(content.Volumes, isIt) {
				pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
					Name: mount.Name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
				})
			}
		}
	}
}
