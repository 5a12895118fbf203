// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/controllers/sidecarpolicy"
)

func raw(items ...string) []runtime.RawExtension {
	var list []runtime.RawExtension
	for _, item := range items {
		list = append(list, runtime.RawExtension{Raw: []byte(item)})
	}
	return list
}

func TestAcceptFaults(t *testing.T) {
	p := preloadPolicy()
	p.Spec.Containers = raw(`{"name": "logger", "image": "registry.example/agent:1"}`)
	faults.Run(t, testcluster.New(t), faults.Scenario{
		Name: name, Kinds: kinds, New: newReconciler,
		Steps: []faults.Step{
			all(create(p), create(inferenceService("a", nil))),
			change(name, func(p *v1alpha1.SidecarPolicy) {
				p.Spec.Containers = raw(
					`{"name": "logger", "image": "registry.example/agent:1", "ports": [{"containerPort": 99999}]}`,
				)
			}),
		},
	})
}

// TestWhatTheAPIServerRefusesIsNotInForce: the policy says so with the API server's words, and pods come without it.
func TestWhatTheAPIServerRefusesIsNotInForce(t *testing.T) {
	for about, tc := range map[string]struct {
		edit func(*v1alpha1.SidecarPolicySpec)
		want string
	}{
		"a port that there is not": {
			edit: func(s *v1alpha1.SidecarPolicySpec) {
				s.Containers = raw(`{"name": "c", "image": "registry.example/c", "ports": [{"containerPort": 99999}]}`)
			},
			want: "spec.containers[2].ports[0].containerPort",
		},
		"a variable from nowhere": {
			edit: func(s *v1alpha1.SidecarPolicySpec) { s.Env = raw(`{"name": "A", "valueFrom": {}}`) },
			want: "env[0].valueFrom",
		},
		"resources that there are not": {
			edit: func(s *v1alpha1.SidecarPolicySpec) {
				s.Preload.Resources = &v1alpha1.PreloadResources{
					Requests: corev1.ResourceList{"no-such-thing": resource.MustParse("1")},
				}
			},
			want: "no-such-thing",
		},
		"a field that only its types know": {
			edit: func(s *v1alpha1.SidecarPolicySpec) {
				s.Containers = raw(`{"name": "c", "image": "registry.example/c", "x": 1}`)
			},
			want: `spec: unknown field "containers[0].x"`,
		},
		"a path of the node": {
			edit: func(s *v1alpha1.SidecarPolicySpec) { s.Volumes = raw(`{"name": "v", "hostPath": {"path": "/"}}`) },
			want: "spec.volumes[0]: a policy may add",
		},
	} {
		t.Run(about, func(t *testing.T) {
			r := newRolloutWorld(t)
			do(t, r.World, create(rolling(preloadPolicy())), create(inferenceService("a", nil)))
			r.rest(t)
			do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) { tc.edit(&p.Spec) }))
			r.rest(t)
			r.wantReplaced(t, map[string]int{"a": 0})
			p := get(t, r.World)
			for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionReady} {
				c := meta.FindStatusCondition(p.Status.Conditions, kind)
				if c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, tc.want) {
					t.Errorf("%s is %s: %q, want %q", kind, c.Status, c.Message, tc.want)
				}
			}
			// A pod that is made now starts, without what the policy asks for.
			do(t, r.World, r.kserve.lose("a"))
			pod := modelPodOf(t, r.World, "a")
			if pod.Annotations[v1alpha1.AnnotationInjected] != "" {
				t.Errorf("the pod got %s of a policy that is refused", pod.Annotations[v1alpha1.AnnotationInjectedParts])
			}
		})
	}
}

// TestSidecarsReachPods: what a policy adds is in the pods that are made once it is accepted, and replaces those before.
func TestSidecarsReachPods(t *testing.T) {
	r := newRolloutWorld(t)
	do(t, r.World, create(rolling(preloadPolicy())), create(inferenceService("a", nil)))
	r.rest(t)
	do(t, r.World, change(name, func(p *v1alpha1.SidecarPolicy) {
		p.Spec.Containers = raw(
			`{"name": "logger", "image": "registry.example/agent:1", "args": ["${isvc.metadata.name}"]}`,
			`{"name": "kserve-container", "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}`)
		p.Spec.Volumes = raw(`{"name": "shared", "emptyDir": {}}`)
		p.Spec.Env = raw(`{"name": "SERVICE", "value": "${isvc.metadata.name}"}`)
	}))
	r.rest(t)
	r.wantReplaced(t, map[string]int{"a": 1})
	wantCondition(t, r.World, v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted)
	pod := modelPodOf(t, r.World, "a")
	model, agent := pod.Spec.Containers[0], pod.Spec.Containers[len(pod.Spec.Containers)-1]
	if agent.Name != "logger" || !slices.Equal(agent.Args, []string{"a"}) {
		t.Errorf("the last container is %s with arguments %q", agent.Name, agent.Args)
	}
	if len(model.VolumeMounts) != 1 || model.Env[len(model.Env)-1].Value != "a" {
		t.Errorf("the model has mounts %v, variables %v", model.VolumeMounts, model.Env)
	}
}

func TestConflictsOfSidecars(t *testing.T) {
	w := newWorld(t)
	low, high := preloadPolicy(), preloadPolicy()
	low.Spec.Preload, high.Spec.Preload = nil, nil
	low.Spec.Env = raw(`{"name": "A", "value": "low"}`, `{"name": "B", "value": "same"}`)
	low.Spec.InitContainers = raw(`{"name": "c", "image": "registry.example/c"}`)
	high.Name, high.Spec.Priority = "high", 900
	high.Spec.Env = raw(`{"name": "A", "value": "high"}`, `{"name": "B", "value": "same"}`)
	high.Spec.Containers = raw(`{"name": "c", "image": "registry.example/d"}`)
	do(t, w, create(low), create(high), create(inferenceService("a", nil)))
	reconcileOnce(t, w)
	var got []string
	for _, c := range get(t, w).Status.Conflicts {
		got = append(got, c.Part+" "+c.Policy)
	}
	if want := []string{"env high", "initContainers high"}; !slices.Equal(got, want) {
		t.Errorf("conflicts %q, want %q", got, want)
	}
}

func TestAnImageOfASidecarThatIsNotAllowedIsRefused(t *testing.T) {
	w := newWorld(t)
	p := preloadPolicy()
	p.Spec.Containers = raw(`{"name": "c", "image": "elsewhere.example/c"}`)
	do(t, w, create(p), create(inferenceService("a", nil)))
	reconcileOnce(t, w)
	c := meta.FindStatusCondition(get(t, w).Status.Conditions, v1alpha1.ConditionStalled)
	if c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "none that the administrator allows") {
		t.Errorf("Stalled is %s: %q", c.Status, c.Message)
	}
}

func modelPodOf(t *testing.T, w *faults.World, service string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	do(t, w, func(ctx context.Context, w *faults.World) error {
		return w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: service + "-1"}, pod)
	})
	return pod
}

// TestSampleOfSidecars: the sample works as its comments say.
func TestSampleOfSidecars(t *testing.T) {
	r := newRolloutWorld(t)
	text, err := os.ReadFile(filepath.Join(testcluster.Root(), "samples/sidecarpolicy-sidecars.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	p := &v1alpha1.SidecarPolicy{}
	if err := yaml.UnmarshalStrict(text, p); err != nil {
		t.Fatal(err)
	}
	r.policies = []string{p.Name}
	r.newReconciler = func(w *faults.World) reconcile.Reconciler {
		return reconcile.AsReconciler(w.Client,
			sidecarpolicy.New(w.Client, w.Client, w.Clock, record.NewFakeRecorder(1000), settings, &sidecarpolicy.Memo{}))
	}
	do(t, r.World, create(p))
	r.rest(t)
	do(t, r.World, create(inferenceService("mnist", nil)))
	r.rest(t)
	pod := modelPodOf(t, r.World, "mnist")
	tail := pod.Spec.Containers[len(pod.Spec.Containers)-1]
	if tail.Name != "log-tail" || tail.Env[0].Value != "/logs/mnist.log" || !strings.Contains(tail.Command[2], `"$FILE"`) {
		t.Errorf("the last container is %+v", tail)
	}
}
