// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

// TestMemoDecidesAsResolve: whatever changes, the memo never tells what was.
func TestMemoDecidesAsResolve(t *testing.T) {
	memo := &sidecar.Memo{}
	isvc := torch()
	isvc.UID, isvc.ResourceVersion = "1", "1"
	policies := []v1alpha1.SidecarPolicy{
		policy("a", cache("features")),
		policy("b", adds(t, `env: [{name: A, value: "${isvc.metadata.name}"}]`)),
	}
	check := func(when string) {
		t.Helper()
		for range 2 {
			got := memo.Resolve(isvc, v1alpha1.ComponentPredictor, sidecar.PoliciesOf(policies))
			want := sidecar.Resolve(sidecar.SubjectOf(isvc, v1alpha1.ComponentPredictor), policies)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
	}
	check("at first")
	accepted(metav1.ConditionTrue)(&policies[1])
	check("accepted")
	policies[0].Spec.FeatureCache.MemcachedRef.Name = "more"
	policies[0].Generation++
	check("a policy edited")
	isvc.Annotations, isvc.ResourceVersion = map[string]string{v1alpha1.AnnotationFeatureCache: "own"}, "2"
	check("the InferenceService edited")
	policies = policies[:1]
	check("a policy deleted")
	isvc = torch()
	isvc.UID, isvc.ResourceVersion = "2", "2"
	check("made again under the same name")
	if got := memo.Resolve(isvc, v1alpha1.ComponentTransformer, sidecar.PoliciesOf(policies)); !got.Plan.IsZero() {
		t.Errorf("the transformer got %+v", got.Plan)
	}
}

// BenchmarkMemo decides about one of 1,000 InferenceServices among 50 policies with conditions, again.
func BenchmarkMemo(b *testing.B) {
	memo := &sidecar.Memo{}
	var policies []v1alpha1.SidecarPolicy
	for i := range 50 {
		policies = append(policies, policy(fmt.Sprintf("p-%d", i), cache("features"), func(p *v1alpha1.SidecarPolicy) {
			p.Spec.Condition = fmt.Sprintf("isvc.spec.predictor.model.modelFormat.name == 'format-%d'", i)
		}))
	}
	services := make([]*kserve.InferenceService, 1000)
	for i := range services {
		services[i] = torch()
		services[i].UID, services[i].ResourceVersion = types.UID(strconv.Itoa(i)), "1"
	}
	all := sidecar.PoliciesOf(policies)
	i := 0
	for b.Loop() {
		memo.Resolve(services[i%len(services)], v1alpha1.ComponentPredictor, all)
		i++
	}
}
