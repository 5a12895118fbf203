// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"serverless.xyz/outrigger/test/testbed"
)

// torchMNIST is the InferenceService that the project's tour starts with, unchanged.
const torchMNIST = `
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: torch-mnist
spec:
  predictor:
    pytorch:
      storageUri: s3://models/mnist
      resources:
        limits:
          cpu: "2"
          nvidia.com/gpu: "1"
`

const torchRuntime = `
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata:
  name: torch
spec:
  supportedModelFormats:
  - {name: pytorch, version: "1", autoSelect: true}
  containers:
  - name: kserve-container
    image: ` + probeImage + `
    args: [serve]
    env: [{name: ` + probeVariable + `, value: serve}]
    ports: [{containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    resources: {requests: {cpu: 10m, memory: 32Mi}}
`

const probeImage = "outrigger.test/probe:1"

// within bounds how long a test waits for what takes seconds. Only what never happens exceeds it, however slow the machine
// is.
const within = 4 * time.Minute

// until calls check till it gives nil, or fails the test with its last error.
func until(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not happen within %s: %v", what, within, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func TestKServeMakesADeploymentOfAnInferenceService(t *testing.T) {
	tb := testbed.Shared(t, testbed.Control)
	if err := tb.Apply(t.Context(), torchRuntime, torchMNIST); err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(tb.Config())
	var made *appsv1.Deployment
	until(t, "the predictor's Deployment", func(ctx context.Context) error {
		var err error
		made, err = client.AppsV1().Deployments("default").Get(ctx, "torch-mnist-predictor", metav1.GetOptions{})
		return err
	})
	limits := made.Spec.Template.Spec.Containers[0].Resources.Limits
	if got := limits.Cpu().String(); got != "2" {
		t.Errorf("limit of cpu %s, want 2", got)
	}
	// The controller manager makes pods of it, and KServe's own webhook adds the storage initializer to them.
	until(t, "the predictor's pod", func(ctx context.Context) error {
		pods, err := client.CoreV1().
			Pods("default").
			List(ctx, metav1.ListOptions{LabelSelector: "app=isvc.torch-mnist-predictor"})
		if err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods", len(pods.Items))
		}
		init := pods.Items[0].Spec.InitContainers
		if len(init) != 1 || init[0].Name != "storage-initializer" || init[0].Image != testbed.StorageInitializerImage {
			t.Fatalf("init containers %v, want the storage initializer", init)
		}
		return nil
	})
}

func TestKServesWebhookRefusesABadInferenceService(t *testing.T) {
	tb := testbed.Shared(t, testbed.Control)
	bad := strings.Replace(torchMNIST, "name: torch-mnist", "name: Bad_Name.", 1)
	if err := tb.Apply(
		t.Context(),
		bad,
	); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) &&
		!apierrors.IsBadRequest(err) {
		t.Errorf("error %v, want a refusal", err)
	}
}

func TestS3KeepsObjectsForThoseWithItsKeys(t *testing.T) {
	tb := testbed.Shared(t, testbed.Control)
	endpoint, access, secret := tb.S3()
	client := func(secret string) *s3.Client {
		return s3.New(s3.Options{
			BaseEndpoint: &endpoint, Region: "us-east-1", UsePathStyle: true,
			Credentials: credentials.NewStaticCredentialsProvider(access, secret, ""),
		})
	}
	bucket, key, want := "models", "mnist/weights", []byte("weights")
	if _, err := client(secret).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	_, err := client(secret).PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(want)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := client(secret).GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(got.Body)
	if err != nil || !bytes.Equal(content, want) || aws.ToString(got.ETag) == "" {
		t.Errorf("content %q, ETag %q, error %v", content, aws.ToString(got.ETag), err)
	}
	if _, err := client("wrong").GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key}); err == nil {
		t.Error("no error with a wrong secret")
	}
}

func TestIstioServesXDSToAClientWithoutEnvoy(t *testing.T) {
	tb := testbed.Shared(t, testbed.Control)
	conn, err := grpc.NewClient(tb.XDSAddress(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const listener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	generator, err := structpb.NewStruct(map[string]any{"GENERATOR": "grpc", "CLUSTER_ID": "Kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&discoveryv3.DiscoveryRequest{
		Node:          &corev3.Node{Id: "sidecar~127.0.0.1~client.default~default.svc.cluster.local", Metadata: generator},
		TypeUrl:       listener,
		ResourceNames: []string{"kubernetes.default.svc.cluster.local:443"},
	})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if answer.GetTypeUrl() != listener || len(answer.GetResources()) != 1 {
		t.Errorf("%d resources of %s, want one listener", len(answer.GetResources()), answer.GetTypeUrl())
	}
}

func TestIstiosKindsAreInstalled(t *testing.T) {
	tb := testbed.Shared(t, testbed.Control)
	err := tb.Apply(t.Context(), `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec: {hosts: [v.example], http: [{route: [{destination: {host: v.example}}]}]}
`)
	if err != nil {
		t.Error(err)
	}
}

func TestGatewayAPIIsInstalled(t *testing.T) {
	tb := testbed.Shared(t, testbed.Control)
	found, err := kubernetes.NewForConfigOrDie(tb.Config()).Discovery().ServerResourcesForGroupVersion(
		schema.GroupVersion{Group: "gateway.networking.k8s.io", Version: "v1"}.String())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range found.APIResources {
		names = append(names, r.Name)
	}
	if all := strings.Join(names, " "); !strings.Contains(all, "httproutes") {
		t.Errorf("kinds %s, want httproutes among them", all)
	}
}

func TestMemcachedAnswersAndStops(t *testing.T) {
	tb := testbed.Shared(t, testbed.API)
	first, err := tb.StartMemcached(t.Context(), "-m", "16")
	if err != nil {
		t.Fatal(err)
	}
	second, err := tb.StartMemcached(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first == second {
		t.Errorf("both at %s", first)
	}
	if err := tb.StopMemcached(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", first); err == nil {
		t.Errorf("%s still listens after being stopped", conn.RemoteAddr())
	}
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", second)
	if err != nil {
		t.Fatalf("the other one went too: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPrometheusAnswersQueries(t *testing.T) {
	tb := testbed.Shared(t, testbed.API)
	url, err := tb.StartPrometheus(t.Context(), "global: {scrape_interval: 1s}\n")
	if err != nil {
		t.Fatal(err)
	}
	if url != tb.PrometheusURL() {
		t.Errorf("URL %s, and the state has %s", url, tb.PrometheusURL())
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/api/v1/query?query=1%2B1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Data struct{ Result [2]any }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Data.Result[1] != "2" {
		t.Errorf("1+1 gives %v, error %v", answer, err)
	}
}
