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

func list(cpu, memory string) corev1.ResourceList {
	l := corev1.ResourceList{}
	if cpu != "" {
		l[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func TestInjectStorage(t *testing.T) {
	size := resource.MustParse("4Gi")
	inMemory := &v1alpha1.PreloadVolume{Medium: v1alpha1.MediumMemory, SizeLimit: &size}
	kserves := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	memory := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}
	for name, tc := range map[string]struct {
		preload      sidecar.Preload
		declared     *corev1.VolumeSource
		mount        string
		wantRequests corev1.ResourceList
		wantLimits   corev1.ResourceList
		wantVolume   corev1.VolumeSource
		// wantBound is what the preloader is told of the volume's limit.
		wantBound string
	}{
		"nothing is asked: KServe's stay": {
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"), wantVolume: kserves,
		},
		"one limit of two, and a request": {
			preload: sidecar.Preload{Resources: &v1alpha1.PreloadResources{
				Requests: list("500m", ""), Limits: list("", "2Gi"),
			}},
			wantRequests: list("500m", "100Mi"), wantLimits: list("1", "2Gi"), wantVolume: kserves,
		},
		"a limit below KServe's request takes the request down": {
			preload:      sidecar.Preload{Resources: &v1alpha1.PreloadResources{Limits: list("", "64Mi")}},
			wantRequests: list("100m", "64Mi"), wantLimits: list("1", "64Mi"), wantVolume: kserves,
		},
		"a size limit": {
			preload:      sidecar.Preload{Volume: &v1alpha1.PreloadVolume{Medium: v1alpha1.MediumDisk, SizeLimit: &size}},
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"),
			wantVolume: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}, wantBound: "4294967296",
		},
		"a size limit of nothing, which the kubelet takes for none": {
			preload:      sidecar.Preload{Volume: &v1alpha1.PreloadVolume{SizeLimit: &resource.Quantity{}}},
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"),
			wantVolume: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &resource.Quantity{}}},
		},
		"a size limit for a volume that the InferenceService declares": {
			preload:      sidecar.Preload{Volume: &v1alpha1.PreloadVolume{SizeLimit: &size}},
			declared:     &corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "own"}},
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"),
			wantVolume: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "own"}},
		},
		"in memory, which is charged to the writer": {
			preload:      sidecar.Preload{Volume: inMemory},
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "5Gi"), wantVolume: memory,
		},
		"in memory, with a limit of the policy's": {
			preload:      sidecar.Preload{Volume: inMemory, Resources: &v1alpha1.PreloadResources{Limits: list("", "512Mi")}},
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "4608Mi"), wantVolume: memory,
		},
		"a volume of the pod's own": {
			preload: sidecar.Preload{Volume: &v1alpha1.PreloadVolume{
				Ephemeral: &v1alpha1.EphemeralVolume{Size: size, StorageClassName: new("fast")},
			}},
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"),
			wantVolume: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
				VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					StorageClassName: new("fast"),
					Resources: corev1.VolumeResourceRequirements{
						Requests: corev1.ResourceList{corev1.ResourceStorage: size},
					},
				}},
			}},
		},
		"a volume that the InferenceService declares stays": {
			preload:      sidecar.Preload{Volume: inMemory},
			declared:     &corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "own"}},
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"),
			wantVolume: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "own"}},
		},
		"a volume that no model goes to stays": {
			preload: sidecar.Preload{Volume: inMemory}, mount: "/tmp",
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"), wantVolume: kserves,
		},
		"the parent of several models": {
			preload: sidecar.Preload{Volume: &v1alpha1.PreloadVolume{SizeLimit: &size}}, mount: "/mnt",
			wantRequests: list("100m", "100Mi"), wantLimits: list("1", "1Gi"),
			wantVolume: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}, wantBound: "4294967296",
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
			c := container(t, pod, "storage-initializer")
			c.Resources = corev1.ResourceRequirements{Requests: list("100m", "100Mi"), Limits: list("1", "1Gi")}
			volume := &pod.Spec.Volumes[len(pod.Spec.Volumes)-1]
			if tc.declared != nil {
				volume.VolumeSource = *tc.declared
			}
			if tc.mount != "" {
				c.VolumeMounts[0].MountPath = tc.mount
			}
			for range 2 { // the webhook may be called again
				sidecar.Inject(pod, sidecar.Plan{Preload: &tc.preload}, images)
				if diff := cmp.Diff(tc.wantRequests, c.Resources.Requests); diff != "" {
					t.Errorf("requests (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tc.wantLimits, c.Resources.Limits); diff != "" {
					t.Errorf("limits (-want +got):\n%s", diff)
				}
				if bound := env(c, "PRELOADER_VOLUME_SIZE"); bound != tc.wantBound {
					t.Errorf("the preloader is told of a volume of %q bytes, want %q", bound, tc.wantBound)
				}
				if diff := cmp.Diff(tc.wantVolume, volume.VolumeSource); diff != "" {
					t.Errorf("volume (-want +got):\n%s", diff)
				}
			}
		})
	}
}
