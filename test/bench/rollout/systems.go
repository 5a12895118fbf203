// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// system is something that moves traffic by a VirtualService.
type system interface {
	name() string
	// start runs the controller, and makes what its canaries share.
	start(ctx context.Context, program string) error
	// make makes the i-th canary, and brings it to where it has a share.
	make(ctx context.Context, i int) error
	// wish returns an edit that asks for another share of the i-th canary, and what tells whether a route has it.
	wish(i int) (carries func(*unstructured.Unstructured) bool, edit func(context.Context) error)
	// rest ends an edit.
	rest(ctx context.Context, i int) error
	// key is the route of the i-th canary.
	key(i int) types.NamespacedName
	// lanes is how many single edits are made at once, so that a system that takes seconds does not take hours.
	lanes() int
}

// setUpLanes is how many canaries are made at once; Flagger's take three intervals each.
const setUpLanes = 200

// setUp is how long a canary may take to get where it has a share.
const setUp = 5 * time.Minute

// makeAll makes all canaries of a system and waits until they rest.
func (l *lab) makeAll(ctx context.Context, s system, n int) error {
	return each(n, setUpLanes, func(i int) error { return s.make(ctx, i) })
}

func (l *lab) namespace(ctx context.Context, name string) error {
	return l.create(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}")
}

// awaitShare waits until the i-th canary of a system has some share.
func (l *lab) awaitShare(ctx context.Context, s system, i int, wanted func(int64) bool) error {
	seen := l.await(s.key(i), func(route *unstructured.Unstructured) bool { return wanted(canaryShare(route)) })
	select {
	case <-seen:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(setUp):
		return fmt.Errorf("canary %d has %d percent after %s", i, canaryShare(l.route(s.key(i))), setUp)
	}
}

// canaryShare is the weight of the last destination of a route, 0 if there is but one.
func canaryShare(route *unstructured.Unstructured) int64 {
	if route == nil {
		return 0
	}
	rules, _, _ := unstructured.NestedSlice(route.Object, "spec", "http")
	for _, rule := range rules {
		destinations, _, _ := unstructured.NestedSlice(rule.(map[string]any), "route")
		if len(destinations) > 1 {
			switch weight := destinations[1].(map[string]any)["weight"].(type) {
			case int64:
				return weight
			case float64:
				return int64(weight)
			}
		}
	}
	return 0
}

// other is a share that the i-th canary does not have.
func other(l *lab, key types.NamespacedName) int64 {
	if canaryShare(l.route(key)) == 20 {
		return 30
	}
	return 20
}

func has(percent int64) func(*unstructured.Unstructured) bool {
	return func(route *unstructured.Unstructured) bool { return canaryShare(route) == percent }
}

func nth(namespace string, i int) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: fmt.Sprintf("c-%d", i)}
}

func fill(text string, key types.NamespacedName) string {
	return strings.NewReplacer("NAMESPACE", key.Namespace, "NAME", key.Name).Replace(text)
}

// outrigger is this project.
type outrigger struct{ *lab }

var canaryRollouts = schema.GroupVersionKind{Group: "outrigger.serverless.xyz", Version: "v1alpha1", Kind: "CanaryRollout"}

func (*outrigger) name() string                   { return nameOutrigger }
func (*outrigger) key(i int) types.NamespacedName { return nth("ours", i) }

func (o *outrigger) start(ctx context.Context, program string) error {
	for _, name := range []string{"ours", "outrigger-system"} {
		if err := o.namespace(ctx, name); err != nil {
			return err
		}
	}
	for _, side := range []string{"v1", "v2"} {
		if err := o.create(ctx, strings.ReplaceAll(inferenceService, "SIDE", side)); err != nil {
			return err
		}
	}
	return o.launch(ctx, program, []string{"KUBECONFIG=" + o.bed.Kubeconfig(), "POD_NAMESPACE=outrigger-system"},
		"--webhook-address=127.0.0.1:18443", "--metrics-address=0", "--probe-address=0", "--zap-log-level=error")
}

// inferenceService is a side with a ready pod, as KServe's Standard mode makes it.
const inferenceService = `
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: SIDE, namespace: ours}
spec: {predictor: {model: {modelFormat: {name: pytorch}}}}
---
apiVersion: v1
kind: Service
metadata: {name: SIDE-predictor, namespace: ours, labels: {serving.kserve.io/inferenceservice: SIDE}}
spec: {selector: {app: isvc.SIDE-predictor}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: SIDE-predictor
  namespace: ours
  labels: {serving.kserve.io/inferenceservice: SIDE, kubernetes.io/service-name: SIDE-predictor}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
`

func (o *outrigger) make(ctx context.Context, i int) error {
	if err := o.create(ctx, fill(`
apiVersion: outrigger.serverless.xyz/v1alpha1
kind: CanaryRollout
metadata: {name: NAME, namespace: NAMESPACE}
spec: {stable: {inferenceService: v1}, canary: {inferenceService: v2}, canaryPercent: 20}
`, o.key(i))); err != nil {
		return err
	}
	return o.awaitShare(ctx, o, i, func(n int64) bool { return n == 20 })
}

func (*outrigger) lanes() int { return 1 }

func (o *outrigger) wish(i int) (func(*unstructured.Unstructured) bool, func(context.Context) error) {
	want := other(o.lab, o.key(i))
	return has(want), func(ctx context.Context) error {
		return o.patch(ctx, canaryRollouts, o.key(i), fmt.Sprintf(`{"spec":{"canaryPercent":%d}}`, want))
	}
}

func (*outrigger) rest(context.Context, int) error { return nil }

// argo is Argo Rollouts: a step whose weight is edited.
type argo struct{ *lab }

var rollouts = schema.GroupVersionKind{Group: "argoproj.io", Version: "v1alpha1", Kind: "Rollout"}

func (*argo) name() string                   { return nameArgo }
func (*argo) key(i int) types.NamespacedName { return nth("argo", i) }

func (a *argo) start(ctx context.Context, program string) error {
	for _, name := range []string{"argo", "argo-rollouts"} {
		if err := a.namespace(ctx, name); err != nil {
			return err
		}
	}
	return a.launch(ctx, program, nil, "--kubeconfig="+a.bed.Kubeconfig(), "--leader-elect=false", "--loglevel=error",
		"--metricsPort=18091", "--healthzPort=18092")
}

const argoObjects = `
apiVersion: v1
kind: Service
metadata: {name: NAME-stable, namespace: NAMESPACE}
spec: {selector: {app: NAME}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: NAME-canary, namespace: NAMESPACE}
spec: {selector: {app: NAME}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  hosts: [NAME.example.com]
  http:
  - name: split
    route:
    - {destination: {host: NAME-stable}, weight: 100}
    - {destination: {host: NAME-canary}, weight: 0}
---
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  replicas: 1
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec: {containers: [{name: model, image: "model:1"}]}
  strategy:
    canary:
      stableService: NAME-stable
      canaryService: NAME-canary
      trafficRouting: {istio: {virtualService: {name: NAME, routes: [split]}}}
      steps: [{setWeight: 20}, {pause: {}}]
`

func (a *argo) make(ctx context.Context, i int) error {
	key := a.key(i)
	if err := a.create(ctx, fill(argoObjects, key)); err != nil {
		return err
	}
	if err := a.awaitHealthy(ctx, key); err != nil {
		return err
	}
	next := `{"spec":{"template":{"spec":{"containers":[{"name":"model","image":"model:2"}]}}}}`
	if err := a.patch(ctx, rollouts, key, next); err != nil {
		return err
	}
	return a.awaitShare(ctx, a, i, func(n int64) bool { return n == 20 })
}

// awaitHealthy waits until the first version has been rolled out, which takes no steps.
func (a *argo) awaitHealthy(ctx context.Context, key types.NamespacedName) error {
	for began := time.Now(); time.Since(began) < setUp; time.Sleep(50 * time.Millisecond) {
		rollout := &unstructured.Unstructured{}
		rollout.SetGroupVersionKind(rollouts)
		if err := a.client.Get(ctx, key, rollout); err != nil {
			return fmt.Errorf("reading a Rollout: %w", err)
		}
		if phase, _, _ := unstructured.NestedString(rollout.Object, "status", "phase"); phase == "Healthy" {
			return nil
		}
	}
	return fmt.Errorf("rollout %s is not healthy after %s", key.Name, setUp)
}

func (*argo) lanes() int { return 1 }

func (a *argo) wish(i int) (func(*unstructured.Unstructured) bool, func(context.Context) error) {
	want := other(a.lab, a.key(i))
	patch := fmt.Sprintf(`{"spec":{"strategy":{"canary":{"steps":[{"setWeight":%d},{"pause":{}}]}}}}`, want)
	return has(want), func(ctx context.Context) error { return a.patch(ctx, rollouts, a.key(i), patch) }
}

func (*argo) rest(context.Context, int) error { return nil }

// flagger is Flagger: a canary that is let go on, at its shortest interval, and takes its next step.
type flagger struct{ *lab }

var canaries = schema.GroupVersionKind{Group: "flagger.app", Version: "v1beta1", Kind: "Canary"}

var deployments = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}

func (*flagger) name() string                   { return nameFlagger }
func (*flagger) key(i int) types.NamespacedName { return nth("flagger", i) }

func (f *flagger) start(ctx context.Context, program string) error {
	if err := f.namespace(ctx, "flagger"); err != nil {
		return err
	}
	return f.launch(ctx, program, nil, "-kubeconfig="+f.bed.Kubeconfig(), "-mesh-provider=istio", "-log-level=error",
		"-port=18093", "-metrics-server=http://127.0.0.1:9", "-enable-config-tracking=false")
}

const flaggerObjects = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  replicas: 1
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec: {containers: [{name: model, image: "model:1", ports: [{containerPort: 8080}]}]}
---
apiVersion: flagger.app/v1beta1
kind: Canary
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  targetRef: {apiVersion: apps/v1, kind: Deployment, name: NAME}
  service: {port: 80, targetPort: 8080}
  analysis: {interval: 10s, threshold: 100, stepWeight: 1, maxWeight: 90, metrics: []}
`

func (f *flagger) make(ctx context.Context, i int) error {
	key := f.key(i)
	if err := f.create(ctx, fill(flaggerObjects, key)); err != nil {
		return err
	}
	if err := f.awaitInitialized(ctx, key); err != nil {
		return err
	}
	next := `{"spec":{"template":{"spec":{"containers":[{"name":"model","image":"model:2"}]}}}}`
	if err := f.patch(ctx, deployments, key, next); err != nil {
		return err
	}
	if err := f.awaitShare(ctx, f, i, func(n int64) bool { return n > 0 }); err != nil {
		return err
	}
	return f.rest(ctx, i)
}

func (f *flagger) awaitInitialized(ctx context.Context, key types.NamespacedName) error {
	for began := time.Now(); time.Since(began) < setUp; time.Sleep(200 * time.Millisecond) {
		canary := &unstructured.Unstructured{}
		canary.SetGroupVersionKind(canaries)
		if err := f.client.Get(ctx, key, canary); err != nil {
			return fmt.Errorf("reading a Canary: %w", err)
		}
		if phase, _, _ := unstructured.NestedString(canary.Object, "status", "phase"); phase == "Initialized" {
			return nil
		}
	}
	return fmt.Errorf("canary %s is not initialized after %s", key.Name, setUp)
}

func (*flagger) lanes() int { return 10 }

func (f *flagger) wish(i int) (func(*unstructured.Unstructured) bool, func(context.Context) error) {
	before := canaryShare(f.route(f.key(i)))
	changed := func(route *unstructured.Unstructured) bool { return canaryShare(route) != before }
	return changed, func(ctx context.Context) error {
		return f.patch(ctx, canaries, f.key(i), `{"spec":{"suspend":false}}`)
	}
}

func (f *flagger) rest(ctx context.Context, i int) error {
	return f.patch(ctx, canaries, f.key(i), `{"spec":{"suspend":true}}`)
}
