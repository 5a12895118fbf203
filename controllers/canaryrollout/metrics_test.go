// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
	"serverless.xyz/outrigger/routing"
)

// exported returns all metrics that the manager serves, by name.
func exported(t *testing.T) map[string][]*dto.Metric {
	t.Helper()
	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]*dto.Metric{}
	for _, family := range families {
		all[family.GetName()] = family.GetMetric()
	}
	return all
}

// value returns that of the one series whose labels include all of want: of a histogram, how often it observed. The
// second result is false if there is no such series.
func value(t *testing.T, name string, want map[string]string) (float64, bool) {
	t.Helper()
	for _, m := range exported(t)[name] {
		has := map[string]string{}
		for _, label := range m.GetLabel() {
			has[label.GetName()] = label.GetValue()
		}
		matching := maps.Clone(has)
		maps.Copy(matching, want)
		if maps.Equal(matching, has) {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()), true
		}
	}
	return 0, false
}

// TestMetrics runs a manager through what each metric tells of.
func TestMetrics(t *testing.T) {
	w := newWorld(t)
	p := providers[0]
	before := func(name string, labels map[string]string) float64 { v, _ := value(t, name, labels); return v }
	meddler := map[string]string{"manager": "meddler"}
	repairs := before("outrigger_canary_drift_repairs_total", meddler)
	applies := before("outrigger_canary_weight_apply_seconds", nil)
	rollbacks := before("outrigger_canary_rollback_seconds", nil)

	startManager(t, w, testcluster.New(t).Config)
	do(t, w, inferenceService("v1", 1), inferenceService("v2", 1), rollout(stepsOf(time.Second, time.Second)))
	awaitPhase(t, w, v1alpha1.PhasePaused)
	awaitMetric(t, "outrigger_canary_phase", map[string]string{"namespace": w.Namespace, "name": name, "phase": "Paused"}, 1)
	do(t, w, say(v1alpha1.AnnotationPromote))
	awaitPhase(t, w, v1alpha1.PhaseSucceeded)
	do(t, w, p.meddle(name))
	awaitWeights(t, w, name, routing.SplitRoute, "v1=0 v2=100 ")
	awaitMetric(t, "outrigger_canary_drift_repairs_total", meddler, repairs+1)

	labels := func(more ...string) map[string]string {
		all := map[string]string{"namespace": w.Namespace, "name": name}
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	awaitMetric(t, "outrigger_canary_weight_percent", labels("role", "canary", "state", "desired"), 100)
	awaitMetric(t, "outrigger_canary_weight_percent", labels("role", "stable", "state", "applied"), 0)
	awaitMetric(t, "outrigger_canary_ready", labels(), 1)
	awaitMetric(t, "outrigger_canary_phase", labels("phase", "Succeeded"), 1)
	if now := before("outrigger_canary_weight_apply_seconds", nil); now < applies+2 {
		t.Errorf("%v weights were timed on the way to 100 percent", now-applies)
	}

	do(t, w, say(v1alpha1.AnnotationAbort))
	awaitPhase(t, w, v1alpha1.PhaseRolledBack)
	awaitMetric(t, "outrigger_canary_rollback_seconds", nil, rollbacks+1)
	awaitMetric(t, "outrigger_canary_phase", labels("phase", "RolledBack"), 1)
	if _, there := value(t, "outrigger_canary_phase", labels("phase", "Succeeded")); there {
		t.Error("the phase that is over is still shown")
	}
	// The guards' counter moves when a stale read makes a patch fail.
	guards := before("outrigger_canary_guard_failures_total", nil)
	TestAdoptWithStaleReads(t)
	awaitMetric(t, "outrigger_canary_guard_failures_total", nil, guards+1)

	dashboardShowsWhatThereIs(t)
	do(t, w, remove)
	within := time.After(within)
	for {
		if _, there := value(t, "outrigger_canary_ready", labels()); !there {
			break
		}
		select {
		case <-within:
			t.Fatal("a rollout that is gone is still shown")
		case <-time.After(5 * time.Millisecond):
		}
	}
	if _, there := value(t, "outrigger_canary_weight_percent", labels()); there {
		t.Error("the weights of a rollout that is gone are still shown")
	}
}

// awaitMetric waits until a metric, which nobody announces, has a value.
func awaitMetric(t *testing.T, name string, labels map[string]string, want float64) {
	t.Helper()
	deadline := time.After(within)
	for {
		got, there := value(t, name, labels)
		if there && got == want {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s%v is %v (there: %t), want %v", name, labels, got, there, want)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// dashboardShowsWhatThereIs checks that the dashboard asks for metrics and labels that are served.
func dashboardShowsWhatThereIs(t *testing.T) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(testcluster.Root(), "config/grafana/canary-rollouts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Query string } }
	}
	if err := json.Unmarshal(raw, &dashboard); err != nil {
		t.Fatal(err)
	}
	var queries []string
	for _, panel := range dashboard.Panels {
		if len(panel.Targets) == 0 {
			t.Errorf("panel %q shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			queries = append(queries, target.Expr)
		}
	}
	for _, variable := range dashboard.Templating.List {
		queries = append(queries, variable.Query)
	}
	all, used := exported(t), map[string]bool{}
	names := regexp.MustCompile(`\b(outrigger|controller_runtime|workqueue)_[a-z_]+\b`)
	for _, query := range queries {
		for _, name := range names.FindAllString(query, -1) {
			base := name
			if _, there := all[name]; !there {
				base = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
			}
			if _, there := all[base]; !there {
				t.Errorf("%q asks for %s, which is not served", query, name)
			}
			used[base] = true
		}
	}
	for name := range all {
		if strings.HasPrefix(name, "outrigger_canary_") && !used[name] {
			t.Errorf("%s is served, and on no panel", name)
		}
	}
	if len(used) < 5 {
		t.Errorf("only %v were found in the dashboard: the test has lost its sense", slices.Sorted(maps.Keys(used)))
	}
}
