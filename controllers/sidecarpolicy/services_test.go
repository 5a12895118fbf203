// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"knative.dev/pkg/apis"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/sidecarpolicy"
)

const service = "m"

func TestServiceFaults(t *testing.T) {
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name:  service,
		Kinds: kinds,
		New: func(c client.Client, w *faults.World) reconcile.Reconciler {
			return newServiceReconciler(c, w, record.NewFakeRecorder(1000))
		},
		Steps: []faults.Step{
			create(
				model(
					"s3://b/m",
					map[string]string{v1alpha1.AnnotationPreload: "yes", v1alpha1.AnnotationFeatureCache: "features"},
				),
			),
			all(annotate(v1alpha1.AnnotationPreload, "true"), kserveSays("Ready", corev1.ConditionTrue)),
			create(&v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Name: "features"}}),
		},
	})
}

// knativeSays is what KServe v0.20 repeats where Knative v1.20 refuses its Service.
const knativeSays = `fails to reconcile predictor: admission webhook "validation.webhook.serving.knative.dev" denied the ` +
	"request: validation failed: must not set the field(s): spec.template.spec.initContainers\n" +
	"pod spec support for init-containers is off, but found 1 init containers: "

func TestWarningOnAnInferenceService(t *testing.T) {
	noRoom := modelPod("m-1", service, "0123")
	noRoom.Annotations[v1alpha1.AnnotationProblems] = "container helper listens on port 11211"
	noGPU := modelPod("m-1", service, "0123")
	noGPU.Annotations[v1alpha1.AnnotationProblems] = "annotation " + v1alpha1.AnnotationWarmGPU + ": container c has no GPU"
	for name, tc := range map[string]struct {
		service    *kserve.InferenceService
		others     []client.Object
		refusal    string
		wantReason string
		wantText   string
	}{
		"all is well": {
			service: model("s3://b/m", map[string]string{v1alpha1.AnnotationPreload: "true"}),
		},
		"a value that is misspelt": {
			service:    model("s3://b/m", map[string]string{v1alpha1.AnnotationPreload: "ture"}),
			wantReason: v1alpha1.ReasonInvalidAnnotation, wantText: `"ture" is neither true nor false`,
		},
		"an annotation that is misspelt": {
			service:    model("s3://b/m", map[string]string{v1alpha1.GroupName + "/pre-load": "true"}),
			wantReason: v1alpha1.ReasonInvalidAnnotation, wantText: "pre-load is unknown",
		},
		"a Memcached that is not there": {
			service:    model("s3://b/m", map[string]string{v1alpha1.AnnotationFeatureCache: "gone"}),
			wantReason: v1alpha1.ReasonMemcachedNotFound, wantText: `no Memcached "gone"`,
		},
		"a policy that is not there": {
			service:    model("s3://b/m", map[string]string{v1alpha1.AnnotationSidecarPolicy: "gone"}),
			wantReason: v1alpha1.ReasonPolicyNotFound, wantText: `no SidecarPolicy "gone"`,
		},
		"an address that the preloader cannot fetch": {
			service:    model("hf://org/m", map[string]string{v1alpha1.AnnotationPreload: "true"}),
			wantReason: v1alpha1.ReasonInvalidAnnotation, wantText: `"hf://org/m"`,
		},
		"GPUs checked beside a preloader that cannot fetch": {
			service:    model("hf://org/m", map[string]string{v1alpha1.AnnotationWarmGPU: "true"}),
			wantReason: v1alpha1.ReasonInvalidAnnotation,
			wantText:   "annotation " + v1alpha1.AnnotationWarmGPU + `: the preloader fetches s3:// addresses, and "hf://org/m"`,
		},
		"nothing to fetch": {
			service:    inferenceService(service, map[string]string{v1alpha1.AnnotationPreload: "true"}),
			wantReason: v1alpha1.ReasonInvalidAnnotation, wantText: "neither storageUri nor storage",
		},
		"a model that the node has already": {
			service:    onTheNode(model("s3://b/m", map[string]string{v1alpha1.AnnotationPreload: "true"})),
			wantReason: v1alpha1.ReasonInvalidAnnotation, wantText: `by LocalModelCache "cached"`,
		},
		"a pod without a GPU": {
			service: model("s3://b/m", map[string]string{v1alpha1.AnnotationWarmGPU: "true"}), others: []client.Object{noGPU},
			wantReason: v1alpha1.ReasonNoGPU, wantText: "has no GPU",
		},
		"the same address, and a policy meant for many": {
			service: model("hf://org/m", nil), others: []client.Object{preloadPolicy()},
		},
		"what Knative forbids": {
			service: model("s3://b/m", map[string]string{v1alpha1.AnnotationPreload: "true"}), refusal: knativeSays,
			wantReason: v1alpha1.ReasonForbiddenByKnative,
			wantText:   "must not set the field(s): spec.template.spec.initContainers pod spec support for init-containers is off",
		},
		"what Knative forbids of an InferenceService that asks for nothing": {
			service: model("s3://b/m", nil), refusal: knativeSays,
		},
		"what KServe itself finds wrong": {
			service: model("s3://b/m", map[string]string{v1alpha1.AnnotationPreload: "true"}), refusal: "no runtime found",
		},
		"a pod without room": {
			service: model("s3://b/m", nil), others: []client.Object{noRoom},
			wantReason: v1alpha1.ReasonNoRoom, wantText: "listens on port 11211",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			do(t, w, create(tc.service))
			if tc.refusal != "" {
				do(t, w, kserveSays("PredictorReady", corev1.ConditionFalse, tc.refusal))
			}
			for _, o := range tc.others {
				do(t, w, create(o))
			}
			recorder := record.NewFakeRecorder(10)
			reconcileService(t, w, recorder)
			got := kserve.WarningOf(getService(t, w), v1alpha1.ConditionSidecarsIncomplete)
			if tc.wantReason == "" {
				if got != nil {
					t.Errorf("warning %+v, want none", got)
				}
				return
			}
			if got == nil || got.Reason != tc.wantReason || !strings.Contains(got.Message, tc.wantText) {
				t.Fatalf("warning %+v, want %s with %q", got, tc.wantReason, tc.wantText)
			}
			select {
			case event := <-recorder.Events:
				if want := "Warning " + tc.wantReason; !strings.HasPrefix(event, want) || !strings.Contains(event, tc.wantText) {
					t.Errorf("event %q, want %q with %q", event, want, tc.wantText)
				}
			default:
				t.Error("no event")
			}
		})
	}
}

func TestWarningLeavesKServesConditionsAlone(t *testing.T) {
	w := newWorld(t)
	do(t, w,
		create(model("s3://b/m", map[string]string{v1alpha1.AnnotationPreload: "ture"})),
		kserveSays("PredictorReady", corev1.ConditionTrue), kserveSays("Ready", corev1.ConditionTrue),
	)
	recorder := record.NewFakeRecorder(10)
	reconcileService(t, w, recorder)
	isvc := getService(t, w)
	if !kserve.PredictorReady(isvc) || len(isvc.Status.Conditions) != 3 {
		t.Errorf("conditions %+v", isvc.Status.Conditions)
	}
	do(t, w, annotate(v1alpha1.AnnotationPreload, "true"))
	reconcileService(t, w, recorder)
	isvc = getService(t, w)
	if !kserve.PredictorReady(isvc) || len(isvc.Status.Conditions) != 2 {
		t.Errorf("conditions %+v after the mend, want KServe's two", isvc.Status.Conditions)
	}
	<-recorder.Events
	if event := <-recorder.Events; !strings.HasPrefix(event, "Normal "+v1alpha1.ReasonSidecarsComplete) {
		t.Errorf("event %q after the mend", event)
	}
}

func model(uri string, annotations map[string]string) *kserve.InferenceService {
	isvc := inferenceService(service, annotations)
	isvc.Spec.Predictor.Containers = []corev1.Container{{
		Name: kserve.ContainerPredictor, Image: "server", Env: []corev1.EnvVar{{Name: "STORAGE_URI", Value: uri}},
	}}
	return isvc
}

// onTheNode is an InferenceService as KServe's webhook marks one whose model a LocalModelCache has.
func onTheNode(isvc *kserve.InferenceService) *kserve.InferenceService {
	isvc.Labels = map[string]string{"internal.serving.kserve.io/localmodel": "cached"}
	return isvc
}

func annotate(key, value string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{}
		if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: service}, isvc); err != nil {
			return err
		}
		isvc.Annotations[key] = value
		return w.Client.Update(ctx, isvc)
	}
}

// kserveSays sets a condition as KServe does.
func kserveSays(kind apis.ConditionType, status corev1.ConditionStatus, message ...string) faults.Step {
	return func(ctx context.Context, w *faults.World) error {
		isvc := &kserve.InferenceService{}
		if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: service}, isvc); err != nil {
			return err
		}
		isvc.Status.Conditions = slices.DeleteFunc(isvc.Status.Conditions, func(c apis.Condition) bool { return c.Type == kind })
		isvc.Status.Conditions = append(isvc.Status.Conditions, apis.Condition{
			Type: kind, Status: status, Message: strings.Join(message, " "),
		})
		return w.Client.Status().Update(ctx, isvc)
	}
}

func newServiceReconciler(c client.Client, w *faults.World, recorder record.EventRecorder) reconcile.Reconciler {
	return reconcile.AsReconciler(c, sidecarpolicy.NewServiceReconciler(c, w.Clock, recorder, &sidecarpolicy.Memo{}))
}

func reconcileService(t *testing.T, w *faults.World, recorder record.EventRecorder) {
	t.Helper()
	key := client.ObjectKey{Namespace: w.Namespace, Name: service}
	r := newServiceReconciler(w.Client, w, recorder)
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key}); err != nil {
		t.Fatalf("reconciling: %v", err)
	}
}

func getService(t *testing.T, w *faults.World) *kserve.InferenceService {
	t.Helper()
	isvc := &kserve.InferenceService{}
	if err := w.Client.Get(t.Context(), client.ObjectKey{Namespace: w.Namespace, Name: service}, isvc); err != nil {
		t.Fatal(err)
	}
	return isvc
}
