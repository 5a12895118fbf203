// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"io/fs"
	"math"
	"path"
	"runtime"
	"strconv"
	"strings"
)

// limits is what this process may use, as far as the kernel tells.
type limits struct {
	// memory is the smallest memory limit over this process, 0 if there is none.
	memory int64
	// used is what of that limit cannot be had back: all but the page cache.
	used int64
	// available is what the machine could give, 0 if unknown.
	available int64
	// together means that the kernel ends all processes of the group at once when its
	// memory is used up.
	together bool
	// cpus is how many processors' worth of time there is, 0 if unlimited.
	cpus float64
}

// room returns how many bytes of page cache or memory files fit, or MaxInt64 if
// nothing bounds them.
func (l limits) room() int64 {
	room := int64(math.MaxInt64)
	if l.available > 0 {
		room = l.available
	}
	if l.memory > 0 {
		room = min(room, l.memory-l.used)
	}
	return max(room, 0)
}

// processors returns how many processors' worth of time this process may use.
func (l limits) processors() float64 {
	all := float64(runtime.NumCPU())
	if l.cpus > 0 {
		return min(l.cpus, all)
	}
	return all
}

// readLimits looks at control groups of both versions and at the machine's
// memory, below the root of a file system. What it cannot read bounds nothing.
func readLimits(root fs.FS) limits {
	var l limits
	for name, kB := range fields(root, "proc/meminfo") {
		if name == "MemAvailable:" {
			l.available = kB << 10
		}
	}
	for line := range strings.Lines(text(root, "proc/self/cgroup")) {
		// number:controllers:path, where version 2 has no controllers.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			switch controller {
			case "":
				l.readV2(root, parts[2])
			case "memory":
				l.readMemoryV1(root, parts[2])
			case "cpu":
				l.readCPUV1(root, parts[1], parts[2])
			}
		}
	}
	return l
}

// groups lists the folders of a control group and of all groups above it. A
// container sees its own group at the mount's root, whatever its path says.
func groups(root fs.FS, mount, group string) []string {
	var dirs []string
	for g := path.Clean("/" + group); ; g = path.Dir(g) {
		dir := path.Join(mount, g)
		if info, err := fs.Stat(root, dir); err == nil && info.IsDir() {
			dirs = append(dirs, dir)
		}
		if g == "/" {
			return dirs
		}
	}
}

func (l *limits) readV2(root fs.FS, group string) {
	for _, dir := range groups(root, "sys/fs/cgroup", group) {
		// From the high mark on, the kernel takes pages back and slows the group down.
		for _, mark := range []string{"memory.max", "memory.high"} {
			if limit, ok := number(root, path.Join(dir, mark)); ok {
				stat := fields(root, path.Join(dir, "memory.stat"))
				current, _ := number(root, path.Join(dir, "memory.current"))
				l.tighten(limit, current-stat["inactive_file"]-stat["active_file"])
			}
		}
		kills, _ := number(root, path.Join(dir, "memory.oom.group"))
		l.together = l.together || kills == 1
		quota, period, _ := strings.Cut(strings.TrimSpace(text(root, path.Join(dir, "cpu.max"))), " ")
		l.slow(quota, period)
	}
}

func (l *limits) readMemoryV1(root fs.FS, group string) {
	for _, dir := range groups(root, "sys/fs/cgroup/memory", group) {
		limit, ok := number(root, path.Join(dir, "memory.limit_in_bytes"))
		if !ok || limit >= math.MaxInt64/2 {
			continue // that is how version 1 says none
		}
		stat := fields(root, path.Join(dir, "memory.stat"))
		current, _ := number(root, path.Join(dir, "memory.usage_in_bytes"))
		l.tighten(limit, current-stat["total_inactive_file"]-stat["total_active_file"])
	}
}

func (l *limits) readCPUV1(root fs.FS, controllers, group string) {
	for _, mount := range []string{controllers, "cpu"} {
		for _, dir := range groups(root, path.Join("sys/fs/cgroup", mount), group) {
			l.slow(text(root, path.Join(dir, "cpu.cfs_quota_us")), text(root, path.Join(dir, "cpu.cfs_period_us")))
		}
	}
}

// tighten keeps the limit that leaves the least room.
func (l *limits) tighten(limit, used int64) {
	used = min(max(used, 0), limit)
	if l.memory == 0 || limit-used < l.memory-l.used {
		l.memory, l.used = limit, used
	}
}

// slow keeps the smallest quota of processor time.
func (l *limits) slow(quota, period string) {
	q, err := strconv.ParseFloat(strings.TrimSpace(quota), 64)
	p, err2 := strconv.ParseFloat(strings.TrimSpace(period), 64)
	if err != nil || err2 != nil || q <= 0 || p <= 0 {
		return
	}
	if l.cpus == 0 || q/p < l.cpus {
		l.cpus = q / p
	}
}

func text(root fs.FS, name string) string {
	raw, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(raw)
}

func number(root fs.FS, name string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text(root, name)), 10, 64)
	return n, err == nil
}

// fields reads lines of a name and a number.
func fields(root fs.FS, name string) map[string]int64 {
	found := map[string]int64{}
	for line := range strings.Lines(text(root, name)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		if n, err := strconv.ParseInt(words[1], 10, 64); err == nil {
			found[words[0]] = n
		}
	}
	return found
}
