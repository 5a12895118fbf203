// SPDX-License-Identifier: Apache-2.0

package sidecar_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/sidecar"
)

// adds sets the fields of a policy that hold sidecars, from YAML.
func adds(tb testing.TB, text string) change {
	tb.Helper()
	var fields struct {
		Containers, InitContainers, Volumes, Env []runtime.RawExtension
	}
	if err := yaml.Unmarshal([]byte(text), &fields); err != nil {
		tb.Fatal(err)
	}
	return func(p *v1alpha1.SidecarPolicy) {
		p.Spec.Containers, p.Spec.InitContainers = fields.Containers, fields.InitContainers
		p.Spec.Volumes, p.Spec.Env = fields.Volumes, fields.Env
	}
}

func accepted(status metav1.ConditionStatus) change {
	return func(p *v1alpha1.SidecarPolicy) {
		p.Status.Conditions = []metav1.Condition{{
			Type: v1alpha1.ConditionAccepted, Status: status, ObservedGeneration: p.Generation,
		}}
	}
}

const logAgent = `
containers:
- name: log-agent
  image: registry.example/agent:1
  args: ["--service=${isvc.metadata.namespace}/${isvc.metadata.name}", "--home=${HOME}"]
  volumeMounts: [{name: logs, mountPath: /logs}]
- name: kserve-container
  volumeMounts: [{name: logs, mountPath: /var/log/model}]
  env: [{name: LOG_DIR, value: /var/log/model}]
initContainers:
- name: check-model
  image: registry.example/check:1
  volumeMounts: [{name: kserve-provision-location, mountPath: /mnt/models, readOnly: true}]
volumes:
- name: logs
  emptyDir: {sizeLimit: 1Gi}
env:
- {name: MODEL_FROM, value: "${modelUri}"}
- {name: A, value: not this one}
`

func planOf(t *testing.T, policies ...v1alpha1.SidecarPolicy) sidecar.Plan {
	t.Helper()
	isvc := torch()
	isvc.Spec.Predictor.Model.StorageURI = new("s3://b/m")
	d := sidecar.Resolve(sidecar.SubjectOf(isvc, v1alpha1.ComponentPredictor), policies)
	for _, p := range d.Problems {
		t.Error(p.Message)
	}
	return d.Plan
}

func TestSidecarsAreAdded(t *testing.T) {
	plan := planOf(t, policy("a", adds(t, logAgent), accepted(metav1.ConditionTrue)))
	pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
	before := pod.DeepCopy()
	if problems := sidecar.Inject(pod, plan, images); problems != nil {
		t.Fatalf("problems %v", problems)
	}
	agent := container(t, pod, "log-agent")
	if diff := cmp.Diff([]string{"--service=models/mnist", "--home=${HOME}"}, agent.Args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	model := container(t, pod, "kserve-container")
	if env(model, "MODEL_FROM") != "s3://b/m" || env(model, "LOG_DIR") != "/var/log/model" || env(model, "A") != "1" {
		t.Errorf("the model's variables are %v", model.Env)
	}
	if !slices.ContainsFunc(model.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/var/log/model" }) {
		t.Errorf("the model's mounts are %v", model.VolumeMounts)
	}
	if last := pod.Spec.InitContainers[len(pod.Spec.InitContainers)-1].Name; last != "check-model" {
		t.Errorf("the last init container is %s", last)
	}
	if helper := container(t, pod, "helper"); len(helper.Env) > 0 {
		t.Errorf("another container got variables %v", helper.Env)
	}

	// What was there is there as before.
	for i := range before.Spec.InitContainers {
		if diff := cmp.Diff(before.Spec.InitContainers[i], pod.Spec.InitContainers[i]); diff != "" {
			t.Errorf("init container %d was changed:\n%s", i, diff)
		}
	}
	if diff := cmp.Diff(before.Spec.Volumes, pod.Spec.Volumes[:len(before.Spec.Volumes)]); diff != "" {
		t.Errorf("volumes were changed:\n%s", diff)
	}
}

// TestSidecarsInAnyOrder calls both webhooks in both orders, as often as an API server may.
func TestSidecarsInAnyOrder(t *testing.T) {
	plan := planOf(t, policy("a", adds(t, logAgent), accepted(metav1.ConditionTrue), cache("features")))
	ours := func(pod *corev1.Pod) {
		sidecar.Inject(pod, plan, images)
		for i := range pod.Spec.InitContainers { // as admission does
			pod.Spec.InitContainers[i].TerminationMessagePath = "/dev/termination-log"
		}
	}
	theirs := func(pod *corev1.Pod) { afterKServe(pod, "s3://b/m", "/mnt/models") }
	for name, order := range map[string][]func(*corev1.Pod){
		"theirs, ours":         {theirs, ours},
		"ours, theirs, ours":   {ours, theirs, ours},
		"theirs, ours, theirs": {theirs, ours, theirs},
	} {
		t.Run(name, func(t *testing.T) {
			pod := modelPod()
			for _, call := range order {
				call(pod)
			}
			if text := pod.Annotations[v1alpha1.AnnotationProblems]; text != "" {
				t.Errorf("problems: %s", text)
			}
			place := func(name string) int {
				return slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
			}
			if place("check-model") < place("storage-initializer") {
				t.Error("the init container runs before the model is there")
			}
			settled := pod.DeepCopy()
			for _, call := range []func(*corev1.Pod){ours, theirs, ours} {
				call(pod)
			}
			if diff := cmp.Diff(settled, pod); diff != "" {
				t.Errorf("calling again changed the pod (-before +after):\n%s", diff)
			}
		})
	}
}

func TestSidecarsForWhichThereIsNoRoom(t *testing.T) {
	for name, tc := range map[string]struct {
		text, wantProblem string
		change            func(*corev1.Pod)
	}{
		"a container of the same name": {
			text: `containers: [{name: helper, image: own}]`, wantProblem: `a container "helper" of its own`,
		},
		"an init container of the same name": {
			text: `containers: [{name: prepare, image: own}]`, wantProblem: `a container "prepare" of its own`,
		},
		"a volume of the same name": {
			text: `volumes: [{name: own, emptyDir: {}}]`, wantProblem: `a volume "own" of its own`,
		},
		"a volume that the pod does not have": {
			text:        `containers: [{name: c, image: own, volumeMounts: [{name: gone, mountPath: /gone}]}]`,
			wantProblem: `mounts volume "gone", which the pod does not have`,
		},
		"a place where something is mounted": {
			text:        `{volumes: [{name: v, emptyDir: {}}], containers: [{name: kserve-container, volumeMounts: [{name: v, mountPath: /mnt/models}]}]}`,
			wantProblem: "container kserve-container has something mounted at /mnt/models already",
		},
		"a port that is taken": {
			text: `containers: [{name: c, image: own, ports: [{containerPort: 8080}]}]`,
			change: func(p *corev1.Pod) {
				p.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 8080, Protocol: "TCP"}}
			},
			wantProblem: "containers helper and c both listen on port 8080",
		},
		"the node's network": {
			text:        `containers: [{name: c, image: own, ports: [{containerPort: 8080}]}]`,
			change:      func(p *corev1.Pod) { p.Spec.HostNetwork = true },
			wantProblem: "the pod uses its node's network",
		},
		"an image that is not allowed": {
			text: `containers: [{name: c, image: elsewhere/c:1}]`, wantProblem: "none that the administrator allows",
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := afterKServe(modelPod(), "s3://b/m", "/mnt/models")
			if tc.change != nil {
				tc.change(pod)
			}
			before := pod.DeepCopy()
			limited := images
			limited.Allowed = []string{"own"}
			plan := planOf(t, policy("a", adds(t, tc.text), accepted(metav1.ConditionTrue)))
			problems := sidecar.Inject(pod, plan, limited)
			if len(problems) != 1 || !strings.Contains(problems[0].Message, tc.wantProblem) {
				t.Errorf("problems %v, want one with %q", problems, tc.wantProblem)
			}
			if diff := cmp.Diff(before.Spec, pod.Spec); diff != "" {
				t.Errorf("the pod was changed (-before +after):\n%s", diff)
			}
			if parts := pod.Annotations[v1alpha1.AnnotationInjectedParts]; parts != "" {
				t.Errorf("the pod says that it carries %q", parts)
			}
		})
	}
}

// TestWhatAPolicyMayNotHave: each names the field.
func TestWhatAPolicyMayNotHave(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"a field that there is not":   {`containers: [{name: c, image: i, imagee: j}]`, `spec: unknown field "containers[0].imagee"`},
		"a value of another type":     {`containers: [{name: c, image: i, ports: eighty}]`, "spec: json: cannot unmarshal"},
		"no name":                     {`containers: [{image: i}]`, "spec.containers[0].name"},
		"a name of KServe's":          {`containers: [{name: queue-proxy, image: i}]`, "spec.containers[0].name"},
		"the name of the initializer": {`initContainers: [{name: storage-initializer, image: i}]`, "spec.initContainers[0].name"},
		"the model as init container": {`initContainers: [{name: kserve-container, image: i}]`, "spec.initContainers[0].name"},
		"no image":                    {`containers: [{name: c}]`, "spec.containers[0].image"},
		"another image of the model":  {`containers: [{name: kserve-container, image: i}]`, "may add env, envFrom and volumeMounts only"},
		"one name twice":              {`{containers: [{name: c, image: i}], initContainers: [{name: c, image: i}]}`, "spec.initContainers[0].name: \"c\" is there twice"},
		"privileges":                  {`containers: [{name: c, image: i, securityContext: {privileged: true}}]`, "spec.containers[0].securityContext.privileged"},
		"privileges later":            {`containers: [{name: c, image: i, securityContext: {allowPrivilegeEscalation: true}}]`, "securityContext.allowPrivilegeEscalation"},
		"a capability":                {`containers: [{name: c, image: i, securityContext: {capabilities: {add: [NET_ADMIN]}}}]`, "securityContext.capabilities.add"},
		"no seccomp":                  {`containers: [{name: c, image: i, securityContext: {seccompProfile: {type: Unconfined}}}]`, "securityContext.seccompProfile"},
		"no AppArmor":                 {`containers: [{name: c, image: i, securityContext: {appArmorProfile: {type: Unconfined}}}]`, "securityContext.appArmorProfile"},
		"an SELinux label":            {`containers: [{name: c, image: i, securityContext: {seLinuxOptions: {type: spc_t}}}]`, "securityContext.seLinuxOptions"},
		"all of /proc":                {`containers: [{name: c, image: i, securityContext: {procMount: Unmasked}}]`, "securityContext.procMount"},
		"a port of the node":          {`containers: [{name: c, image: i, ports: [{containerPort: 1, hostPort: 1}]}]`, "spec.containers[0].ports[0].hostPort"},
		"a block device":              {`containers: [{name: c, image: i, volumeDevices: [{name: v, devicePath: /dev/v}]}]`, "spec.containers[0].volumeDevices"},
		"a claimed device":            {`containers: [{name: c, image: i, resources: {claims: [{name: gpu}]}}]`, "spec.containers[0].resources.claims"},
		"a probe of another host":     {`containers: [{name: c, image: i, livenessProbe: {httpGet: {host: h, port: 1}}}]`, "spec.containers[0].livenessProbe"},
		"a hook to another host":      {`containers: [{name: c, image: i, lifecycle: {preStop: {httpGet: {host: h, port: 1}}}}]`, "spec.containers[0].lifecycle.preStop"},
		"a path of the node":          {`volumes: [{name: v, hostPath: {path: /}}]`, "spec.volumes[0]: a policy may add emptyDir"},
		"a driver of the node":        {`volumes: [{name: v, csi: {driver: d}}]`, "spec.volumes[0]: a policy may add emptyDir"},
		"a token":                     {`volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]`, "spec.volumes[0].projected.sources[0]"},
		"a volume of KServe's":        {`volumes: [{name: kserve-provision-location, emptyDir: {}}]`, "spec.volumes[0].name"},
		"a volume of Outrigger's":     {`volumes: [{name: outrigger-ring, emptyDir: {}}]`, "spec.volumes[0].name"},
		"a variable without a name":   {`env: [{value: v}]`, "spec.env[0].name"},
		"a template without an end":   {`env: [{name: A, value: "${isvc.metadata.name"}]`, "spec.env[0].value: the template that begins with"},
		"a template that is no CEL":   {`env: [{name: A, value: "${isvc.metadata.}"}]`, "spec.env[0].value: ${isvc.metadata.}: line 1, column"},
		"a template that is no text":  {`env: [{name: A, value: "${modelUri.size()}"}]`, "spec.env[0].value: ${modelUri.size()}: line 1, column 1: the result is int, and must be string"},
	} {
		t.Run(name, func(t *testing.T) {
			p := policy("a", adds(t, tc.text), accepted(metav1.ConditionTrue))
			_, _, err := sidecar.Trial(&p, images)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			d := sidecar.Resolve(sidecar.SubjectOf(torch(), v1alpha1.ComponentPredictor), []v1alpha1.SidecarPolicy{p})
			if !d.Plan.IsZero() || len(d.Problems) != 1 || d.Problems[0].Policy != "a" {
				t.Errorf("plan %+v, problems %+v; want one problem of the policy and no plan", d.Plan, d.Problems)
			}
		})
	}
}

func TestSidecarsComeIntoForceWhenAccepted(t *testing.T) {
	text := adds(t, `env: [{name: A, value: b}]`)
	for name, tc := range map[string]struct {
		changes              []change
		wantCache, wantAdded bool
		wantProblem          string
	}{
		"accepted":     {changes: []change{text, accepted(metav1.ConditionTrue)}, wantCache: true, wantAdded: true},
		"not yet":      {changes: []change{text}, wantCache: true, wantProblem: "wait until the API server"},
		"refused":      {changes: []change{text, accepted(metav1.ConditionFalse)}, wantProblem: "the API server refuses"},
		"nothing new":  {wantCache: true},
		"an older one": {changes: []change{text, accepted(metav1.ConditionTrue), later}, wantCache: true, wantProblem: "wait until"},
	} {
		t.Run(name, func(t *testing.T) {
			p := policy("a", append([]change{cache("features")}, tc.changes...)...)
			d := sidecar.Resolve(sidecar.SubjectOf(torch(), v1alpha1.ComponentPredictor), []v1alpha1.SidecarPolicy{p})
			if (d.Plan.FeatureCache != nil) != tc.wantCache || (len(d.Plan.Sidecars) > 0) != tc.wantAdded {
				t.Errorf("plan %+v", d.Plan)
			}
			if tc.wantProblem == "" && d.Problems != nil ||
				tc.wantProblem != "" && (len(d.Problems) != 1 || !strings.Contains(d.Problems[0].Message, tc.wantProblem)) {
				t.Errorf("problems %+v, want %q", d.Problems, tc.wantProblem)
			}
		})
	}
}

func later(p *v1alpha1.SidecarPolicy) { p.Generation++ }

func TestSidecarsOfSeveralPolicies(t *testing.T) {
	high := policy("high", priority(900), accepted(metav1.ConditionTrue),
		adds(t, `{env: [{name: A, value: high}], containers: [{name: c, image: high}]}`))
	low := policy("low", accepted(metav1.ConditionTrue),
		adds(t, `{env: [{name: A, value: low}, {name: B, value: low}], initContainers: [{name: c, image: low}]}`))
	none := policy("none", priority(1), accepted(metav1.ConditionTrue), adds(t, `env: [{name: A, value: none}]`))
	plan := planOf(t, none, low, high)
	pod := modelPod()
	pod.Spec.Containers[0].Env = nil
	if problems := sidecar.Inject(pod, plan, images); problems != nil {
		t.Errorf("problems %v", problems)
	}
	if got := container(t, pod, "c").Image; got != "high" {
		t.Errorf("image %s", got)
	}
	model := container(t, pod, "kserve-container")
	if env(model, "A") != "high" || env(model, "B") != "low" || len(model.Env) != 2 {
		t.Errorf("variables %v", model.Env)
	}
	if got := len(pod.Spec.InitContainers); got != 1 {
		t.Errorf("%d init containers, want the pod's own", got)
	}
	if got := len(plan.Parts()); got != 2 {
		t.Errorf("parts %v, want those of high and low", plan.Parts())
	}
	if with, without := plan.Hash(), planOf(t, high).Hash(); with == without {
		t.Error("two plans have one hash")
	}
}

func TestTemplates(t *testing.T) {
	isvc := torch()
	isvc.Annotations = map[string]string{"brace": "}"}
	isvc.Spec.Predictor.Model.StorageURI = new("s3://b/m")
	subject := sidecar.SubjectOf(isvc, v1alpha1.ComponentPredictor)
	for text, want := range map[string]string{
		"":                                              "",
		"plain ${HOME} $(POD) {{ .Go }}":                "plain ${HOME} $(POD) {{ .Go }}",
		"${isvc.metadata.name}":                         "mnist",
		"a-${isvc.metadata.name}-${modelUri}!":          "a-mnist-s3://b/m!",
		"${modelUri.replace('s3://', '')}":              "b/m",
		"${isvc.metadata.labels['team'] + '}'}":         "blue}",
		"${isvc.metadata.annotations.brace}":            "}",
		"${isvc.?metadata.?labels.?no.orValue('none')}": "none",
		"${isvc.metadata.name + {'a': '!'}['a']}":       "mnist!",
	} {
		p := policy("a", accepted(metav1.ConditionTrue))
		raw, err := yaml.YAMLToJSON([]byte("name: A"))
		if err != nil {
			t.Fatal(err)
		}
		item := map[string]any{}
		if err := yaml.Unmarshal(raw, &item); err != nil {
			t.Fatal(err)
		}
		item["value"] = text
		if raw, err = yaml.Marshal(item); err != nil {
			t.Fatal(err)
		}
		if raw, err = yaml.YAMLToJSON(raw); err != nil {
			t.Fatal(err)
		}
		p.Spec.Env = []runtime.RawExtension{{Raw: raw}}
		d := sidecar.Resolve(subject, []v1alpha1.SidecarPolicy{p})
		if len(d.Plan.Sidecars) != 1 || d.Plan.Sidecars[0].Content.Env[0].Value != want {
			t.Errorf("%q came to %+v, problems %+v; want %q", text, d.Plan.Sidecars, d.Problems, want)
		}
	}
}

func TestATemplateThatCannotBeFilledNamesTheField(t *testing.T) {
	p := policy("a", accepted(metav1.ConditionTrue), adds(t, `env: [{name: A, value: "${isvc.spec.transformer.minReplicas}"}]`))
	d := sidecar.Resolve(sidecar.SubjectOf(torch(), v1alpha1.ComponentPredictor), []v1alpha1.SidecarPolicy{p})
	const want = "SidecarPolicy a: spec.env[0].value: ${isvc.spec.transformer.minReplicas}: evaluating: no such key: transformer"
	if len(d.Plan.Sidecars) != 0 || len(d.Problems) != 1 || d.Problems[0].Message != want {
		t.Errorf("plan %+v, problems %+v; want %q", d.Plan, d.Problems, want)
	}
}
