// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/test/testbed"
)

// TestSharesByKServe: the real KServe and the real Knative do with the field what the rollout takes them to do, from an
// edit of the model through its shares to its promotion, back, and to the next model. Nothing scales and nothing routes
// there: what the autoscaler and the gateway would say, and the pods, are the test's.
func TestSharesByKServe(t *testing.T) {
	bed, err := testbed.Start(t.Context(), testbed.Options{
		Size: testbed.API, With: []testbed.Part{testbed.Istio, testbed.KServe, testbed.Knative},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := bed.InstallCRDs(t.Context(), filepath.Join(testcluster.Root(), "config/crd/bases")); err != nil {
		t.Fatal(err)
	}
	w := faults.NewWorld(t, clusterOf(t, bed))
	model := func(name string) string {
		return fmt.Sprintf(
			`{"spec":{"predictor":{"canaryTrafficPercent":0,"containers":[{"name":"kserve-container","image":"ghcr.io/models/fraud:%s"}]}}}`,
			name,
		)
	}
	do(t, w, createYAML(`
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: fraud, annotations: {serving.kserve.io/deploymentMode: Knative}}
spec: {predictor: {containers: [{name: kserve-container, image: "ghcr.io/models/fraud:a"}]}}
`), revisionPods("fraud", "00001", 1), shares())
	startManager(t, w, bed.Config())
	awaitTraffic(t, w, map[string]int64{"00001": 100})
	do(t, w, changeService("fraud", model("b")))
	awaitTraffic(t, w, map[string]int64{"00001": 100, "00002": 0})
	do(t, w, revisionPods("fraud", "00002", 1))
	for _, n := range []int64{20, 100, 30, 0} {
		do(t, w, percent(int(n)))
		awaitTraffic(t, w, map[string]int64{"00001": 100 - n, "00002": n})
		awaitReason(t, w, name, "WeightsApplied")
	}
	do(t, w, percent(40), changeService("fraud", model("c")), revisionPods("fraud", "00003", 1))
	awaitTraffic(t, w, map[string]int64{"00001": 60, "00003": 40})
}

// awaitTraffic says what the autoscaler and the gateway would until KServe reports what each revision of fraud gets, of
// those that get anything.
func awaitTraffic(t *testing.T, w *faults.World, want map[string]int64) {
	t.Helper()
	for revision, percent := range want {
		if percent == 0 {
			delete(want, revision)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var got map[string]int64
	for ctx.Err() == nil {
		if err := sayReady(ctx, w); err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
		isvc := fraudOf(t, w)
		got = map[string]int64{}
		for _, target := range isvc.Status.Components["predictor"].Traffic {
			if target.Percent != nil && *target.Percent > 0 {
				got[strings.TrimPrefix(target.RevisionName, "fraud-predictor-")] += *target.Percent
			}
		}
		if cmp.Equal(want, got) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	isvc := fraudOf(t, w)
	t.Fatalf("traffic (-want +got):\n%s\npredictor %+v\nstatus %+v\nrollout %+v", cmp.Diff(want, got),
		isvc.Spec.Predictor.CanaryTrafficPercent, isvc.Status, get(t, w, name).Status)
}

// sayReady reports every PodAutoscaler and every Ingress of Knative's as ready.
func sayReady(ctx context.Context, w *faults.World) error {
	conditions := func(kinds ...string) []any {
		var list []any
		for _, kind := range kinds {
			list = append(list, map[string]any{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"})
		}
		return list
	}
	gateway := map[string]any{"ingress": []any{map[string]any{"domainInternal": "gateway.in.cluster"}}}
	for kind, said := range map[schema.GroupVersionKind]func(o *unstructured.Unstructured) map[string]any{
		{Group: "autoscaling.internal.knative.dev", Version: "v1alpha1", Kind: "PodAutoscaler"}: func(o *unstructured.Unstructured) map[string]any {
			return map[string]any{
				"serviceName": o.GetName(), "metricsServiceName": o.GetName() + "-private",
				"actualScale": int64(1), "desiredScale": int64(1),
				"conditions": conditions("Active", "Ready", "SKSReady", "ScaleTargetInitialized"),
			}
		},
		{Group: "networking.internal.knative.dev", Version: "v1alpha1", Kind: "Ingress"}: func(*unstructured.Unstructured) map[string]any {
			return map[string]any{
				"publicLoadBalancer": gateway, "privateLoadBalancer": gateway,
				"conditions": conditions("LoadBalancerReady", "NetworkConfigured", "Ready"),
			}
		},
	} {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		if err := w.Client.List(ctx, list, client.InNamespace(w.Namespace)); err != nil {
			return err
		}
		for i := range list.Items {
			object := &list.Items[i]
			status := said(object)
			status["observedGeneration"] = object.GetGeneration()
			if equality.Semantic.DeepEqual(object.Object["status"], any(status)) {
				continue
			}
			object.Object["status"] = status
			if err := client.IgnoreNotFound(w.Client.Status().Update(ctx, object)); err != nil && !apierrors.IsConflict(err) {
				return err
			}
		}
	}
	return nil
}
