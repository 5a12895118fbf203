// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"fmt"
	"net"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/apply"
	mc "serverless.xyz/outrigger/memcached"
)

// memcachedPort is the port of every instance. It must stay 11211, which ketama leaves out of server names.
const memcachedPort = 11211

// memcachedUser is the numeric user of the official memcached images.
const memcachedUser = 11211

// bytesPerConnection is what memcached 1.6 allocates for one open connection, buffers included, rounded up.
const bytesPerConnection = 16 << 10

const mebibyte = 1 << 20

// labelsOf returns the labels that pick the pods of all instances.
func labelsOf(m *v1alpha1.Memcached) map[string]string {
	return map[string]string{v1alpha1.LabelName: "memcached", v1alpha1.LabelInstance: m.Name}
}

// podLabels returns the labels of a pod: labelsOf, and the one by which the manager's cache picks it.
func podLabels(m *v1alpha1.Memcached) map[string]string {
	labels := labelsOf(m)
	labels[v1alpha1.LabelManagedBy] = v1alpha1.ManagedBy
	return labels
}

// instanceName returns the name of the pod with the given ordinal.
func instanceName(m *v1alpha1.Memcached, ordinal int32) string {
	return m.Name + "-" + strconv.Itoa(int(ordinal))
}

// serverName returns the name of an instance in the ring: its stable DNS name, so that a replaced pod keeps its keys'
// slot.
func serverName(m *v1alpha1.Memcached, ordinal int32) string {
	return instanceName(m, ordinal) + "." + m.Name + "." + m.Namespace + ".svc"
}

// identityOf returns what tells an instance from all others, and is proven by what the instance says of its -l.
func identityOf(m *v1alpha1.Memcached, ordinal int32) string {
	return instanceName(m, ordinal) + "," + string(m.UID)
}

// serverOf returns an instance with the given address, "" for an unknown one, as a ring names it.
func serverOf(m *v1alpha1.Memcached, ordinal int32, ip string) mc.Server {
	server := mc.Server{Name: serverName(m, ordinal), Identity: identityOf(m, ordinal)}
	if ip != "" {
		server.Address = dialAddress(ip)
	}
	return server
}

func dialAddress(ip string) string {
	return net.JoinHostPort(ip, strconv.Itoa(memcachedPort))
}

// service returns the headless Service that gives every instance its DNS name, ready or not.
func service(m *v1alpha1.Memcached) *corev1ac.ServiceApplyConfiguration {
	return corev1ac.Service(m.Name, m.Namespace).
		WithLabels(labelsOf(m)).
		WithSpec(corev1ac.ServiceSpec().
			WithClusterIP(corev1.ClusterIPNone).
			WithPublishNotReadyAddresses(true).
			WithSelector(labelsOf(m)).
			WithPorts(corev1ac.ServicePort().
				// The prefix tells Istio not to look for HTTP in it.
				WithName("tcp-memcached").
				WithProtocol(corev1.ProtocolTCP).
				WithPort(memcachedPort).
				WithTargetPort(intstr.FromInt32(memcachedPort))))
}

// ringConfigMap returns the ConfigMap that publishes a ring. It is written only over the version that the ring was
// derived from, since epoch and changedAt continue those of their predecessor.
func ringConfigMap(m *v1alpha1.Memcached, ring publishedRing) (*corev1ac.ConfigMapApplyConfiguration, error) {
	document, err := ring.document.Marshal()
	if err != nil {
		return nil, fmt.Errorf("writing the ring document: %w", err)
	}
	version := ring.resourceVersion
	if version == "" {
		version = apply.Absent
	}
	return corev1ac.ConfigMap(v1alpha1.RingConfigMapName(m.Name), m.Namespace).
		WithResourceVersion(version).
		WithLabels(labelsOf(m)).
		WithAnnotations(map[string]string{
			v1alpha1.AnnotationChangedAt:     ring.changedAt.UTC().Format(time.RFC3339Nano),
			v1alpha1.AnnotationFormerServers: formerText(ring.former),
		}).
		WithData(map[string]string{v1alpha1.RingConfigMapKey: string(document)}), nil
}

// statefulSet returns the StatefulSet of all instances: those in the ring first, standby ones after them.
func statefulSet(m *v1alpha1.Memcached, image string, replicas int32) *appsv1ac.StatefulSetApplyConfiguration {
	return appsv1ac.StatefulSet(m.Name, m.Namespace).
		WithLabels(labelsOf(m)).
		WithSpec(appsv1ac.StatefulSetSpec().
			WithReplicas(replicas).
			WithServiceName(m.Name).
			// Instances know nothing of each other; one that does not start must not hold up the rest.
			WithPodManagementPolicy(appsv1.ParallelPodManagement).
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(labelsOf(m))).
			WithTemplate(corev1ac.PodTemplateSpec().
				WithLabels(podLabels(m)).
				WithSpec(podSpec(m, image))))
}

func podSpec(m *v1alpha1.Memcached, image string) *corev1ac.PodSpecApplyConfiguration {
	return corev1ac.PodSpec().
		// memcached holds nothing that a slow stop could save.
		WithTerminationGracePeriodSeconds(5).
		WithAutomountServiceAccountToken(false).
		WithEnableServiceLinks(false).
		WithHostAliases(corev1ac.HostAlias().WithIP("127.0.0.1").WithHostnames(string(m.UID))).
		WithSecurityContext(corev1ac.PodSecurityContext().
			WithRunAsNonRoot(true).
			WithRunAsUser(memcachedUser).
			WithRunAsGroup(memcachedUser).
			WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
		WithContainers(container(m, image))
}

func container(m *v1alpha1.Memcached, image string) *corev1ac.ContainerApplyConfiguration {
	if m.Spec.Image != "" {
		image = m.Spec.Image
	}
	return corev1ac.Container().
		WithName("memcached").
		WithImage(image).
		WithArgs(arguments(m)...).
		WithEnv(corev1ac.EnvVar().WithName("POD_NAME").WithValueFrom(corev1ac.EnvVarSource().
			WithFieldRef(corev1ac.ObjectFieldSelector().WithFieldPath("metadata.name")))).
		WithPorts(corev1ac.ContainerPort().
			WithName("memcached").WithProtocol(corev1.ProtocolTCP).WithContainerPort(memcachedPort)).
		WithReadinessProbe(corev1ac.Probe().
			WithTCPSocket(corev1ac.TCPSocketAction().WithPort(intstr.FromInt32(memcachedPort))).
			WithPeriodSeconds(2).
			WithTimeoutSeconds(1)).
		WithResources(resources(m)).
		WithSecurityContext(corev1ac.SecurityContext().
			WithAllowPrivilegeEscalation(false).
			WithReadOnlyRootFilesystem(true).
			WithCapabilities(corev1ac.Capabilities().WithDrop("ALL")))
}

// arguments returns memcached's arguments. UDP stays off, as memcached has it by default since 1.5.6.
func arguments(m *v1alpha1.Memcached) []string {
	return []string{
		// memcached repeats these words in its settings, where sidecars and the manager see whether they have reached this
		// instance, or whoever was given its address later: see identityOf. In the pod's hosts file the first stands for
		// its address and the second, by hostAliases, for loopback, which serves `kubectl port-forward`. memcached counts
		// listening sockets among its connections and tells how many there are only of named ones, which is one too
		// few on nodes with IPv4 and IPv6.
		"--listen=$(POD_NAME)," + string(m.UID),
		"--port=" + strconv.Itoa(memcachedPort),
		"--memory-limit=" + strconv.FormatInt(m.Spec.Instance.Memory.Value()/mebibyte, 10),
		"--threads=" + strconv.Itoa(int(m.Spec.Instance.Threads)),
		"--conn-limit=" + strconv.Itoa(int(m.Spec.Instance.MaxConnections)),
		"--max-item-size=" + strconv.FormatInt(m.Spec.Instance.MaxItemSize.Value(), 10),
	}
}

// resources returns what one instance needs: the memory for items, an eighth of it for the hash table and slabs that
// fill unevenly, and what its connections may take.
func resources(m *v1alpha1.Memcached) *corev1ac.ResourceRequirementsApplyConfiguration {
	items := m.Spec.Instance.Memory.Value()
	limit := items + items/8 + 32*mebibyte + int64(m.Spec.Instance.MaxConnections)*bytesPerConnection
	memory := *resource.NewQuantity((limit+mebibyte-1)/mebibyte*mebibyte, resource.BinarySI)
	return corev1ac.ResourceRequirements().
		WithRequests(corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("50m"),
			corev1.ResourceMemory: memory,
		}).
		WithLimits(corev1.ResourceList{corev1.ResourceMemory: memory})
}
