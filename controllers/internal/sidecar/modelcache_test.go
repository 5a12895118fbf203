// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

func TestShareModels(t *testing.T) {
	onNodes := images
	onNodes.NodeCachePath = "/var/lib/models"
	size := resource.MustParse("10Gi")
	kind := corev1.HostPathDirectoryOrCreate
	hostPath := &corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/models/team", Type: &kind}}
	for name, tc := range map[string]struct {
		cache    *v1alpha1.PreloadNodeCache
		settings sidecar.Settings
		args     []string
		want     *corev1.VolumeSource
		wantSize string
	}{
		"nobody asks": {settings: onNodes},
		"the node's directory, of this namespace": {
			cache: &v1alpha1.PreloadNodeCache{}, settings: onNodes, want: hostPath,
		},
		"with a bound": {
			cache: &v1alpha1.PreloadNodeCache{Size: &size}, settings: onNodes, want: hostPath, wantSize: "10737418240",
		},
		"the administrator allows none": {cache: &v1alpha1.PreloadNodeCache{}, settings: images},
		"a claim needs nobody's leave": {
			cache: &v1alpha1.PreloadNodeCache{ClaimName: "models"}, settings: images,
			want: &corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "models"},
			},
		},
		"KServe's own image has no use for it": {
			cache: &v1alpha1.PreloadNodeCache{}, settings: onNodes, args: []string{"hf://org/m", "/mnt/models"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"s3://b/m", "/mnt/models"}
			if tc.args != nil {
				args = tc.args
			}
			pod := afterKServe(modelPod(), args...)
			pod.Namespace = "team"
			plan := sidecar.Plan{Preload: &sidecar.Preload{NodeCache: tc.cache}}
			if problems := sidecar.Inject(pod, plan, tc.settings); problems != nil {
				t.Errorf("problems %v", problems)
			}
			var got *corev1.VolumeSource
			for i := range pod.Spec.Volumes {
				if pod.Spec.Volumes[i].Name == "outrigger-models" {
					got = &pod.Spec.Volumes[i].VolumeSource
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("volume (-want +got):\n%s", diff)
			}
			fetcher := container(t, pod, "storage-initializer")
			wantDir, wantMounts := "", 1
			if tc.want != nil {
				wantDir, wantMounts = "/var/cache/outrigger/models", 2
			}
			if env(fetcher, "PRELOADER_NODE_CACHE") != wantDir || env(fetcher, "PRELOADER_NODE_CACHE_SIZE") != tc.wantSize ||
				len(fetcher.VolumeMounts) != wantMounts {
				t.Errorf("variables %v, mounts %v", fetcher.Env, fetcher.VolumeMounts)
			}
			for _, c := range pod.Spec.Containers {
				for _, m := range c.VolumeMounts {
					if m.Name == "outrigger-models" {
						t.Errorf("container %s sees the models of others", c.Name)
					}
				}
			}
			settled := pod.DeepCopy()
			sidecar.Inject(pod, plan, tc.settings)
			if diff := cmp.Diff(settled, pod); diff != "" {
				t.Errorf("calling again changed the pod (-before +after):\n%s", diff)
			}
		})
	}
}
