// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/internal/webhookcert"
	"serverless.xyz/outrigger/memcached"
	"serverless.xyz/outrigger/test/testbed"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

// TestManagerAtRest: the wired manager brings one of each kind to rest, then writes nothing, and a manager that takes
// over from it writes nothing either.
func TestManagerAtRest(t *testing.T) {
	t.Parallel()
	cluster := testcluster.New(t)
	namespace := cluster.Namespace(t)
	writes := &writes{}
	stop := startManager(t, cluster.Config, namespace, writes)

	createAll(t, cluster.Client, namespace)
	await(t, "the Memcached to run", func(ctx context.Context) bool {
		var m v1alpha1.Memcached
		return get(ctx, cluster.Client, namespace, "features", &m) && m.Status.Phase == v1alpha1.MemcachedRunning
	})
	await(t, "the policy to count", func(ctx context.Context) bool {
		var p v1alpha1.SidecarPolicy
		return get(ctx, cluster.Client, namespace, "all", &p) && p.Status.Matched == 2 && p.Status.Outdated == 1
	})
	await(t, "the rollout to report", func(ctx context.Context) bool {
		var r v1alpha1.CanaryRollout
		return get(ctx, cluster.Client, namespace, "mnist", &r) && r.Status.ObservedGeneration == r.Generation
	})
	writes.awaitRest(t)
	stop()

	before := writes.count()
	stop = startManager(t, cluster.Config, namespace, writes)
	defer stop()
	time.Sleep(time.Minute)
	if got := writes.since(before); len(got) > 0 {
		t.Errorf("writes in the minute after a restart: %q; %d before it", got, before)
	}
}

// TestManagerKnowsWhatItsCacheDoesNotHold: the caches hold objects with Outrigger's label only. Somebody else's object of
// a wanted name is left as it is, and one of ours that lost the label is taken up again, with what it remembers.
//
// It is not parallel: the managers of the tests that are would act on its objects.
func TestManagerKnowsWhatItsCacheDoesNotHold(t *testing.T) {
	cluster := testcluster.New(t)
	c := cluster.Client
	namespace := cluster.Namespace(t)
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }
	selector := map[string]string{"app": "theirs"}
	foreign := map[string]client.Object{
		"service": &corev1.Service{ObjectMeta: meta("service"), Spec: corev1.ServiceSpec{
			Selector: selector, Ports: []corev1.ServicePort{{Port: 80}},
		}},
		"set": &appsv1.StatefulSet{ObjectMeta: meta("set"), Spec: appsv1.StatefulSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: selector},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "theirs", Image: "theirs"}}},
			},
		}},
		"ring": &corev1.ConfigMap{ObjectMeta: meta(v1alpha1.RingConfigMapName("ring")), Data: map[string]string{"a": "b"}},
	}
	was := map[string]string{}
	for name, o := range foreign {
		must(t, c.Create(t.Context(), o))
		was[name] = o.GetResourceVersion()
		must(t, c.Create(t.Context(), &v1alpha1.Memcached{ObjectMeta: meta(name), Spec: v1alpha1.MemcachedSpec{Size: 1}}))
	}
	must(t, c.Create(t.Context(), &v1alpha1.Memcached{ObjectMeta: meta("ours"), Spec: v1alpha1.MemcachedSpec{Size: 1}}))
	defer func() { must(t, c.DeleteAllOf(t.Context(), &v1alpha1.Memcached{}, client.InNamespace(namespace))) }()
	defer startManager(t, cluster.Config, namespace, &writes{})()

	for name, o := range foreign {
		await(t, "the Memcached "+name+" to say that its name is taken", func(ctx context.Context) bool {
			var m v1alpha1.Memcached
			if !get(ctx, c, namespace, name, &m) {
				return false
			}
			ready := apimeta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionReady)
			return ready != nil && ready.Reason == v1alpha1.ReasonNameTaken
		})
		must(t, c.Get(t.Context(), client.ObjectKeyFromObject(o), o))
		if o.GetResourceVersion() != was[name] {
			t.Errorf("the %T %q of somebody else was written: %v", o, o.GetName(), o.GetManagedFields())
		}
	}

	var ring corev1.ConfigMap
	await(t, "the ring", func(ctx context.Context) bool {
		return get(ctx, c, namespace, v1alpha1.RingConfigMapName("ours"), &ring)
	})
	// Whatever the manager is doing to it at this moment.
	unlabelled := fmt.Appendf(nil, `{"metadata":{"labels":{%q:null}}}`, v1alpha1.LabelManagedBy)
	must(t, c.Patch(t.Context(), &ring, client.RawPatch(types.MergePatchType, unlabelled)))
	remembered := ring.Data[v1alpha1.RingConfigMapKey]
	await(t, "the ring to have its label again", func(ctx context.Context) bool {
		return get(ctx, c, namespace, ring.Name, &ring) && ring.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy
	})
	if diff := cmp.Diff(remembered, ring.Data[v1alpha1.RingConfigMapKey]); diff != "" {
		t.Errorf("the ring forgot (-before +after):\n%s", diff)
	}
}

// TestPodsThatEndedAreNotWaitedFor: a pod that was evicted keeps its object, and KServe starts another in its place. A
// rollout that waited for it to change would never end.
func TestPodsThatEndedAreNotWaitedFor(t *testing.T) {
	cluster := testcluster.New(t)
	c := cluster.Client
	namespace := cluster.Namespace(t)
	defer startManager(t, cluster.Config, namespace, &writes{})()
	must(t, c.Create(t.Context(), policy(namespace)))
	must(t, c.Create(t.Context(), &kserve.InferenceService{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "mnist-v1"},
	}))
	for name, phase := range map[string]corev1.PodPhase{
		"running": corev1.PodRunning, "failed": corev1.PodFailed, "succeeded": corev1.PodSucceeded,
	} {
		pod := predictorPod(namespace, "mnist-v1")
		pod.Name = name
		must(t, c.Create(t.Context(), pod))
		await(t, "the pod to be counted", func(ctx context.Context) bool {
			var p v1alpha1.SidecarPolicy
			return get(ctx, c, namespace, "all", &p) && slices.ContainsFunc(p.Status.Behind, func(b v1alpha1.PodBehind) bool {
				return b.Name == name
			})
		})
		pod.Status.Phase = phase
		must(t, c.Status().Update(t.Context(), pod))
	}
	await(t, "the policy to count the one that runs", func(ctx context.Context) bool {
		var p v1alpha1.SidecarPolicy
		return get(ctx, c, namespace, "all", &p) && len(p.Status.Behind) == 1 && p.Status.Behind[0].Name == "running"
	})
}

// TestWebhookThroughTheAPIServer: the API server trusts the manager's own certificate, pods are equipped on their way
// in, and when the certificate is taken away another takes its place.
func TestWebhookThroughTheAPIServer(t *testing.T) {
	cluster := testcluster.New(t)
	namespace := cluster.Namespace(t)
	address := freeAddress()
	c := cluster.Client
	configuration := &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: webhookcert.ConfigurationName},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name:                    "pods.outrigger.serverless.xyz",
			AdmissionReviewVersions: []string{"v1"},
			SideEffects:             ptr.To(admissionv1.SideEffectClassNone),
			// Fail, so that the test sees when the webhook cannot be called.
			FailurePolicy: ptr.To(admissionv1.Fail),
			ClientConfig:  admissionv1.WebhookClientConfig{URL: new(fmt.Sprintf("https://%s/mutate-pods", address))},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": namespace}},
		}},
	}
	must(t, c.Create(t.Context(), configuration))
	t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(t.Context()), configuration) })
	defer startManagerOn(t, cluster.Config, namespace, &writes{}, address)()
	must(t, c.Create(t.Context(), policy(namespace)))

	admitted := func(name string) *corev1.Pod {
		pod := predictorPod(namespace, name)
		await(t, "a pod to be equipped", func(ctx context.Context) bool {
			pod = predictorPod(namespace, name)
			return c.Create(ctx, pod, client.DryRunAll) == nil && pod.Annotations[v1alpha1.AnnotationInjected] != ""
		})
		return pod
	}
	pod := admitted("before")
	initializer := pod.Spec.InitContainers[0]
	if initializer.Image != "preloader:test" || !slices.Equal(initializer.Args, []string{"s3://models/m", "/mnt/models"}) {
		t.Errorf("init container has image %s and args %q", initializer.Image, initializer.Args)
	}

	var first corev1.Secret
	key := client.ObjectKey{Namespace: namespace, Name: webhookcert.SecretName}
	must(t, c.Get(t.Context(), key, &first))
	must(t, c.Delete(t.Context(), &first))
	await(t, "another certificate", func(ctx context.Context) bool {
		var second corev1.Secret
		return c.Get(ctx, key, &second) == nil && second.UID != first.UID
	})
	admitted("after")
}

// TestControllersComeWithTheirKinds: a manager that is installed before KServe and Istio works, and needs no restart
// when they come.
func TestControllersComeWithTheirKinds(t *testing.T) {
	t.Parallel()
	tb, err := testbed.Start(t.Context(), testbed.Options{Size: testbed.API})
	must(t, err)
	t.Cleanup(func() { _ = tb.Stop() })
	must(t, tb.InstallCRDs(t.Context(), filepath.Join(testcluster.Root(), "config/crd/bases")))
	c, err := client.New(tb.Config(), client.Options{Scheme: controllers.Scheme()})
	must(t, err)
	const namespace = "default"
	defer startManager(t, tb.Config(), namespace, &writes{})()

	must(t, c.Create(t.Context(), &v1alpha1.Memcached{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "features"}, Spec: v1alpha1.MemcachedSpec{Size: 1},
	}))
	await(t, "the Memcached to be seen without KServe", func(ctx context.Context) bool {
		var m v1alpha1.Memcached
		return get(ctx, c, namespace, "features", &m) && m.Status.ObservedGeneration == m.Generation
	})
	left := &v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "left", Finalizers: []string{v1alpha1.FinalizerRoute}},
		Spec: v1alpha1.CanaryRolloutSpec{
			Stable: v1alpha1.RolloutSide{InferenceService: "v1"}, Canary: v1alpha1.RolloutSide{InferenceService: "v2"},
		},
	}
	must(t, c.Create(t.Context(), left))
	must(t, c.Delete(t.Context(), left))
	await(t, "a CanaryRollout that outlived KServe to end", func(ctx context.Context) bool {
		return apierrors.IsNotFound(c.Get(ctx, client.ObjectKeyFromObject(left), left))
	})
	must(t, c.Create(t.Context(), policy(namespace)))
	must(t, testcluster.InstallForeign(t.Context(), tb))
	await(t, "the policy to be seen once KServe is there", func(ctx context.Context) bool {
		var p v1alpha1.SidecarPolicy
		return get(ctx, c, namespace, "all", &p) && p.Status.ObservedGeneration == p.Generation
	})
}

func startManager(t *testing.T, config *rest.Config, namespace string, w *writes) (stop func()) {
	t.Helper()
	return startManagerOn(t, config, namespace, w, freeAddress())
}

func startManagerOn(
	t *testing.T, config *rest.Config, namespace string, w *writes, webhook netip.AddrPort,
) (stop func()) {
	t.Helper()
	config = rest.CopyConfig(config)
	config.Wrap(w.counting)
	mgr, err := controllers.NewManager(config, controllers.Options{
		Namespace: namespace, WebhookHost: webhook.Addr().String(), WebhookPort: int(webhook.Port()),
		WebhookNames:   []string{webhook.Addr().String()},
		MetricsAddress: "0", ProbeAddress: "0",
		MemcachedImage: "memcached:test", PreloaderImage: "preloader:test", FeatureCacheImage: "featurecache:test",
		// Pods that do not run have no statistics; what servers report is tested with the controller.
		ReadStats: func(context.Context, string) (memcached.Stats, error) { return memcached.Stats{}, nil },
	})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the manager ended with: %v", err)
		}
	}
}

// createAll makes one of each kind, and what the rest of a cluster would make for them.
func createAll(t *testing.T, c client.Client, namespace string) {
	t.Helper()
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }
	for _, o := range []client.Object{
		&v1alpha1.Memcached{ObjectMeta: meta("features"), Spec: v1alpha1.MemcachedSpec{Size: 1}},
		policy(namespace),
		&v1alpha1.CanaryRollout{ObjectMeta: meta("mnist"), Spec: v1alpha1.CanaryRolloutSpec{
			Stable: v1alpha1.RolloutSide{InferenceService: "mnist-v1"}, Canary: v1alpha1.RolloutSide{InferenceService: "mnist-v2"},
			CanaryPercent: 10,
		}},
		&kserve.InferenceService{ObjectMeta: meta("mnist-v1")},
		&kserve.InferenceService{ObjectMeta: meta("mnist-v2")},
		predictorPod(namespace, "mnist-v1"),
		&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "features-1", Labels: map[string]string{
				discoveryv1.LabelServiceName: "features", v1alpha1.LabelManagedBy: v1alpha1.ManagedBy,
				v1alpha1.LabelName: "memcached", v1alpha1.LabelInstance: "features",
			}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{
				Hostname: new("features-0"), Addresses: []string{"10.0.0.1"},
				Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true)},
			}},
		},
	} {
		must(t, c.Create(t.Context(), o))
	}
}

func policy(namespace string) *v1alpha1.SidecarPolicy {
	return &v1alpha1.SidecarPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "all"},
		Spec:       v1alpha1.SidecarPolicySpec{Preload: &v1alpha1.Preload{}},
	}
}

func predictorPod(namespace, service string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: service + "-predictor",
			Labels: map[string]string{kserve.LabelInferenceService: service, "component": "predictor"},
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{
				Name: kserve.ContainerStorageInitializer, Image: "kserve:test", Args: []string{"s3://models/m", "/mnt/models"},
			}},
			Containers: []corev1.Container{{Name: kserve.ContainerPredictor, Image: "model:test"}},
		},
	}
}

// writes counts requests that change something.
type writes struct {
	mu   sync.Mutex
	seen []string
}

func (w *writes) counting(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method != http.MethodGet {
			w.mu.Lock()
			w.seen = append(w.seen, r.Method+" "+r.URL.Path)
			w.mu.Unlock()
		}
		return next.RoundTrip(r)
	})
}

func (w *writes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

// since returns the writes after those that have been counted.
func (w *writes) since(counted int) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen[counted:])
}

// awaitRest waits until there has been no write for a minute. What is still due on a slow machine when all objects are
// as wanted begins the minute anew; whoever writes every minute comes to no rest.
func (w *writes) awaitRest(t *testing.T) {
	t.Helper()
	began, quiet, counted := time.Now(), time.Now(), w.count()
	for time.Since(quiet) < time.Minute {
		time.Sleep(100 * time.Millisecond)
		if now := w.count(); now != counted {
			quiet, counted = time.Now(), now
		}
		if time.Since(began) > 4*time.Minute {
			t.Fatalf("still writing after %s: %q", time.Since(began), w.since(max(0, counted-20)))
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func get(ctx context.Context, c client.Reader, namespace, name string, into client.Object) bool {
	return c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, into) == nil
}

// within bounds how long a test waits for what takes seconds at most. Only what never happens exceeds it, however slow the
// machine is.
const within = 3 * time.Minute

func await(t *testing.T, what string, ready func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for !ready(ctx) {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Fatalf("waited %s for %s", within, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

var webhooks atomic.Uint32

// freeAddress returns one to listen at that nobody else takes: a loopback address that is this process's alone, and a
// port above those that the kernel gives away.
func freeAddress() netip.AddrPort {
	pid := os.Getpid()
	host := netip.AddrFrom4([4]byte{127, byte(64 + pid>>16&63), byte(pid >> 8), byte(pid)})
	return netip.AddrPortFrom(host, uint16(61000+webhooks.Add(1)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
