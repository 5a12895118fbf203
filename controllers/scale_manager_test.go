// SPDX-License-Identifier: Apache-2.0

//go:build bench

package controllers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/podwebhook"
	"serverless.xyz/outrigger/memcached"
)

type runningManager struct {
	// handler decides by the manager's own cache.
	handler *podwebhook.Handler
	stop    func() error
}

// startManager runs the whole manager in this process, and has the API server call its webhook.
func (b *bench) startManager(ctx context.Context, config *rest.Config, webhook netip.AddrPort) (*runningManager, error) {
	counted := rest.CopyConfig(config)
	counted.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet {
				text := r.Method + " " + r.URL.Path
				if r.URL.Query().Has("dryRun") {
					text = "DRY " + text
				}
				b.requests.add(text)
			}
			return next.RoundTrip(r)
		})
	})
	if err := b.register(ctx, webhook); err != nil {
		return nil, err
	}
	settings := sidecar.Settings{Preloader: "preloader:1", FeatureCache: "outrigger:1"}
	mgr, err := controllers.NewManager(counted, controllers.Options{
		Namespace: "default", WebhookHost: webhook.Addr().String(), WebhookPort: int(webhook.Port()),
		WebhookNames:   []string{webhook.Addr().String()},
		MetricsAddress: "0", ProbeAddress: "0", MemcachedImage: "memcached:1",
		PreloaderImage: settings.Preloader, FeatureCacheImage: settings.FeatureCache,
		ReadStats: func(context.Context, string) (memcached.Stats, error) { return memcached.Stats{}, nil },
	})
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- mgr.Start(running) }()
	m := &runningManager{
		handler: podwebhook.New(mgr.GetClient(), mgr.GetAPIReader(), admission.NewDecoder(mgr.GetScheme()), settings),
		stop: func() error {
			cancel()
			return <-done
		},
	}
	return m, b.await(ctx, "the webhook to be called", func() bool {
		pod := b.pod("probe", "blue", 0)
		pod.Annotations = map[string]string{v1alpha1.AnnotationPreload: "true"}
		return b.client.Create(ctx, pod, client.DryRunAll) == nil && pod.Annotations[v1alpha1.AnnotationInjected] != ""
	})
}

// register applies the project's own manifest, with an address in place of the Service.
func (b *bench) register(ctx context.Context, webhook netip.AddrPort) error {
	raw, err := os.ReadFile(filepath.Join(testcluster.Root(), "config/webhook/webhook.yaml"))
	if err != nil {
		return err
	}
	var configuration admissionregistrationv1.MutatingWebhookConfiguration
	if err := yaml.UnmarshalStrict(raw, &configuration); err != nil {
		return err
	}
	configuration.Webhooks[0].ClientConfig = admissionregistrationv1.WebhookClientConfig{
		URL: new(fmt.Sprintf("https://%s%s", webhook, podwebhook.Path)),
	}
	return b.client.Create(ctx, &configuration)
}

// decide measures the handler, one pod after the other, among all policies and InferenceServices: every InferenceService
// for the first time, and then again. A busy machine makes decisions wait, so that their processor time is measured, too.
func (b *bench) decide(ctx context.Context, handler *podwebhook.Handler) error {
	b.figures.load = load()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range b.services * b.podsEach {
		raw, err := json.Marshal(b.pod(serviceName(i%b.services), team(i%b.services), 0))
		if err != nil {
			return err
		}
		request := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
			UID: "1", Namespace: b.namespace, Operation: admissionv1.Create, Object: k8sruntime.RawExtension{Raw: raw},
		}}
		began, worked := time.Now(), processorTime()
		response := handler.Handle(ctx, request)
		took := timing{wall: time.Since(began), processor: processorTime() - worked}
		if !response.Allowed || len(response.Patches) == 0 {
			return fmt.Errorf("pod %d was not equipped: %v", i, response.Result)
		}
		if i < b.services {
			b.figures.first = append(b.figures.first, took)
		} else {
			b.figures.again = append(b.figures.again, took)
		}
	}
	return nil
}

// processorTime is what this thread has had of a processor.
func processorTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // cannot happen
	}
	return time.Duration(t.Nano())
}

// policy returns a policy for each of two teams, and others with a condition that has to be evaluated.
func (b *bench) policy(i int) *v1alpha1.SidecarPolicy {
	p := &v1alpha1.SidecarPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: fmt.Sprintf("none-%02d", i)},
		Spec: v1alpha1.SidecarPolicySpec{
			Condition: fmt.Sprintf("isvc.spec.predictor.model.modelFormat.name == 'format-%d'", i),
			Preload:   &v1alpha1.Preload{},
		},
	}
	if i < 2 {
		p.Name, p.Spec.Condition = team(i), ""
		p.Spec.Selector.MatchLabels = map[string]string{"team": team(i)}
		p.Spec.Env = []k8sruntime.RawExtension{{Raw: []byte(`{"name":"SERVICE","value":"${isvc.metadata.name}"}`)}}
	}
	return p
}

func team(i int) string { return []string{"blue", "red"}[i%2] }

func serviceName(i int) string { return fmt.Sprintf("service-%04d", i) }

func (b *bench) makeService(ctx context.Context, i int) error {
	service := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{
		Namespace: b.namespace, Name: serviceName(i), Labels: map[string]string{"team": team(i)},
	}}
	const spec = `{"model": {"modelFormat": {"name": "pytorch"}, "storageUri": "s3://models/m"}}`
	if err := json.Unmarshal([]byte(spec), &service.Spec.Predictor); err != nil {
		return err
	}
	return b.client.Create(ctx, service)
}

// makePods makes a ReplicaSet and its pods, as KServe and the controllers of Deployments do.
func (b *bench) makePods(ctx context.Context, i int) error {
	template := b.pod(serviceName(i), team(i), 0)
	set := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: serviceName(i) + "-predictor-1"},
		Spec: appsv1.ReplicaSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec},
		},
	}
	if err := b.client.Create(ctx, set); err != nil {
		return err
	}
	for n := range b.podsEach {
		pod := b.pod(serviceName(i), team(i), n)
		pod.OwnerReferences = []metav1.OwnerReference{
			*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("ReplicaSet")),
		}
		if err := b.client.Create(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) pod(service, team string, n int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: b.namespace, Name: fmt.Sprintf("%s-predictor-1-%d", service, n),
			Labels: map[string]string{kserve.LabelInferenceService: service, "component": "predictor", "team": team},
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{
				Name: kserve.ContainerStorageInitializer, Image: "kserve/storage-initializer:v0.20.0",
				Args: []string{"s3://models/m", "/mnt/models"},
			}},
			Containers: []corev1.Container{{Name: kserve.ContainerPredictor, Image: "server:1"}},
		},
	}
}
