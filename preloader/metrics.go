// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// metrics tells Prometheus what a run does, while it runs and at its end.
type metrics struct {
	meter *Meter
	start time.Time

	mu sync.Mutex
	// end, report and code are set when the run has ended.
	end    time.Time
	report *Report
	code   ExitCode
}

const metricPrefix = "outrigger_preloader_"

// page renders the metrics in Prometheus' text format. Its client library would
// double the size of this program.
func (m *metrics) page() string {
	var b strings.Builder
	family := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP %s%s %s\n# TYPE %s%s %s\n", metricPrefix, name, help, metricPrefix, name, kind)
	}
	value := func(name, labels string, v float64) {
		fmt.Fprintf(&b, "%s%s%s %s\n", metricPrefix, name, labels, strconv.FormatFloat(v, 'f', -1, 64))
	}
	one := func(name, kind, help string, v float64) {
		family(name, kind, help)
		value(name, "", v)
	}
	s := m.meter.Status()
	family("build_info", "gauge", "The version of the preloader; always 1.")
	value("build_info", fmt.Sprintf("{version=%q}", Version()), 1)
	one("start_time_seconds", "gauge", "When the run began, in seconds since 1970.", seconds(m.start))
	one("model_bytes", "gauge", "What the models come to.", float64(s.Bytes))
	one("model_files", "gauge", "How many files the models have.", float64(s.Files))
	one("ready_bytes", "gauge", "What of the models has arrived, of unfinished files too.", float64(s.ReadyBytes))
	one("ready_files", "gauge", "How many files are proven and in place.", float64(s.ReadyFiles))
	one(
		"fetched_bytes_total",
		"counter",
		"Bytes that came over the network, those thrown away included.",
		float64(s.FetchedBytes),
	)
	one("resumed_bytes_total", "counter", "Bytes of unfinished files that an earlier run had brought.", float64(s.ResumedBytes))
	one("reused_bytes_total", "counter", "Bytes of the models that came from the node's cache.", float64(s.ReusedBytes))
	one("retries_total", "counter", "Requests that were made again.", float64(s.Retries))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.report == nil {
		return b.String()
	}
	one("end_time_seconds", "gauge", "When the run ended, in seconds since 1970; absent while it goes on.", seconds(m.end))
	one("exit_code", "gauge", "What the run ended with, 0 for success; absent while it goes on.", float64(m.code))
	if len(m.report.Evidence) > 0 {
		family("proven_files", "gauge", "Files in place by the evidence that they were checked against; told at the end.")
		for _, e := range slices.Sorted(maps.Keys(m.report.Evidence)) {
			value("proven_files", fmt.Sprintf("{evidence=%q}", e), float64(m.report.Evidence[e]))
		}
	}
	if m.report.Cached != nil {
		one("page_cache_bytes", "gauge", "Bytes of the models in the page cache; told at the end.", float64(*m.report.Cached))
	}
	if m.report.IO != "" {
		family("io_info", "gauge", "How bytes were written; always 1, told at the end.")
		value("io_info", fmt.Sprintf("{mode=%q}", m.report.IO), 1)
	}
	if c := m.report.JITCache; c != nil {
		family("jit_cache_info", "gauge", "What came of compiled kernels; always 1, told at the end.")
		value("jit_cache_info", fmt.Sprintf("{state=%q,reason=%q}", c.State, c.Reason), 1)
		one("jit_cache_bytes", "gauge", "Bytes of compiled kernels that were unpacked; told at the end.", float64(c.Bytes))
		one("jit_cache_seconds", "gauge", "Seconds that were spent on compiled kernels; told at the end.", c.Seconds)
	}
	return b.String()
}

// write puts the page into a file in one step.
func (m *metrics) write(file string) error {
	fresh := file + ".new"
	if err := os.WriteFile(fresh, []byte(m.page()), fileMode); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// publish serves metrics at the addresses, and returns what to call at the end,
// which writes the files too. Trouble with metrics is logged and fails nothing.
func publish(places []string, meter *Meter, log *slog.Logger) func(*Report, ExitCode) {
	if len(places) == 0 {
		return func(*Report, ExitCode) {}
	}
	m := &metrics{meter: meter, start: time.Now()}
	var servers []*http.Server
	for _, place := range places {
		if isFile(place) {
			continue
		}
		server, err := m.serve(place)
		if err != nil {
			log.Warn("Metrics are not served", "address", place, "cause", err.Error())
			continue
		}
		servers = append(servers, server)
	}
	return func(report *Report, code ExitCode) {
		m.mu.Lock()
		m.end, m.report, m.code = time.Now(), report, code
		m.mu.Unlock()
		for _, place := range places {
			if !isFile(place) {
				continue
			}
			if err := m.write(place); err != nil {
				log.Warn("Metrics were not written", "file", place, "cause", err.Error())
			}
		}
		for _, server := range servers {
			_ = server.Close()
		}
	}
}

func (m *metrics) serve(address string) (*http.Server, error) {
	listener, err := net.Listen("tcp", address) //nolint:noctx // it does not block
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = io.WriteString(w, m.page())
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return server, nil
}

// isFile tells files, which are absolute paths, from addresses.
func isFile(place string) bool { return strings.HasPrefix(place, "/") }

// parseMetrics reads a list of addresses to listen at and of files to write.
func parseMetrics(text string) ([]string, error) {
	var places []string
	for place := range strings.SplitSeq(text, ",") {
		place = strings.TrimSpace(place)
		if place == "" {
			continue
		}
		if isFile(place) {
			if !strings.HasSuffix(place, ".prom") {
				return nil, fmt.Errorf("file %q does not end in .prom, which collectors look for", place)
			}
		} else if _, _, err := net.SplitHostPort(place); err != nil {
			return nil, fmt.Errorf(
				"%q is neither an address such as :9464 nor the whole path of a file such as /metrics/preloader.prom",
				place,
			)
		}
		places = append(places, place)
	}
	return places, nil
}
