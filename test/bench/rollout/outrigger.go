// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// outrigger is this project. A wish is an edit of canaryPercent.
type outrigger struct{ *lab }

var canaryRollouts = schema.GroupVersionKind{Group: "outrigger.serverless.xyz", Version: "v1alpha1", Kind: "CanaryRollout"}

func (*outrigger) name() string                    { return nameOutrigger }
func (*outrigger) key(i int) types.NamespacedName  { return nth("ours", i) }
func (*outrigger) ticks() bool                     { return false }
func (*outrigger) rest(context.Context, int) error { return nil }
func (o *outrigger) make(ctx context.Context, i int) error {
	for _, side := range []string{"v1", "v2"} {
		if err := o.create(ctx, strings.ReplaceAll(fill(inferenceService, o.key(i)), "SIDE", side)); err != nil {
			return err
		}
	}
	return o.create(ctx, fill(canaryRollout, o.key(i)))
}

func (o *outrigger) start(ctx context.Context, program string) error {
	for _, name := range []string{"ours", "outrigger-system"} {
		if err := o.namespace(ctx, name); err != nil {
			return err
		}
	}
	return o.launch(ctx, o.name(), program,
		[]string{"KUBECONFIG=" + o.bed.Kubeconfig(), "POD_NAMESPACE=outrigger-system"},
		"--leader-elect=false", "--webhook-address=127.0.0.1:18443", "--metrics-address=0", "--probe-address=0",
		"--zap-log-level=error")
}

// inferenceService is a side with a ready pod, as KServe's Standard mode makes it.
const inferenceService = `
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: NAME-SIDE, namespace: NAMESPACE}
spec: {predictor: {model: {modelFormat: {name: pytorch}}}}
---
apiVersion: v1
kind: Service
metadata: {name: NAME-SIDE-predictor, namespace: NAMESPACE, labels: {serving.kserve.io/inferenceservice: NAME-SIDE}}
spec: {selector: {app: isvc.NAME-SIDE-predictor}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: NAME-SIDE-predictor
  namespace: NAMESPACE
  labels: {serving.kserve.io/inferenceservice: NAME-SIDE, kubernetes.io/service-name: NAME-SIDE-predictor}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
`

const canaryRollout = `
apiVersion: outrigger.serverless.xyz/v1alpha1
kind: CanaryRollout
metadata: {name: NAME, namespace: NAMESPACE}
spec: {stable: {inferenceService: NAME-v1}, canary: {inferenceService: NAME-v2}, canaryPercent: 20}
`

func (o *outrigger) stages() []stage {
	return []stage{{do: o.make, kind: virtualServiceKind, done: has(20)}}
}

func (o *outrigger) wish(i int) (func(*unstructured.Unstructured) bool, func(context.Context) error) {
	want := int64(20)
	if canaryShare(o.route(o.key(i))) == want {
		want = 30
	}
	return has(want), func(ctx context.Context) error {
		return o.patch(ctx, canaryRollouts, o.key(i), fmt.Sprintf(`{"spec":{"canaryPercent":%d}}`, want))
	}
}
