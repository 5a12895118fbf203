// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
)

// podAt is a pod that is served by a handler.
func podAt(t *testing.T, name string, handler http.HandlerFunc) canaryrollout.Pod {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return canaryrollout.Pod{Name: name, UID: types.UID(name), Address: host, Port: int32(number)}
}

func startStove(t *testing.T) *canaryrollout.Stove {
	t.Helper()
	s := canaryrollout.NewStove(clock.RealClock{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Start(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

func warming(pods ...canaryrollout.Pod) *canaryrollout.Warming {
	return &canaryrollout.Warming{
		Rollout: types.NamespacedName{Namespace: "ml", Name: name}, Matter: "1", Host: "v2.ml.svc.cluster.local", Pods: pods,
		At: time.Now(),
		Warmup: v1alpha1.RolloutWarmup{
			Request: v1alpha1.WarmupRequest{Path: "/v2/models/digits/infer?a=b", Body: "[1,2]", ContentType: "application/json"},
			Count:   3, Timeout: &metav1.Duration{Duration: within},
		},
	}
}

// awaitWarmth asks until the pods are as warm as wanted.
func awaitWarmth(
	t *testing.T,
	s *canaryrollout.Stove,
	w *canaryrollout.Warming,
	what string,
	done func(canaryrollout.Warmth) bool,
) canaryrollout.Warmth {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		got := s.Warm(w)
		if done(got) {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %+v", what, got)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestStoveSendsRealRequests: each pod answers as often as it must, gets what the spec says, and is left alone then.
func TestStoveSendsRealRequests(t *testing.T) {
	var requests atomic.Int32
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.String() != "/v2/models/digits/infer?a=b" || string(body) != "[1,2]" ||
			r.Host != "v2.ml.svc.cluster.local" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("the pod got %s %s of %s: %s", r.Method, r.URL, r.Host, body)
		}
		requests.Add(1)
		w.WriteHeader(http.StatusOK)
	}
	s, w := startStove(t), warming(podAt(t, "a", handler), podAt(t, "b", handler))
	awaitWarmth(t, s, w, "both pods", func(got canaryrollout.Warmth) bool { return got.Warm == 2 && got.Again == 0 })
	if got := s.Warm(w); got.Warm != 2 || requests.Load() != 6 {
		t.Errorf("%+v after %d requests, want 2 warm after 6", got, requests.Load())
	}
	// A pod that was not ready for a moment may have been started anew.
	gone := *w
	gone.Pods = w.Pods[:1]
	s.Warm(&gone)
	awaitWarmth(t, s, w, "the pod is back", func(got canaryrollout.Warmth) bool { return got.Warm == 2 })
	if requests.Load() != 9 {
		t.Errorf("%d requests, want 9: the pod that came back has had its own", requests.Load())
	}
	other := *w
	other.Matter = "2"
	if got := s.Warm(&other); got.Warm != 0 {
		t.Errorf("%d pods of another revision are warm already", got.Warm)
	}
}

// TestStoveSaysWhatIsWrong: pods that do not answer as they should keep no other from getting warm, and are asked again.
func TestStoveSaysWhatIsWrong(t *testing.T) {
	for what, tc := range map[string]struct {
		handler http.HandlerFunc
		change  func(*canaryrollout.Warming)
		want    string
	}{
		"an error": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, nil, "it answered 500 to the warm-up request"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}, nil, "it answered 302"},
		"nothing": {hang, func(w *canaryrollout.Warming) {
			w.Warmup.Timeout = &metav1.Duration{Duration: time.Millisecond}
		}, "it did not answer within 1ms"},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "secret")
		}, nil, "it broke off its answer"},
		"too late": {func(http.ResponseWriter, *http.Request) {}, func(w *canaryrollout.Warming) {
			w.Warmup.MaxLatency = &metav1.Duration{Duration: time.Nanosecond}
		}, "longer than the 1ns of maxLatency"},
	} {
		t.Run(what, func(t *testing.T) {
			s := startStove(t)
			good := podAt(t, "good", func(http.ResponseWriter, *http.Request) {})
			w := warming(good)
			awaitWarmth(t, s, w, "the good pod", func(got canaryrollout.Warmth) bool { return got.Warm == 1 })
			w.Pods = append(w.Pods, podAt(t, "bad", tc.handler))
			if tc.change != nil {
				tc.change(w)
			}
			got := awaitWarmth(t, s, w, "the bad pod", func(got canaryrollout.Warmth) bool { return got.Failure != "" })
			if got.Warm != 1 || !strings.HasPrefix(got.Failure, "Pod bad is not warm: ") ||
				!strings.Contains(got.Failure, tc.want) ||
				strings.Contains(got.Failure, "secret") {
				t.Errorf("%+v, want %q", got, tc.want)
			}
		})
	}
	s := startStove(t)
	w := warming(canaryrollout.Pod{Name: "away", Address: "127.0.0.1", Port: 1})
	got := awaitWarmth(t, s, w, "nobody listens", func(got canaryrollout.Warmth) bool { return got.Failure != "" })
	if !strings.Contains(got.Failure, "cannot be reached by the manager") {
		t.Errorf("nobody listens: %+v", got)
	}
}

// TestStoveTriesAgain: a pod that was not well is asked again after a while, and not before.
func TestStoveTriesAgain(t *testing.T) {
	var requests atomic.Int32
	w := warming(podAt(t, "a", func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	s := startStove(t)
	awaitWarmth(t, s, w, "it fails", func(got canaryrollout.Warmth) bool { return got.Failure != "" })
	if got := s.Warm(w); requests.Load() != 1 || got.Warm != 0 {
		t.Errorf("%+v, and %d requests at once, want 1", got, requests.Load())
	}
	w.At = w.At.Add(time.Minute)
	awaitWarmth(t, s, w, "it is well again", func(got canaryrollout.Warmth) bool { return got.Warm == 1 && got.Failure == "" })
}

// TestPodsThatHangHoldNobodyUp: however many there are, and whatever time their rollouts give them to answer.
func TestPodsThatHangHoldNobodyUp(t *testing.T) {
	s := startStove(t)
	for n := range 12 {
		var pods []canaryrollout.Pod
		for range 4 {
			pods = append(pods, podAt(t, strconv.Itoa(len(pods)), hang))
		}
		w := warming(pods...)
		w.Rollout.Name, w.Warmup.Timeout = strconv.Itoa(n), &metav1.Duration{Duration: time.Hour}
		s.Warm(w)
	}
	w := warming(podAt(t, "good", func(http.ResponseWriter, *http.Request) {}))
	awaitWarmth(t, s, w, "the good pod", func(got canaryrollout.Warmth) bool { return got.Warm == 1 })
}

// TestStoveTellsWarmupFromTheRest: since when requests to a pod count is the end of its first warm-up, and no later one
// hides what was before.
func TestStoveTellsWarmupFromTheRest(t *testing.T) {
	var ill atomic.Bool
	ill.Store(true)
	release := make(chan struct{})
	slow := podAt(t, "slow", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // before that the end of a caller is not noticed
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	failing := podAt(t, "failing", func(w http.ResponseWriter, _ *http.Request) {
		if ill.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	s, w := startStove(t), warming(podAt(t, "good", func(http.ResponseWriter, *http.Request) {}), slow, failing)
	got := awaitWarmth(t, s, w, "one is warm, one is not", func(got canaryrollout.Warmth) bool {
		return got.Warm == 1 && got.Failure != ""
	})
	if got.Counts["good"].IsZero() || !got.Counts["slow"].IsZero() || got.Counts["failing"].IsZero() {
		t.Errorf("requests count since %v; want none of the slow pod to", got.Counts)
	}
	failed, good := got.Counts["failing"], got.Counts["good"]
	later := func(by time.Duration) *canaryrollout.Warming {
		next := *w // a Warming is not changed once it was asked for
		next.At = next.At.Add(by)
		return &next
	}
	w = later(2 * time.Minute)
	if hung := s.Warm(w).Counts["slow"]; !hung.Equal(w.At) {
		t.Errorf("requests to a pod whose warm-up hangs count since %s, want %s", hung, w.At)
	}
	close(release)
	ill.Store(false)
	w = later(time.Minute)
	warm := awaitWarmth(t, s, w, "all", func(got canaryrollout.Warmth) bool { return got.Warm == 3 })
	if warm.Counts["slow"].IsZero() || !warm.Counts["failing"].After(failed) {
		t.Errorf("requests count since %v; want those after the warm-ups", warm.Counts)
	}
	gone := *w
	gone.Pods = nil
	s.Warm(&gone)
	w = later(time.Minute)
	again := awaitWarmth(t, s, w, "all, again", func(got canaryrollout.Warmth) bool { return got.Warm == 3 })
	if !again.Counts["good"].Equal(good) {
		t.Errorf("requests to a pod that was away count since %s, want %s as before", again.Counts["good"], good)
	}
}
