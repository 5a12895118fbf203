// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"serverless.xyz/outrigger/samples/predictor/model"
	"serverless.xyz/outrigger/test/cluster"
)

const (
	mebibyte       = 1 << 20
	initContainer  = "storage-initializer"
	preloaderImage = "ghcr.io/outrigger/preloader:v0.1.0"
)

// preloadService is an InferenceService; more is added to its predictor.
const preloadService = `
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: %s
  labels: {case: %[1]s}
  annotations: {serving.kserve.io/deploymentMode: Standard%s}
spec:
  predictor:
    model: {modelFormat: {name: pytorch}, args: [--model_name=mnist], storageUri: "%s"}
    %s
`

// TestPreloaderGoesOnWhereItWasKilled: a pod whose preloader is killed midway starts it again by itself, and that one
// fetches only what is missing. Here it comes by config/storagecontainer, without our webhook, as a user of its own on
// a read-only file system.
func TestPreloaderGoesOnWhereItWasKilled(t *testing.T) {
	ns := namespace(t, "killed")
	_, err := shared.UploadModel(t.Context(), "v1", "killed")
	must(t, err)
	filler := make([]byte, 64*mebibyte)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(filler)
	upload(t, "killed/filler.bin", filler)
	store := newSlowStore(t, "/killed/filler.bin", 40*mebibyte)
	_, access, secret := shared.S3()
	must(t, shared.ApplySample(t.Context(), ns, "s3-secret.yaml", map[string]string{
		"S3_ENDPOINT": store.url, "S3_ACCESS_KEY": access, "S3_SECRET_KEY": secret,
	}))
	containers := filepath.Join(shared.Root, "config/storagecontainer")
	_, err = shared.KubectlRun(t.Context(), "apply", "-k", containers)
	must(t, err)
	t.Cleanup(func() {
		_, _ = shared.KubectlRun(context.WithoutCancel(t.Context()), "delete", "-k", containers)
	})
	apply(t, ns, fmt.Sprintf(preloadService, "killed", "", "s3://models/killed", "storageContainerName: outrigger-preloader"))

	// What was sent may still be in sockets.
	pod := awaitPod(t, ns, "killed", func(pod *corev1.Pod) bool {
		return running(pod) && store.served.Load() >= 4 &&
			bytesRead(t, processes(t, string(pod.UID), "/preloader")) >= 32*mebibyte
	})
	if c := pod.Spec.InitContainers[0]; c.Image != preloaderImage || !*c.SecurityContext.ReadOnlyRootFilesystem {
		t.Errorf("init container %s with security context %v, want the preloader, confined", c.Image, c.SecurityContext)
	}
	killOne(t, processes(t, string(pod.UID), "/preloader"))
	pod = awaitPod(t, ns, "killed", func(pod *corev1.Pod) bool { return pod.Status.InitContainerStatuses[0].RestartCount > 0 })
	if last := pod.Status.InitContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
		t.Errorf("the first try ended with %v, want exit code 137", last)
	}
	store.letGo()
	must(t, shared.AwaitInferenceService(t.Context(), ns, "killed"))
	pod = onlyPod(t, ns, "killed")

	var report struct{ Fetched, Resumed, Bytes int64 }
	decodeLastLine(t, pod.Status.InitContainerStatuses[0].State.Terminated, &report)
	if report.Resumed < 16*mebibyte || report.Fetched+report.Resumed > report.Bytes {
		t.Errorf("the second try reports %+v, want most of the first's bytes kept and none twice", report)
	}
	digits, err := model.HeldOut()
	must(t, err)
	answer, err := shared.Predict(t.Context(), pod, "mnist", digits)
	must(t, err)
	for i, digit := range digits {
		if answer.Predictions[i] != digit.V1 {
			t.Errorf("%s: predicted %d, the training script %d", digit.ID, answer.Predictions[i], digit.V1)
		}
	}
}

// TestPreloaderSaysWhatIsWrong: what a person has to mend stands in the pod's status, in kubectl describe, and in the
// InferenceService's status; and no secret does.
func TestPreloaderSaysWhatIsWrong(t *testing.T) {
	ns := namespace(t, "wrong")
	upload(t, "eight/weights.bin", make([]byte, 8*mebibyte))
	endpoint, access, secret := shared.S3()
	const wrong = "not-the-secret-of-anybody"
	apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata:
  name: wrong
  annotations: {serving.kserve.io/s3-endpoint: %q, serving.kserve.io/s3-region: us-east-1}
stringData: {AWS_ACCESS_KEY_ID: %q, AWS_SECRET_ACCESS_KEY: %q}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: wrong}
secrets: [{name: wrong}]
---
apiVersion: outrigger.serverless.xyz/v1alpha1
kind: SidecarPolicy
metadata: {name: tiny}
spec:
  selector: {matchLabels: {case: full-volume}}
  preload: {volume: {medium: Memory, sizeLimit: 4Mi}}
---
apiVersion: outrigger.serverless.xyz/v1alpha1
kind: SidecarPolicy
metadata: {name: small}
spec:
  selector: {matchLabels: {case: full-disk}}
  preload: {volume: {sizeLimit: 4Mi}}
`, endpoint, access, wrong))
	const preload = `, outrigger.serverless.xyz/preload: "true"`
	cases := map[string]struct {
		uri, annotations, more string
		wantCode               int32
		wantReason             string
		wantText               []string // cause and what to do
	}{
		"wrong-credentials": {
			uri:         "s3://models/eight",
			annotations: preload,
			more:        "serviceAccountName: wrong",
			wantCode:    77,
			wantReason:  "AccessDenied",
			wantText:    []string{"refused access to s3://models/eight", "Check AWS_SECRET_ACCESS_KEY"},
		},
		"no-bucket": {
			uri:         "s3://nobodys/eight",
			annotations: preload,
			wantCode:    66,
			wantReason:  "NoSuchBucket",
			wantText:    []string{"bucket nobodys does not exist", "Check the bucket's name"},
		},
		"no-prefix": {
			uri: "s3://models/nothing", annotations: preload,
			wantCode: 66, wantReason: "NoModel", wantText: []string{"no model found in s3://models/nothing", "Check the path"},
		},
		"full-volume": {
			uri:      "s3://models/eight",
			wantCode: 73, wantReason: "NoSpace", wantText: []string{"/mnt/models, which has", "Give the volume at least"},
		},
		"full-disk": {
			uri:      "s3://models/eight",
			wantCode: 73, wantReason: "NoSpace", wantText: []string{"/mnt/models, which has", "Raise the volume's sizeLimit"},
		},
		"other-content": {
			uri:         "s3://models/eight",
			annotations: `, outrigger.serverless.xyz/preload: "sha256:` + strings.Repeat("0", 64) + `"`,
			wantCode:    65, wantReason: "NotPinned",
			wantText: []string{"not what PRELOADER_PIN asks for", "Put the pinned content back"},
		},
	}
	for name, tc := range cases {
		apply(t, ns, fmt.Sprintf(preloadService, name, tc.annotations, tc.uri, tc.more))
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			pod := awaitPod(t, ns, name, func(pod *corev1.Pod) bool { return ended(pod) != nil })
			state := ended(pod)
			var word struct{ Reason string }
			decodeLastLine(t, state, &word)
			if state.ExitCode != tc.wantCode || word.Reason != tc.wantReason {
				t.Errorf("exit code %d for %q, want %d for %q; message:\n%s",
					state.ExitCode, word.Reason, tc.wantCode, tc.wantReason, state.Message)
			}
			described, err := shared.KubectlRun(t.Context(), "-n", ns, "describe", "pod", pod.Name)
			must(t, err)
			service := &v1beta1.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
			must(t, shared.Await(t.Context(), service, within, func() bool {
				return service.Status.ModelStatus.LastFailureInfo != nil
			}))
			told := service.Status.ModelStatus.LastFailureInfo.Message
			for where, text := range map[string]string{"the pod": state.Message, "kubectl describe": described, "the InferenceService": told} {
				for _, want := range tc.wantText {
					if !strings.Contains(text, want) {
						t.Errorf("%s does not say %q:\n%s", where, want, text)
					}
				}
				if strings.Contains(text, secret) || strings.Contains(text, wrong) {
					t.Errorf("%s tells a secret:\n%s", where, text)
				}
			}
		})
	}
}

// slowStore hands requests on to the S3 server, and keeps those for the end of one object waiting until it is let go.
type slowStore struct {
	url string
	// served counts answers that brought ranges of the object to their end.
	served atomic.Int64
	letGo  func()
}

func newSlowStore(t *testing.T, path string, from int64) *slowStore {
	t.Helper()
	endpoint, _, _ := shared.S3()
	target, err := url.Parse(endpoint)
	must(t, err)
	held := make(chan struct{})
	s := &slowStore{letGo: sync.OnceFunc(func() { close(held) })}
	// The host that the client signed stays, so that its signature does.
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, r.In.Host
	}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
		off, err := strconv.ParseInt(first, 10, 64)
		ours := err == nil && strings.HasSuffix(r.URL.Path, path)
		if ours && off >= from {
			select {
			case <-held:
			case <-r.Context().Done():
				return
			}
		}
		proxy.ServeHTTP(w, r)
		if ours && r.Context().Err() == nil {
			s.served.Add(1)
		}
	}))
	server.Listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(shared.HostIP(), "0"))
	must(t, err)
	server.Start()
	t.Cleanup(func() {
		s.letGo()
		server.Close()
	})
	s.url = server.URL
	return s
}

// awaitPod waits for the one pod of a service, with the statuses of its init containers, to be as wanted.
func awaitPod(t *testing.T, ns, service string, ready func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var last []corev1.Pod
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		pods, err := shared.PredictorPods(t.Context(), ns, service)
		must(t, err)
		if last = pods; len(pods) == 1 && len(pods[0].Status.InitContainerStatuses) > 0 && ready(&pods[0]) {
			return &pods[0]
		}
	}
	t.Fatalf("the pod of %s did not become what it should; pods: %v", service, last)
	return nil
}

func running(pod *corev1.Pod) bool { return pod.Status.InitContainerStatuses[0].State.Running != nil }

// ended returns how the container that fetches the model last ended, or nil.
func ended(pod *corev1.Pod) *corev1.ContainerStateTerminated {
	for _, s := range pod.Status.InitContainerStatuses {
		if s.Name != initContainer {
			continue
		}
		if s.State.Terminated != nil {
			return s.State.Terminated
		}
		return s.LastTerminationState.Terminated
	}
	return nil
}

// decodeLastLine reads the line for programs of a termination message.
func decodeLastLine(t *testing.T, state *corev1.ContainerStateTerminated, into any) {
	t.Helper()
	if state == nil {
		t.Fatal("the container has not ended")
	}
	lines := strings.Split(strings.TrimSpace(state.Message), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), into); err != nil {
		t.Fatalf("the termination message does not end in JSON: %v\n%s", err, state.Message)
	}
}

// processes returns the numbers of a program's processes in a pod.
func processes(t *testing.T, uid, program string) []int {
	t.Helper()
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	must(t, err)
	var found []int
	for _, group := range groups {
		raw, err := os.ReadFile(group)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(raw), "_", "-"), uid) {
			continue // it ended, or is another's
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(group), "cmdline"))
		if err != nil || !bytes.HasPrefix(line, []byte(program+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(group)))
		must(t, err)
		found = append(found, pid)
	}
	return found
}

// bytesRead returns how much processes have read, from files and sockets.
func bytesRead(t *testing.T, pids []int) (all int64) {
	t.Helper()
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		if err != nil {
			continue // it ended
		}
		var read int64
		_, err = fmt.Sscanf(string(raw), "rchar: %d", &read)
		must(t, err)
		all += read
	}
	return all
}

// killOne kills the only one of some processes, as a lack of memory would.
func killOne(t *testing.T, pids []int) {
	t.Helper()
	if len(pids) != 1 {
		t.Fatalf("%d processes to kill, want one", len(pids))
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}

func upload(t *testing.T, key string, data []byte) {
	t.Helper()
	_, err := shared.S3Client().PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(cluster.Bucket), Key: &key, Body: bytes.NewReader(data),
	})
	must(t, err)
}

// apply applies a manifest in a namespace.
func apply(t *testing.T, ns, manifest string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	must(t, os.WriteFile(path, []byte(manifest), 0o600))
	must(t, shared.ApplyTo(t.Context(), ns, path))
}
