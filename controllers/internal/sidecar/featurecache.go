// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

const (
	// FeatureCachePort is where a feature cache listens, one of a pod's own on the loopback address only.
	FeatureCachePort int32 = 11211
	// FeatureCacheProbePort serves a feature cache's metrics and probes.
	FeatureCacheProbePort int32 = 9151
	// RingDir is where the ring is mounted in a feature cache's container.
	RingDir = "/etc/outrigger/ring"
	// featureCacheUser is the user of the feature cache's image.
	featureCacheUser int64 = 65532
	ringVolume             = "outrigger-ring"
)

// connectFeatureCache tells the model where its feature cache listens, and adds one to the pod unless it shares that of
// the node. It returns why it did neither, or "".
func connectFeatureCache(pod *corev1.Pod, cache FeatureCache, settings Settings) string {
	host := "127.0.0.1"
	if cache.Shared {
		if pod.Spec.HostNetwork && pod.Spec.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
			return "the pod uses its node's network and names, and cannot find the shared feature cache by its name; set " +
				"dnsPolicy ClusterFirstWithHostNet, or it gets none"
		}
		host = v1alpha1.NodeCacheName(cache.Memcached) + "." + pod.Namespace + ".svc"
	} else {
		if problem := noRoomForFeatureCache(pod); problem != "" {
			return problem
		}
		addFeatureCache(pod, cache, settings)
	}
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; slices.Contains(addable, c.Name) {
			setEnv(c, v1alpha1.EnvFeatureCacheAddr, net.JoinHostPort(host, portText(FeatureCachePort)))
		}
	}
	return ""
}

// noRoomForFeatureCache tells why a pod cannot have a feature cache of its own, or "".
func noRoomForFeatureCache(pod *corev1.Pod) string {
	if pod.Spec.HostNetwork {
		return fmt.Sprintf("the pod uses its node's network, where the ports %d and %d of a feature cache may be taken; "+
			"it gets none", FeatureCachePort, FeatureCacheProbePort)
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == v1alpha1.ContainerFeatureCache {
			if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == ringVolume }) {
				return fmt.Sprintf("the pod has a container %q of its own; rename it, or it gets no feature cache", c.Name)
			}
			continue
		}
		for _, port := range c.Ports {
			if port.ContainerPort == FeatureCachePort || port.ContainerPort == FeatureCacheProbePort {
				return fmt.Sprintf("container %s listens on port %d, which the feature cache needs; it gets none",
					c.Name, port.ContainerPort)
			}
		}
	}
	return ""
}

// addFeatureCache adds a feature cache to the pod: as a native sidecar, so that it is up before the model and goes after
// it, or beside the model where the cluster knows no such thing.
func addFeatureCache(pod *corev1.Pod, cache FeatureCache, settings Settings) {
	sidecar := featureCacheContainer(pod, settings.FeatureCache)
	into := &pod.Spec.InitContainers
	if settings.PlainSidecars {
		sidecar.RestartPolicy, into = nil, &pod.Spec.Containers
	}
	if at := slices.IndexFunc(*into, named(sidecar.Name)); at >= 0 {
		// Admission fills in defaults and others may have added mounts; only what tells our plans apart is renewed.
		(*into)[at].Image = sidecar.Image
	} else {
		*into = append(*into, sidecar)
	}
	volume := ringConfigVolume(cache.Memcached)
	if at := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == ringVolume }); at >= 0 {
		pod.Spec.Volumes[at] = keepDefaults(pod.Spec.Volumes[at], volume)
	} else {
		pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
	}
}

func featureCacheContainer(pod *corev1.Pod, image string) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	var user *int64
	if s := pod.Spec.SecurityContext; s != nil && s.RunAsUser != nil && *s.RunAsUser == 0 {
		// A pod that runs as root would have the kubelet refuse this container, which must not.
		user = new(featureCacheUser)
	}
	return corev1.Container{
		Name:            v1alpha1.ContainerFeatureCache,
		Image:           image,
		ImagePullPolicy: pullPolicy(image),
		RestartPolicy:   &always,
		// The image is the manager's, too.
		Command: []string{"/featurecache"},
		Args: []string{
			"--listen=127.0.0.1:" + portText(FeatureCachePort),
			"--ring-file=" + path.Join(RingDir, v1alpha1.RingConfigMapKey),
			"--metrics-address=:" + portText(FeatureCacheProbePort),
		},
		Ports: []corev1.ContainerPort{{
			Name: "cache-metrics", ContainerPort: FeatureCacheProbePort, Protocol: corev1.ProtocolTCP,
		}},
		StartupProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: "/healthz", Port: intstr.FromInt32(FeatureCacheProbePort),
			}},
			PeriodSeconds:    1,
			FailureThreshold: 30,
		},
		Resources: featureCacheResources(pod),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			RunAsNonRoot:             new(true),
			RunAsUser:                user,
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: ringVolume, MountPath: RingDir, ReadOnly: true}},
	}
}

// featureCacheResources asks for little and leaves room, unless the pod is Guaranteed: it would no longer be, and could
// lose the cores that the node has set aside for its model.
func featureCacheResources(pod *corev1.Pod) corev1.ResourceRequirements {
	if isGuaranteed(pod) {
		all := corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("250m"),
			corev1.ResourceMemory: resource.MustParse("128Mi"),
		}
		return corev1.ResourceRequirements{Requests: all, Limits: all.DeepCopy()}
	}
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("10m"),
			corev1.ResourceMemory: resource.MustParse("32Mi"),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
	}
}

// isGuaranteed reports whether every container is promised all the CPU and memory that it may use.
func isGuaranteed(pod *corev1.Pod) bool {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, limited := c.Resources.Limits[name]
			request, requested := c.Resources.Requests[name]
			if !limited || requested && request.Cmp(limit) != 0 {
				return false
			}
		}
	}
	return true
}

// ringConfigVolume mounts the ring. It is optional, so that a pod starts, with a cache that always misses, also before
// its Memcached exists.
func ringConfigVolume(memcached string) corev1.Volume {
	return corev1.Volume{Name: ringVolume, VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: v1alpha1.RingConfigMapName(memcached)},
			Optional:             new(true),
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

func portText(port int32) string { return strconv.Itoa(int(port)) }
