// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// Images are the images that are used where a plan names none.
type Images struct {
	// Preloader and FeatureCache are image references.
	Preloader, FeatureCache string
}

const (
	// featureCachePort is where the feature cache listens, on the loopback address of the pod only.
	featureCachePort = 11211
	// featureCacheProbePort serves the feature cache's metrics and probes.
	featureCacheProbePort = 9151
	ringVolume            = "outrigger-ring"
	ringDir               = "/etc/outrigger/ring"
	envVerify             = "PRELOADER_VERIFY"
	s3Scheme              = "s3://"
)

// Inject writes a plan into a pod. Doing it again changes nothing, and it may be done before or after KServe's webhook:
// what is not there yet is equipped when the webhook is called again. Everything else in the pod stays as it is.
func Inject(pod *corev1.Pod, plan Plan, images Images) {
	if plan.IsZero() {
		return
	}
	if plan.Preload != nil {
		injectPreload(pod, *plan.Preload, images.Preloader)
	}
	if plan.FeatureCache != nil {
		injectFeatureCache(pod, *plan.FeatureCache, images.FeatureCache)
	}
	pod.Annotations = maps.Clone(pod.Annotations)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[v1alpha1.AnnotationInjected] = plan.Hash()
}

// injectPreload puts the preloader into KServe's own init container. Its name and arguments stay: KServe tells by the
// name that it has been here, and reads the model's state from it.
func injectPreload(pod *corev1.Pod, preload Preload, image string) {
	if preload.Image != "" {
		image = preload.Image
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.Name != kserve.ContainerStorageInitializer || !allFromS3(c.Args) {
			continue
		}
		if c.Image != image {
			c.Image, c.ImagePullPolicy = image, pullPolicy(image)
		}
		setEnv(c, envVerify, strings.ToLower(string(preload.Verify)))
	}
}

// allFromS3 reports whether every source of the pairs "source destination" has an s3:// address: the preloader refuses
// others, so they stay with KServe's own image.
func allFromS3(args []string) bool {
	for i := 0; i < len(args); i += 2 {
		if !strings.HasPrefix(args[i], s3Scheme) {
			return false
		}
	}
	return len(args) > 0 && len(args)%2 == 0
}

// pullPolicy is what Kubernetes would choose for an image, which it does only when a container is made.
func pullPolicy(image string) corev1.PullPolicy {
	name := image[strings.LastIndex(image, "/")+1:]
	if strings.Contains(name, "@") {
		return corev1.PullIfNotPresent
	}
	_, tag, ok := strings.Cut(name, ":")
	if !ok || tag == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// injectFeatureCache adds the feature cache as a native sidecar, so that it is up before the model and goes after it,
// and tells the model where it listens.
func injectFeatureCache(pod *corev1.Pod, cache FeatureCache, image string) {
	sidecar := featureCacheContainer(image)
	if at := slices.IndexFunc(pod.Spec.InitContainers, named(sidecar.Name)); at >= 0 {
		// Admission fills in defaults and others may have added mounts; only what tells our plans apart is renewed.
		pod.Spec.InitContainers[at].Image = sidecar.Image
	} else {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, sidecar)
	}
	volume := ringConfigVolume(cache.Memcached)
	if at := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == ringVolume }); at >= 0 {
		pod.Spec.Volumes[at] = keepDefaults(pod.Spec.Volumes[at], volume)
	} else {
		pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		switch c.Name {
		case kserve.ContainerPredictor, kserve.ContainerTransformer, kserve.ContainerWorker:
			setEnv(c, v1alpha1.EnvFeatureCacheAddr, net.JoinHostPort("127.0.0.1", strconv.Itoa(featureCachePort)))
		}
	}
}

func featureCacheContainer(image string) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	return corev1.Container{
		Name:            v1alpha1.ContainerFeatureCache,
		Image:           image,
		ImagePullPolicy: pullPolicy(image),
		RestartPolicy:   &always,
		// The image is the manager's, too.
		Command: []string{"/featurecache"},
		Args: []string{
			"--listen=127.0.0.1:" + strconv.Itoa(featureCachePort),
			"--ring-file=" + path.Join(ringDir, v1alpha1.RingConfigMapKey),
			"--metrics-address=:" + strconv.Itoa(featureCacheProbePort),
		},
		Ports: []corev1.ContainerPort{{
			Name: "cache-metrics", ContainerPort: featureCacheProbePort, Protocol: corev1.ProtocolTCP,
		}},
		StartupProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: "/healthz", Port: intstr.FromInt32(featureCacheProbePort),
			}},
			PeriodSeconds:    1,
			FailureThreshold: 30,
		},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("10m"),
				corev1.ResourceMemory: resource.MustParse("32Mi"),
			},
			Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
		},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr.To(false),
			ReadOnlyRootFilesystem:   ptr.To(true),
			RunAsNonRoot:             ptr.To(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: ringVolume, MountPath: ringDir, ReadOnly: true}},
	}
}

// ringConfigVolume mounts the ring. It is optional, so that a pod starts, with a cache that always misses, also before
// its Memcached exists.
func ringConfigVolume(memcached string) corev1.Volume {
	return corev1.Volume{Name: ringVolume, VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: v1alpha1.RingConfigMapName(memcached)},
			Optional:             ptr.To(true),
		},
	}}
}

// keepDefaults returns want with the file mode that admission filled in.
func keepDefaults(live, want corev1.Volume) corev1.Volume {
	if live.ConfigMap != nil {
		want.ConfigMap.DefaultMode = live.ConfigMap.DefaultMode
	}
	return want
}

// setEnv sets a variable that the container does not have yet: what a user has set stays.
func setEnv(c *corev1.Container, name, value string) {
	if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name }) {
		return
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
}

func named(name string) func(corev1.Container) bool {
	return func(c corev1.Container) bool { return c.Name == name }
}

func ptrTo[T any](value T) *T { return &value }
