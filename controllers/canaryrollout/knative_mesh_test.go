// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/faults"
)

// TestProxiesSetTheHost: what istiod sends to a proxy leads both sides to Knative's gateway, each with its own Host and
// its share, and the same for a coloured request.
func TestProxiesSetTheHost(t *testing.T) {
	bed, cluster := startMesh(t)
	w := faults.NewWorld(t, cluster)
	do(t, w, knativeLocalGateway, knativeService("v1", 1), knativeService("v2", 1), rollout(nil))
	r := newReconciler(w.Client, w)
	host := func(side string) string { return side + "-predictor." + w.Namespace + ".svc.cluster.local" }
	for _, n := range []uint32{30, 0, 100, 55} {
		do(t, w, percent(int(n)))
		settle(t, w, r)
		awaitRoute(
			t,
			bed.XDSAddress(),
			w.Namespace,
			fmt.Sprintf("share of %d percent by Host", n),
			func(route *routev3.Route) bool {
				got, want := sharesByHost(route), map[string]uint32{host("v1"): 100 - n, host("v2"): n}
				for side, share := range want {
					if got[side] != share {
						return false
					}
				}
				return true
			},
		)
	}
	do(t, w, edit(coloured))
	settle(t, w, r)
	awaitRoute(t, bed.XDSAddress(), w.Namespace, "colour by Host", func(route *routev3.Route) bool {
		return strings.Contains(route.GetName(), "colour-qa") && sharesByHost(route)[host("v2")] == 100
	})
	wantCondition(t, w, name, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonWeightsApplied)
}

// sharesByHost returns the shares that a proxy gives to the Host headers that it sets on the way to Knative's gateway.
func sharesByHost(route *routev3.Route) map[string]uint32 {
	const gateway = "outbound|80||knative-local-gateway.istio-system.svc.cluster.local"
	action, shares := route.GetRoute(), map[string]uint32{}
	if action.GetCluster() == gateway {
		shares[action.GetHostRewriteLiteral()] = 100
	}
	for _, one := range action.GetWeightedClusters().GetClusters() {
		if one.GetName() == gateway {
			shares[one.GetHostRewriteLiteral()] += one.GetWeight().GetValue()
		}
	}
	return shares
}

// knativeLocalGateway makes the Service of Knative's gateway.
func knativeLocalGateway(ctx context.Context, w *faults.World) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}
	if err := createOnce(ctx, w, namespace); err != nil {
		return err
	}
	return createOnce(ctx, w, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "knative-local-gateway"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"istio": "ingressgateway"}, Ports: []corev1.ServicePort{{Name: "http2", Port: 80}},
		},
	})
}
