// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/samples/predictor/model"
)

const webhookConfiguration = "outrigger-pod-webhook"

// storageForms are InferenceServices that differ in how they name their model. The last has its GPU checked, of which
// the node has none but in name: the check fails, and the pod starts all the same, on the GPU that it was lent.
const storageForms = `
apiVersion: v1
kind: Secret
metadata: {name: storage-config}
stringData:
  mine: '{"type": "s3", "bucket": "models", "endpoint_url": "%s", "region": "us-east-1", "access_key_id": "%s", "secret_access_key": "%s"}'
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: uri, annotations: {outrigger.serverless.xyz/preload: "true"}}
spec: {predictor: {model: {modelFormat: {name: pytorch}, storageUri: "s3://models/mnist"}}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: list, annotations: {outrigger.serverless.xyz/preload: "true"}}
spec: {predictor: {storageUris: [{uri: "s3://models/mnist", mountPath: /mnt/models}], model: {modelFormat: {name: pytorch}}}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: key, annotations: {outrigger.serverless.xyz/preload: "true"}}
spec: {predictor: {model: {modelFormat: {name: pytorch}, storage: {key: mine, path: mnist}}}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: gpu, annotations: {outrigger.serverless.xyz/warm-gpu: "true"}}
spec:
  predictor:
    model: {modelFormat: {name: pytorch}, storageUri: "s3://models/mnist", resources: {limits: {nvidia.com/gpu: "2"}}}
`

// TestStorageForms: in whichever form an InferenceService names its model, and whichever of KServe's webhook and ours is
// called first, the preloader fetches it and the model serves.
func TestStorageForms(t *testing.T) {
	for _, order := range []struct{ namespace, configuration string }{
		{"behind-kserve", webhookConfiguration}, {"before-kserve", "a-" + webhookConfiguration},
	} {
		t.Run(order.namespace, func(t *testing.T) {
			callWebhookAs(t, order.configuration)
			ns := namespace(t, order.namespace)
			endpoint, access, secret := shared.S3()
			file := filepath.Join(t.TempDir(), "forms.yaml")
			must(t, os.WriteFile(file, fmt.Appendf(nil, storageForms, endpoint, access, secret), 0o600))
			must(t, shared.ApplyTo(t.Context(), ns, file))
			for name, image := range map[string]string{
				"uri": "preloader", "list": "preloader", "key": "preloader", "gpu": "preloader-gpu",
			} {
				must(t, shared.AwaitInferenceService(t.Context(), ns, name))
				checkForm(t, onlyPod(t, ns, name), name, "ghcr.io/outrigger/"+image+":v0.1.0")
			}
		})
	}
}

// checkForm wants the model fetched by an image, and right answers of it.
func checkForm(t *testing.T, pod *corev1.Pod, name, image string) {
	t.Helper()
	if got := pod.Spec.InitContainers[0]; got.Name != "storage-initializer" || got.Image != image {
		t.Errorf("%s: %s has image %q, want %q", name, got.Name, got.Image, image)
	}
	digits, err := model.HeldOut()
	must(t, err)
	answer, err := shared.Predict(t.Context(), pod, name, digits)
	must(t, err)
	for i, digit := range digits {
		if answer.Predictions[i] != digit.V2 {
			t.Errorf("%s: %s: predicted %d, the training script %d", name, digit.ID, answer.Predictions[i], digit.V2)
		}
	}
	if ended := pod.Status.InitContainerStatuses[0].State.Terminated; ended == nil ||
		name == "gpu" && !strings.Contains(ended.Message, "NoDriver") {
		t.Errorf("%s: the container that fetched the model ended with %+v", name, ended)
	}
}

// callWebhookAs has the API server call the manager's webhook under a configuration of a name, for the rest of the test:
// it calls them in the order of names, and KServe's is inferenceservice.serving.kserve.io.
func callWebhookAs(t *testing.T, name string) {
	t.Helper()
	if name == webhookConfiguration {
		return
	}
	var own admissionregistrationv1.MutatingWebhookConfiguration
	must(t, shared.Client.Get(t.Context(), client.ObjectKey{Name: webhookConfiguration}, &own))
	other := own.DeepCopy()
	other.ObjectMeta = metav1.ObjectMeta{Name: name}
	must(t, shared.Client.Create(t.Context(), other))
	must(t, shared.Client.Delete(t.Context(), &own))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		again := own.DeepCopy()
		again.ObjectMeta = metav1.ObjectMeta{Name: webhookConfiguration, Labels: own.Labels, Annotations: own.Annotations}
		if err := errors.Join(shared.Client.Create(ctx, again), shared.Client.Delete(ctx, other)); err != nil {
			t.Error(err)
		}
	})
}
