// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

var (
	images = sidecar.Settings{
		Preloader: "registry.example/preloader:1", PreloaderGPU: "registry.example/preloader-gpu:1",
		FeatureCache: "registry.example/outrigger:1",
	}
	both = sidecar.Plan{
		Preload:      &sidecar.Preload{Verify: v1alpha1.VerifyRequire},
		FeatureCache: &sidecar.FeatureCache{Memcached: "features"},
	}
)

const kserveImage = "kserve/storage-initializer:v0.20.0"

// modelPod is a predictor's pod as the Deployment's template has it.
func modelPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "m-predictor-",
			Labels:       map[string]string{"serving.kserve.io/inferenceservice": "m", "component": "predictor"},
			Annotations:  map[string]string{"user": "own"},
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "prepare", Image: "busybox"}},
			Containers: []corev1.Container{
				{Name: "kserve-container", Image: "server", Env: []corev1.EnvVar{{Name: "A", Value: "1"}}},
				{Name: "helper", Image: "helper"},
			},
			Volumes: []corev1.Volume{{Name: "own"}},
		},
	}
}

// afterKServe does to a pod what KServe's webhook does.
func afterKServe(pod *corev1.Pod, args ...string) *corev1.Pod {
	const name = "storage-initializer"
	if slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name }) {
		return pod
	}
	const volume = "kserve-provision-location"
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{
		Name: name, Image: kserveImage, Args: args, ImagePullPolicy: corev1.PullAlways,
		Env:                      []corev1.EnvVar{{Name: "AWS_ACCESS_KEY_ID", Value: "k"}},
		VolumeMounts:             []corev1.VolumeMount{{Name: volume, MountPath: "/mnt/models"}},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	})
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
		Name: volume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
	})
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{
		Name: volume, MountPath: "/mnt/models", ReadOnly: true,
	})
	return pod
}

func container(t *testing.T, pod *corev1.Pod, name string) *corev1.Container {
	t.Helper()
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	t.Fatalf("the pod has no container %s", name)
	return nil
}

func env(c *corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

func TestInjectPreload(t *testing.T) {
	for name, tc := range map[string]struct {
		args       []string
		image      string
		wantImage  string
		wantPolicy corev1.PullPolicy
	}{
		"one s3 source":               {args: []string{"s3://b/m", "/mnt/models"}, wantImage: images.Preloader, wantPolicy: corev1.PullIfNotPresent},
		"many s3 sources":             {args: []string{"s3://b/m", "/mnt/a", "s3://b/n", "/mnt/b"}, wantImage: images.Preloader, wantPolicy: corev1.PullIfNotPresent},
		"the policy's image":          {args: []string{"s3://b/m", "/mnt/models"}, image: "own/p@sha256:00", wantImage: "own/p@sha256:00", wantPolicy: corev1.PullIfNotPresent},
		"an image without a tag":      {args: []string{"s3://b/m", "/mnt/models"}, image: "host:5000/p", wantImage: "host:5000/p", wantPolicy: corev1.PullAlways},
		"an image tagged latest":      {args: []string{"s3://b/m", "/mnt/models"}, image: "p:latest", wantImage: "p:latest", wantPolicy: corev1.PullAlways},
		"Hugging Face stays KServe's": {args: []string{"hf://org/m", "/mnt/models"}, wantImage: kserveImage, wantPolicy: corev1.PullAlways},
		"one of many is not s3":       {args: []string{"s3://b/m", "/mnt/a", "gs://b/n", "/mnt/b"}, wantImage: kserveImage, wantPolicy: corev1.PullAlways},
		"arguments of another shape":  {args: []string{"s3://b/m"}, wantImage: kserveImage, wantPolicy: corev1.PullAlways},
	} {
		t.Run(name, func(t *testing.T) {
			pod := afterKServe(modelPod(), tc.args...)
			before := container(t, pod, "storage-initializer").DeepCopy()
			problems := sidecar.Inject(pod, sidecar.Plan{
				Preload: &sidecar.Preload{Image: tc.image, Verify: v1alpha1.VerifyRequire},
			}, images)
			if problems != nil {
				t.Errorf("problems %v", problems)
			}
			got := container(t, pod, "storage-initializer")
			if got.Image != tc.wantImage || got.ImagePullPolicy != tc.wantPolicy {
				t.Errorf("image %s, policy %s; want %s, %s", got.Image, got.ImagePullPolicy, tc.wantImage, tc.wantPolicy)
			}
			wantVerify := "require"
			if tc.wantImage == kserveImage {
				wantVerify = ""
			}
			if v := env(got, "PRELOADER_VERIFY"); v != wantVerify {
				t.Errorf("PRELOADER_VERIFY %q, want %q", v, wantVerify)
			}
			got.Image, got.ImagePullPolicy = before.Image, before.ImagePullPolicy
			got.Env = slices.DeleteFunc(got.Env, func(e corev1.EnvVar) bool { return strings.HasPrefix(e.Name, "PRELOADER_") })
			if diff := cmp.Diff(before, got); diff != "" {
				t.Errorf("more of the container was changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestInjectKeepsWhatTheUserHasSet(t *testing.T) {
	pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
	container(t, pod, "storage-initializer").Env = []corev1.EnvVar{{Name: "PRELOADER_VERIFY", Value: "off"}}
	container(t, pod, "kserve-container").Env = []corev1.EnvVar{{Name: "FEATURE_CACHE_ADDR", Value: "elsewhere:1"}}
	sidecar.Inject(pod, both, images)
	if got := env(container(t, pod, "storage-initializer"), "PRELOADER_VERIFY"); got != "off" {
		t.Errorf("PRELOADER_VERIFY %q, want off", got)
	}
	if got := env(container(t, pod, "kserve-container"), "FEATURE_CACHE_ADDR"); got != "elsewhere:1" {
		t.Errorf("FEATURE_CACHE_ADDR %q, want elsewhere:1", got)
	}
}

// TestInjectChangesNothingElse removes from an equipped pod what was added, and wants the pod that was there before.
func TestInjectChangesNothingElse(t *testing.T) {
	pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
	before := pod.DeepCopy()
	sidecar.Inject(pod, both, images)
	if got := pod.Annotations[v1alpha1.AnnotationInjected]; got != both.Hash() {
		t.Errorf("injected %q, want %q", got, both.Hash())
	}
	delete(pod.Annotations, v1alpha1.AnnotationInjected)
	delete(pod.Annotations, v1alpha1.AnnotationInjectedParts)
	initializer := container(t, pod, "storage-initializer")
	initializer.Image, initializer.ImagePullPolicy = kserveImage, corev1.PullAlways
	initializer.Env = slices.DeleteFunc(initializer.Env, func(e corev1.EnvVar) bool { return e.Name == "PRELOADER_VERIFY" })
	model := container(t, pod, "kserve-container")
	if got := env(model, "FEATURE_CACHE_ADDR"); got != "127.0.0.1:11211" {
		t.Errorf("FEATURE_CACHE_ADDR %q", got)
	}
	model.Env = slices.DeleteFunc(model.Env, func(e corev1.EnvVar) bool { return e.Name == "FEATURE_CACHE_ADDR" })
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == v1alpha1.ContainerFeatureCache
	})
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "outrigger-ring" })
	want, _ := json.Marshal(before)
	got, _ := json.Marshal(pod)
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("the rest of the pod differs (-before +after):\n%s", diff)
	}
}

// TestInjectInAnyOrder calls both webhooks in both orders, as often as an API server may, with the defaults that it
// fills in between.
func TestInjectInAnyOrder(t *testing.T) {
	ours := func(pod *corev1.Pod) {
		sidecar.Inject(pod, both, images)
		for i := range pod.Spec.Volumes {
			if cm := pod.Spec.Volumes[i].ConfigMap; cm != nil && cm.DefaultMode == nil {
				cm.DefaultMode = ptr.To[int32](0o644)
			}
		}
		for i := range pod.Spec.InitContainers {
			pod.Spec.InitContainers[i].TerminationMessagePath = "/dev/termination-log"
		}
	}
	theirs := func(pod *corev1.Pod) { afterKServe(pod, "s3://b/m", "/mnt/models") }
	for name, order := range map[string][]func(*corev1.Pod){
		"theirs, ours":         {theirs, ours},
		"ours, theirs, ours":   {ours, theirs, ours},
		"theirs, ours, theirs": {theirs, ours, theirs},
	} {
		t.Run(name, func(t *testing.T) {
			pod := modelPod()
			for _, call := range order {
				call(pod)
			}
			if got := container(t, pod, "storage-initializer").Image; got != images.Preloader {
				t.Errorf("image %s of the storage-initializer", got)
			}
			restart := container(t, pod, v1alpha1.ContainerFeatureCache).RestartPolicy
			if ptr.Deref(restart, "") != corev1.ContainerRestartPolicyAlways {
				t.Errorf("the feature cache is no native sidecar: %v", restart)
			}
			settled := pod.DeepCopy()
			for _, call := range []func(*corev1.Pod){ours, theirs, ours} {
				call(pod)
			}
			if diff := cmp.Diff(settled, pod); diff != "" {
				t.Errorf("calling again changed the pod (-before +after):\n%s", diff)
			}
		})
	}
}

func TestInjectNeverKeepsAPodFromStarting(t *testing.T) {
	for name, tc := range map[string]struct {
		change      func(*corev1.Pod)
		wantProblem string
	}{
		"a container of the feature cache's name": {
			change:      func(p *corev1.Pod) { p.Spec.Containers[1].Name = v1alpha1.ContainerFeatureCache },
			wantProblem: `a container "feature-cache" of its own`,
		},
		"an init container of the feature cache's name": {
			change:      func(p *corev1.Pod) { p.Spec.InitContainers[0].Name = v1alpha1.ContainerFeatureCache },
			wantProblem: `a container "feature-cache" of its own`,
		},
		"a memcached of the pod's own": {
			change: func(p *corev1.Pod) {
				p.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 11211}}
			},
			wantProblem: "container helper listens on port 11211",
		},
		"the node's network": {
			change:      func(p *corev1.Pod) { p.Spec.HostNetwork = true },
			wantProblem: "the pod uses its node's network",
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := modelPod()
			tc.change(pod)
			before := pod.DeepCopy()
			problems := sidecar.Inject(pod, both, images)
			if len(problems) != 1 || !strings.Contains(problems[0].Message, tc.wantProblem) {
				t.Errorf("problems %q, want one with %q", problems, tc.wantProblem)
			}
			if got := pod.Annotations[v1alpha1.AnnotationProblems]; !strings.Contains(got, tc.wantProblem) {
				t.Errorf("the pod says %q", got)
			}
			if diff := cmp.Diff(before.Spec, pod.Spec); diff != "" {
				t.Errorf("the pod was changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestFeatureCacheRunsInAPodOfRoot(t *testing.T) {
	pod := modelPod()
	sidecar.Inject(pod, both, images)
	if user := container(t, pod, v1alpha1.ContainerFeatureCache).SecurityContext.RunAsUser; user != nil {
		t.Errorf("user %d, want that of the image or of the pod", *user)
	}
	pod = modelPod()
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](0)}
	sidecar.Inject(pod, both, images)
	if user := container(t, pod, v1alpha1.ContainerFeatureCache).SecurityContext.RunAsUser; ptr.Deref(user, 0) == 0 {
		t.Error("the kubelet refuses a container that must not run as root, in a pod that says root")
	}
}

func TestImagesThatAreAllowed(t *testing.T) {
	allowed := []string{"registry.example/team/", "other.example/preloader:1"}
	for image, want := range map[string]bool{
		"":                                 true,
		"registry.example/team/p:1":        true,
		"registry.example/team-evil/p:1":   false,
		"registry.example/p:1":             false,
		"other.example/preloader:1":        true,
		"other.example/preloader:12":       false,
		"x/registry.example/team/p:1":      false,
		"registry.example/team/deep/p@sha": true,
	} {
		if err := (sidecar.Settings{Allowed: allowed}).CheckAllowed(image); (err == nil) != want {
			t.Errorf("image %q: %v, want allowed %v", image, err, want)
		}
		if err := (sidecar.Settings{}).CheckAllowed(image); err != nil {
			t.Errorf("image %q, and no list: %v", image, err)
		}
		pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
		limited := images
		limited.Allowed = allowed
		problems := sidecar.Inject(pod, sidecar.Plan{Preload: &sidecar.Preload{Image: image}}, limited)
		wantImage := image
		if image == "" || !want {
			wantImage = images.Preloader
		}
		if got := container(t, pod, "storage-initializer").Image; got != wantImage || (problems == nil) != want {
			t.Errorf("image %q: the pod runs %q, problems %v", image, got, problems)
		}
	}
}

func TestAGuaranteedPodStaysSo(t *testing.T) {
	pod := modelPod()
	pod.Spec.InitContainers = nil
	for i := range pod.Spec.Containers {
		pod.Spec.Containers[i].Resources.Limits = list("1", "1Gi")
	}
	sidecar.Inject(pod, both, images)
	r := container(t, pod, v1alpha1.ContainerFeatureCache).Resources
	if diff := cmp.Diff(r.Limits, r.Requests); diff != "" || r.Limits.Cpu().IsZero() {
		t.Errorf("the feature cache takes the guarantee from the pod: limits and requests differ:\n%s", diff)
	}
	pod = modelPod()
	sidecar.Inject(pod, both, images)
	if r := container(t, pod, v1alpha1.ContainerFeatureCache).Resources; !r.Limits.Cpu().IsZero() {
		t.Errorf("the feature cache is throttled in a pod that has no guarantee: limits %v", r.Limits)
	}
}

func TestInjectOfNothing(t *testing.T) {
	pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
	before := pod.DeepCopy()
	sidecar.Inject(pod, sidecar.Plan{}, images)
	if diff := cmp.Diff(before, pod); diff != "" {
		t.Errorf("the pod was changed (-before +after):\n%s", diff)
	}
}

func TestASharedFeatureCacheIsConnected(t *testing.T) {
	shared := sidecar.Plan{FeatureCache: &sidecar.FeatureCache{Memcached: "features", Shared: true}}
	pod := modelPod()
	pod.Namespace = "models"
	before := pod.DeepCopy()
	if problems := sidecar.Inject(pod, shared, images); problems != nil {
		t.Errorf("problems %v", problems)
	}
	model := container(t, pod, "kserve-container")
	if got := env(model, "FEATURE_CACHE_ADDR"); got != "features-node-cache.models.svc:11211" {
		t.Errorf("FEATURE_CACHE_ADDR %q", got)
	}
	model.Env = before.Spec.Containers[0].Env
	if diff := cmp.Diff(before.Spec, pod.Spec); diff != "" {
		t.Errorf("the rest of the pod was changed (-before +after):\n%s", diff)
	}
	if !shared.FeatureCache.Carries(pod.Annotations) {
		t.Error("the pod does not say which cache it uses")
	}
	if own := (sidecar.FeatureCache{Memcached: "features"}); own.Carries(pod.Annotations) {
		t.Error("the pod says that it has a cache of its own")
	}

	// A port that is taken matters only to a cache of the pod's own; the node's names do matter.
	pod = modelPod()
	pod.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 11211}}
	if problems := sidecar.Inject(pod, shared, images); problems != nil {
		t.Errorf("problems %v", problems)
	}
	pod = modelPod()
	pod.Spec.HostNetwork = true
	if problems := sidecar.Inject(pod, shared, images); len(problems) != 1 {
		t.Errorf("problems %v, want one", problems)
	}
	pod.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	if problems := sidecar.Inject(pod, shared, images); problems != nil {
		t.Errorf("problems %v", problems)
	}
}

// TestPlainSidecars: a cluster that knows no sidecars among init containers would wait for their end.
func TestPlainSidecars(t *testing.T) {
	old := images
	old.PlainSidecars = true
	plan := planOf(t, policy("a", cache("features"), accepted(metav1.ConditionTrue),
		adds(t, `initContainers: [{name: goes-on, image: own, restartPolicy: Always}, {name: ends, image: own}]`)))
	pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
	sidecar.Inject(pod, plan, old)
	names := func(list []corev1.Container) (names []string) {
		for i := range list {
			if list[i].RestartPolicy != nil {
				t.Errorf("container %s has a restartPolicy", list[i].Name)
			}
			names = append(names, list[i].Name)
		}
		return names
	}
	if diff := cmp.Diff(
		[]string{"kserve-container", "helper", "feature-cache", "goes-on"},
		names(pod.Spec.Containers),
	); diff != "" {
		t.Errorf("containers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"prepare", "storage-initializer", "ends"}, names(pod.Spec.InitContainers)); diff != "" {
		t.Errorf("init containers (-want +got):\n%s", diff)
	}
	settled := pod.DeepCopy()
	sidecar.Inject(pod, plan, old)
	if diff := cmp.Diff(settled, pod); diff != "" {
		t.Errorf("calling again changed the pod (-before +after):\n%s", diff)
	}
}

// TestAPinReachesThePreloader: whatever is written where a digest belongs, so that no pod starts with other content.
func TestAPinReachesThePreloader(t *testing.T) {
	for value, want := range map[string]string{"true": "", "sha256:0a": "sha256:0a", "sha256:": "sha256:"} {
		subject := sidecar.Subject{
			Component: v1alpha1.ComponentPredictor, Annotations: map[string]string{v1alpha1.AnnotationPreload: value},
		}
		d := sidecar.Resolve(subject, nil)
		pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
		sidecar.Inject(pod, d.Plan, images)
		if got := env(container(t, pod, "storage-initializer"), "PRELOADER_PIN"); got != want || len(d.Problems) > 0 {
			t.Errorf("annotation %q came to PRELOADER_PIN %q, want %q; problems %v", value, got, want, d.Problems)
		}
	}
}

func TestPreloadIO(t *testing.T) {
	for mode, want := range map[v1alpha1.PreloadIO]string{
		"": "", v1alpha1.PreloadAuto: "", v1alpha1.PreloadWarm: "warm", v1alpha1.PreloadBounded: "bounded",
		v1alpha1.PreloadDirect: "direct",
	} {
		p := policy("a", preload("", v1alpha1.VerifyAuto))
		p.Spec.Preload.IO = mode
		pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
		sidecar.Inject(pod, planOf(t, p), images)
		if got := env(container(t, pod, "storage-initializer"), "PRELOADER_IO"); got != want {
			t.Errorf("io %q came to PRELOADER_IO %q, want %q", mode, got, want)
		}
	}
}
