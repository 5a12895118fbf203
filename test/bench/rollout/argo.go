// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// argo is Argo Rollouts. A wish takes a Rollout from the pause that it is at to the next step, which sets another weight:
// what the command promote writes to go on past steps, and the quickest that there is. To promote by ending the pause, or
// to edit the step, takes it another round through its status first.
type argo struct {
	*lab
	// at is the number of the weight that each canary is at.
	at    []atomic.Int64
	steps string
}

var rollouts = schema.GroupVersionKind{Group: "argoproj.io", Version: "v1alpha1", Kind: "Rollout"}

func newArgo(l *lab, o options) *argo {
	steps := make([]string, 0, o.wishes()+2)
	for i := range o.wishes() + 2 {
		steps = append(steps, fmt.Sprintf("{setWeight: %d}, {pause: {}}", shareAt(int64(i))))
	}
	return &argo{lab: l, at: make([]atomic.Int64, o.rollouts), steps: strings.Join(steps, ", ")}
}

// shareAt is the n-th weight of every canary.
func shareAt(n int64) int64 { return 20 + 10*(n%2) }

func (*argo) name() string                    { return nameArgo }
func (*argo) key(i int) types.NamespacedName  { return nth("argo", i) }
func (*argo) ticks() bool                     { return false }
func (*argo) rest(context.Context, int) error { return nil }

func (a *argo) start(ctx context.Context, program string) error {
	for _, name := range []string{"argo", "argo-rollouts"} {
		if err := a.namespace(ctx, name); err != nil {
			return err
		}
	}
	return a.launch(ctx, a.name(), program, nil, "--kubeconfig="+a.bed.Kubeconfig(), "--leader-elect=false", "--loglevel=error",
		"--metricsPort=18091", "--healthzPort=18092", "--qps=1000", "--burst=2000")
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
      steps: [STEPS]
`

func (a *argo) stages() []stage {
	return []stage{
		{
			do: func(ctx context.Context, i int) error {
				return a.create(ctx, strings.ReplaceAll(fill(argoObjects, a.key(i)), "STEPS", a.steps))
			},
			kind: rollouts, done: inPhase("Healthy"),
		},
		{
			do:   func(ctx context.Context, i int) error { return a.patch(ctx, rollouts, a.key(i), nextModel) },
			kind: virtualServiceKind, done: has(shareAt(0)),
		},
		{kind: rollouts, done: inPhase("Paused")},
	}
}

func (a *argo) wish(i int) (func(*unstructured.Unstructured) bool, func(context.Context) error) {
	next := a.at[i].Add(1)
	patch := fmt.Sprintf(`{"status":{"pauseConditions":null,"controllerPause":false,"currentStepIndex":%d}}`, 2*next)
	return has(shareAt(next)), func(ctx context.Context) error { return a.patchStatus(ctx, rollouts, a.key(i), patch) }
}
