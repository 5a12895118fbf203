// SPDX-License-Identifier: Apache-2.0

package podwebhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
	"serverless.xyz/outrigger/controllers/podwebhook"
)

const namespace = "models"

var images = sidecar.Settings{Preloader: "preloader:1", PreloaderGPU: "preloader-gpu:1", FeatureCache: "outrigger:1"}

func scheme(tb testing.TB) *runtime.Scheme {
	tb.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, kserve.AddToScheme} {
		if err := add(s); err != nil {
			tb.Fatal(err)
		}
	}
	return s
}

func inferenceService(name string, labels, annotations map[string]string) *kserve.InferenceService {
	return &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, Labels: labels, Annotations: annotations,
	}}
}

func policy(namespace, name string) *v1alpha1.SidecarPolicy {
	return &v1alpha1.SidecarPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.SidecarPolicySpec{
			Selector:   metav1.LabelSelector{MatchLabels: map[string]string{"team": "blue"}},
			Components: []v1alpha1.Component{v1alpha1.ComponentPredictor},
			Preload:    &v1alpha1.Preload{Verify: v1alpha1.VerifyAuto},
		},
	}
}

func pod(service string, annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: service + "-predictor-",
			Labels:       map[string]string{kserve.LabelInferenceService: service, "component": "predictor"},
			Annotations:  annotations,
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{
				Name: kserve.ContainerStorageInitializer, Image: "kserve:1", Args: []string{"s3://b/m", "/mnt/models"},
			}},
			Containers: []corev1.Container{{Name: kserve.ContainerPredictor, Image: "server"}},
		},
	}
}

func request(tb testing.TB, raw []byte) admission.Request {
	tb.Helper()
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		UID: "1", Namespace: namespace, Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: raw},
	}}
}

// admit passes a pod through the webhook and returns what the API server would make of it.
func admit(t *testing.T, handler *podwebhook.Handler, p *corev1.Pod) (*corev1.Pod, admission.Response) {
	t.Helper()
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	response := handler.Handle(t.Context(), request(t, raw))
	if !response.Allowed {
		t.Fatalf("the pod was refused: %v", response.Result)
	}
	out := &corev1.Pod{}
	if len(response.Patches) == 0 {
		return p, response
	}
	operations, err := json.Marshal(response.Patches)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(operations)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = patch.Apply(raw); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out, response
}

func TestHandle(t *testing.T) {
	blue := map[string]string{"team": "blue"}
	for name, tc := range map[string]struct {
		objects      []client.Object
		pod          *corev1.Pod
		wantImage    string
		wantWarnings int
	}{
		"a policy of the namespace picks the InferenceService": {
			objects: []client.Object{inferenceService("m", blue, nil), policy(namespace, "a")},
			pod:     pod("m", nil), wantImage: images.Preloader,
		},
		"a policy of another namespace does not": {
			objects: []client.Object{inferenceService("m", blue, nil), policy("elsewhere", "a")},
			pod:     pod("m", nil), wantImage: "kserve:1",
		},
		"no policy, and an annotation that KServe has copied to the pod": {
			objects: []client.Object{inferenceService("m", nil, map[string]string{v1alpha1.AnnotationPreload: "true"})},
			pod:     pod("m", map[string]string{v1alpha1.AnnotationPreload: "true"}), wantImage: images.Preloader,
		},
		"an annotation that an administrator has KServe withhold from pods": {
			objects: []client.Object{inferenceService("m", nil, map[string]string{v1alpha1.AnnotationPreload: "true"})},
			pod:     pod("m", nil), wantImage: images.Preloader,
		},
		"the cache has not seen the InferenceService yet: the pod speaks for it": {
			pod:       pod("m", map[string]string{v1alpha1.AnnotationPreload: "true"}),
			wantImage: images.Preloader,
		},
		"a misspelt annotation is a warning and no refusal": {
			objects: []client.Object{inferenceService("m", nil, map[string]string{v1alpha1.AnnotationPreload: "ture"})},
			pod:     pod("m", nil), wantImage: "kserve:1", wantWarnings: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := scheme(t)
			c := fake.NewClientBuilder().WithScheme(s).WithObjects(tc.objects...).Build()
			got, response := admit(t, podwebhook.New(c, c, admission.NewDecoder(s), images), tc.pod)
			if image := got.Spec.InitContainers[0].Image; image != tc.wantImage {
				t.Errorf("image %s, want %s", image, tc.wantImage)
			}
			if len(response.Warnings) != tc.wantWarnings {
				t.Errorf("warnings %q, want %d", response.Warnings, tc.wantWarnings)
			}
			again, _ := admit(t, podwebhook.New(c, c, admission.NewDecoder(s), images), got)
			if diff := cmp.Diff(got, again); diff != "" {
				t.Errorf("called again, it changed the pod (-before +after):\n%s", diff)
			}
		})
	}
}

func TestPodsPassWhenPoliciesCannotBeRead(t *testing.T) {
	s := scheme(t)
	c := fake.NewClientBuilder().WithScheme(s).WithInterceptorFuncs(interceptor.Funcs{
		List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
			return errors.New("the cache is not there")
		},
	}).Build()
	got, response := admit(t, podwebhook.New(c, c, admission.NewDecoder(s), images), pod("m", nil))
	if got.Spec.InitContainers[0].Image != "kserve:1" || len(response.Warnings) != 1 {
		t.Errorf("image %s, warnings %q; want no change and a warning", got.Spec.InitContainers[0].Image, response.Warnings)
	}
}

func TestWhatIsNoPodIsRefused(t *testing.T) {
	s := scheme(t)
	handler := podwebhook.New(nil, nil, admission.NewDecoder(s), images)
	response := handler.Handle(t.Context(), request(t, []byte(`{"spec": 1}`)))
	if response.Allowed || response.Result.Code != http.StatusBadRequest {
		t.Errorf("allowed %v, code %d; want a bad request", response.Allowed, response.Result.Code)
	}
}

// TestFieldsOfALaterKubernetesSurvive sends a pod with a field that this release does not know.
func TestFieldsOfALaterKubernetesSurvive(t *testing.T) {
	s := scheme(t)
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(
		inferenceService("m", nil, map[string]string{v1alpha1.AnnotationPreload: "true"})).Build()
	handler := podwebhook.New(c, c, admission.NewDecoder(s), images)
	raw, err := json.Marshal(pod("m", nil))
	if err != nil {
		t.Fatal(err)
	}
	var content map[string]any
	if err := json.Unmarshal(raw, &content); err != nil {
		t.Fatal(err)
	}
	content["spec"].(map[string]any)["fieldOfTomorrow"] = "kept"
	content["spec"].(map[string]any)["containers"].([]any)[0].(map[string]any)["fieldOfTomorrow"] = "kept"
	if raw, err = json.Marshal(content); err != nil {
		t.Fatal(err)
	}
	response := handler.Handle(t.Context(), request(t, raw))
	if len(response.Patches) == 0 {
		t.Error("the pod was not equipped")
	}
	for _, p := range response.Patches {
		if p.Operation == "remove" {
			t.Errorf("the patch removes %s", p.Path)
		}
	}
}

// BenchmarkHandle decides about a pod among 50 policies and 1,000 InferenceServices. The reader stands for the
// manager's cache, which answers from memory too.
func BenchmarkHandle(b *testing.B) {
	s := scheme(b)
	reader := memory{services: map[string]*kserve.InferenceService{}}
	for i := range 1000 {
		name := fmt.Sprintf("m-%d", i)
		reader.services[name] = inferenceService(name, map[string]string{"team": "blue"}, nil)
	}
	for i := range 50 {
		reader.policies = append(reader.policies, *policy(namespace, fmt.Sprintf("p-%d", i)))
	}
	handler := podwebhook.New(reader, reader, admission.NewDecoder(s), images)
	raw, err := json.Marshal(pod("m-500", nil))
	if err != nil {
		b.Fatal(err)
	}
	r := request(b, raw)
	b.ReportAllocs()
	for b.Loop() {
		if response := handler.Handle(b.Context(), r); len(response.Patches) == 0 {
			b.Fatal("no patch")
		}
	}
}

type memory struct {
	services map[string]*kserve.InferenceService
	policies []v1alpha1.SidecarPolicy
}

func (m memory) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	m.services[key.Name].DeepCopyInto(into.(*kserve.InferenceService))
	return nil
}

func (m memory) List(_ context.Context, into client.ObjectList, _ ...client.ListOption) error {
	into.(*v1alpha1.SidecarPolicyList).Items = slices.Clone(m.policies)
	return nil
}
