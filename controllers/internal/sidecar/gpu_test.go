// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

func checksGPU(mode v1alpha1.PreloadGPU) change {
	return func(p *v1alpha1.SidecarPolicy) {
		if p.Spec.Preload == nil {
			p.Spec.Preload = &v1alpha1.Preload{Verify: v1alpha1.VerifyAuto}
		}
		p.Spec.Preload.GPU = mode
	}
}

func TestResolveGPU(t *testing.T) {
	const key = v1alpha1.AnnotationWarmGPU
	for name, tc := range map[string]struct {
		annotations map[string]string
		policies    []v1alpha1.SidecarPolicy
		want        *sidecar.Preload
		wantProblem string
	}{
		"the annotation alone brings the preloader": {
			annotations: map[string]string{key: "true"},
			want:        &sidecar.Preload{Verify: v1alpha1.VerifyAuto, GPU: v1alpha1.PreloadGPUPreflight, GPUAsked: true},
		},
		"load asks for more": {
			annotations: map[string]string{key: "load"},
			want:        &sidecar.Preload{Verify: v1alpha1.VerifyAuto, GPU: v1alpha1.PreloadGPULoad, GPUAsked: true},
		},
		"it is added to what a policy has": {
			annotations: map[string]string{key: "preflight"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", preload("x:1", v1alpha1.VerifyRequire))},
			want: &sidecar.Preload{
				Image: "x:1", Verify: v1alpha1.VerifyRequire, GPU: v1alpha1.PreloadGPUPreflight, GPUAsked: true,
			},
		},
		"true keeps the policy's mode": {
			annotations: map[string]string{key: "true"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", checksGPU(v1alpha1.PreloadGPULoad))},
			want:        &sidecar.Preload{Verify: v1alpha1.VerifyAuto, GPU: v1alpha1.PreloadGPULoad, GPUAsked: true},
		},
		"preflight wins over the policy's load": {
			annotations: map[string]string{key: "preflight"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", checksGPU(v1alpha1.PreloadGPULoad))},
			want:        &sidecar.Preload{Verify: v1alpha1.VerifyAuto, GPU: v1alpha1.PreloadGPUPreflight, GPUAsked: true},
		},
		"false forbids the policy's check, and not its preloader": {
			annotations: map[string]string{key: "false"},
			policies:    []v1alpha1.SidecarPolicy{policy("a", checksGPU(v1alpha1.PreloadGPULoad))},
			want:        &sidecar.Preload{Verify: v1alpha1.VerifyAuto},
		},
		"false alone asks for nothing": {annotations: map[string]string{key: "false"}},
		"Off is as if it were not there": {
			policies: []v1alpha1.SidecarPolicy{policy("a", checksGPU(v1alpha1.PreloadGPUOff))},
			want:     &sidecar.Preload{Verify: v1alpha1.VerifyAuto},
		},
		"a policy alone": {
			policies: []v1alpha1.SidecarPolicy{policy("a", checksGPU(v1alpha1.PreloadGPUPreflight))},
			want:     &sidecar.Preload{Verify: v1alpha1.VerifyAuto, GPU: v1alpha1.PreloadGPUPreflight},
		},
		"a misspelt value": {
			annotations: map[string]string{key: "yes"},
			wantProblem: `annotation ` + key + `: "yes" is none of true, preflight, load and false; it is ignored`,
		},
		"without the preloader it cannot be": {
			annotations: map[string]string{key: "true", v1alpha1.AnnotationPreload: "false"},
			wantProblem: `"true" is impossible without the preloader, which annotation ` + v1alpha1.AnnotationPreload + " forbids",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := sidecar.Resolve(
				sidecar.Subject{Annotations: tc.annotations, Component: v1alpha1.ComponentPredictor},
				tc.policies,
			)
			if diff := cmp.Diff(tc.want, got.Plan.Preload); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if text := sidecar.Join(got.Problems); !strings.Contains(text, tc.wantProblem) || tc.wantProblem == "" && text != "" {
				t.Errorf("problems %q, want %q", text, tc.wantProblem)
			}
		})
	}
}

// resources are the limits of a container, and requests to match for all that is no CPU or memory.
func resources(pairs ...string) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Limits: corev1.ResourceList{}, Requests: corev1.ResourceList{}}
	for i := 0; i < len(pairs); i += 2 {
		name, count := corev1.ResourceName(pairs[i]), resource.MustParse(pairs[i+1])
		r.Limits[name] = count
		if strings.Contains(pairs[i], "/") {
			r.Requests[name] = count
		}
	}
	return r
}

func TestLendGPUs(t *testing.T) {
	const annotation = "annotation " + v1alpha1.AnnotationWarmGPU + ": container kserve-container "
	asked := &sidecar.Preload{Verify: v1alpha1.VerifyAuto, GPU: v1alpha1.PreloadGPUPreflight, GPUAsked: true}
	byPolicy := &sidecar.Preload{Verify: v1alpha1.VerifyAuto, GPU: v1alpha1.PreloadGPULoad}
	for name, tc := range map[string]struct {
		preload *sidecar.Preload
		model   corev1.ResourceRequirements
		change  func(*corev1.Pod)
		fetcher corev1.ResourceRequirements

		wantImage   string
		wantGPU     string
		wantFetcher corev1.ResourceRequirements
		wantProblem string
	}{
		"one GPU": {
			preload: asked, model: resources("nvidia.com/gpu", "1"),
			wantImage: images.PreloaderGPU, wantGPU: "preflight", wantFetcher: resources("nvidia.com/gpu", "1"),
		},
		"many GPUs": {
			preload: byPolicy, model: resources("nvidia.com/gpu", "8"),
			wantImage: images.PreloaderGPU, wantGPU: "load", wantFetcher: resources("nvidia.com/gpu", "8"),
		},
		"a part of one": {
			preload: asked, model: resources("nvidia.com/mig-1g.10gb", "2"),
			wantImage: images.PreloaderGPU, wantGPU: "preflight", wantFetcher: resources("nvidia.com/mig-1g.10gb", "2"),
		},
		"one that takes turns": {
			preload: asked, model: resources("nvidia.com/gpu.shared", "1"),
			wantImage: images.PreloaderGPU, wantGPU: "preflight", wantFetcher: resources("nvidia.com/gpu.shared", "1"),
		},
		"the worker of a model that spans nodes": {
			preload: asked, model: resources("nvidia.com/gpu", "1"),
			change:    func(p *corev1.Pod) { p.Spec.Containers[0].Name = "worker-container" },
			wantImage: images.PreloaderGPU, wantGPU: "preflight", wantFetcher: resources("nvidia.com/gpu", "1"),
		},
		"a network card of the same maker is left with the model": {
			preload: asked, model: resources("nvidia.com/gpu", "1", "nvidia.com/hostdev", "1"),
			wantImage: images.PreloaderGPU, wantGPU: "preflight", wantFetcher: resources("nvidia.com/gpu", "1"),
		},
		"the policy's own image": {
			preload: &sidecar.Preload{Image: "own/gpu:1", GPU: v1alpha1.PreloadGPULoad}, model: resources("nvidia.com/gpu", "1"),
			wantImage: "own/gpu:1", wantGPU: "load", wantFetcher: resources("nvidia.com/gpu", "1"),
		},
		"the driver's share of memory": {
			preload: asked, model: resources("nvidia.com/gpu", "2", "memory", "64Gi"), fetcher: resources("memory", "1Gi"),
			wantImage: images.PreloaderGPU, wantGPU: "preflight",
			wantFetcher: resources("nvidia.com/gpu", "2", "memory", "2Gi"),
		},
		"no more memory than the model may use": {
			preload: asked, model: resources("nvidia.com/gpu", "2", "memory", "1500Mi"), fetcher: resources("memory", "1Gi"),
			wantImage: images.PreloaderGPU, wantGPU: "preflight",
			wantFetcher: resources("nvidia.com/gpu", "2", "memory", "1500Mi"),
		},
		"never less memory than there was": {
			preload: asked, model: resources("nvidia.com/gpu", "2", "memory", "512Mi"), fetcher: resources("memory", "1Gi"),
			wantImage: images.PreloaderGPU, wantGPU: "preflight",
			wantFetcher: resources("nvidia.com/gpu", "2", "memory", "1Gi"),
		},
		"the policy's memory, and the driver's share": {
			preload: &sidecar.Preload{GPU: v1alpha1.PreloadGPULoad, Resources: &v1alpha1.PreloadResources{Limits: resources("memory", "2Gi").Limits}},
			model:   resources("nvidia.com/gpu", "2"), fetcher: resources("memory", "1Gi"),
			wantImage: images.PreloaderGPU, wantGPU: "load", wantFetcher: resources("nvidia.com/gpu", "2", "memory", "3Gi"),
		},
		"no GPU, and an annotation": {
			preload: asked, model: resources("memory", "1Gi"), wantImage: images.Preloader,
			wantProblem: annotation + `has no GPU; give it a limit such as nvidia.com/gpu: "1", or take the annotation away`,
		},
		"none of a GPU is no GPU": {
			preload: asked, model: resources("nvidia.com/gpu", "0"), wantImage: images.Preloader, wantProblem: "has no GPU",
		},
		"no GPU, and a policy meant for many": {preload: byPolicy, model: resources(), wantImage: images.Preloader},
		"another maker's GPU": {
			preload: asked, model: resources("amd.com/gpu", "1"), wantImage: images.Preloader,
			wantProblem: annotation + "has amd.com/gpu, and only NVIDIA's GPUs can be checked; no GPU is checked",
		},
		"a GPU by a resource claim": {
			preload: asked, model: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "gpu"}}},
			wantImage: images.Preloader, wantProblem: annotation + "has its devices by a resource claim",
		},
		"nobody asks": {
			preload: &sidecar.Preload{}, model: resources("nvidia.com/gpu", "1"), wantImage: images.Preloader,
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
			pod.Spec.Containers[0].Resources = tc.model
			if tc.change != nil {
				tc.change(pod)
			}
			fetcher := container(t, pod, "storage-initializer")
			fetcher.Resources = tc.fetcher
			before := pod.DeepCopy()
			plan := sidecar.Plan{Preload: tc.preload}
			problems := sidecar.Inject(pod, plan, images)
			if text := sidecar.Join(problems); !strings.Contains(text, tc.wantProblem) || (tc.wantProblem == "") != (text == "") {
				t.Errorf("problems %q, want %q", text, tc.wantProblem)
			}
			if fetcher.Image != tc.wantImage || env(fetcher, "PRELOADER_GPU") != tc.wantGPU {
				t.Errorf(
					"image %s, PRELOADER_GPU %q; want %s, %q",
					fetcher.Image,
					env(fetcher, "PRELOADER_GPU"),
					tc.wantImage,
					tc.wantGPU,
				)
			}
			if diff := cmp.Diff(textOf(t, tc.wantFetcher), textOf(t, fetcher.Resources)); diff != "" {
				t.Errorf("resources (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before.Spec.Containers, pod.Spec.Containers); diff != "" {
				t.Errorf("other containers were changed (-before +after):\n%s", diff)
			}
			settled := pod.DeepCopy()
			sidecar.Inject(pod, plan, images)
			if diff := cmp.Diff(settled, pod); diff != "" {
				t.Errorf("calling again changed the pod (-before +after):\n%s", diff)
			}
		})
	}
}

// TestAGuaranteedFetcherStaysSo: a pod that is promised all that it may use keeps the promise when memory is added.
func TestAGuaranteedFetcherStaysSo(t *testing.T) {
	pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
	pod.Spec.Containers[0].Resources = resources("nvidia.com/gpu", "1", "memory", "64Gi")
	fetcher := container(t, pod, "storage-initializer")
	fetcher.Resources = corev1.ResourceRequirements{Limits: list("1", "1Gi"), Requests: list("1", "1Gi")}
	sidecar.Inject(pod, sidecar.Plan{Preload: &sidecar.Preload{GPU: v1alpha1.PreloadGPULoad}}, images)
	if diff := cmp.Diff(
		fetcher.Resources.Limits,
		fetcher.Resources.Requests,
	); diff != "" ||
		fetcher.Resources.Limits.Memory().String() != "1792Mi" {
		t.Errorf("limits and requests %v differ:\n%s", fetcher.Resources, diff)
	}
}

func textOf(t *testing.T, r corev1.ResourceRequirements) map[string]string {
	t.Helper()
	text := map[string]string{}
	for kind, list := range map[string]corev1.ResourceList{"limit ": r.Limits, "request ": r.Requests} {
		for name, count := range list {
			text[kind+string(name)] = count.String()
		}
	}
	return text
}
