// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

func TestProxyMetrics(t *testing.T) {
	dead := memcachedtest.Start(t)
	d := documentOf(memcachedtest.Start(t), dead)
	dead.Stop()
	c := startClient(t, d, ClientOptions{})
	p, addr := startProxy(t, c, ProxyOptions{})
	good, bad := keysOf(t, d, 0, 2), keysOf(t, d, 1, 3)
	peers := c.route.Load().peers
	eventually(t, "the dead server counts as down", peers[1][0].isDown)
	eventually(t, "the good server takes a value", func() bool {
		return c.Set(t.Context(), good[0], []byte("x"), 0) == nil
	})
	converse(t, addr, "get "+strings.Join(append(good, bad...), " ")+"\r\nset a 0 0 1\r\nx\r\nquit\r\n")
	eventually(t, "the client has left", func() bool { return p.Connections() == 0 })

	want := `
# HELP featurecache_connections Clients that are connected now.
# TYPE featurecache_connections gauge
featurecache_connections 0
# HELP featurecache_connections_accepted_total Clients that have connected.
# TYPE featurecache_connections_accepted_total counter
featurecache_connections_accepted_total 1
# HELP featurecache_keys_total Keys that clients asked for: found, not there, or a miss because their server failed.
# TYPE featurecache_keys_total counter
featurecache_keys_total{result="error"} 3
featurecache_keys_total{result="hit"} 1
featurecache_keys_total{result="miss"} 1
# HELP featurecache_ring_epoch Epoch of the ring in force.
# TYPE featurecache_ring_epoch gauge
featurecache_ring_epoch 1
# HELP featurecache_ring_errors_total Ring documents that could not be read; the ring before them stayed in force.
# TYPE featurecache_ring_errors_total counter
featurecache_ring_errors_total 0
# HELP featurecache_ring_servers Servers of the ring in force; with 0 every read is a miss.
# TYPE featurecache_ring_servers gauge
featurecache_ring_servers 2
# HELP featurecache_server_up Whether a server of the ring is asked at all; 0 after failures, until a probe is answered.
# TYPE featurecache_server_up gauge
featurecache_server_up{server="cache-0.cache.ns.svc"} 1
featurecache_server_up{server="cache-1.cache.ns.svc"} 0
`
	err := testutil.CollectAndCompare(p, strings.NewReader(want), "featurecache_connections",
		"featurecache_connections_accepted_total", "featurecache_keys_total", "featurecache_ring_epoch",
		"featurecache_ring_errors_total", "featurecache_ring_servers", "featurecache_server_up")
	if err != nil {
		t.Error(err)
	}
	if n := peers[1][0].failed[reasonDown].Load(); n == 0 {
		t.Error("no failure of the dead server was counted")
	}
	// A pedantic registry checks names, labels and the descriptions of all of them.
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(p)
	if _, err := registry.Gather(); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(p)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}
