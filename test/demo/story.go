// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/memcached"
	"serverless.xyz/outrigger/samples/predictor/model"
	"serverless.xyz/outrigger/test/cluster"
)

const (
	namespace = "demo"
	// requests are sent to measure a share; at 4,000 of them, three points are more than three standard deviations.
	requests  = 4000
	tolerance = 3
)

// story tells what happens and keeps the results for the table at the end.
type story struct {
	out     io.Writer
	began   time.Time
	opened  time.Time
	cluster *cluster.Cluster
	digits  []model.Digit
	rows    []row
	failed  int
}

// row is one line of the table.
type row struct{ what, figure, verdict string }

func newStory(out io.Writer) *story {
	return &story{out: out, began: time.Now(), opened: time.Now()}
}

func (s *story) chapter(title string) {
	s.opened = time.Now()
	fmt.Fprintf(s.out, "\n%6.1f s  %s\n%s\n", time.Since(s.began).Seconds(), title, strings.Repeat("-", len(title)+10))
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "%6.1f s  "+format+"\n", append([]any{time.Since(s.began).Seconds()}, args...)...)
}

func (s *story) sinceChapter() string { return fmt.Sprintf("%.1f s", time.Since(s.opened).Seconds()) }

// result keeps a figure without judging it.
func (s *story) result(what, figure, verdict string) {
	s.rows = append(s.rows, row{what, figure, verdict})
}

// expect keeps a figure and whether it is as it should be.
func (s *story) expect(what string, ok bool, format string, args ...any) {
	verdict := "ok"
	if !ok {
		verdict = "NOT AS PROMISED"
		s.failed++
	}
	s.result(what, fmt.Sprintf(format, args...), verdict)
	s.say("%s: %s  %s", what, fmt.Sprintf(format, args...), verdict)
}

func (s *story) summary() error {
	fmt.Fprintf(s.out, "\n")
	table := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, r := range s.rows {
		fmt.Fprintf(table, "%s\t%s\t%s\n", r.what, r.figure, r.verdict)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	fmt.Fprintf(s.out, "\nThe whole took %.0f s.\n", time.Since(s.began).Seconds())
	if s.failed > 0 {
		return fmt.Errorf("%d results are not as promised", s.failed)
	}
	return nil
}

func (s *story) prepare(ctx context.Context) error {
	s.chapter("Two versions of a digit classifier go to S3; a cache and a policy go to the namespace")
	var err error
	if s.digits, err = model.HeldOut(); err != nil {
		return fmt.Errorf("reading held-out digits: %w", err)
	}
	for _, upload := range []struct{ version, prefix string }{{"v2", "mnist"}, {"v1", "digits/v1"}, {"v2", "digits/v2"}} {
		size, err := s.cluster.UploadModel(ctx, upload.version, upload.prefix)
		if err != nil {
			return err
		}
		s.say("s3://%s/%s: %d KB", cluster.Bucket, upload.prefix, size/1000)
	}
	if err := s.cluster.Namespace(ctx, namespace); err != nil {
		return err
	}
	for _, file := range []string{"memcached.yaml", "sidecarpolicy.yaml"} {
		if err := s.cluster.ApplySample(ctx, namespace, file, nil); err != nil {
			return err
		}
		s.say("applied samples/%s", file)
	}
	took, err := s.awaitMemcached(ctx, 1)
	if err != nil {
		return err
	}
	s.expect("Memcached of size 1 with one instance in reserve", true, "Running after %.1f s", took.Seconds())
	return nil
}

func (s *story) preload(ctx context.Context) error {
	s.chapter("An InferenceService that knows nothing of Outrigger gets its model by the preloader")
	began := time.Now()
	if err := s.cluster.ApplySample(ctx, namespace, "torch-mnist.yaml", nil); err != nil {
		return err
	}
	s.say("applied samples/torch-mnist.yaml")
	if err := s.cluster.AwaitInferenceService(ctx, namespace, "torch-mnist"); err != nil {
		return err
	}
	s.say("KServe says that torch-mnist is ready, %.1f s after it was applied", time.Since(began).Seconds())
	pod, err := s.onlyPod(ctx, "torch-mnist")
	if err != nil {
		return err
	}
	for _, c := range pod.Spec.InitContainers {
		s.say("  init container %-20s %s", c.Name, c.Image)
	}
	log, err := s.cluster.KubectlRun(ctx, "-n", namespace, "logs", pod.Name, "-c", "storage-initializer")
	if err != nil {
		return err
	}
	s.say("  the preloader's words:")
	for line := range strings.Lines(log) {
		fmt.Fprintf(s.out, "            | %s", line)
	}
	answer, err := s.cluster.Predict(ctx, pod, "torch-mnist", s.digits)
	if err != nil {
		return err
	}
	correct := answer.Correct(s.digits)
	s.expect("predictions that are right", correct*100 >= len(s.digits)*95, "%d of %d held-out digits", correct, len(s.digits))
	return nil
}

func (s *story) features(ctx context.Context) error {
	s.chapter("Features come from Memcached, by way of the address in $FEATURE_CACHE_ADDR")
	pod, err := s.onlyPod(ctx, "torch-mnist")
	if err != nil {
		return err
	}
	for _, c := range pod.Spec.Containers {
		for _, env := range c.Env {
			if env.Name == v1alpha1.EnvFeatureCacheAddr {
				s.say("container %s has %s=%s", c.Name, env.Name, env.Value)
			}
		}
	}
	// The first requests fill the cache, each as far as its time goes. On a busy machine that is not far, and a look-up
	// may miss its 20 ms and count as a miss.
	var answer cluster.Answer
	asked := 0
	for began := time.Now(); answer.Hits < len(s.digits) && time.Since(began) < 20*time.Second; {
		if answer, err = s.cluster.Predict(ctx, pod, "torch-mnist", s.digits); err != nil {
			return err
		}
		asked++
		s.say(
			"asked for %d digits by id: %d features from the cache, %d from the store",
			len(s.digits),
			answer.Hits,
			answer.Misses,
		)
	}
	s.expect("features found in the cache", answer.Hits == len(s.digits), "%d of %d after %d requests",
		answer.Hits, len(s.digits), asked)
	return nil
}

func (s *story) canary(ctx context.Context) error {
	s.chapter("Traffic moves from mnist-v1 to mnist-v2 by editing one field")
	for _, file := range []string{"mnist-v1.yaml", "mnist-v2.yaml", "canaryrollout.yaml"} {
		if err := s.cluster.ApplySample(ctx, namespace, file, nil); err != nil {
			return err
		}
		s.say("applied samples/%s", file)
	}
	for _, name := range []string{"mnist-v1", "mnist-v2"} {
		if err := s.cluster.AwaitInferenceService(ctx, namespace, name); err != nil {
			return err
		}
	}
	rollout := &v1alpha1.CanaryRollout{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "mnist"}}
	if err := s.cluster.Await(ctx, rollout, time.Minute, func() bool { return applied(rollout, 0) }); err != nil {
		return err
	}
	traffic, err := s.cluster.NewTraffic(namespace, rollout.Status.Host+":80", "mnist")
	if err != nil {
		return err
	}
	defer func() { _ = traffic.Close() }()
	if err := traffic.Await(ctx); err != nil {
		return err
	}
	s.say("a client that obeys istiod calls %s", rollout.Status.Host)
	for _, percent := range []int32{0, 10, 50, 100} {
		if err := s.shift(ctx, rollout, traffic, percent); err != nil {
			return err
		}
	}
	return nil
}

// shift edits the one field and measures what the client sees.
func (s *story) shift(
	ctx context.Context, rollout *v1alpha1.CanaryRollout, traffic *cluster.Traffic, percent int32,
) error {
	s.say("kubectl -n %s patch canaryrollout %s --type merge -p '{\"spec\":{\"canaryPercent\":%d}}'",
		namespace, rollout.Name, percent)
	edited := time.Now()
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"canaryPercent":%d}}`, percent))
	if err := s.cluster.Client.Patch(ctx, rollout, patch); err != nil {
		return fmt.Errorf("editing canaryPercent: %w", err)
	}
	if err := s.cluster.Await(ctx, rollout, time.Minute, func() bool { return applied(rollout, percent) }); err != nil {
		return err
	}
	route := time.Since(edited)
	failed := 0
	for time.Since(edited) < 20*time.Second {
		shares := traffic.Send(ctx, 200)
		failed += shares.Failed
		if math.Abs(shares.Percent("v2")-float64(percent)) < 8 {
			break
		}
	}
	shares := traffic.Send(ctx, requests)
	failed += shares.Failed
	got := shares.Percent("v2")
	s.expect(fmt.Sprintf("canaryPercent %d", percent), math.Abs(got-float64(percent)) <= tolerance && failed == 0,
		"%.1f %% of %d requests, %d failed; route written %d ms after the edit", got, requests, failed, route.Milliseconds())
	if shares.FirstError != nil {
		s.say("  first error: %v", shares.FirstError)
	}
	return nil
}

func applied(rollout *v1alpha1.CanaryRollout, percent int32) bool {
	weights := rollout.Status.Weights.Applied
	return weights != nil && weights.Canary == percent && rollout.Status.ObservedGeneration == rollout.Generation
}

func (s *story) scale(ctx context.Context) error {
	s.chapter("The cache grows from one instance to three")
	m := &v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "features"}}
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"size":3}}`))
	if err := s.cluster.Client.Patch(ctx, m, patch); err != nil {
		return fmt.Errorf("editing size: %w", err)
	}
	s.say("kubectl -n %s patch memcached features --type merge -p '{\"spec\":{\"size\":3}}'", namespace)
	took, err := s.awaitMemcached(ctx, 3)
	if err != nil {
		return err
	}
	s.expect("Memcached from 1 to 3", true, "Running after %.1f s", took.Seconds())
	out, err := s.cluster.KubectlRun(ctx, "-n", namespace, "get", "memcached,sidecarpolicy,canaryrollout,pods")
	if err != nil {
		return err
	}
	fmt.Fprint(s.out, out)
	return s.fillAgain(ctx)
}

// fillAgain asks until the predictor's sidecar follows the new ring, and every feature is in the cache again.
func (s *story) fillAgain(ctx context.Context) error {
	pod, err := s.onlyPod(ctx, "torch-mnist")
	if err != nil {
		return err
	}
	began := time.Now()
	for time.Since(began) < 2*time.Minute {
		answer, err := s.cluster.Predict(ctx, pod, "torch-mnist", s.digits)
		if err != nil {
			return err
		}
		used, err := s.instancesWithItems(ctx)
		if err != nil {
			return err
		}
		if used == 3 && answer.Hits == len(s.digits) {
			s.expect("features spread over three instances", true, "all %d in the cache again after %.1f s",
				len(s.digits), time.Since(began).Seconds())
			return nil
		}
	}
	s.expect("features spread over three instances", false, "the new instances got no keys in 2 minutes")
	return nil
}

func (s *story) awaitMemcached(ctx context.Context, size int32) (time.Duration, error) {
	began := time.Now()
	m := &v1alpha1.Memcached{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "features"}}
	err := s.cluster.Await(ctx, m, 2*time.Minute, func() bool {
		return m.Status.ObservedGeneration == m.Generation && m.Status.Phase == v1alpha1.MemcachedRunning &&
			m.Status.Size == size
	})
	return time.Since(began), err
}

func (s *story) onlyPod(ctx context.Context, service string) (*corev1.Pod, error) {
	pods, err := s.cluster.PredictorPods(ctx, namespace, service)
	if err != nil {
		return nil, err
	}
	if len(pods) != 1 {
		return nil, fmt.Errorf("%s has %d pods, not one", service, len(pods))
	}
	return &pods[0], nil
}

func (s *story) howToPlay(c *cluster.Cluster) {
	fmt.Fprintf(s.out, `
The cluster is running. To play with it:

  export KUBECONFIG=%s PATH=$PATH:%s
  kubectl -n demo get inferenceservice,memcached,sidecarpolicy,canaryrollout,pods
  kubectl -n demo patch canaryrollout mnist --type merge -p '{"spec":{"canaryPercent":25}}'
  kubectl -n demo scale memcached features --replicas 2
  kubectl -n outrigger-system logs deployment/outrigger-manager -f

To end it: go run ./test/testbed/cmd/testbed down %s
`, c.Kubeconfig(), filepath.Dir(c.Kubectl()), c.State().ID)
}

// instancesWithItems counts the instances of the cache that hold keys.
func (s *story) instancesWithItems(ctx context.Context) (int, error) {
	var pods corev1.PodList
	err := s.cluster.Client.List(ctx, &pods, client.InNamespace(namespace),
		client.MatchingLabels{v1alpha1.LabelName: "memcached", v1alpha1.LabelInstance: "features"})
	if err != nil {
		return 0, fmt.Errorf("listing instances: %w", err)
	}
	used := 0
	for i := range pods.Items {
		stats, err := memcached.ReadStats(ctx, net.JoinHostPort(pods.Items[i].Status.PodIP, "11211"))
		if err != nil {
			return 0, fmt.Errorf("asking %s: %w", pods.Items[i].Name, err)
		}
		if stats.CurrItems > 0 {
			used++
		}
	}
	return used, nil
}
