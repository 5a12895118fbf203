// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"math"
	"os"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestReadLimits(t *testing.T) {
	const none = "9223372036854771712\n"
	cases := map[string]struct {
		files map[string]string
		want  limits
	}{
		"nothing can be read": {},
		"version 2, within a container": {
			files: map[string]string{
				"proc/self/cgroup": "0::/\n", "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4096 kB\n",
				"sys/fs/cgroup/memory.max": "1073741824\n", "sys/fs/cgroup/memory.current": "500000000\n",
				"sys/fs/cgroup/memory.stat": "anon 100\ninactive_file 300000000\nactive_file 100000000\n",
				"sys/fs/cgroup/cpu.max":     "100000 100000\n",
			},
			want: limits{memory: 1 << 30, used: 100_000_000, available: 4 << 20, cpus: 1},
		},
		"version 2, all processes end together": {
			files: map[string]string{
				"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.oom.group": "1\n",
			},
			want: limits{memory: 1000, together: true},
		},
		"version 2, slowed down before the limit": {
			files: map[string]string{
				"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.high": "800\n",
			},
			want: limits{memory: 800},
		},
		"version 2, no limit": {
			files: map[string]string{
				"proc/self/cgroup":           "0::/a\n",
				"sys/fs/cgroup/a/memory.max": "max\n",
				"sys/fs/cgroup/a/cpu.max":    "max 100000\n",
			},
		},
		"version 2, the group above is tighter": {
			files: map[string]string{
				"proc/self/cgroup":                       "0::/pod/container\n",
				"sys/fs/cgroup/pod/container/memory.max": "max\n",
				"sys/fs/cgroup/pod/memory.max":           "2000\n",
				"sys/fs/cgroup/pod/memory.current":       "700\n",
				"sys/fs/cgroup/pod/container/cpu.max":    "400000 100000\n",
				"sys/fs/cgroup/pod/cpu.max":              "50000 100000\n",
			},
			want: limits{memory: 2000, used: 700, cpus: 0.5},
		},
		"version 1, on the machine": {
			files: map[string]string{
				"proc/self/cgroup": "4:memory:/a/b\n1:cpu,cpuacct:/a/b\n0::/\n",
				"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes":  none,
				"sys/fs/cgroup/memory/a/memory.limit_in_bytes":    "4096\n",
				"sys/fs/cgroup/memory/a/memory.usage_in_bytes":    "4000\n",
				"sys/fs/cgroup/memory/a/memory.stat":              "cache 1\ntotal_inactive_file 2000\ntotal_active_file 1000\n",
				"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us":    "150000\n",
				"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us":   "100000\n",
				"sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us":  "-1\n",
				"sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
			},
			want: limits{memory: 4096, used: 1000, cpus: 1.5},
		},
		"version 1, within a container whose path is the machine's": {
			files: map[string]string{
				"proc/self/cgroup":                           "4:memory:/kubepods/pod/x\n",
				"sys/fs/cgroup/memory/memory.limit_in_bytes": "8192\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "100\n",
			},
			want: limits{memory: 8192, used: 100},
		},
		"usage below the cache, as counters lag": {
			files: map[string]string{
				"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "10\n",
				"sys/fs/cgroup/memory.stat": "inactive_file 500\n",
			},
			want: limits{memory: 1000},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for path, text := range tc.files {
				root[path] = &fstest.MapFile{Data: []byte(text)}
			}
			if diff := cmp.Diff(tc.want, readLimits(root), cmp.AllowUnexported(limits{})); diff != "" {
				t.Errorf("limits (-want +got):\n%s", diff)
			}
		})
	}
	if got := readLimits(os.DirFS("/")); got.available <= 0 {
		t.Errorf("this machine has %d bytes available", got.available)
	}
}

func TestChoosePolicy(t *testing.T) {
	const gib = 1 << 30
	cases := map[string]struct {
		asked    IOMode
		limits   limits
		inMemory bool
		model    int64
		want     IOMode
		window   int64
		reason   string
	}{
		"no limit known": {asked: IOAuto, model: 100 * gib, want: IOWarm},
		"a model that fits the machine": {
			asked:  IOAuto,
			limits: limits{available: 64 * gib},
			model:  40 * gib,
			want:   IOWarm,
		},
		"a model larger than the machine": {
			asked:  IOAuto,
			limits: limits{available: 64 * gib},
			model:  60 * gib,
			want:   IOBounded,
			window: largestWindow,
		},
		"KServe's default limit, a small model": {
			asked:  IOAuto,
			limits: limits{memory: gib, available: 64 * gib},
			model:  gib / 2,
			want:   IOWarm,
		},
		"KServe's default limit, a large model": {
			asked:  IOAuto,
			limits: limits{memory: gib, available: 64 * gib},
			model:  15 * gib,
			want:   IOBounded,
			window: 256 * mebibyte,
		},
		"a limit mostly used": {
			asked:  IOAuto,
			limits: limits{memory: gib, used: gib - 100*mebibyte},
			model:  gib,
			want:   IOBounded,
			window: 25 * mebibyte,
		},
		"a tiny limit": {
			asked:  IOAuto,
			limits: limits{memory: 20 * mebibyte},
			model:  gib,
			want:   IOBounded,
			window: smallestWindow,
		},
		"warm asked for and possible":   {asked: IOWarm, limits: limits{memory: 20 * gib}, model: 15 * gib, want: IOWarm},
		"warm asked for and impossible": {asked: IOWarm, limits: limits{memory: gib}, model: 15 * gib, reason: "NoMemory"},
		"bounded asked for": {
			asked:  IOBounded,
			limits: limits{memory: 20 * gib},
			model:  gib,
			want:   IOBounded,
			window: largestWindow,
		},
		"direct asked for": {asked: IODirect, model: gib, want: IODirect},
		"a volume in memory that fits": {
			asked:    IOAuto,
			limits:   limits{memory: 2 * gib},
			inMemory: true,
			model:    gib,
			want:     IOMemory,
		},
		"a volume in memory that does not fit": {
			asked:    IOAuto,
			limits:   limits{memory: gib},
			inMemory: true,
			model:    gib,
			reason:   "NoMemory",
		},
		"a volume in memory, nothing bounds": {asked: IOBounded, inMemory: true, model: gib, want: IOMemory},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := choosePolicy(tc.asked, tc.limits, tc.inMemory, tc.model)
			if tc.reason != "" {
				if f := asFailure(err); err == nil || f.Reason != tc.reason || f.Advice == "" {
					t.Errorf("error %v, want one for %s with advice", err, tc.reason)
				}
				return
			}
			if err != nil || got.mode != tc.want || got.window != tc.window || got.why == "" {
				t.Errorf("policy %+v, %v; want %s with a window of %d and a reason", got, err, tc.want, tc.window)
			}
		})
	}
	if room := (limits{}).room(); room != math.MaxInt64 {
		t.Errorf("unknown limits leave room for %d", room)
	}
}
