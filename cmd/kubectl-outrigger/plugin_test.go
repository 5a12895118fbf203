// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers"
	"serverless.xyz/outrigger/memcached"
	"serverless.xyz/outrigger/test/testbed"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

// within bounds how long a test waits for what takes milliseconds.
const within = 3 * time.Minute

// cluster is an API server with the kinds that rollouts need.
type cluster struct {
	bed    *testbed.Testbed
	client client.Client
}

var definitions sync.Once

func newCluster(t *testing.T) cluster {
	t.Helper()
	bed := testbed.Shared(t, testbed.API)
	definitions.Do(func() { define(t, bed) })
	c, err := client.New(bed.Config(), client.Options{Scheme: controllers.Scheme()})
	must(t, err)
	return cluster{bed: bed, client: c}
}

// define installs the kinds.
func define(t *testing.T, bed *testbed.Testbed) {
	t.Helper()
	ctx := t.Context()
	module := func(dir, name string) string {
		found, err := testbed.ModuleDir(ctx, dir, name)
		must(t, err)
		return found
	}
	kserve := module("../..", "github.com/kserve/kserve")
	istio := module("../../test/testbed/modules/istio", "istio.io/istio")
	must(t, bed.ApplyFiles(ctx, filepath.Join(istio, "manifests/charts/base/files/crd-all.gen.yaml")))
	must(t, bed.InstallCRDs(ctx, "../../config/crd/bases", filepath.Join(kserve, "config/crd/full")))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startOperator runs the manager until the test ends, or the returned function is called.
func (c cluster) startOperator(t *testing.T) context.CancelFunc {
	t.Helper()
	// A loopback address that is this process's alone, and a port above those that the kernel gives away: nobody takes it
	// before the webhook does.
	pid := os.Getpid()
	host := netip.AddrFrom4([4]byte{127, byte(64 + pid>>16&63), byte(pid >> 8), byte(pid)}).String()
	mgr, err := controllers.NewManager(c.bed.Config(), controllers.Options{
		Namespace: "default", WebhookHost: host, WebhookPort: 61001, WebhookNames: []string{host},
		MetricsAddress: "0", ProbeAddress: "0", MemcachedImage: "m", PreloaderImage: "p", FeatureCacheImage: "f",
		ReadStats: memcached.ReadStats,
	})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := mgr.Start(ctx); err != nil {
			t.Errorf("the operator ended with: %v", err)
		}
	})
	stop := func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// side makes an InferenceService with a ready pod.
const side = `
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: SIDE, namespace: NAMESPACE}
spec: {predictor: {}}
---
apiVersion: v1
kind: Service
metadata: {name: SIDE-predictor, namespace: NAMESPACE, labels: {serving.kserve.io/inferenceservice: SIDE}}
spec: {selector: {app: isvc.SIDE-predictor}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: SIDE-predictor
  namespace: NAMESPACE
  labels: {serving.kserve.io/inferenceservice: SIDE, kubernetes.io/service-name: SIDE-predictor}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
`

func (c cluster) namespace(t *testing.T, name string) string {
	t.Helper()
	for _, one := range []string{"v1", "v2"} {
		text := strings.NewReplacer("SIDE", one, "NAMESPACE", name).Replace(side)
		must(t, c.bed.Apply(t.Context(), text))
	}
	return name
}

// plugin runs one command in a namespace, and returns its exit code and what it wrote.
func (c cluster) plugin(t *testing.T, namespace, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	args = append(args, "--kubeconfig", c.bed.State().Kubeconfig, "-n", namespace)
	code = run(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// do runs a command that must succeed, and returns what it says in JSON.
func do[T any](t *testing.T, c cluster, namespace string, args ...string) T {
	t.Helper()
	code, stdout, stderr := c.plugin(
		t,
		namespace,
		"",
		append([]string{"canary"}, append(args, "-o", "json", "--timeout", within.String())...)...)
	var into T
	if code != 0 {
		t.Fatalf("canary %v exits %d: %s", args, code, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &into); err != nil {
		t.Fatalf("canary %v says %q: %v", args, stdout, err)
	}
	return into
}

func (c cluster) apply(t *testing.T, text string) {
	t.Helper()
	must(t, c.bed.Apply(t.Context(), text))
}

const simple = `
apiVersion: outrigger.serverless.xyz/v1alpha1
kind: CanaryRollout
metadata: {name: digits, namespace: NAMESPACE}
spec:
  stable: {inferenceService: v1}
  canary: {inferenceService: v2}
`

const stepped = simple + `  strategy:
    steps:
    - setPercent: 10
    - pause: {}
    - setPercent: 50
    - pause: {}
    - setPercent: 100
`

// TestShareByHand: what set-percent says is what the route carries, plan shows it beforehand, and status afterwards.
func TestShareByHand(t *testing.T) {
	c := newCluster(t)
	ns := c.namespace(t, "by-hand")
	c.startOperator(t)
	c.apply(t, strings.ReplaceAll(simple, "NAMESPACE", ns))
	if got := do[report](
		t,
		c,
		ns,
		"set-percent",
		"digits",
		"20",
	); !got.Ready || *got.Canary.Applied != 20 ||
		*got.Stable.Applied != 80 {
		t.Errorf("set-percent says %+v", got)
	}
	planned := do[planReport](t, c, ns, "plan", "digits", "--percent", "55")
	for _, line := range []string{"-      weight: 80\n", "+      weight: 45\n", "-      weight: 20\n", "+      weight: 55\n"} {
		if !strings.Contains(planned.Diff, line) {
			t.Errorf("the plan lacks %q:\n%s", line, planned.Diff)
		}
	}
	if strings.Count(planned.Diff, "\n-")+strings.Count(planned.Diff, "\n+") != 5 { // with the title of the new one
		t.Errorf("the plan changes more than two weights:\n%s", planned.Diff)
	}
	got := do[report](t, c, ns, "status", "digits")
	if got.Current != true || *got.Canary.Applied != 20 || got.Provider != "VirtualService" ||
		got.Host != "digits."+ns+".svc.cluster.local" {
		t.Errorf("after the plan the status is %+v", got)
	}
	if rest := do[planReport](t, c, ns, "plan", "digits"); rest.Diff != "" || rest.Why != "" {
		t.Errorf("at rest the plan is %+v", rest)
	}
	if all := do[[]report](t, c, ns, "status"); len(all) != 1 || !cmp.Equal(all[0], got) {
		t.Errorf("the list is %+v", all)
	}
	_, text, _ := c.plugin(t, ns, "", "canary", "status", "digits")
	if !strings.Contains(text, "canary  v2  20 %  ████████░") {
		t.Errorf("status draws\n%s", text)
	}
	_, table, _ := c.plugin(t, ns, "", "canary", "status")
	if !strings.Contains(table, "digits   v1       v2       20 %    Ready") {
		t.Errorf("status lists\n%s", table)
	}
}

// TestPlanOfAFile: a rollout that does not exist yet is planned, and refused, as kubectl apply would have it.
func TestPlanOfAFile(t *testing.T) {
	c := newCluster(t)
	ns := c.namespace(t, "of-a-file")
	text := strings.ReplaceAll(simple, ", namespace: NAMESPACE", "") + "  canaryPercent: 7\n"
	code, stdout, stderr := c.plugin(t, ns, text, "canary", "plan", "-f", "-")
	if code != 0 ||
		!strings.Contains(stdout, "digits: the canary would get 7 percent\n--- nothing\n+++ VirtualService "+ns+"/digits\n") {
		t.Errorf("plan exits %d: %s%s", code, stdout, stderr)
	}
	var list v1alpha1.CanaryRolloutList
	must(t, c.client.List(t.Context(), &list, client.InNamespace(ns)))
	if len(list.Items) > 0 {
		t.Error("the plan made a rollout")
	}
	code, _, stderr = c.plugin(t, ns, strings.ReplaceAll(text, ": 7", ": 700"), "canary", "plan", "-f", "-")
	if code != 1 || !strings.Contains(stderr, "spec.canaryPercent") {
		t.Errorf("a plan of 700 percent exits %d: %s", code, stderr)
	}
	others := "# some words\n---\napiVersion: v1\nkind: Pod\n---\n" + text + "---\napiVersion: v1\nkind: Secret\n"
	if code, stdout, stderr = c.plugin(t, ns, others, "canary", "plan", "-f", "-"); code != 0 ||
		!strings.Contains(stdout, "would get 7 percent") {
		t.Errorf("plan of a file with more in it exits %d: %s%s", code, stdout, stderr)
	}
	code, _, stderr = c.plugin(t, ns, text+"---\n"+text, "canary", "plan", "-f", "-")
	if code != 1 || !strings.Contains(stderr, "several CanaryRollouts") {
		t.Errorf("a plan of two rollouts exits %d: %s", code, stderr)
	}
	code, _, stderr = c.plugin(t, ns, "kind: Pod\napiVersion: v1", "canary", "plan", "-f", "-")
	if code != 1 || !strings.Contains(stderr, "must hold one CanaryRollout") {
		t.Errorf("a plan of a Pod exits %d: %s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "rollout.yaml")
	must(t, os.WriteFile(file, []byte(strings.ReplaceAll(text, "inferenceService: v1", "inferenceService: v9")), 0o600))
	if got := do[planReport](t, c, ns, "plan", "-f", file); got.Diff != "" || !strings.Contains(got.Why, `"v9" does not exist`) {
		t.Errorf("the plan without stable is %+v", got)
	}
}

// TestVerbs goes through all that a person can say to a rollout with steps.
func TestVerbs(t *testing.T) {
	c := newCluster(t)
	ns := c.namespace(t, "verbs")
	c.startOperator(t)
	c.apply(t, strings.ReplaceAll(stepped, "NAMESPACE", ns))
	await := func(phase string, percent int32) {
		t.Helper()
		deadline := time.Now().Add(within)
		for {
			got := do[report](t, c, ns, "status", "digits")
			if got.Phase != nil && got.Phase.Name == phase && got.Canary.Applied != nil && *got.Canary.Applied == percent {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the rollout is %+v, %+v; want %s at %d percent", got, got.Phase, phase, percent)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	await("Paused", 10)
	if got := do[report](t, c, ns, "pause", "digits"); !got.Suspended {
		t.Errorf("after pause: %+v", got)
	}
	if got := do[report](t, c, ns, "resume", "digits"); got.Suspended {
		t.Errorf("after resume: %+v", got)
	}
	says := func(verb string, percent int32) {
		t.Helper()
		if got := do[report](t, c, ns, verb, "digits"); got.Canary.Applied == nil || *got.Canary.Applied != percent {
			t.Errorf("%s returns before the canary has %d percent: %+v, %+v", verb, percent, got, got.Phase)
		}
	}
	says("promote", 50)
	await("Paused", 50)
	code, _, stderr := c.plugin(t, ns, "", "canary", "retry", "digits")
	if code != 1 || !strings.Contains(stderr, "retry does nothing in phase Paused; it does in RolledBack, Holding") {
		t.Errorf("retry in a pause exits %d: %s", code, stderr)
	}
	code, _, stderr = c.plugin(t, ns, "", "canary", "set-percent", "digits", "5")
	if code != 1 || !strings.Contains(stderr, "has a strategy") {
		t.Errorf("set-percent of a rollout with steps exits %d: %s", code, stderr)
	}
	says("abort", 0)
	await("RolledBack", 0)
	do[report](t, c, ns, "retry", "digits")
	await("Paused", 10)
	says("skip", 100)
	await("Succeeded", 100)
	_, text, _ := c.plugin(t, ns, "", "canary", "status", "digits")
	if !strings.HasPrefix(text, "verbs/digits  Succeeded · Ready\n") || !strings.Contains(text, "\n  why ") {
		t.Errorf("status draws\n%s", text)
	}
}

// TestComplaints: each error says what to do.
func TestComplaints(t *testing.T) {
	c := newCluster(t)
	ns := c.namespace(t, "complaints")
	c.apply(t, strings.ReplaceAll(simple, "NAMESPACE", ns))
	for what, tc := range map[string]struct {
		args     []string
		wantCode int
		want     string
	}{
		"no such rollout":          {[]string{"canary", "status", "x"}, 1, `no CanaryRollout "x" in namespace "complaints"`},
		"no such rollout to watch": {[]string{"canary", "watch", "x"}, 1, `no CanaryRollout "x" in namespace "complaints"`},
		"no such command":          {[]string{"canary", "prommote", "x"}, 2, `no command "prommote"; did you mean promote?`},
		"no such topic":            {[]string{"canry"}, 2, `no command "canry"`},
		"no name":                  {[]string{"canary", "promote"}, 2, "usage: kubectl outrigger canary promote NAME"},
		"no such flag":             {[]string{"canary", "status", "--frobnicate"}, 2, "unknown flag"},
		"no such format":           {[]string{"canary", "status", "-o", "yaml"}, 2, "must be text or json"},
		"no number":                {[]string{"canary", "set-percent", "digits", "half"}, 2, "whole number from 0 to 100"},
		"too much":                 {[]string{"canary", "set-percent", "digits", "101"}, 2, "whole number from 0 to 100"},
		"no strategy":              {[]string{"canary", "promote", "digits"}, 1, "use set-percent"},
		"nothing to pause":         {[]string{"canary", "pause", "digits"}, 1, "needs a rollout with a strategy"},
		"nothing to plan":          {[]string{"canary", "plan"}, 2, "give a name or --filename"},
		"two things to plan":       {[]string{"canary", "plan", "digits", "-f", "x"}, 2, "goes with neither"},
		"no operator": {
			[]string{"canary", "set-percent", "digits", "3", "--timeout", "50ms"}, 1, "the operator has not looked at it; is it running?",
		},
	} {
		code, stdout, stderr := c.plugin(t, ns, "", tc.args...)
		if code != tc.wantCode || !strings.Contains(stderr, tc.want) || stdout != "" {
			t.Errorf("%s: exit %d, want %d; says %q %q, want a word of %q", what, code, tc.wantCode, stdout, stderr, tc.want)
		}
	}
	for _, args := range [][]string{{"promote", ""}, {"set-percent", ""}, {"status", "di"}} {
		var stdout bytes.Buffer
		args = append([]string{"__complete", "--kubeconfig", c.bed.State().Kubeconfig, "-n", ns, "canary"}, args...)
		code := run(t.Context(), args, nil, &stdout, io.Discard)
		if code != 0 || !strings.HasPrefix(stdout.String(), "digits\n") {
			t.Errorf("completion of %q exits %d: %q", args, code, stdout.String())
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"canary", "status", "--kubeconfig", "/nonexistent"}, nil, io.Discard, &out); code != 1 {
		t.Errorf("without a kubeconfig: exit %d, %s", code, out.String())
	}
	if code, stdout, _ := c.plugin(
		t,
		ns,
		"",
		"canary",
		"set-percent",
		"digits",
		"4",
		"--timeout",
		"0",
	); code != 0 ||
		!strings.Contains(stdout, "waiting for the operator") {
		t.Errorf("without waiting: exit %d, %s", code, stdout)
	}
}

// TestWatch: every change is shown as it happens, and an interrupt is no error.
func TestWatch(t *testing.T) {
	c := newCluster(t)
	ns := c.namespace(t, "watched")
	c.startOperator(t)
	c.apply(t, strings.ReplaceAll(simple, "NAMESPACE", ns))
	do[report](t, c, ns, "set-percent", "digits", "0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, writer := io.Pipe()
	exit := make(chan int, 1)
	go func() {
		exit <- run(ctx, []string{
			"canary", "watch", "digits", "-o", "json", "-n", ns, "--kubeconfig", c.bed.State().Kubeconfig,
		}, nil, writer, io.Discard)
		_ = writer.Close()
	}()
	lines := bufio.NewScanner(reader)
	next := func() report {
		t.Helper()
		var r report
		if !lines.Scan() {
			t.Fatal("the watch ended")
		}
		must(t, json.Unmarshal(lines.Bytes(), &r))
		return r
	}
	if first := next(); *first.Canary.Applied != 0 {
		t.Errorf("the first line is %+v", first)
	}
	for _, percent := range []int32{30, 60} {
		edited := make(chan struct{})
		go func() {
			defer close(edited)
			do[report](t, c, ns, "set-percent", "digits", strconv.Itoa(int(percent)))
		}()
		for r := next(); *r.Canary.Applied != percent || !r.Ready; r = next() {
			if !slices.Contains([]int32{0, 30, 60}, *r.Canary.Applied) {
				t.Errorf("a share that nobody asked for: %+v", r)
			}
		}
		<-edited
	}
	cancel()
	for lines.Scan() {
	}
	if code := <-exit; code != 0 {
		t.Errorf("an interrupted watch exits %d", code)
	}
}
