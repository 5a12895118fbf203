// SPDX-License-Identifier: Apache-2.0

package sidecar

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
)

// Settings are what the administrator has chosen for all policies.
type Settings struct {
	// Preloader, PreloaderGPU and FeatureCache are the images that are used where a plan names none; PreloaderGPU where
	// GPUs are checked.
	Preloader, PreloaderGPU, FeatureCache string
	// Allowed limits the images that policies may name: each is an image, or ends in "/" and stands for all images
	// below it. An empty list allows all.
	Allowed []string
	// NodeCachePath is a directory of nodes below which the pods of each namespace share fetched models; "" is none.
	NodeCachePath string
	// PlainSidecars is for clusters that know no sidecars among init containers: Kubernetes before 1.29.
	PlainSidecars bool
}

// CheckAllowed returns an error if policies may not name an image.
func (s Settings) CheckAllowed(image string) error {
	if image == "" || len(s.Allowed) == 0 || slices.ContainsFunc(s.Allowed, func(allowed string) bool {
		return image == allowed || strings.HasSuffix(allowed, "/") && strings.HasPrefix(image, allowed)
	}) {
		return nil
	}
	return fmt.Errorf("image %q is none that the administrator allows: %s", image, strings.Join(s.Allowed, ", "))
}

const (
	envPin    = "PRELOADER_PIN"
	envVerify = "PRELOADER_VERIFY"
	envIO     = "PRELOADER_IO"
	// envVolumeSize tells the preloader of a bound that the file system of an emptyDir on disk does not know.
	envVolumeSize = "PRELOADER_VOLUME_SIZE"
	s3Scheme      = "s3://"
)

// Inject writes a plan into a pod. Doing it again changes nothing, and it may be done before or after KServe's webhook:
// what is not there yet is equipped when the webhook is called again. Everything else in the pod stays as it is. What
// the pod leaves no room for is not written, and reported: it would keep the pod from starting. The report is also put
// on the pod, for those who come later.
func Inject(pod *corev1.Pod, plan Plan, settings Settings) []Problem {
	if plan.IsZero() {
		return nil
	}
	var problems []Problem
	var written []Part
	if plan.Preload != nil {
		preload := *plan.Preload
		if err := settings.CheckAllowed(preload.Image); err != nil {
			problems = append(problems, Problem{
				Reason: v1alpha1.ReasonInvalidPolicy, Message: err.Error() + "; the manager's own is used",
			})
			preload.Image = ""
		}
		if problem := injectPreload(pod, preload, settings); problem != "" {
			problems = append(problems, Problem{Reason: v1alpha1.ReasonNoGPU, Message: problem})
		}
		written = append(written, PartPreload)
	}
	if plan.FeatureCache != nil {
		if problem := connectFeatureCache(pod, *plan.FeatureCache, settings); problem != "" {
			problems = append(problems, Problem{Reason: v1alpha1.ReasonNoRoom, Message: problem})
		} else {
			written = append(written, PartFeatureCache)
		}
	}
	for i := range plan.Sidecars {
		if problem := injectSidecars(pod, &plan.Sidecars[i], settings); problem != nil {
			problems = append(problems, *problem)
		} else {
			written = append(written, partSidecars(plan.Sidecars[i].Policy))
		}
	}
	note(pod, plan, written, problems)
	return problems
}

// note writes on a pod what was done to it.
func note(pod *corev1.Pod, plan Plan, written []Part, problems []Problem) {
	pod.Annotations = maps.Clone(pod.Annotations)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[v1alpha1.AnnotationInjected] = plan.Hash()
	pod.Annotations[v1alpha1.AnnotationInjectedParts] = plan.partsText(written)
	delete(pod.Annotations, v1alpha1.AnnotationProblems)
	if text := Join(problems); text != "" {
		pod.Annotations[v1alpha1.AnnotationProblems] = text
	}
}

// injectPreload puts the preloader into KServe's own init container. Its name and arguments stay: KServe tells by the
// name that it has been here, and reads the model's state from it. It returns why GPUs are not checked as asked, or "".
func injectPreload(pod *corev1.Pod, preload Preload, settings Settings) string {
	gpus, problem := gpusToCheck(pod, preload)
	image := cmp.Or(preload.Image, settings.Preloader)
	if len(gpus) > 0 {
		image = cmp.Or(preload.Image, settings.PreloaderGPU)
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.Name != kserve.ContainerStorageInitializer || !allFromS3(c.Args) {
			continue
		}
		isNew := c.Image != image
		if isNew {
			c.Image, c.ImagePullPolicy = image, pullPolicy(image)
		}
		equipStorage(pod, c, preload)
		shareModels(pod, c, preload.NodeCache, settings)
		bringKernels(pod, c, preload.JITCache)
		if len(gpus) > 0 {
			lendGPUs(c, gpus, preload.GPU)
			// The policy's limit was just set anew; KServe's was raised when the image was replaced.
			if isNew || preload.limitsMemory() {
				makeRoomForDriver(pod, c, gpus)
			}
		}
		setEnv(c, envVerify, strings.ToLower(string(preload.Verify)))
		if preload.Pin != "" {
			setEnv(c, envPin, preload.Pin)
		}
		if preload.IO != "" {
			setEnv(c, envIO, strings.ToLower(string(preload.IO)))
		}
	}
	return problem
}

// allFromS3 reports whether every source of the pairs "source destination" has an s3:// address: the preloader refuses
// others, so they stay with KServe's own image.
func allFromS3(args []string) bool {
	for i := 0; i < len(args); i += 2 {
		if !CanPreload(args[i]) {
			return false
		}
	}
	return len(args) > 0 && len(args)%2 == 0
}

// CanPreload reports whether the preloader can fetch a model from an address.
func CanPreload(uri string) bool { return strings.HasPrefix(uri, s3Scheme) }

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

// errorOf makes an error of problems.
func errorOf(problems []Problem) error { return errors.New(Join(problems)) }

// Join makes one text of problems, or "" of none.
func Join(problems []Problem) string {
	messages := make([]string, len(problems))
	for i, p := range problems {
		messages[i] = p.Message
	}
	return strings.Join(messages, "; ")
}
