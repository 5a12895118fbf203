// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// addable are KServe's containers that a policy may add something to.
var addable = []string{kserve.ContainerPredictor, kserve.ContainerTransformer, kserve.ContainerWorker}

// reserved are containers that others put into pods of models, and find by their names.
var reserved = append([]string{
	v1alpha1.ContainerFeatureCache, "istio-proxy", "istio-init", "istio-validation",
}, kserve.ReservedContainers...)

// check returns an error that names the field of a policy that no policy may set: whoever may write policies shall not
// get nearer to a node by them than a pod that the Baseline profile allows. Whether the rest makes a valid pod is for the
// API server to say.
func (c *Content) check() error {
	var names []string
	for _, list := range []struct {
		field      string
		containers []corev1.Container
	}{{"containers", c.Containers}, {"initContainers", c.InitContainers}} {
		for i := range list.containers {
			one := &list.containers[i]
			path := fmt.Sprintf("spec.%s[%d]", list.field, i)
			if err := checkContainer(one, path, list.field == "containers"); err != nil {
				return err
			}
			if slices.Contains(names, one.Name) {
				return fmt.Errorf("%s.name: %q is there twice", path, one.Name)
			}
			names = append(names, one.Name)
		}
	}
	names = nil
	for i := range c.Volumes {
		path := fmt.Sprintf("spec.volumes[%d]", i)
		if err := checkVolume(&c.Volumes[i], path); err != nil {
			return err
		}
		if slices.Contains(names, c.Volumes[i].Name) {
			return fmt.Errorf("%s.name: %q is there twice", path, c.Volumes[i].Name)
		}
		names = append(names, c.Volumes[i].Name)
	}
	for i := range c.Env {
		if c.Env[i].Name == "" {
			return fmt.Errorf("spec.env[%d].name: is missing", i)
		}
	}
	return nil
}

func checkContainer(c *corev1.Container, path string, mayAdd bool) error {
	switch {
	case len(validation.IsDNS1123Label(c.Name)) > 0:
		return fmt.Errorf("%s.name: %q is no name of a container: lower-case letters, digits and dashes", path, c.Name)
	case slices.Contains(reserved, c.Name):
		return fmt.Errorf("%s.name: %q is the name of a container of KServe, Istio or Outrigger; choose another", path, c.Name)
	case mayAdd && slices.Contains(addable, c.Name):
		return checkAddition(c, path)
	case slices.Contains(addable, c.Name):
		return fmt.Errorf("%s.name: %q is no init container; choose another name", path, c.Name)
	case c.Image == "":
		return fmt.Errorf("%s.image: is missing", path)
	case len(c.VolumeDevices) > 0:
		return fmt.Errorf("%s.volumeDevices: a policy may not give devices to a container", path)
	case len(c.Resources.Claims) > 0:
		return fmt.Errorf("%s.resources.claims: a policy may not give devices to a container", path)
	}
	for i := range c.Ports {
		if c.Ports[i].HostPort != 0 || c.Ports[i].HostIP != "" {
			return fmt.Errorf("%s.ports[%d].hostPort: a policy may not open ports of nodes", path, i)
		}
	}
	if err := checkSecurity(c.SecurityContext); err != nil {
		return fmt.Errorf("%s.securityContext.%w", path, err)
	}
	return checkHosts(c, path)
}

// checkAddition holds an addition to one of KServe's containers to what adds.
func checkAddition(c *corev1.Container, path string) error {
	rest := c.DeepCopy()
	rest.Name, rest.Env, rest.EnvFrom, rest.VolumeMounts = "", nil, nil, nil
	if !isZeroContainer(rest) {
		return fmt.Errorf("%s: to %s a policy may add env, envFrom and volumeMounts only", path, c.Name)
	}
	return nil
}

func checkSecurity(s *corev1.SecurityContext) error {
	isTrue := func(b *bool) bool { return b != nil && *b }
	switch {
	case s == nil:
		return nil
	case isTrue(s.Privileged):
		return errors.New("privileged: a policy may not make a container privileged")
	case isTrue(s.AllowPrivilegeEscalation):
		return errors.New("allowPrivilegeEscalation: a policy may not allow it")
	case s.Capabilities != nil && len(s.Capabilities.Add) > 0:
		return errors.New("capabilities.add: a policy may not add capabilities")
	case s.ProcMount != nil && *s.ProcMount != corev1.DefaultProcMount:
		return errors.New("procMount: a policy may not unmask /proc")
	case s.SELinuxOptions != nil || s.WindowsOptions != nil:
		return errors.New("seLinuxOptions and windowsOptions: a policy may not set them")
	case s.SeccompProfile != nil && s.SeccompProfile.Type == corev1.SeccompProfileTypeUnconfined:
		return errors.New("seccompProfile: a policy may not set Unconfined")
	case s.AppArmorProfile != nil && s.AppArmorProfile.Type == corev1.AppArmorProfileTypeUnconfined:
		return errors.New("appArmorProfile: a policy may not set Unconfined")
	default:
		return nil
	}
}

// checkHosts keeps a policy from having the kubelet call other hosts than the pod.
func checkHosts(c *corev1.Container, path string) error {
	type handler struct {
		name string
		http *corev1.HTTPGetAction
		tcp  *corev1.TCPSocketAction
	}
	var handlers []handler
	for _, p := range []struct {
		name  string
		probe *corev1.Probe
	}{{"livenessProbe", c.LivenessProbe}, {"readinessProbe", c.ReadinessProbe}, {"startupProbe", c.StartupProbe}} {
		if p.probe != nil {
			handlers = append(handlers, handler{p.name, p.probe.HTTPGet, p.probe.TCPSocket})
		}
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []struct {
			name string
			hook *corev1.LifecycleHandler
		}{{"lifecycle.postStart", l.PostStart}, {"lifecycle.preStop", l.PreStop}} {
			if h.hook != nil {
				handlers = append(handlers, handler{h.name, h.hook.HTTPGet, h.hook.TCPSocket})
			}
		}
	}
	for _, h := range handlers {
		if h.http != nil && h.http.Host != "" || h.tcp != nil && h.tcp.Host != "" {
			return fmt.Errorf("%s.%s: a policy may not name a host to call", path, h.name)
		}
	}
	return nil
}

func checkVolume(v *corev1.Volume, path string) error {
	for _, prefix := range []string{"outrigger-", "kserve-"} {
		if strings.HasPrefix(v.Name, prefix) {
			return fmt.Errorf("%s.name: names that begin with %s are taken; choose another", path, prefix)
		}
	}
	rest := v.VolumeSource
	rest.EmptyDir, rest.ConfigMap, rest.Secret, rest.DownwardAPI = nil, nil, nil, nil
	rest.Ephemeral, rest.PersistentVolumeClaim, rest.Projected = nil, nil, nil
	if rest != (corev1.VolumeSource{}) {
		return fmt.Errorf("%s: a policy may add emptyDir, configMap, secret, downwardAPI, projected, ephemeral and "+
			"persistentVolumeClaim only", path)
	}
	if v.Projected != nil {
		for i, source := range v.Projected.Sources {
			if source.ServiceAccountToken != nil || source.PodCertificate != nil {
				return fmt.Errorf("%s.projected.sources[%d]: a policy may not ask for tokens or certificates of the pod", path, i)
			}
		}
	}
	return nil
}
