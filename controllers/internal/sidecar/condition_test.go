// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/kserve"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

func torch() *kserve.InferenceService {
	isvc := &kserve.InferenceService{ObjectMeta: metav1.ObjectMeta{
		Name: "mnist", Namespace: "models", Labels: map[string]string{"team": "blue"},
	}}
	isvc.Spec.Predictor.Model = &v1beta1.ModelSpec{ModelFormat: v1beta1.ModelFormat{Name: "pytorch"}}
	return isvc
}

func TestCondition(t *testing.T) {
	for name, tc := range map[string]struct {
		expression  string
		want        bool
		wantInvalid string
		wantProblem string
	}{
		"of the model's format":               {expression: "isvc.spec.predictor.model.modelFormat.name == 'pytorch'", want: true},
		"of another format":                   {expression: "isvc.spec.predictor.model.modelFormat.name == 'onnx'"},
		"of name and labels":                  {expression: "isvc.metadata.name.startsWith('mn') && isvc.metadata.labels.team == 'blue'", want: true},
		"of a field that it does not have":    {expression: "isvc.spec.transformer.minReplicas == 1"},
		"with the API server's own functions": {expression: "quantity('1Gi').isGreaterThan(quantity('1Mi'))", want: true},
		"a syntax error": {
			expression: "isvc.metadata.name ==", wantInvalid: "line 1, column 22: Syntax error",
		},
		"a variable that does not exist": {
			expression: "true &&\n  service.name == ''", wantInvalid: "line 2, column 3: undeclared reference",
		},
		"no truth value":         {expression: "'yes'", wantInvalid: "the result is string, and must be bool"},
		"no truth value, late":   {expression: "isvc.metadata.name", wantProblem: "neither true nor false"},
		"types that do not meet": {expression: "isvc.metadata.name < 3", wantProblem: "no such overload"},
		"one that would take for ever": {
			expression: "[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, " +
				"[1,2,3,4,5,6,7,8,9].all(d, [1,2,3,4,5,6,7,8,9].all(e, a+b+c+d+e > 0)))))",
			wantProblem: "cost limit exceeded",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := sidecar.CheckCondition(tc.expression); !containsError(err, tc.wantInvalid) {
				t.Errorf("error %v, want %q", err, tc.wantInvalid)
			}
			p := policy("a", cache("features"), func(p *v1alpha1.SidecarPolicy) { p.Spec.Condition = tc.expression })
			subject := sidecar.SubjectOf(torch(), v1alpha1.ComponentPredictor)
			began := time.Now()
			picked, problems := sidecar.Picked(subject, []v1alpha1.SidecarPolicy{p})
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := len(picked) == 1; got != tc.want {
				t.Errorf("picked %v, want %v", got, tc.want)
			}
			if wants := tc.wantInvalid + tc.wantProblem; wants == "" && problems != nil ||
				wants != "" && (len(problems) != 1 || !strings.Contains(problems[0].Message, tc.wantInvalid+tc.wantProblem)) {
				t.Errorf("problems %+v, want %q", problems, wants)
			}
			for _, problem := range problems {
				if problem.Policy != "a" {
					t.Errorf("the problem is of policy %q", problem.Policy)
				}
			}
		})
	}
}

func containsError(err error, want string) bool {
	if want == "" || err == nil {
		return want == "" && err == nil
	}
	return strings.Contains(err.Error(), want)
}

func TestConditionOfAnUnknownInferenceServiceIsFalse(t *testing.T) {
	p := policy("a", cache("features"), func(p *v1alpha1.SidecarPolicy) { p.Spec.Condition = "true" })
	subject := sidecar.Subject{Component: v1alpha1.ComponentPredictor}
	if picked, problems := sidecar.Picked(subject, []v1alpha1.SidecarPolicy{p}); picked != nil || problems != nil {
		t.Errorf("picked %v, problems %v", picked, problems)
	}
}

func TestNamedPolicyNeedsNoCondition(t *testing.T) {
	p := policy("a", cache("features"), func(p *v1alpha1.SidecarPolicy) { p.Spec.Condition = "false" })
	isvc := torch()
	isvc.Annotations = map[string]string{v1alpha1.AnnotationSidecarPolicy: "a"}
	picked, _ := sidecar.Picked(sidecar.SubjectOf(isvc, v1alpha1.ComponentPredictor), []v1alpha1.SidecarPolicy{p})
	if len(picked) != 1 {
		t.Error("the policy that the InferenceService names was not picked")
	}
}

func BenchmarkCondition(b *testing.B) {
	p := policy("a", cache("features"), func(p *v1alpha1.SidecarPolicy) {
		p.Spec.Condition = "isvc.spec.predictor.model.modelFormat.name == 'pytorch'"
	})
	isvc := torch()
	for b.Loop() {
		sidecar.Picked(sidecar.SubjectOf(isvc, v1alpha1.ComponentPredictor), []v1alpha1.SidecarPolicy{p})
	}
}
