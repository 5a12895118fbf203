// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// predictor returns an InferenceService by what KServe reports of its predictor and what its spec says.
func predictor(t *testing.T, status, spec string) string {
	t.Helper()
	return fmt.Sprintf(`
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: fraud, namespace: ml, uid: "7"}
spec: {predictor: {%s}}
status:
  address: {url: "http://fraud.ml.svc.cluster.local"}
  conditions: [{type: PredictorRouteReady, status: "True"}]
  components: {predictor: {%s}}
`, spec, status)
}

func TestKnativeRevisions(t *testing.T) {
	known := &v1alpha1.RolloutRevisions{Stable: "a", Canary: "b"}
	tests := map[string]struct {
		status        string
		known         *v1alpha1.RolloutRevisions
		want          v1alpha1.RolloutRevisions
		wantRolledOut bool
	}{
		"nothing yet":     {},
		"the first comes": {status: "latestCreatedRevision: a"},
		"one": {
			status: "latestCreatedRevision: a, latestReadyRevision: a, latestRolledoutRevision: a",
		},
		"a second comes": {
			status: "latestCreatedRevision: b, latestReadyRevision: a, latestRolledoutRevision: a",
			want:   v1alpha1.RolloutRevisions{Stable: "a", Canary: "b"},
		},
		"two": {
			status: "latestCreatedRevision: b, latestReadyRevision: b, latestRolledoutRevision: a",
			want:   v1alpha1.RolloutRevisions{Stable: "a", Canary: "b"},
		},
		"the second is rolled out, by the rollout": {
			status: "latestCreatedRevision: b, latestReadyRevision: b, latestRolledoutRevision: b, previousRolledoutRevision: a",
			known:  known, want: v1alpha1.RolloutRevisions{Stable: "a", Canary: "b"}, wantRolledOut: true,
		},
		"the second is rolled out, by somebody else": {
			status: "latestCreatedRevision: b, latestReadyRevision: b, latestRolledoutRevision: b, previousRolledoutRevision: a",
		},
		"KServe would go back to another": {
			status: "latestCreatedRevision: b, latestReadyRevision: b, latestRolledoutRevision: b, previousRolledoutRevision: x",
			known:  known,
		},
		"a third comes after the second was rolled out": {
			status: "latestCreatedRevision: c, latestReadyRevision: b, latestRolledoutRevision: b, previousRolledoutRevision: a",
			known:  known, want: v1alpha1.RolloutRevisions{Stable: "b", Canary: "c"},
		},
		"a third comes while two share": {
			status: "latestCreatedRevision: c, latestReadyRevision: b, latestRolledoutRevision: a",
			known:  known, want: v1alpha1.RolloutRevisions{Stable: "a", Canary: "c"},
		},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			got, rolledOut := KnativeRevisions(readRoute(t, predictor(t, tc.status, "")), tc.known)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("revisions (-want +got):\n%s", diff)
			}
			if rolledOut != tc.wantRolledOut {
				t.Errorf("rolled out: %v", rolledOut)
			}
		})
	}
}

const twoRevisions = "latestCreatedRevision: b, latestReadyRevision: b, latestRolledoutRevision: a"

func TestKnativeBinding(t *testing.T) {
	a, b := Destination{Host: "a"}, Destination{Host: "b"}
	const guards = `{"op":"test","path":"/metadata/uid","value":"7"},{"op":"test","path":"/metadata/generation","value":3},` +
		`{"op":"test","path":"/status/components/predictor/latestCreatedRevision","value":"b"},` +
		`{"op":"test","path":"/status/components/predictor/latestReadyRevision","value":"b"},` +
		`{"op":"test","path":"/status/components/predictor/latestRolledoutRevision","value":"a"},`
	tests := map[string]struct {
		spec      string
		weights   v1alpha1.WeightPair
		want      v1alpha1.WeightPair
		wantUnset bool
	}{
		"a share":                   {spec: "canaryTrafficPercent: 30", weights: pair(0), want: pair(30)},
		"none":                      {spec: "canaryTrafficPercent: 0", weights: pair(100), want: pair(0)},
		"nothing said is all there": {weights: pair(20), want: pair(100), wantUnset: true},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			live := readRoute(t, predictor(t, twoRevisions, tc.spec))
			live.SetGeneration(3)
			binding, err := KnativeTraffic().Bind(live, "", a, b)
			if err != nil {
				t.Fatal(err)
			}
			if got := binding.Weights(); got != tc.want || binding.Unset() != tc.wantUnset || !binding.Carries(tc.want) ||
				binding.Carries(tc.weights) {
				t.Errorf("weights %v, unset %v", got, binding.Unset())
			}
			patch, err := binding.Patch(tc.weights)
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf(
				`[%s{"op":"add","path":"/spec/predictor/canaryTrafficPercent","value":%d}]`,
				guards,
				tc.weights.Canary,
			)
			if diff := cmp.Diff(want, string(patch)); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
			after, err := binding.Set(live, tc.weights)
			if err != nil {
				t.Fatal(err)
			}
			if share, set := knativePercent(after); share != int64(tc.weights.Canary) || !set {
				t.Errorf("the copy says %d", share)
			}
			text, err := Diff(live, after)
			if err != nil || text == "" {
				t.Errorf("diff %q, %v", text, err)
			}
			cleared, err := binding.Clear()
			if err != nil {
				t.Fatal(err)
			}
			want = fmt.Sprintf(`[%s{"op":"remove","path":"/spec/predictor/canaryTrafficPercent"}]`, guards)
			if diff := cmp.Diff(want, string(cleared)); diff != "" {
				t.Errorf("patch that clears (-want +got):\n%s", diff)
			}
		})
	}
	live := readRoute(t, predictor(t, twoRevisions, ""))
	for what, sides := range map[string][2]Destination{
		"one revision": {a, {}}, "another canary": {a, {Host: "c"}}, "another stable": {{Host: "x"}, b},
	} {
		if _, err := KnativeTraffic().Bind(live, "", sides[0], sides[1]); err == nil {
			t.Errorf("%s is bound", what)
		}
	}
}

func TestKnativeAcceptance(t *testing.T) {
	tests := map[string]struct {
		status, spec string
		want         bool
	}{
		"as asked": {
			status: twoRevisions + ", traffic: [{revisionName: b, latestRevision: true, percent: 30}, {revisionName: a, percent: 70}]",
			spec:   "canaryTrafficPercent: 30",
			want:   true,
		},
		"as before": {
			status: twoRevisions + ", traffic: [{revisionName: b, latestRevision: true, percent: 20}, {revisionName: a, percent: 80}]",
			spec:   "canaryTrafficPercent: 30",
		},
		"on the way back, while the canary has both parts": {
			status: twoRevisions + ", traffic: [{revisionName: b, latestRevision: true, percent: 30}, {revisionName: b, percent: 70}]",
			spec:   "canaryTrafficPercent: 30",
		},
		"before the canary is ready": {
			status: "latestCreatedRevision: b, latestReadyRevision: a, latestRolledoutRevision: a, traffic: [{revisionName: a, latestRevision: true, percent: 0}, {revisionName: a, percent: 100}]",
			spec:   "canaryTrafficPercent: 0",
			want:   true,
		},
		"all": {
			status: "latestCreatedRevision: b, latestReadyRevision: b, latestRolledoutRevision: b, traffic: [{revisionName: b, latestRevision: true, percent: 100}]",
			want:   true,
		},
		"no traffic yet": {status: twoRevisions, spec: "canaryTrafficPercent: 30"},
	}
	for what, tc := range tests {
		t.Run(what, func(t *testing.T) {
			if got := KnativeTraffic().Acceptance(readRoute(t, predictor(t, tc.status, tc.spec))); got.Accepted != tc.want {
				t.Errorf("%+v, want %v", got, tc.want)
			}
		})
	}
	if KnativeTraffic().Acceptance(nil).Accepted {
		t.Error("what is still to be written is taken up")
	}
}
