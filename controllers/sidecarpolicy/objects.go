// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy

import (
	"path"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

// nodeCacheLabels pick the pods of the feature caches of a Memcached that run one a node.
func nodeCacheLabels(m *v1alpha1.Memcached) map[string]string {
	return map[string]string{v1alpha1.LabelName: v1alpha1.ContainerFeatureCache, v1alpha1.LabelInstance: m.Name}
}

// nodeCacheService returns the Service by which a pod reaches the feature cache of its own node, and no other.
func nodeCacheService(m *v1alpha1.Memcached) *corev1ac.ServiceApplyConfiguration {
	return corev1ac.Service(v1alpha1.NodeCacheName(m.Name), m.Namespace).
		WithLabels(nodeCacheLabels(m)).
		WithSpec(corev1ac.ServiceSpec().
			WithType(corev1.ServiceTypeClusterIP).
			WithInternalTrafficPolicy(corev1.ServiceInternalTrafficPolicyLocal).
			WithSelector(nodeCacheLabels(m)).
			WithPorts(corev1ac.ServicePort().
				// The prefix tells Istio not to look for HTTP in it.
				WithName("tcp-memcached").
				WithProtocol(corev1.ProtocolTCP).
				WithPort(sidecar.FeatureCachePort).
				WithTargetPort(intstr.FromInt32(sidecar.FeatureCachePort))))
}

// nodeCaches returns the DaemonSet of the feature caches. It tolerates all taints, because models run on tainted nodes,
// and starts a pod before it takes the old one away, because nodes have no second.
func nodeCaches(m *v1alpha1.Memcached, image string) *appsv1ac.DaemonSetApplyConfiguration {
	return appsv1ac.DaemonSet(v1alpha1.NodeCacheName(m.Name), m.Namespace).
		WithLabels(nodeCacheLabels(m)).
		WithSpec(appsv1ac.DaemonSetSpec().
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(nodeCacheLabels(m))).
			WithUpdateStrategy(appsv1ac.DaemonSetUpdateStrategy().
				WithRollingUpdate(appsv1ac.RollingUpdateDaemonSet().
					WithMaxSurge(intstr.FromString("10%")).
					WithMaxUnavailable(intstr.FromInt32(0)))).
			WithTemplate(corev1ac.PodTemplateSpec().
				WithLabels(nodeCacheLabels(m)).
				WithSpec(nodeCachePod(m, image))))
}

func nodeCachePod(m *v1alpha1.Memcached, image string) *corev1ac.PodSpecApplyConfiguration {
	const volume = "ring"
	probe := func(path string) *corev1ac.ProbeApplyConfiguration {
		return corev1ac.Probe().WithHTTPGet(corev1ac.HTTPGetAction().
			WithPath(path).WithPort(intstr.FromInt32(sidecar.FeatureCacheProbePort)))
	}
	return corev1ac.PodSpec().
		// The feature cache serves the clients that it has for 20 s after it was told to stop.
		WithTerminationGracePeriodSeconds(30).
		WithAutomountServiceAccountToken(false).
		WithEnableServiceLinks(false).
		WithTolerations(corev1ac.Toleration().WithOperator(corev1.TolerationOpExists)).
		WithSecurityContext(corev1ac.PodSecurityContext().
			WithRunAsNonRoot(true).
			WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
		WithContainers(corev1ac.Container().
			WithName(v1alpha1.ContainerFeatureCache).
			WithImage(image).
			WithCommand("/featurecache").
			WithArgs(
				"--listen=:"+strconv.Itoa(int(sidecar.FeatureCachePort)),
				"--ring-file="+path.Join(sidecar.RingDir, v1alpha1.RingConfigMapKey),
				"--metrics-address=:"+strconv.Itoa(int(sidecar.FeatureCacheProbePort)),
				// One connection to each server is enough for a pod, and few for all of a node.
				"--connections-per-server=2",
			).
			WithPorts(
				corev1ac.ContainerPort().WithName("memcached").
					WithProtocol(corev1.ProtocolTCP).WithContainerPort(sidecar.FeatureCachePort),
				corev1ac.ContainerPort().WithName("cache-metrics").
					WithProtocol(corev1.ProtocolTCP).WithContainerPort(sidecar.FeatureCacheProbePort),
			).
			WithReadinessProbe(probe("/readyz").WithPeriodSeconds(2)).
			WithLivenessProbe(probe("/healthz").WithInitialDelaySeconds(10)).
			WithResources(corev1ac.ResourceRequirements().
				WithRequests(corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
				}).
				WithLimits(corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")})).
			WithSecurityContext(corev1ac.SecurityContext().
				WithAllowPrivilegeEscalation(false).
				WithReadOnlyRootFilesystem(true).
				WithCapabilities(corev1ac.Capabilities().WithDrop("ALL"))).
			WithVolumeMounts(corev1ac.VolumeMount().WithName(volume).WithMountPath(sidecar.RingDir).WithReadOnly(true))).
		WithVolumes(corev1ac.Volume().WithName(volume).
			// Optional, so that it starts, and misses, before the Memcached has a ring.
			WithConfigMap(corev1ac.ConfigMapVolumeSource().
				WithName(v1alpha1.RingConfigMapName(m.Name)).WithOptional(true)))
}
