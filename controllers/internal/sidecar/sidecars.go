// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	sigsjson "sigs.k8s.io/json"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// Sidecars are the containers, volumes and variables that one policy adds to a pod.
type Sidecars struct {
	// Policy is the name of the policy.
	Policy string `json:"-"`
	// Text is the content as its author wrote it, with templates filled in. It identifies the content whatever a later
	// Kubernetes makes of its own types.
	Text string `json:"text"`
	// Content is what Text says.
	Content Content `json:"-"`
}

// Content is a part of the spec of a pod.
type Content struct {
	Containers     []corev1.Container `json:"containers,omitempty"`
	InitContainers []corev1.Container `json:"initContainers,omitempty"`
	Volumes        []corev1.Volume    `json:"volumes,omitempty"`
	Env            []corev1.EnvVar    `json:"env,omitempty"`
}

// partSidecars is the part of a plan that one policy's sidecars are.
func partSidecars(policy string) Part { return Part("sidecars." + policy) }

// HasSidecars reports whether a policy adds containers, volumes or variables of its author's making.
func HasSidecars(spec *v1alpha1.SidecarPolicySpec) bool {
	return len(spec.Containers)+len(spec.InitContainers)+len(spec.Volumes)+len(spec.Env) > 0
}

// withPlaceholders returns what a policy adds, with a placeholder for every template. An error names the field, and means that
// it can never be in force.
func withPlaceholders(spec *v1alpha1.SidecarPolicySpec) (Content, error) {
	content, err := rawContent(spec)
	if err != nil {
		return Content{}, err
	}
	filled, err := eachString(content, "spec", func(text string) (string, error) {
		return fill(text, func(expression string) (string, error) {
			_, err := compile(expression, stringType)
			return "x", err
		})
	})
	if err != nil {
		return Content{}, err
	}
	return typed(filled)
}

// sidecarsOf returns what a policy adds for a subject.
func sidecarsOf(policy *v1alpha1.SidecarPolicy, subject Subject) (*Sidecars, error) {
	content, err := rawContent(&policy.Spec)
	if err != nil {
		return nil, err
	}
	filled, err := eachString(content, "spec", func(text string) (string, error) {
		return fill(text, func(expression string) (string, error) { return evaluate(expression, subject) })
	})
	if err != nil {
		return nil, err
	}
	s := &Sidecars{Policy: policy.Name}
	if s.Content, err = typed(filled); err != nil {
		return nil, err
	}
	text, err := json.Marshal(filled) // keys come out sorted
	if err != nil {
		return nil, fmt.Errorf("encoding sidecars: %w", err)
	}
	s.Text = string(text)
	return s, nil
}

// rawContent returns the fields that hold sidecars, as plain JSON.
func rawContent(spec *v1alpha1.SidecarPolicySpec) (any, error) {
	content := map[string]any{}
	for _, field := range []struct {
		name string
		list []runtime.RawExtension
	}{
		{"containers", spec.Containers},
		{"initContainers", spec.InitContainers},
		{"volumes", spec.Volumes},
		{"env", spec.Env},
	} {
		var items []any
		for i := range field.list {
			var item any
			if err := json.Unmarshal(field.list[i].Raw, &item); err != nil {
				return nil, fmt.Errorf("spec.%s[%d]: %w", field.name, i, err)
			}
			items = append(items, item)
		}
		if len(items) > 0 {
			content[field.name] = items
		}
	}
	return content, nil
}

// typed decodes plain JSON into the types of a pod. A field that these do not have, or that a policy may not set, is an
// error.
func typed(content any) (Content, error) {
	var c Content
	raw, err := json.Marshal(content)
	if err != nil {
		return c, fmt.Errorf("encoding sidecars: %w", err)
	}
	unknown, err := sigsjson.UnmarshalStrict(raw, &c)
	if err != nil {
		return c, fmt.Errorf("spec: %w", err)
	}
	if len(unknown) > 0 {
		return c, fmt.Errorf("spec: %w", unknown[0])
	}
	err = c.check()
	return c, err
}

// without takes away what policies that decide before have by the same name, and reports whether anything is left. It
// changes Text with it.
func (s *Sidecars) without(before []Sidecars) bool {
	if len(before) == 0 {
		return true
	}
	taken := map[string]bool{}
	for i := range before {
		for _, item := range items(&before[i].Content) {
			taken[item] = true
		}
	}
	c := &s.Content
	had := len(items(c))
	c.Containers = slices.DeleteFunc(c.Containers, func(one corev1.Container) bool {
		return taken["containers/"+one.Name] && !slices.Contains(addable, one.Name)
	})
	c.InitContainers = slices.DeleteFunc(c.InitContainers, func(one corev1.Container) bool {
		return taken["containers/"+one.Name]
	})
	c.Volumes = slices.DeleteFunc(c.Volumes, func(one corev1.Volume) bool { return taken["volumes/"+one.Name] })
	c.Env = slices.DeleteFunc(c.Env, func(one corev1.EnvVar) bool { return taken["env/"+one.Name] })
	left := items(c)
	if len(left) < had {
		s.Text += " without what others decide, leaving " + strings.Join(left, ",")
	}
	return len(left) > 0
}

// items names what content has. Containers share their names with init containers.
func items(c *Content) []string {
	var list []string
	for i := range c.Containers {
		list = append(list, "containers/"+c.Containers[i].Name)
	}
	for i := range c.InitContainers {
		list = append(list, "containers/"+c.InitContainers[i].Name)
	}
	for i := range c.Volumes {
		list = append(list, "volumes/"+c.Volumes[i].Name)
	}
	for i := range c.Env {
		list = append(list, "env/"+c.Env[i].Name)
	}
	return list
}

// injectSidecars writes what a policy adds into a pod, all of it or, if there is a problem, nothing. Init containers come
// behind KServe's, so that they find the model.
func injectSidecars(pod *corev1.Pod, s *Sidecars, settings Settings) *Problem {
	c := &s.Content
	if err := s.CheckImages(settings); err != nil {
		return &Problem{
			Reason: v1alpha1.ReasonInvalidPolicy, Policy: s.Policy, Message: fmt.Sprintf("SidecarPolicy %s: %v", s.Policy, err),
		}
	}
	if !carries(pod, s) {
		if problem := noRoomFor(pod, c); problem != "" {
			return &Problem{
				Reason:  v1alpha1.ReasonNoRoom,
				Message: fmt.Sprintf("SidecarPolicy %s adds nothing: %s", s.Policy, problem),
			}
		}
		pod.Spec.Volumes = append(pod.Spec.Volumes, c.Volumes...)
		for i := range c.Containers {
			addContainer(pod, &c.Containers[i])
		}
		for i := range c.InitContainers {
			addInitContainer(pod, c.InitContainers[i], settings)
		}
	}
	for i := range pod.Spec.Containers {
		if slices.Contains(addable, pod.Spec.Containers[i].Name) {
			addEnv(&pod.Spec.Containers[i], c.Env)
		}
	}
	behindModel(pod, c.InitContainers)
	return nil
}

// CheckImages returns an error if policies may not name one of the images.
func (s *Sidecars) CheckImages(settings Settings) error {
	for _, one := range slices.Concat(s.Content.Containers, s.Content.InitContainers) {
		if err := settings.CheckAllowed(one.Image); err != nil {
			return fmt.Errorf("container %s: %w; the policy adds nothing", one.Name, err)
		}
	}
	return nil
}

// carries reports whether the webhook has written the same into the pod in an earlier call.
func carries(pod *corev1.Pod, s *Sidecars) bool {
	return slices.Contains(strings.Split(pod.Annotations[v1alpha1.AnnotationInjectedParts], ","),
		carriedText(partSidecars(s.Policy), hashOf(s)))
}

// noRoomFor tells why a pod cannot have content, or "".
func noRoomFor(pod *corev1.Pod, c *Content) string {
	have := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	volumes := slices.Concat(pod.Spec.Volumes, c.Volumes)
	for i := range c.Volumes {
		if slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == c.Volumes[i].Name }) {
			return fmt.Sprintf("the pod has a volume %q of its own; rename one of the two", c.Volumes[i].Name)
		}
	}
	for _, one := range slices.Concat(c.Containers, c.InitContainers) {
		for _, mount := range one.VolumeMounts {
			if !slices.ContainsFunc(volumes, func(v corev1.Volume) bool { return v.Name == mount.Name }) {
				return fmt.Sprintf("container %s mounts volume %q, which the pod does not have", one.Name, mount.Name)
			}
		}
		at := slices.IndexFunc(have, named(one.Name))
		switch {
		case slices.Contains(addable, one.Name):
			if problem := noRoomToAdd(have, at, &one); problem != "" {
				return problem
			}
		case at >= 0:
			return fmt.Sprintf("the pod has a container %q of its own; rename one of the two", one.Name)
		default:
			if problem := portTaken(pod, have, &one); problem != "" {
				return problem
			}
		}
	}
	return ""
}

// noRoomToAdd tells why an addition cannot be made to the container at a place, or "". A container that the pod does not
// have is passed over: a policy is meant for many pods.
func noRoomToAdd(have []corev1.Container, at int, addition *corev1.Container) string {
	if at < 0 {
		return ""
	}
	for _, mount := range addition.VolumeMounts {
		if slices.ContainsFunc(have[at].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == mount.MountPath }) {
			return fmt.Sprintf("container %s has something mounted at %s already", addition.Name, mount.MountPath)
		}
	}
	return ""
}

// portTaken tells which port of a container is another's, or "": all containers of a pod share one address.
func portTaken(pod *corev1.Pod, have []corev1.Container, one *corev1.Container) string {
	for _, port := range one.Ports {
		if pod.Spec.HostNetwork {
			return fmt.Sprintf("the pod uses its node's network, where port %d of container %s may be taken",
				port.ContainerPort, one.Name)
		}
		for i := range have {
			if slices.ContainsFunc(have[i].Ports, func(p corev1.ContainerPort) bool {
				return p.ContainerPort == port.ContainerPort && samePort(p.Protocol, port.Protocol)
			}) {
				return fmt.Sprintf("containers %s and %s both listen on port %d", have[i].Name, one.Name, port.ContainerPort)
			}
		}
	}
	return ""
}

// samePort compares protocols, of which TCP may be left out.
func samePort(a, b corev1.Protocol) bool {
	return cmp.Or(a, corev1.ProtocolTCP) == cmp.Or(b, corev1.ProtocolTCP)
}

// addContainer adds a container to a pod, or what it has to one of KServe's.
func addContainer(pod *corev1.Pod, one *corev1.Container) {
	if !slices.Contains(addable, one.Name) {
		pod.Spec.Containers = append(pod.Spec.Containers, *one)
		return
	}
	if at := slices.IndexFunc(pod.Spec.Containers, named(one.Name)); at >= 0 {
		c := &pod.Spec.Containers[at]
		addEnv(c, one.Env)
		c.EnvFrom = append(c.EnvFrom, one.EnvFrom...)
		c.VolumeMounts = append(c.VolumeMounts, one.VolumeMounts...)
	}
}

// addInitContainer adds an init container, or one beside the model where the cluster knows no init containers that go on:
// the pod would wait for its end for ever.
func addInitContainer(pod *corev1.Pod, one corev1.Container, settings Settings) {
	if settings.PlainSidecars && one.RestartPolicy != nil && *one.RestartPolicy == corev1.ContainerRestartPolicyAlways {
		one.RestartPolicy = nil
		pod.Spec.Containers = append(pod.Spec.Containers, one)
		return
	}
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, one)
}

// addEnv sets the variables that a container does not have: what a user has set stays.
func addEnv(c *corev1.Container, list []corev1.EnvVar) {
	for _, one := range list {
		if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == one.Name }) {
			c.Env = append(c.Env, one)
		}
	}
}

// behindModel moves init containers behind the one that fetches the model, which KServe may have added after them.
func behindModel(pod *corev1.Pod, list []corev1.Container) {
	model := slices.IndexFunc(pod.Spec.InitContainers, named(kserve.ContainerStorageInitializer))
	isEarly := func(c corev1.Container) bool {
		return slices.ContainsFunc(list, named(c.Name)) && slices.IndexFunc(pod.Spec.InitContainers, named(c.Name)) < model
	}
	if model < 0 || !slices.ContainsFunc(pod.Spec.InitContainers, isEarly) {
		return
	}
	var first, last []corev1.Container
	for _, c := range pod.Spec.InitContainers {
		if slices.ContainsFunc(list, named(c.Name)) {
			last = append(last, c)
		} else {
			first = append(first, c)
		}
	}
	pod.Spec.InitContainers = slices.Concat(first, last)
}

func isZeroContainer(c *corev1.Container) bool {
	return equality.Semantic.DeepEqual(c, &corev1.Container{})
}
