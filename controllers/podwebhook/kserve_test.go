// SPDX-License-Identifier: Apache-2.0

package podwebhook_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/podwebhook"
	"serverless.xyz/outrigger/test/testbed"
)

const everything = `
apiVersion: outrigger.serverless.xyz/v1alpha1
kind: SidecarPolicy
metadata: {name: everything, namespace: models}
spec:
  selector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}
  components: [Predictor, Transformer]
  preload: {verify: Require}
  featureCache: {memcachedRef: {name: features}}
`

const storageSecret = `
apiVersion: v1
kind: Secret
metadata: {name: storage-config, namespace: models}
stringData:
  mine: '{"type": "s3", "bucket": "b", "endpoint_url": "http://s3", "access_key_id": "k", "secret_access_key": "s"}'
  hdfs: '{"type": "hdfs", "HDFS_NAMENODE": "http://hdfs"}'
`

const localModel = `
apiVersion: serving.kserve.io/v1alpha1
kind: LocalModelCache
metadata: {name: cached}
spec: {sourceModelUri: "s3://cached/m", modelSize: 1Gi, nodeGroups: [all]}
`

// testPods has the real KServe make Deployments of InferenceServices of all kinds, and creates their pods, dry,
// three times: without our webhook, with it behind KServe's, and with it before KServe's. The pods must differ exactly
// where they are equipped.
func (w *kserveWorld) testPods(t *testing.T) {
	deployments := w.deployments(t)
	plain := w.pods(t, deployments)
	for _, order := range []struct{ name, configuration string }{
		{"behind KServe's webhook", "outrigger-pod-webhook"},
		{"before KServe's webhook", "a-pod-webhook"},
	} {
		t.Run(order.name, func(t *testing.T) {
			remove := w.register(t, order.configuration, deployments["sklearn-predictor"])
			defer remove()
			equipped := w.pods(t, deployments)
			for _, s := range kserveServices {
				for component, want := range s.want {
					key := s.name + "-" + component
					if plain[key] == nil || equipped[key] == nil {
						t.Errorf("%s: no pod", key)
						continue
					}
					checkPod(t, key, plain[key], equipped[key], want)
				}
			}
		})
	}
}

// checkPod compares a pod with what it was without the webhook.
func checkPod(t *testing.T, key string, plain, equipped *corev1.Pod, want equipment) {
	t.Helper()
	got := equipped.DeepCopy()
	hasCache := slices.ContainsFunc(got.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == v1alpha1.ContainerFeatureCache && c.Image == images.FeatureCache
	})
	if wantCache := want == cacheOnly || want == preloadAndCache || want == gpuAndCache; hasCache != wantCache {
		t.Errorf("%s: has a feature cache: %v, want %v", key, hasCache, wantCache)
	}
	hasPreload := slices.ContainsFunc(got.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == kserve.ContainerStorageInitializer && c.Image == images.Preloader
	})
	if wantPreload := want == preloadOnly || want == preloadAndCache; hasPreload != wantPreload {
		t.Errorf("%s: has the preloader: %v, want %v", key, hasPreload, wantPreload)
	}
	hasGPU := slices.ContainsFunc(got.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == kserve.ContainerStorageInitializer && c.Image == images.PreloaderGPU &&
			slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "PRELOADER_GPU" }) &&
			slices.Equal(devices(c), devices(got.Spec.Containers[0]))
	})
	if hasGPU != (want == gpuAndCache) {
		t.Errorf("%s: has its GPUs checked: %v, want %v", key, hasGPU, want == gpuAndCache)
	}
	takeAway(got, plain)
	before, after := textOf(t, plain), textOf(t, got)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("%s: the rest of the pod differs (-without +with):\n%s", key, diff)
	}
}

// devices lists what a container has of the node's devices.
func devices(c corev1.Container) []string {
	var list []string
	for name, count := range c.Resources.Limits {
		if strings.Contains(string(name), "/") {
			list = append(list, fmt.Sprintf("%s: %s", name, count.String()))
		}
	}
	slices.Sort(list)
	return list
}

// takeAway removes from a pod all that our webhook may have added.
func takeAway(pod, plain *corev1.Pod) {
	delete(pod.Annotations, v1alpha1.AnnotationInjected)
	delete(pod.Annotations, v1alpha1.AnnotationInjectedParts)
	delete(pod.Annotations, v1alpha1.AnnotationProblems)
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "outrigger-ring" })
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == v1alpha1.ContainerFeatureCache && c.Image == images.FeatureCache
	})
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool {
				return e.Name == "PRELOADER_VERIFY" || e.Name == "PRELOADER_GPU" ||
					e.Name == v1alpha1.EnvFeatureCacheAddr && e.Value == "127.0.0.1:11211"
			})
			if len(c.Env) == 0 {
				c.Env = nil
			}
			if c.Image == images.Preloader || c.Image == images.PreloaderGPU {
				before := plain.Spec.InitContainers[slices.IndexFunc(plain.Spec.InitContainers, func(p corev1.Container) bool {
					return p.Name == c.Name
				})]
				if c.Image == images.PreloaderGPU {
					c.Resources = before.Resources
				}
				c.Image, c.ImagePullPolicy = before.Image, before.ImagePullPolicy
			}
		}
	}
}

var random = regexp.MustCompile(`kube-api-access-[a-z0-9]+|"name":"[a-z0-9-]+-[a-z0-9]{5}","generateName"`)

// textOf is the text of a pod without what the API server makes up anew each time.
func textOf(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	p := pod.DeepCopy()
	p.UID, p.Name, p.ManagedFields, p.CreationTimestamp = "", "", nil, metav1.Time{}
	raw, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return random.ReplaceAllString(string(raw), "random")
}

// patience bounds how long a test waits for what takes KServe and Knative some seconds.
const patience = 10 * time.Minute

type kserveWorld struct {
	tb      *testbed.Testbed
	client  client.WithWatch
	handler *httptest.Server
}

// startKServe starts KServe in a cluster without nodes, and what else it is to have.
func startKServe(t *testing.T, with ...testbed.Part) *kserveWorld {
	t.Helper()
	tb, err := testbed.Start(t.Context(), testbed.Options{
		Size: testbed.API, With: append([]testbed.Part{testbed.ControllerManager, testbed.KServe}, with...),
		KServeConfig: map[string]string{"localModel": `{"enabled": true, "jobNamespace": "models"}`},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tb.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := scheme(t)
	c, err := client.NewWithWatch(tb.Config(), client.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	root := testcluster.Root()
	if err := tb.InstallCRDs(t.Context(), filepath.Join(root, "config/crd/bases")); err != nil {
		t.Fatal(err)
	}
	shipped := filepath.Join(testcluster.ModuleDir(t, "github.com/kserve/kserve"), "config")
	if err := tb.InstallCRDs(t.Context(), filepath.Join(shipped, "crd/full/localmodel")); err != nil {
		t.Fatal(err)
	}
	runtimes, err := filepath.Glob(filepath.Join(shipped, "runtimes/kserve-*.yaml"))
	if err != nil || len(runtimes) < 10 {
		t.Fatalf("runtimes %v, %v", runtimes, err)
	}
	if err := tb.ApplyFiles(t.Context(), runtimes...); err != nil {
		t.Fatal(err)
	}
	if err := tb.Apply(
		t.Context(),
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: models}\n",
		everything,
		storageSecret,
		localModel,
	); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(&admission.Webhook{
		Handler: podwebhook.New(c, c, admission.NewDecoder(s), images),
	})
	if server.Listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(tb.HostIP(), "0")); err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	return &kserveWorld{tb: tb, client: c, handler: server}
}

// deployments creates all InferenceServices and returns the Deployments that KServe makes of them, by name.
func (w *kserveWorld) deployments(t *testing.T) map[string]*appsv1.Deployment {
	t.Helper()
	for _, s := range kserveServices {
		var annotations, labels map[string]string
		for text, into := range map[string]*map[string]string{s.annotations: &annotations, s.labels: &labels} {
			if err := yaml.Unmarshal([]byte(text), into); err != nil {
				t.Fatal(err)
			}
		}
		service := inferenceService(s.name, labels, annotations)
		if err := yaml.Unmarshal([]byte(s.spec), &service.Spec); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if err := w.client.Create(t.Context(), service); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	found := map[string]*appsv1.Deployment{}
	err := wait.PollUntilContextTimeout(
		t.Context(),
		200*time.Millisecond,
		patience,
		true,
		func(ctx context.Context) (bool, error) {
			var list appsv1.DeploymentList
			if err := w.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
				return false, err
			}
			for i := range list.Items {
				found[list.Items[i].Name] = &list.Items[i]
			}
			return len(w.missing(found)) == 0, nil
		},
	)
	if err != nil {
		for _, key := range w.missing(found) {
			t.Errorf("KServe made no Deployment %s: %s", key, w.conditions(t, key))
		}
	}
	return found
}

func (w *kserveWorld) missing(found map[string]*appsv1.Deployment) []string {
	var missing []string
	for _, s := range kserveServices {
		for component := range s.want {
			if key := s.name + "-" + component; found[key] == nil {
				missing = append(missing, key)
			}
		}
	}
	slices.Sort(missing)
	return missing
}

func (w *kserveWorld) conditions(t *testing.T, deployment string) string {
	t.Helper()
	for _, s := range kserveServices {
		if !strings.HasPrefix(deployment, s.name+"-") {
			continue
		}
		service := &kserve.InferenceService{}
		if w.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: s.name}, service) == nil {
			return fmt.Sprint(service.Status.Conditions, service.Status.ModelStatus.LastFailureInfo)
		}
	}
	return ""
}

// pods creates a pod of each Deployment, dry, and returns what the API server would have stored.
func (w *kserveWorld) pods(t *testing.T, deployments map[string]*appsv1.Deployment) map[string]*corev1.Pod {
	t.Helper()
	pods := map[string]*corev1.Pod{}
	for name, d := range deployments {
		pod, err := w.pod(t.Context(), d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		pods[name] = pod
	}
	return pods
}

func (w *kserveWorld) pod(ctx context.Context, d *appsv1.Deployment) (*corev1.Pod, error) {
	pod := &corev1.Pod{ObjectMeta: *d.Spec.Template.ObjectMeta.DeepCopy(), Spec: *d.Spec.Template.Spec.DeepCopy()}
	pod.Namespace, pod.GenerateName = d.Namespace, d.Name+"-"
	err := w.client.Create(ctx, pod, client.DryRunAll)
	return pod, err
}

// register has the API server call our webhook as the project's own manifest says, under a configuration of a name,
// since it calls them in the order of names. It returns when pods are equipped, with a function that undoes it.
func (w *kserveWorld) register(t *testing.T, name string, probe *appsv1.Deployment) func() {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(testcluster.Root(), "config/webhook/webhook.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var configuration admissionregistrationv1.MutatingWebhookConfiguration
	if err := yaml.UnmarshalStrict(raw, &configuration); err != nil {
		t.Fatal(err)
	}
	configuration.Name = name
	url := w.handler.URL + podwebhook.Path
	configuration.Webhooks[0].ClientConfig = admissionregistrationv1.WebhookClientConfig{
		URL:      &url,
		CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.handler.Certificate().Raw}),
	}
	configuration.Webhooks[0].TimeoutSeconds = new(int32(30)) // a pod that is missed would be one too many
	if err := w.client.Create(t.Context(), &configuration); err != nil {
		t.Fatal(err)
	}
	await := func(want bool) {
		err := wait.PollUntilContextTimeout(
			t.Context(),
			100*time.Millisecond,
			patience,
			true,
			func(ctx context.Context) (bool, error) {
				pod, err := w.pod(ctx, probe)
				return err == nil && (pod.Annotations[v1alpha1.AnnotationInjected] != "") == want, nil
			},
		)
		if err != nil {
			t.Fatalf("waiting for the API server to call the webhook (%v): %v", want, err)
		}
	}
	await(true)
	return func() {
		if err := w.client.Delete(t.Context(), &configuration); err != nil {
			t.Fatal(err)
		}
		await(false)
	}
}
