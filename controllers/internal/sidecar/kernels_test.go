// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/preloader/jitcache"
)

func TestBringKernels(t *testing.T) {
	for name, tc := range map[string]struct {
		cache   *v1alpha1.PreloadJITCache
		args    []string
		change  func(pod *corev1.Pod)
		wantKey string
	}{
		"nobody asks": {},
		"the engine is the model server's image": {
			cache: &v1alpha1.PreloadJITCache{URI: "s3://b/jit"}, wantKey: "engine=server",
		},
		"parts of one's own": {
			cache: &v1alpha1.PreloadJITCache{URI: "s3://b/jit", Key: "tp=2"}, wantKey: "engine=server,tp=2",
		},
		"an engine of one's own": {
			cache: &v1alpha1.PreloadJITCache{URI: "s3://b/jit", Key: "tp=2,engine=vllm-0.11"}, wantKey: "tp=2,engine=vllm-0.11",
		},
		"no model server": {
			cache: &v1alpha1.PreloadJITCache{URI: "s3://b/jit"}, change: func(pod *corev1.Pod) { pod.Spec.Containers[0].Name = "other" },
		},
		"something else in the place": {
			cache: &v1alpha1.PreloadJITCache{URI: "s3://b/jit"},
			change: func(pod *corev1.Pod) {
				pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: "/mnt/jit-cache/"}}
			},
		},
		"KServe's own image has no use for it": {
			cache: &v1alpha1.PreloadJITCache{URI: "s3://b/jit"}, args: []string{"hf://org/m", "/mnt/models"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"s3://b/m", "/mnt/models"}
			if tc.args != nil {
				args = tc.args
			}
			pod := modelPod()
			pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: "CUDA_CACHE_PATH", Value: "/own"})
			if tc.change != nil {
				tc.change(pod)
			}
			pod = afterKServe(pod, args...)
			plan := sidecar.Plan{Preload: &sidecar.Preload{JITCache: tc.cache}}
			if problems := sidecar.Inject(pod, plan, images); problems != nil {
				t.Errorf("problems %v", problems)
			}
			fetcher, model := container(t, pod, "storage-initializer"), &pod.Spec.Containers[0]
			if got := env(fetcher, "PRELOADER_JIT_CACHE_KEY"); got != tc.wantKey {
				t.Errorf("key %q, want %q", got, tc.wantKey)
			}
			volumes, mounts := 0, 0
			for _, v := range pod.Spec.Volumes {
				if v.Name == "outrigger-jit-cache" && v.EmptyDir != nil {
					volumes++
				}
			}
			for _, c := range []*corev1.Container{fetcher, model} {
				for _, m := range c.VolumeMounts {
					if m.Name == "outrigger-jit-cache" && m.MountPath == "/mnt/jit-cache" {
						mounts++
					}
				}
			}
			if tc.wantKey == "" {
				if volumes != 0 || mounts != 0 || env(model, "VLLM_CACHE_ROOT") != "" ||
					env(fetcher, "PRELOADER_JIT_CACHE_URI") != "" {
					t.Errorf("%d volumes, %d mounts, variables %v", volumes, mounts, model.Env)
				}
				return
			}
			if volumes != 1 || mounts != 2 || env(fetcher, "PRELOADER_JIT_CACHE_URI") != tc.cache.URI ||
				env(fetcher, "PRELOADER_JIT_CACHE_DIR") != "/mnt/jit-cache" {
				t.Errorf("%d volumes, %d mounts, variables %v", volumes, mounts, fetcher.Env)
			}
			for _, e := range jitcache.Engines() {
				want := "/mnt/jit-cache/" + e.Name
				if e.Variable == "CUDA_CACHE_PATH" {
					want = "/own" // what a user has set stays
				}
				if got := env(model, e.Variable); got != want {
					t.Errorf("%s is %q, want %q", e.Variable, got, want)
				}
			}
			settled := pod.DeepCopy()
			sidecar.Inject(pod, plan, images)
			if diff := cmp.Diff(settled, pod); diff != "" {
				t.Errorf("calling again changed the pod (-before +after):\n%s", diff)
			}
		})
	}
}
