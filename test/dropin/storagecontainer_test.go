// SPDX-License-Identifier: Apache-2.0

package dropin

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"serverless.xyz/outrigger/test/testbed"
)

const (
	preloaderImage = "ghcr.io/outrigger/preloader:v0.1.0"
	initContainer  = "storage-initializer"
)

// services are InferenceServices whose pods KServe makes with an init container that fetches the model.
const services = `
apiVersion: v1
kind: Namespace
metadata: {name: models}
---
apiVersion: v1
kind: Secret
metadata:
  name: s3
  namespace: models
  annotations: {serving.kserve.io/s3-endpoint: "http://store:9000", serving.kserve.io/s3-region: eu-west-1}
stringData: {AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: secret}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: models}
secrets: [{name: s3}]
---
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: torch}
spec:
  supportedModelFormats: [{name: pytorch, version: "1", autoSelect: true}]
  containers: [{name: kserve-container, image: "registry.example/torch:1"}]
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: named, namespace: models}
spec:
  predictor:
    storageContainerName: outrigger-preloader
    model: {modelFormat: {name: pytorch}, storageUri: "s3://models/mnist"}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: several, namespace: models}
spec:
  predictor:
    storageContainerName: outrigger-preloader
    storageUris:
    - {uri: "s3://models/base", mountPath: /mnt/models/base}
    - {uri: "s3://models/adapter", mountPath: /mnt/models/adapter}
    model: {modelFormat: {name: pytorch}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: plain, namespace: models}
spec:
  predictor: {model: {modelFormat: {name: pytorch}, storageUri: "s3://models/mnist"}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: elsewhere, namespace: models}
spec:
  predictor: {model: {modelFormat: {name: pytorch}, storageUri: "gs://models/mnist"}}
`

// TestStorageContainerTakesOverS3 follows docs/preloader.md on a cluster with KServe and without Outrigger.
func TestStorageContainerTakesOverS3(t *testing.T) {
	bed, err := testbed.Start(t.Context(), testbed.Options{
		Size: testbed.Control, Without: []testbed.Part{testbed.Istio, testbed.S3, testbed.Scheduler},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Stop(); err != nil {
			t.Error(err)
		}
	})
	folder := filepath.Join(
		output(t, "go", "list", "-m", "-f", "{{.Dir}}", "serverless.xyz/outrigger"),
		"config/storagecontainer",
	)
	kubectl := func(args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), bed.Kubectl(), append(args, "--kubeconfig", bed.Kubeconfig())...).
			CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
	}
	kubectl("apply", "-k", folder)
	if err := bed.Apply(t.Context(), services); err != nil {
		t.Fatal(err)
	}
	kubectl(
		"patch",
		"clusterstoragecontainer",
		"default",
		"--type",
		"merge",
		"--patch-file",
		filepath.Join(folder, "default-without-s3.yaml"),
	)
	client := kubernetes.NewForConfigOrDie(bed.Config())
	// KServe's manager hears of the patch after a moment; until then it draws lots.
	await(t, "all pods of s3:// models get the preloader", func() error {
		for range 10 {
			c, err := initContainerOf(t.Context(), client, "plain")
			if err != nil {
				return err
			}
			if c.Image != preloaderImage {
				return errors.New("image " + c.Image)
			}
		}
		return nil
	})
	cases := map[string]struct {
		wantImage string
		wantArgs  []string
	}{
		"named": {preloaderImage, []string{"s3://models/mnist", "/mnt/models"}},
		"plain": {preloaderImage, []string{"s3://models/mnist", "/mnt/models"}},
		"several": {
			preloaderImage,
			[]string{"s3://models/base", "/mnt/models/base", "s3://models/adapter", "/mnt/models/adapter"},
		},
		"elsewhere": {testbed.StorageInitializerImage, []string{"gs://models/mnist", "/mnt/models"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c, err := initContainerOf(t.Context(), client, name)
			if err != nil {
				t.Fatal(err)
			}
			if c.Image != tc.wantImage {
				t.Errorf("image %s, want %s", c.Image, tc.wantImage)
			}
			if diff := cmp.Diff(tc.wantArgs, c.Args); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
			if tc.wantImage == preloaderImage {
				checkPreloader(t, c)
			}
		})
	}
}

// checkPreloader checks what the container got from KServe and kept from the manifest.
func checkPreloader(t *testing.T, c *corev1.Container) {
	t.Helper()
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	if got := env["AWS_ENDPOINT_URL"]; got != "http://store:9000" {
		t.Errorf("endpoint %q, want the secret's", got)
	}
	if _, ok := env["AWS_SECRET_ACCESS_KEY"]; !ok {
		t.Error("it has no credentials")
	}
	s := c.SecurityContext
	if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.RunAsNonRoot == nil || !*s.RunAsNonRoot ||
		s.Capabilities == nil || len(s.Capabilities.Drop) != 1 {
		t.Errorf("security context %v, want the manifest's", s)
	}
	if got := c.Resources.Limits.Memory().String(); got != "4Gi" {
		t.Errorf("memory limit %s, want 4Gi", got)
	}
	if len(c.VolumeMounts) == 0 {
		t.Error("it mounts nothing to write to")
	}
}

// initContainerOf creates a pod of a service, dry, and returns the container that fetches its model.
func initContainerOf(ctx context.Context, client kubernetes.Interface, service string) (*corev1.Container, error) {
	d, err := client.AppsV1().Deployments("models").Get(ctx, service+"-predictor", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod := &corev1.Pod{ObjectMeta: *d.Spec.Template.ObjectMeta.DeepCopy(), Spec: d.Spec.Template.Spec}
	pod.GenerateName = d.Name + "-"
	pod, err = client.CoreV1().Pods("models").Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, err
	}
	if n := len(pod.Spec.InitContainers); n != 1 || pod.Spec.InitContainers[0].Name != initContainer {
		return nil, fmt.Errorf("%d init containers, want %s alone", n, initContainer)
	}
	return &pod.Spec.InitContainers[0], nil
}

// await calls check until it gives nil, or fails the test with its last error.
func await(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("waiting until %s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
