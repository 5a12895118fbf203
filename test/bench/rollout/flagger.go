// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// flagger is Flagger. It has no field for the weight: a wish lets a suspended Canary go on, which takes its next step at
// the next tick of its interval.
type flagger struct{ *lab }

var (
	canaries    = schema.GroupVersionKind{Group: "flagger.app", Version: "v1beta1", Kind: "Canary"}
	deployments = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
)

func (*flagger) name() string                   { return nameFlagger }
func (*flagger) key(i int) types.NamespacedName { return nth("flagger", i) }
func (*flagger) ticks() bool                    { return true }

func (f *flagger) start(ctx context.Context, program string) error {
	if err := f.namespace(ctx, "flagger"); err != nil {
		return err
	}
	return f.launch(ctx, f.name(), program, nil, "-kubeconfig="+f.bed.Kubeconfig(), "-mesh-provider=istio", "-log-level=error",
		"-port=18093", "-metrics-server=http://127.0.0.1:9", "-enable-config-tracking=false",
		"-kubeconfig-qps=1000", "-kubeconfig-burst=2000", "-threadiness=8")
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

func (f *flagger) stages() []stage {
	return []stage{
		{
			do:   func(ctx context.Context, i int) error { return f.create(ctx, fill(flaggerObjects, f.key(i))) },
			kind: canaries, done: inPhase("Initialized"),
		},
		{
			do:   func(ctx context.Context, i int) error { return f.patch(ctx, deployments, f.key(i), nextModel) },
			kind: virtualServiceKind, done: func(route *unstructured.Unstructured) bool { return canaryShare(route) > 0 },
		},
	}
}

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
