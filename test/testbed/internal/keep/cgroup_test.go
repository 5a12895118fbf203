// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHierarchies(t *testing.T) {
	for name, tc := range map[string]struct {
		table string
		want  []hierarchy
	}{
		"version 2 alone": {
			"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
			[]hierarchy{{mountPoint: "/sys/fs/cgroup", kind: "cgroup2"}},
		},
		"version 1 with controllers together, a named one, and version 2 beside": {
			"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n" +
				"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/a,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			[]hierarchy{
				{mountPoint: "/sys/fs/cgroup/cpu,cpuacct", kind: "cgroup", options: "cpu,cpuacct"},
				{mountPoint: "/sys/fs/cgroup/systemd", kind: "cgroup", options: "none,name=systemd"},
				{mountPoint: "/sys/fs/cgroup/unified", kind: "cgroup2"},
			},
		},
		"other mounts and broken lines": {"1 2 0:3 / / rw - ext4 /dev/vda rw\nnonsense\n\n1 2 - cgroup\n", nil},
		"cgroups mounted elsewhere":     {"32 31 0:29 / /mnt/cpu rw - cgroup cgroup rw,cpu\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := parseHierarchies(tc.table)
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Errorf("hierarchies (-want +got):\n%s", diff)
			}
		})
	}
}
