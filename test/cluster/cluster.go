// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kserve/kserve/pkg/apis/serving/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/test/testbed"
)

// Cluster is a testbed of size Node with Outrigger installed.
type Cluster struct {
	*testbed.Testbed
	// Client reads and writes as an administrator, without a cache.
	Client client.WithWatch
	// HTTP reaches addresses of pods and Services.
	HTTP *http.Client
	// Root is the folder of the repository.
	Root string

	progress io.Writer
}

// Start builds images and a cluster with two GPUs of the name nvidia.com/gpu, which stand for nothing, and installs
// Outrigger from config/default.
func Start(ctx context.Context, progress io.Writer) (*Cluster, error) {
	root, err := testbed.Root()
	if err != nil {
		return nil, err
	}
	archives, err := BuildImages(ctx, filepath.Join(root, "bin"))
	if err != nil {
		return nil, err
	}
	tb, err := testbed.Start(ctx, testbed.Options{
		Size:              testbed.Node,
		ExtendedResources: map[string]string{"nvidia.com/gpu": "2"},
		Progress:          progress,
	})
	if err != nil {
		return nil, fmt.Errorf("starting the testbed: %w", err)
	}
	c := &Cluster{Testbed: tb, HTTP: &http.Client{Timeout: time.Minute}, Root: root, progress: progress}
	if err := c.install(ctx, archives); err != nil {
		_ = tb.Stop()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) install(ctx context.Context, archives []string) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, v1alpha1.AddToScheme, v1beta1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return fmt.Errorf("making a scheme: %w", err)
		}
	}
	var err error
	if c.Client, err = client.NewWithWatch(c.Config(), client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	if err := c.LoadImage(ctx, archives...); err != nil {
		return err
	}
	if _, err := c.KubectlRun(ctx, "apply", "--server-side", "-k", filepath.Join(c.Root, "config/default")); err != nil {
		return err
	}
	_, err = c.KubectlRun(ctx, "-n", "outrigger-system", "rollout", "status", "deployment/outrigger-manager", "--timeout=300s")
	return err
}

// KubectlRun runs the testbed's kubectl and returns what it prints.
func (c *Cluster) KubectlRun(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, c.Kubectl(), append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...)
	var out, errOut bytes.Buffer
	command.Stdout, command.Stderr = &out, &errOut
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

// ApplySample applies a file of samples/ in a namespace, with $NAME in it replaced from values.
func (c *Cluster) ApplySample(ctx context.Context, namespace, file string, values map[string]string) error {
	raw, err := os.ReadFile(filepath.Join(c.Root, "samples", file))
	if err != nil {
		return fmt.Errorf("reading a sample: %w", err)
	}
	text := os.Expand(string(raw), func(name string) string { return values[name] })
	command := exec.CommandContext(ctx, c.Kubectl(), "--kubeconfig", c.Kubeconfig(), "-n", namespace,
		"apply", "--server-side", "--force-conflicts", "-f", "-")
	command.Stdin = strings.NewReader(text)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("applying samples/%s: %w: %s", file, err, out)
	}
	return nil
}

// Namespace makes a namespace with credentials for the S3 server and the sample runtime.
func (c *Cluster) Namespace(ctx context.Context, name string) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.Client.Create(ctx, ns); err != nil {
		return fmt.Errorf("making namespace %s: %w", name, err)
	}
	endpoint, access, secret := c.S3()
	values := map[string]string{"S3_ENDPOINT": endpoint, "S3_ACCESS_KEY": access, "S3_SECRET_KEY": secret}
	if err := c.ApplySample(ctx, name, "s3-secret.yaml", values); err != nil {
		return err
	}
	// Braces of the runtime's templates are no variables of ours.
	return c.ApplyTo(ctx, name, filepath.Join(c.Root, "samples/runtime.yaml"))
}

// ApplyTo applies a file in a namespace.
func (c *Cluster) ApplyTo(ctx context.Context, namespace, path string) error {
	_, err := c.KubectlRun(ctx, "-n", namespace, "apply", "--server-side", "--force-conflicts", "-f", path)
	return err
}

// Await waits until ready says yes of an object, which it reads every 100 ms. The error tells what the object looked
// like last.
func (c *Cluster) Await(ctx context.Context, o client.Object, timeout time.Duration, ready func() bool) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, timeout, true, func(ctx context.Context) (bool, error) {
		last = c.Client.Get(ctx, client.ObjectKeyFromObject(o), o)
		return last == nil && ready(), nil
	})
	if err != nil {
		return fmt.Errorf("waiting for %T %s/%s: %w (last read: %w)\n%s",
			o, o.GetNamespace(), o.GetName(), err, last, c.describe(ctx, o))
	}
	return nil
}

// describe tells what a person would look at when an object does not become ready.
func (c *Cluster) describe(ctx context.Context, o client.Object) string {
	// The caller's own time may just have run out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	var text strings.Builder
	for _, args := range [][]string{
		{"get", "pods,inferenceservices,memcacheds,sidecarpolicies,canaryrollouts", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
	} {
		out, err := c.KubectlRun(ctx, append([]string{"-n", o.GetNamespace()}, args...)...)
		text.WriteString(out)
		if err != nil {
			text.WriteString(err.Error() + "\n")
		}
	}
	return text.String()
}

// AwaitInferenceService waits until KServe says that an InferenceService is ready.
func (c *Cluster) AwaitInferenceService(ctx context.Context, namespace, name string) error {
	isvc := &v1beta1.InferenceService{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	return c.Await(ctx, isvc, 5*time.Minute, func() bool { return isvc.Status.IsConditionReady(v1beta1.PredictorReady) })
}

// PredictorPods returns the pods of an InferenceService's predictor that are not being deleted.
func (c *Cluster) PredictorPods(ctx context.Context, namespace, name string) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := c.Client.List(ctx, &pods, client.InNamespace(namespace),
		client.MatchingLabels{"serving.kserve.io/inferenceservice": name, "component": "predictor"})
	if err != nil {
		return nil, fmt.Errorf("listing pods of %s: %w", name, err)
	}
	kept := pods.Items[:0]
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			kept = append(kept, pod)
		}
	}
	return kept, nil
}
