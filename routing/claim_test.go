// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func rollout(namespace, name string, age time.Duration, change func(*v1alpha1.RolloutRouting)) v1alpha1.CanaryRollout {
	r := v1alpha1.CanaryRollout{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name),
			CreationTimestamp: metav1.NewTime(epoch.Add(-age)),
		},
		Spec: v1alpha1.CanaryRolloutSpec{Routing: v1alpha1.RolloutRouting{Mode: v1alpha1.RoutingOwned}},
	}
	if change != nil {
		change(&r.Spec.Routing)
	}
	return r
}

func hosts(hosts ...string) func(*v1alpha1.RolloutRouting) {
	return func(r *v1alpha1.RolloutRouting) { r.Hosts = hosts }
}

func adopting(name, route string) func(*v1alpha1.RolloutRouting) {
	return func(r *v1alpha1.RolloutRouting) {
		r.Mode = v1alpha1.RoutingAdopt
		r.VirtualServiceRef = &v1alpha1.VirtualServiceReference{Name: name, Route: route}
	}
}

// virtualService makes one for a host; owner is the namespace/name of a rollout, or empty.
func virtualService(namespace, name, host string, age time.Duration, owner string) unstructured.Unstructured {
	vs := NewRoute(DefaultDomain.VirtualServices())
	vs.SetNamespace(namespace)
	vs.SetName(name)
	vs.SetCreationTimestamp(metav1.NewTime(epoch.Add(-age)))
	vs.Object["spec"] = map[string]any{"hosts": []any{host}}
	if owner != "" {
		vs.SetOwnerReferences([]metav1.OwnerReference{{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "CanaryRollout", Name: owner, UID: types.UID(owner),
			Controller: new(true),
		}})
	}
	return *vs
}

func TestFindRival(t *testing.T) {
	const hour = time.Hour
	tests := map[string]struct {
		rollout         v1alpha1.CanaryRollout
		others          []v1alpha1.CanaryRollout
		virtualServices []unstructured.Unstructured
		want            *Rival
	}{
		"alone": {rollout: rollout("ml", "a", hour, hosts("x.example"))},
		"an older rollout of the same host wins": {
			rollout: rollout("ml", "a", hour, hosts("x.example")),
			others:  []v1alpha1.CanaryRollout{rollout("ml", "b", 2*hour, hosts("y.example", "x.example"))},
			want:    &Rival{Kind: "CanaryRollout", Namespace: "ml", Name: "b"},
		},
		"a younger one does not": {
			rollout: rollout("ml", "b", 2*hour, hosts("x.example")),
			others:  []v1alpha1.CanaryRollout{rollout("ml", "a", hour, hosts("x.example"))},
		},
		"of one age, the first by name wins": {
			rollout: rollout("ml", "b", hour, hosts("x.example")),
			others:  []v1alpha1.CanaryRollout{rollout("ml", "a", hour, hosts("x.example"))},
			want:    &Rival{Kind: "CanaryRollout", Namespace: "ml", Name: "a"},
		},
		"the oldest of three wins": {
			rollout: rollout("ml", "c", hour, hosts("x.example")),
			others: []v1alpha1.CanaryRollout{
				rollout("ml", "a", 2*hour, hosts("x.example")), rollout("ml", "b", 3*hour, hosts("x.example")),
			},
			want: &Rival{Kind: "CanaryRollout", Namespace: "ml", Name: "b"},
		},
		"one that is being deleted has no claim": {
			rollout: rollout("ml", "a", hour, hosts("x.example")),
			others: []v1alpha1.CanaryRollout{func() v1alpha1.CanaryRollout {
				r := rollout("ml", "b", 2*hour, hosts("x.example"))
				r.DeletionTimestamp = new(metav1.NewTime(epoch))
				return r
			}()},
		},
		"one whose VirtualService routes the host keeps it against an older newcomer": {
			rollout:         rollout("ml", "old", 9*hour, hosts("x.example")),
			others:          []v1alpha1.CanaryRollout{rollout("ml", "young", hour, hosts("x.example"))},
			virtualServices: []unstructured.Unstructured{virtualService("ml", "young", "x.example", hour, "ml/young")},
			want:            &Rival{Kind: "CanaryRollout", Namespace: "ml", Name: "young", Routes: true},
		},
		"if both route it, the older rollout has it": {
			rollout: rollout("ml", "young", hour, hosts("x.example")),
			others:  []v1alpha1.CanaryRollout{rollout("ml", "old", 9*hour, hosts("x.example"))},
			virtualServices: []unstructured.Unstructured{
				virtualService(
					"ml",
					"young",
					"x.example",
					hour,
					"ml/young",
				),
				virtualService("ml", "old", "x.example", 0, "ml/old"),
			},
			want: &Rival{Kind: "CanaryRollout", Namespace: "ml", Name: "old", Routes: true},
		},
		"the default host is a claim too, across namespaces": {
			rollout: rollout("ml", "a", hour, nil),
			others:  []v1alpha1.CanaryRollout{rollout("other", "b", 2*hour, hosts("a.ml.svc.cluster.local"))},
			want:    &Rival{Kind: "CanaryRollout", Namespace: "other", Name: "b"},
		},
		"a short host is one of the own namespace": {
			rollout: rollout("ml", "a", hour, hosts("x")),
			others:  []v1alpha1.CanaryRollout{rollout("other", "b", 2*hour, hosts("x"))},
		},
		"the same host at another gateway is no conflict": {
			rollout: rollout("ml", "a", hour, hosts("x.example")),
			others: []v1alpha1.CanaryRollout{rollout("ml", "b", 2*hour, func(r *v1alpha1.RolloutRouting) {
				r.Hosts, r.Gateways = []string{"x.example"}, []string{"edge"}
			})},
		},
		"one route of one VirtualService": {
			rollout: rollout("ml", "a", hour, adopting("shop", "split")),
			others:  []v1alpha1.CanaryRollout{rollout("ml", "b", 2*hour, adopting("shop", "split"))},
			want:    &Rival{Kind: "CanaryRollout", Namespace: "ml", Name: "b"},
		},
		"two routes of one VirtualService": {
			rollout: rollout("ml", "a", hour, adopting("shop", "split")),
			others:  []v1alpha1.CanaryRollout{rollout("ml", "b", 2*hour, adopting("shop", "other"))},
		},
		"a VirtualService of the same name elsewhere": {
			rollout: rollout("ml", "a", hour, adopting("shop", "split")),
			others:  []v1alpha1.CanaryRollout{rollout("other", "b", 2*hour, adopting("shop", "split"))},
		},
		"a user's VirtualService has the host": {
			rollout:         rollout("ml", "a", hour, hosts("x.example")),
			virtualServices: []unstructured.Unstructured{virtualService("web", "front", "x.example", hour, "")},
			want:            &Rival{Kind: "VirtualService", Namespace: "web", Name: "front", Routes: true},
		},
		"a user's VirtualService that came later is the one that Istio ignores": {
			rollout: rollout("ml", "a", 3*hour, hosts("x.example")),
			virtualServices: []unstructured.Unstructured{
				virtualService("web", "front", "x.example", hour, ""), virtualService("ml", "a", "x.example", 2*hour, "ml/a"),
			},
		},
		"a user's VirtualService that only its namespace sees": {
			rollout: rollout("ml", "a", hour, hosts("x.example")),
			virtualServices: []unstructured.Unstructured{func() unstructured.Unstructured {
				vs := virtualService("web", "front", "x.example", hour, "")
				vs.Object["spec"].(map[string]any)["exportTo"] = []any{"."}
				return vs
			}()},
		},
		"a delegate has no host": {
			rollout: rollout("ml", "a", hour, hosts("x.example")),
			virtualServices: []unstructured.Unstructured{func() unstructured.Unstructured {
				vs := virtualService("web", "front", "x.example", hour, "")
				vs.Object["spec"] = map[string]any{"http": []any{}}
				return vs
			}()},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			everybody := append([]v1alpha1.CanaryRollout{tc.rollout}, tc.others...)
			got := DefaultDomain.FindRival(&tc.rollout, everybody, tc.virtualServices)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("FindRival (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOneWriter: of all rollouts that claim a route, exactly one has no rival, whatever the order in which they are seen.
func TestOneWriter(t *testing.T) {
	everybody := []v1alpha1.CanaryRollout{
		rollout("ml", "a", time.Hour, hosts("x.example")), rollout("ml", "b", time.Hour, hosts("x.example")),
		rollout("other", "a", 2*time.Hour, hosts("x.example")), rollout("other", "z", 2*time.Hour, hosts("x.example")),
	}
	routed := []unstructured.Unstructured{virtualService("ml", "b", "x.example", 0, "ml/b")}
	for _, virtualServices := range [][]unstructured.Unstructured{nil, routed} {
		var writers []string
		for i := range everybody {
			if DefaultDomain.FindRival(&everybody[i], everybody, virtualServices) == nil {
				writers = append(writers, string(everybody[i].UID))
			}
		}
		want := []string{"other/a"}
		if virtualServices != nil {
			want = []string{"ml/b"}
		}
		if diff := cmp.Diff(want, writers); diff != "" {
			t.Errorf("rollouts without a rival, %d routes in place (-want +got):\n%s", len(virtualServices), diff)
		}
	}
}

// TestOrderOfListsDoesNotMatter: caches list in any order, and the rival and the root that are told of must not change.
func TestOrderOfListsDoesNotMatter(t *testing.T) {
	subject := rollout("ml", "a", time.Hour, hosts("x.example"))
	var others []v1alpha1.CanaryRollout
	var routes []unstructured.Unstructured
	for _, name := range []string{"e", "c", "d", "b"} {
		others = append(others, rollout("ml", name, 2*time.Hour, hosts("x.example")))
		route := virtualService("ml", "front-"+name, "x.example", 3*time.Hour, "")
		route.Object["spec"].(map[string]any)["http"] = []any{map[string]any{"delegate": map[string]any{"name": "a"}}}
		routes = append(routes, route)
	}
	for range others {
		others, routes = append(others[1:], others[0]), append(routes[1:], routes[0])
		if rival := DefaultDomain.FindRival(&subject, others, nil); rival == nil || rival.Name != "b" {
			t.Errorf("among rollouts the rival is %+v, want b", rival)
		}
		if rival := DefaultDomain.FindRival(&subject, nil, routes); rival == nil || rival.Name != "front-b" {
			t.Errorf("among routes the rival is %+v, want front-b", rival)
		}
		if root := FindRoot(routes, "ml", "a"); root == nil || root.GetName() != "front-b" {
			t.Errorf("the root is %v, want front-b", root)
		}
	}
}
