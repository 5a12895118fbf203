// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The names of servers are bounded by the ring, and all other labels by the words of this package.
var (
	requestsDesc = prometheus.NewDesc("featurecache_requests_total",
		"Requests of clients, by command.", []string{"command"}, nil)
	keysDesc = prometheus.NewDesc("featurecache_keys_total",
		"Keys that clients asked for: found, not there, or a miss because their server failed.", []string{"result"}, nil)
	failuresDesc = prometheus.NewDesc("featurecache_server_failures_total",
		"Requests to a server that it did not answer, by reason.", []string{"server", "reason"}, nil)
	upDesc = prometheus.NewDesc("featurecache_server_up",
		"Whether a server of the ring is asked at all; 0 after failures, until a probe is answered.", []string{"server"}, nil)
	connectionsDesc = prometheus.NewDesc("featurecache_connections",
		"Clients that are connected now.", nil, nil)
	acceptedDesc = prometheus.NewDesc("featurecache_connections_accepted_total",
		"Clients that have connected.", nil, nil)
	refusedDesc = prometheus.NewDesc("featurecache_connections_refused_total",
		"Clients that were turned away because there were too many.", nil, nil)
	ringEpochDesc = prometheus.NewDesc("featurecache_ring_epoch",
		"Epoch of the ring in force.", nil, nil)
	ringServersDesc = prometheus.NewDesc("featurecache_ring_servers",
		"Servers of the ring in force; with 0 every read is a miss.", nil, nil)
	ringErrorsDesc = prometheus.NewDesc("featurecache_ring_errors_total",
		"Ring documents that could not be read; the ring before them stayed in force.", nil, nil)
)

func newLatency() *prometheus.HistogramVec {
	const shortest, factor, buckets = 50e-6, 2, 11
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "featurecache_request_duration_seconds",
		Help:    "Time from a whole request to its last answer from a server, by kind: read or write.",
		Buckets: prometheus.ExponentialBuckets(shortest, factor, buckets),
	}, []string{"kind"})
}

// Describe implements prometheus.Collector.
func (p *Proxy) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		requestsDesc, keysDesc, failuresDesc, upDesc, connectionsDesc, acceptedDesc, refusedDesc, ringEpochDesc,
		ringServersDesc, ringErrorsDesc,
	} {
		descs <- d
	}
	p.figures.latency.Describe(descs)
}

// Collect implements prometheus.Collector.
func (p *Proxy) Collect(metrics chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	for cmd := range commands {
		counter(requestsDesc, p.figures.requests[cmd].Load(), cmd.String())
	}
	counter(keysDesc, p.figures.hits.Load(), "hit")
	counter(keysDesc, p.figures.misses.Load(), "miss")
	counter(keysDesc, p.figures.failed.Load(), "error")
	gauge(connectionsDesc, float64(p.Connections()))
	counter(acceptedDesc, p.figures.accepted.Load())
	counter(refusedDesc, p.figures.refused.Load())
	counter(ringErrorsDesc, p.client.ringErrors.Load())

	rt := p.client.route.Load()
	gauge(ringEpochDesc, float64(rt.epoch))
	gauge(ringServersDesc, float64(rt.ring.Len()))
	for i, s := range rt.ring.servers {
		up := 1.0
		var failed [failures]uint64
		for _, peer := range rt.peers[i] {
			if peer.isDown() {
				up = 0
			}
			for reason := range failures {
				failed[reason] += peer.failed[reason].Load()
			}
		}
		gauge(upDesc, up, s.Name)
		for reason, n := range failed {
			counter(failuresDesc, n, s.Name, failure(reason).String())
		}
	}
	p.figures.latency.Collect(metrics)
}

// note counts an answered request.
func (p *Proxy) note(x *pending) {
	switch {
	case x.cmd.reads():
		hits, failed := x.outcome()
		p.figures.hits.Add(uint64(hits))                     //nolint:gosec // It is never negative.
		p.figures.failed.Add(uint64(failed))                 //nolint:gosec // It is never negative.
		p.figures.misses.Add(uint64(x.keys - hits - failed)) //nolint:gosec // It is never negative.
		p.figures.reads.Observe(time.Since(x.start).Seconds())
	case x.cmd != cmdUnknown:
		p.figures.writes.Observe(time.Since(x.start).Seconds())
	}
}

// versionSuffix is the project's version as it stands behind the protocol's.
func (p *Proxy) versionSuffix() string {
	if p.options.Version == "" {
		return ""
	}
	return " (" + p.options.Version + ")"
}

// statsText is the answer to stats, under memcached's names where it has one for the figure.
func (p *Proxy) statsText() string {
	rt := p.client.route.Load()
	hits, misses := p.figures.hits.Load(), p.figures.misses.Load()+p.figures.failed.Load()
	var sets uint64
	for cmd := cmdSet; cmd <= cmdCAS; cmd++ {
		sets += p.figures.requests[cmd].Load()
	}
	var text []byte
	add := func(name string, n uint64) {
		text = strconv.AppendUint(append(append(append(text, "STAT "...), name...), ' '), n, 10)
		text = append(text, lineEnd...)
	}
	text = append(text, "STAT version "+protocolVersion+p.versionSuffix()+"\r\n"...)
	add("uptime", uint64(time.Since(p.started).Seconds()))
	add("curr_connections", uint64(p.Connections())) //nolint:gosec // It is never negative.
	add("total_connections", p.figures.accepted.Load())
	add("rejected_connections", p.figures.refused.Load())
	add("cmd_get", hits+misses)
	add("cmd_set", sets)
	add("get_hits", hits)
	add("get_misses", misses)
	add("ring_epoch", uint64(rt.epoch))        //nolint:gosec // A document has none below 0.
	add("ring_servers", uint64(rt.ring.Len())) //nolint:gosec // It is never negative.
	return string(append(text, "END"...))
}
