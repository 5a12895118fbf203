// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// values reads a page of metrics: name with labels to value.
func values(t *testing.T, page string) map[string]float64 {
	t.Helper()
	found := map[string]float64{}
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		found[name] = v
	}
	return found
}

func wantValues(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for name, v := range want {
		if g, ok := got[metricPrefix+name]; !ok || g != v {
			t.Errorf("%s is %v (%t), want %v", name, g, ok, v)
		}
	}
}

// freeAddress returns an address that nobody is to take before it is used: none of the connections on this machine comes
// from this host.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.83.5:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestMetricsWhileAPullRunsAndAfterIt(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/a", noise(1, 30*mebibyte))
	s.put("m/b", noise(2, 1000))
	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	s.faults(func(a asked) fault {
		return fault{before: func() {
			if a.op == "Get" && a.off > 0 {
				<-release
			}
		}}
	})
	address, file := freeAddress(t), filepath.Join(t.TempDir(), "preloader.prom")
	dir := t.TempDir()
	p := start(t, with(serverSettings(s), settings{
		"PRELOADER_METRICS": address + ", " + file, "PRELOADER_CONNS": "1",
	}), "s3://models/m", dir)
	var page string
	eventually(t, "the first part has come", func() bool {
		answer, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		raw, _ := io.ReadAll(answer.Body)
		page = string(raw)
		return values(t, page)[metricPrefix+"ready_bytes"] == 8*mebibyte
	})
	wantValues(t, values(t, page), map[string]float64{
		"model_bytes":         30*mebibyte + 1000,
		"model_files":         2,
		"ready_files":         0,
		"fetched_bytes_total": 8 * mebibyte,
		"retries_total":       0,
	})
	if _, ok := values(t, page)[metricPrefix+"exit_code"]; ok {
		t.Error("there is an exit code before the end")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the file is there before the end")
	}
	open()
	wantCode(t, p.outcome(t), ExitOK, "Completed")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	wantValues(t, values(t, string(raw)), map[string]float64{
		"ready_bytes": 30*mebibyte + 1000, "ready_files": 2, "fetched_bytes_total": 30*mebibyte + 1000, "exit_code": 0,
		`proven_files{evidence="object-checksum"}`: 2,
	})
	p = start(t, with(serverSettings(s), settings{"PRELOADER_METRICS": file}), "s3://models/none", dir)
	wantCode(t, p.outcome(t), ExitNotFound, "NoModel")
	if raw, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	wantValues(t, values(t, string(raw)), map[string]float64{"exit_code": float64(ExitNotFound), "model_files": 0})
}

// TestBytesCountWhenTheyArrive has a link that brings less than a buffer for a while.
func TestBytesCountWhenTheyArrive(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/a", noise(1, 30*mebibyte))
	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	s.faults(func(asked) fault { return fault{hold: release, after: 100_000} })
	address := freeAddress(t)
	p := start(t, with(serverSettings(s), settings{"PRELOADER_METRICS": address, "PRELOADER_CONNS": "1"}),
		"s3://models/m", t.TempDir())
	eventually(t, "what has come is counted", func() bool {
		answer, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		raw, _ := io.ReadAll(answer.Body)
		return values(t, string(raw))[metricPrefix+"ready_bytes"] == 100_000
	})
	open()
	wantCode(t, p.outcome(t), ExitOK, "Completed")
}

func TestMetricsTroubleFailsNothing(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/a", noise(1, 1000))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	out := run(t, with(serverSettings(s), settings{
		"PRELOADER_METRICS": taken.Addr().String() + "," + filepath.Join(t.TempDir(), "none", "x.prom"),
	}), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitOK, "Completed")
	if strings.Count(out.log, "WARN") != 2 {
		t.Errorf("want two warnings; log:\n%s", out.log)
	}
}

func TestMetricsSettings(t *testing.T) {
	for text, good := range map[string]bool{
		"": true, ":9464": true, "127.0.0.1:9464,/metrics/a.prom": true, "[::1]:9464": true, ":9464,": true,
		"9464": false, "/metrics/a.txt": false, "metrics.prom": false, "http://host:1/x": false,
	} {
		if _, err := parseMetrics(text); (err == nil) != good {
			t.Errorf("%q gives error %v, want good: %t", text, err, good)
		}
	}
}

func TestMetricsFollowTheConventions(t *testing.T) {
	cached := int64(7)
	m := &metrics{meter: &Meter{}, report: &Report{
		Cached: &cached, IO: IOWarm, Evidence: map[Evidence]int{EvidenceSize: 1, EvidenceChecksum: 2},
	}}
	page := m.page()
	problems, err := promlint.New(strings.NewReader(page)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n := len(values(t, page)); n != 16 {
		t.Errorf("%d metrics, want 16", n)
	}
}
