// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// gatewayService returns the Service that gives the route its host name where stable is reached by Knative's gateway.
// Every caller comes to the gateway by it, which has the route, too.
func gatewayService(rollout *v1alpha1.CanaryRollout, host string) *corev1ac.ServiceApplyConfiguration {
	return corev1ac.Service(rollout.Name, rollout.Namespace).
		WithLabels(map[string]string{v1alpha1.LabelInstance: rollout.Name}).
		WithSpec(corev1ac.ServiceSpec().
			WithType(corev1.ServiceTypeExternalName).
			WithExternalName(host).
			WithPorts(corev1ac.ServicePort().
				WithName(servicePortName).
				WithProtocol(corev1.ProtocolTCP).
				WithPort(servicePort).
				WithTargetPort(intstr.FromInt32(servicePort))))
}

// servicePort is the port of the Service that clients call.
const servicePort = 80

// servicePortName makes Istio route the port by HTTP rules, for HTTP and gRPC callers alike.
const servicePortName = "http"

// frontService returns the Service that gives the route its host name. Inside the mesh the VirtualService decides where its
// requests go; callers outside reach stable, whose pods it picks.
func frontService(
	rollout *v1alpha1.CanaryRollout, stable kserve.Entry, targetPort intstr.IntOrString,
) *corev1ac.ServiceApplyConfiguration {
	return corev1ac.Service(rollout.Name, rollout.Namespace).
		WithLabels(map[string]string{v1alpha1.LabelInstance: rollout.Name}).
		WithSpec(corev1ac.ServiceSpec().
			WithSelector(stable.Selector).
			WithPorts(corev1ac.ServicePort().
				WithName(servicePortName).
				WithProtocol(corev1.ProtocolTCP).
				WithPort(servicePort).
				WithTargetPort(targetPort)))
}
