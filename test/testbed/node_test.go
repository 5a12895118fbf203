// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package testbed_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"serverless.xyz/outrigger/test/testbed"
)

// node returns the testbed that the tests of this file share. It ends with the process.
func node(t *testing.T) *testbed.Testbed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("pods need root")
	}
	tb, err := startNode()
	if err != nil {
		t.Fatal(err)
	}
	return tb
}

var startNode = sync.OnceValues(func() (*testbed.Testbed, error) {
	ctx := context.Background()
	tb, err := testbed.Start(ctx, testbed.Options{
		Size: testbed.Node, Progress: os.Stderr, ExtendedResources: map[string]string{"nvidia.com/gpu": "1"},
	})
	if err != nil {
		return nil, err
	}
	return tb, errors.Join(
		loadProbe(ctx, tb, probeImage, "serve"),
		loadProbe(ctx, tb, testbed.StorageInitializerImage, "download"),
		loadProbe(ctx, tb, "outrigger.test/dial:1", "dial"),
		loadProbe(ctx, tb, "outrigger.test/hook:1", "hook"),
	)
})

// loadProbe loads an image of the test binary that runs the program.
func loadProbe(ctx context.Context, tb *testbed.Testbed, ref, program string) error {
	archive := filepath.Join(os.TempDir(), fmt.Sprintf("testbed-%s-%d.tar", program, os.Getpid()))
	defer func() { _ = os.Remove(archive) }()
	if err := testbed.BuildImage(ctx, archive, testbed.Image{
		Ref: ref, Files: map[string]string{"/probe": os.Args[0]},
		Entrypoint: []string{"/probe"}, Env: []string{probeVariable + "=" + program},
	}); err != nil {
		return err
	}
	return tb.LoadImage(ctx, archive)
}

func kubectl(t *testing.T, tb *testbed.Testbed, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tb.Kubectl(),
		append([]string{"--kubeconfig", tb.Kubeconfig()}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func awaitPod(t *testing.T, tb *testbed.Testbed, selector string) *corev1.Pod {
	t.Helper()
	client := kubernetes.NewForConfigOrDie(tb.Config())
	var ready *corev1.Pod
	until(t, "a ready pod "+selector, func(ctx context.Context) error {
		pods, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
					ready = &p
					return nil
				}
			}
			err = errors.Join(err, fmt.Errorf("%s: %s %v", p.Name, p.Status.Phase, p.Status.ContainerStatuses))
		}
		return errors.Join(err, errors.New("none is ready"))
	})
	return ready
}

func get(t *testing.T, url string) string {
	t.Helper()
	var body []byte
	until(t, "an answer of "+url, func(ctx context.Context) error {
		// A connection that was begun before kube-proxy knew the Service goes nowhere for good: the kernel remembers it so.
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if body, err = io.ReadAll(resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, body)
		}
		return nil
	})
	return string(body)
}

func TestPodOfAnInferenceServiceServes(t *testing.T) {
	tb := node(t)
	if err := tb.Apply(t.Context(), torchRuntime, torchMNIST); err != nil {
		t.Fatal(err)
	}
	pod := awaitPod(t, tb, "app=isvc.torch-mnist-predictor")
	client := kubernetes.NewForConfigOrDie(tb.Config())
	service, err := client.CoreV1().Services("default").Get(t.Context(), "torch-mnist-predictor", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for what, address := range map[string]string{
		"pod": pod.Status.PodIP + ":8080", "Service": service.Spec.ClusterIP + ":80",
	} {
		if got := get(t, "http://"+address+"/models/asked"); got != "s3://models/mnist" {
			t.Errorf("the %s serves %q, want what the storage initializer was asked for", what, got)
		}
	}
	if logs := kubectl(t, tb, "logs", pod.Name, "-c", "kserve-container"); !strings.Contains(logs, "serving") {
		t.Errorf("logs %q, want the program's line", logs)
	}
	until(t, "readiness of the InferenceService", func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, tb.Kubectl(), "--kubeconfig", tb.Kubeconfig(), "get", "inferenceservice",
			"torch-mnist", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`).Output()
		if err == nil && string(out) != "True" {
			err = fmt.Errorf("Ready is %q", out)
		}
		return err
	})
}

const memcachedPod = `
apiVersion: v1
kind: Pod
metadata: {name: memcached, labels: {app: memcached}}
spec:
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: memcached
    image: ` + testbed.MemcachedImage + `
    args: [-m, "64"]
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    resources: {limits: {cpu: 50m, memory: 96Mi}}
    readinessProbe: {tcpSocket: {port: 11211}, periodSeconds: 1}
    volumeMounts: [{name: config, mountPath: /config}]
  volumes: [{name: config, configMap: {name: memcached}}]
---
apiVersion: v1
kind: Service
metadata: {name: memcached}
spec: {selector: {app: memcached}, ports: [{port: 11211}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: memcached}
data: {word: first}
`

func TestKubectlReachesIntoARestrictedPod(t *testing.T) {
	tb := node(t)
	if err := tb.Apply(t.Context(), memcachedPod); err != nil {
		t.Fatal(err)
	}
	awaitPod(t, tb, "app=memcached")
	if out := kubectl(t, tb, "exec", "memcached", "--", "memcached", "-V"); !strings.HasPrefix(out, "memcached 1.") {
		t.Errorf("exec printed %q", out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	forward := exec.CommandContext(ctx, tb.Kubectl(), "--kubeconfig", tb.Kubeconfig(), "port-forward",
		"pod/memcached", ":11211")
	out, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	var port int
	if _, err := fmt.Sscanf(string(line[:n]), "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatalf("port-forward said %q", line[:n])
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("version\r\n")); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(line); err != nil || !strings.HasPrefix(string(line[:n]), "VERSION") {
		t.Errorf("through the forwarded port: %q, %v", line[:n], err)
	}
}

func TestChangedConfigMapReachesThePod(t *testing.T) {
	tb := node(t)
	if err := tb.Apply(t.Context(), memcachedPod); err != nil {
		t.Fatal(err)
	}
	pod := awaitPod(t, tb, "app=memcached")
	changed := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: memcached}\ndata: {word: second}\n"
	if err := tb.Apply(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	// The image has no program to print a file; the kubelet's copy of the volume is the same file.
	file := filepath.Join(tb.State().Folder, "var-lib", "kubelet", "pods", string(pod.UID),
		"volumes", "kubernetes.io~configmap", "config", "word")
	began := time.Now()
	until(t, "the new word", func(context.Context) error {
		word, err := os.ReadFile(file)
		if err == nil && string(word) != "second" {
			err = fmt.Errorf("the word is %q", word)
		}
		return err
	})
	t.Logf("after %s", time.Since(began).Round(100*time.Millisecond))
}

func TestPodsReachServicesByNameAndTheMachine(t *testing.T) {
	tb := node(t)
	if err := tb.Apply(t.Context(), memcachedPod); err != nil {
		t.Fatal(err)
	}
	awaitPod(t, tb, "app=memcached")
	listener, err := net.Listen("tcp", net.JoinHostPort(tb.HostIP(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	endpoint, _, _ := tb.S3()
	addresses := []string{
		"memcached:11211", "memcached.default.svc.cluster.local:11211", "kubernetes.default:443",
		listener.Addr().String(), strings.TrimPrefix(endpoint, "http://"), tb.XDSAddress(),
	}
	job := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: dial}
spec:
  restartPolicy: Never
  containers: [{name: dial, image: "outrigger.test/dial:1", args: ["%s"]}]
`, strings.Join(addresses, `", "`))
	if err := tb.Apply(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(tb.Config())
	until(t, "the end of the dialling pod", func(ctx context.Context) error {
		pod, err := client.CoreV1().Pods("default").Get(ctx, "dial", metav1.GetOptions{})
		if err == nil && pod.Status.Phase != corev1.PodSucceeded {
			err = fmt.Errorf("phase %s", pod.Status.Phase)
		}
		return err
	})
	if logs := kubectl(t, tb, "logs", "dial"); strings.Count(logs, "reached") != len(addresses) {
		t.Errorf("the pod printed\n%s", logs)
	}
}

const hookPod = `
apiVersion: v1
kind: Pod
metadata: {name: hook, labels: {app: hook}}
spec:
  containers:
  - name: hook
    image: outrigger.test/hook:1
    args: [hook.default.svc]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: hook}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 8443}]}
`

func TestAPIServerCallsAWebhookInAPod(t *testing.T) {
	tb := node(t)
	if err := tb.Apply(t.Context(), hookPod); err != nil {
		t.Fatal(err)
	}
	awaitPod(t, tb, "app=hook")
	certificate := kubectl(t, tb, "logs", "hook")
	err := tb.Apply(t.Context(), fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: hook}
webhooks:
- name: hook.test.example
  clientConfig:
    service: {name: hook, namespace: default}
    caBundle: %s
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  objectSelector: {matchLabels: {hooked: "yes"}}
  sideEffects: None
  admissionReviewVersions: [v1]
`, base64.StdEncoding.EncodeToString([]byte(certificate))))
	if err != nil {
		t.Fatal(err)
	}
	// The API server takes a moment to know of a new webhook, and lets objects pass till then.
	client := kubernetes.NewForConfigOrDie(tb.Config())
	until(t, "a refusal by the webhook", func(ctx context.Context) error {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "c-", Labels: map[string]string{"hooked": "yes"}}}
		_, err := client.CoreV1().ConfigMaps("default").Create(ctx, object, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "refused by a pod") {
			return fmt.Errorf("creating gives: %w", err)
		}
		return nil
	})
}

// traces returns what is left on this machine of the node in the folder, beside processes and the folder itself.
func traces(t *testing.T, folder string) []string {
	t.Helper()
	id := filepath.Base(folder)
	slot, _, _ := strings.Cut(id, "-")
	patterns := []string{
		"/sys/fs/cgroup/outrigger-testbed-" + id, "/sys/fs/cgroup/*/outrigger-testbed-" + id,
		"/sys/class/net/outrigger" + slot,
	}
	var found []string
	for _, pattern := range patterns {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, matches...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), id) {
		found = append(found, "a mount")
	}
	return found
}

// Two nodes run at once here: that of the other tests and the one that is killed.
func TestKilledNodeLeavesNothingAndSparesTheOther(t *testing.T) {
	tb := node(t)
	for name, kill := range map[string]func(owner *exec.Cmd, folder string) error{
		"owner killed": func(owner *exec.Cmd, _ string) error { return owner.Process.Kill() },
		"keeper killed": func(_ *exec.Cmd, folder string) error {
			return exec.Command("/bin/sh", "-c", "kill -9 $(cat "+folder+"/keeper.pid)").Run()
		},
	} {
		t.Run(name, func(t *testing.T) {
			owner, folder := startOwner(t, ownerVariable+"=node")
			defer func() { _ = owner.Process.Signal(syscall.SIGKILL) }()
			if len(traces(t, folder)) == 0 {
				t.Error("a running node has no link and no cgroup, so the test looks in the wrong place")
			}
			if err := kill(owner, folder); err != nil {
				t.Fatal(err)
			}
			until(t, "the end of all traces", func(ctx context.Context) error {
				if err := testbed.Clean(ctx); err != nil {
					return err
				}
				if left := traces(t, folder); len(left) > 0 {
					return fmt.Errorf("left: %q", left)
				}
				return nil
			})
			awaitGone(t, folder)
		})
	}
	if err := tb.Apply(t.Context(), memcachedPod); err != nil {
		t.Fatal(err)
	}
	awaitPod(t, tb, "app=memcached")
}
