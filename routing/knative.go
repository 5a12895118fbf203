// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// InferenceServiceKind is KServe's kind, whose predictor has a share for its newest revision in Knative mode.
var InferenceServiceKind = schema.GroupVersionKind{
	Group: "serving.kserve.io", Version: "v1beta1", Kind: "InferenceService",
}

// KnativeTraffic is the provider that adopts the share of an InferenceService's newest revision.
func KnativeTraffic() Provider { return knativeTraffic{} }

const (
	percentField = "predictor.canaryTrafficPercent"
	percentPath  = "/spec/predictor/canaryTrafficPercent"
	statusPath   = "/status/components/predictor/"

	rolledOutRevision = "latestRolledoutRevision"
	formerRevision    = "previousRolledoutRevision"
	readyRevision     = "latestReadyRevision"
	createdRevision   = "latestCreatedRevision"
)

type knativeTraffic struct{}

// Name implements Provider.
func (knativeTraffic) Name() v1alpha1.RoutingProvider { return v1alpha1.ProviderKnative }

// Kind implements Provider.
func (knativeTraffic) Kind() schema.GroupVersionKind { return InferenceServiceKind }

// Fields implements Provider.
func (knativeTraffic) Fields() []string { return []string{percentField} }

// RuleField implements Provider.
func (knativeTraffic) RuleField() string { return percentField }

// Render implements Provider. An InferenceService is its user's, and never made.
func (knativeTraffic) Render(Owned) (*unstructured.Unstructured, error) {
	return nil, refuse(v1alpha1.ReasonUnsupportedByProvider, "provider Knative makes no route; use provider VirtualService")
}

// Strangers implements Provider.
func (knativeTraffic) Strangers(_, _ *unstructured.Unstructured) ([]byte, error) { return nil, nil }

// Mentions implements Provider. Destinations are revisions.
func (knativeTraffic) Mentions(live *unstructured.Unstructured, to Destination) bool {
	predictor := predictorStatus(live)
	return to.Host != "" && (predictor[rolledOutRevision] == to.Host || predictor[createdRevision] == to.Host)
}

// Hosts implements Provider.
func (knativeTraffic) Hosts(live *unstructured.Unstructured) []string {
	url, _, _ := unstructured.NestedString(live.Object, "status", "address", "url")
	_, host, _ := strings.Cut(url, "://")
	if host, _, _ = strings.Cut(host, "/"); host != "" {
		return []string{host}
	}
	return nil
}

// Claims implements Provider. The hosts of an InferenceService are its own.
func (knativeTraffic) Claims(*unstructured.Unstructured, string) []Claim { return nil }

// KnativeRevisions returns which revisions of an InferenceService share its traffic, and whether KServe counts the
// canary as rolled out. known are those that shared it last. Both names are empty if there is one revision only.
//
// KServe gives the newest revision the share, and the rest to the one that had everything last. Once the newest has
// everything it is that one, too: to share again is to go back, which KServe does on any share below 100, to whatever
// was there before. So the two stay the sides only if they were before; otherwise a rollout that asks for nothing
// would take a model back that was rolled out without it.
func KnativeRevisions(
	live *unstructured.Unstructured, known *v1alpha1.RolloutRevisions,
) (sides v1alpha1.RolloutRevisions, rolledOut bool) {
	predictor := predictorStatus(live)
	stable, canary := stringAt(predictor, rolledOutRevision), stringAt(predictor, createdRevision)
	switch {
	case stable == "" || canary == "":
		return v1alpha1.RolloutRevisions{}, false
	case stable != canary:
		return v1alpha1.RolloutRevisions{Stable: stable, Canary: canary}, false
	case known != nil && known.Canary == canary && known.Stable != "" && known.Stable != canary &&
		known.Stable == predictor[formerRevision] && predictor[readyRevision] == canary:
		return v1alpha1.RolloutRevisions{Stable: known.Stable, Canary: canary}, true
	default:
		return v1alpha1.RolloutRevisions{}, false
	}
}

// Bind implements Provider. The hosts of the destinations are the names of the revisions. The guards are the generation
// and the revisions: a share that was decided for one revision is never given to another, nor to a spec that nobody has
// looked at.
func (knativeTraffic) Bind(live *unstructured.Unstructured, _ string, stable, canary Destination) (*Binding, error) {
	if stable.Host == "" || canary.Host == "" {
		return nil, refuse(v1alpha1.ReasonOneRevision,
			"InferenceService %q has one revision, and nothing to share", live.GetName())
	}
	sides, _ := KnativeRevisions(live, &v1alpha1.RolloutRevisions{Stable: stable.Host, Canary: canary.Host})
	if sides.Stable != stable.Host || sides.Canary != canary.Host {
		return nil, refuse(v1alpha1.ReasonRouteAmbiguous,
			"InferenceService %q has the revisions %q and %q now", live.GetName(), sides.Stable, sides.Canary)
	}
	b := &Binding{uid: string(live.GetUID()), rule: percentField, path: percentPath, percent: percentPath}
	b.guards = append(b.guards, operation{Op: "test", Path: "/metadata/generation", Value: live.GetGeneration()})
	predictor := predictorStatus(live)
	for _, field := range []string{createdRevision, readyRevision, rolledOutRevision} {
		if revision := stringAt(predictor, field); revision != "" {
			b.guards = append(b.guards, operation{Op: "test", Path: statusPath + field, Value: revision})
		}
	}
	share, set := knativePercent(live)
	b.canary.weight, b.stable.weight, b.unset = share, 100-share, !set
	return b, nil
}

// knativePercent returns the share of the newest revision, and whether it is said; unsaid, it is everything.
func knativePercent(live *unstructured.Unstructured) (int64, bool) {
	predictor, _ := specOf(live)["predictor"].(map[string]any)
	return numberAt(predictor, "canaryTrafficPercent", 100), predictor["canaryTrafficPercent"] != nil
}

// Acceptance implements Provider: Knative has taken a share up when the newest revision has it, the rest is with the
// one that KServe takes for rolled out, and the way to both is ready.
func (knativeTraffic) Acceptance(live *unstructured.Unstructured) Acceptance {
	if live == nil {
		return Acceptance{}
	}
	predictor := predictorStatus(live)
	newest, rest := int64(0), int64(0)
	for _, target := range mapsAt(predictor, "traffic") {
		percent := numberAt(target, "percent", 0)
		switch {
		case target["latestRevision"] == true:
			newest += percent
		case target["revisionName"] == predictor[rolledOutRevision]:
			rest += percent
		}
	}
	want, _ := knativePercent(live)
	status, _ := live.Object["status"].(map[string]any)
	for _, condition := range mapsAt(status, "conditions") {
		if condition["type"] != "PredictorRouteReady" {
			continue
		}
		if condition["status"] == "False" {
			return Acceptance{Refusal: fmt.Sprintf("Knative says of InferenceService %q: %s (%s)",
				live.GetName(), stringAt(condition, "message"), stringAt(condition, "reason"))}
		}
		return Acceptance{Accepted: condition["status"] == "True" && newest == want && newest+rest == 100}
	}
	return Acceptance{}
}

func predictorStatus(live *unstructured.Unstructured) map[string]any {
	predictor, _, _ := unstructured.NestedMap(live.Object, "status", "components", "predictor")
	return predictor
}
