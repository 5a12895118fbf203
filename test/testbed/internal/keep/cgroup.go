// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	// leafName is the cgroup of the node's servers in a version 2 hierarchy, where a cgroup that has children may hold
	// no process.
	leafName = "servers"

	cgroupV2Type = "cgroup2"
)

// CgroupName returns the name of the cgroup, below the root of every hierarchy, that holds a node: its servers and its
// pods. Inside the node it is the root.
func CgroupName(dir string) string { return "outrigger-testbed-" + filepath.Base(dir) }

// hierarchy is one mounted tree of cgroups; version 1 has one for each controller or group of them.
type hierarchy struct {
	mountPoint string
	kind       string // cgroup or cgroup2.
	options    string // To mount it again.
}

func hierarchies() ([]hierarchy, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing cgroups: %w", err)
	}
	return parseHierarchies(string(table)), nil
}

// parseHierarchies finds the cgroup mounts in a table in the format of /proc/self/mountinfo.
func parseHierarchies(table string) []hierarchy {
	var found []hierarchy
	for line := range strings.Lines(table) {
		before, after, ok := strings.Cut(line, " - ")
		place, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(place) < 5 || len(kind) < 3 || !strings.HasPrefix(place[4]+"/", cgroupMount+"/") {
			continue
		}
		if kind[0] != "cgroup" && kind[0] != cgroupV2Type {
			continue
		}
		found = append(found, hierarchy{mountPoint: place[4], kind: kind[0], options: mountOptions(kind[0], kind[2])})
	}
	return found
}

// mountOptions keeps what names the hierarchy: its controllers or its own name.
func mountOptions(kind, super string) string {
	if kind == cgroupV2Type {
		return ""
	}
	var kept []string
	for option := range strings.SplitSeq(super, ",") {
		switch {
		case strings.HasPrefix(option, "name="):
			kept = append(kept, "none", option)
		case option == "rw", option == "ro", option == "xattr", strings.Contains(option, "="):
		default:
			kept = append(kept, option)
		}
	}
	return strings.Join(kept, ",")
}

// enterCgroup moves this process to a new cgroup of that name in every hierarchy, makes it the root of a cgroup
// namespace and mounts what that namespace sees. It binds the calling thread: what is forked from it is inside.
func enterCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := h.enter(name); err != nil {
			return err
		}
	}
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a cgroup namespace: %w", err)
	}
	if err := syscall.Unmount(cgroupMount, syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the machine's cgroups: %w", err)
	}
	if !slices.ContainsFunc(all, func(h hierarchy) bool { return h.mountPoint == cgroupMount }) {
		if err := syscall.Mount("cgroups", cgroupMount, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mounting the node's cgroups: %w", err)
		}
	}
	for _, h := range all {
		if err := h.mount(); err != nil {
			return err
		}
	}
	return nil
}

func (h hierarchy) enter(name string) error {
	if h.kind == cgroupV2Type {
		// A controller that the machine does not have, or not here, is one that pods do without.
		for _, controller := range []string{"cpuset", "cpu", "io", "memory", "pids"} {
			_ = writeCgroup(h.mountPoint, "cgroup.subtree_control", "+"+controller)
		}
	}
	own := filepath.Join(h.mountPoint, name)
	if err := os.Mkdir(own, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making a cgroup: %w", err)
	}
	if h.kind != cgroupV2Type {
		// A new cpuset is empty and refuses processes until it has processors and memory.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if all, err := os.ReadFile(filepath.Join(h.mountPoint, file)); err == nil {
				if err := writeCgroup(own, file, strings.TrimSpace(string(all))); err != nil {
					return err
				}
			}
		}
	}
	return writeCgroup(own, "cgroup.procs", strconv.Itoa(os.Getpid()))
}

// mount mounts the hierarchy as this namespace sees it, and in version 2 leaves the root to the cgroups of pods.
func (h hierarchy) mount() error {
	if err := os.MkdirAll(h.mountPoint, 0o755); err != nil {
		return fmt.Errorf("making the mount point of a cgroup: %w", err)
	}
	const flags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	if err := syscall.Mount(h.kind, h.mountPoint, h.kind, flags, h.options); err != nil {
		return fmt.Errorf("mounting cgroups %q: %w", h.options, err)
	}
	if h.kind != cgroupV2Type {
		return nil
	}
	leaf := filepath.Join(h.mountPoint, leafName)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making a cgroup: %w", err)
	}
	return writeCgroup(leaf, "cgroup.procs", "0")
}

func writeCgroup(dir, file, value string) error {
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting up a cgroup: %w", err)
	}
	return nil
}

// removeCgroups kills what is left in the named cgroup of every hierarchy, and removes it and those below it.
func removeCgroups(name string) error {
	all, err := hierarchies()
	for _, h := range all {
		err = errors.Join(err, removeCgroup(filepath.Join(h.mountPoint, name)))
	}
	return err
}

func removeCgroup(top string) error {
	var folders []string
	_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			folders = append(folders, path)
		}
		return nil
	})
	slices.Reverse(folders) // Deepest first.
	for _, f := range folders {
		if err := rmdirPatiently(f); err != nil {
			return fmt.Errorf("removing cgroup: %w", err)
		}
	}
	return nil
}

// rmdirPatiently kills the processes of a cgroup and removes it; it stays busy for a moment after the last one ended.
func rmdirPatiently(path string) error {
	var err error
	for began := time.Now(); time.Since(began) < patience; time.Sleep(10 * time.Millisecond) {
		err = syscall.Rmdir(path)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			break
		}
		killCgroup(path)
	}
	return &os.PathError{Op: "rmdir", Path: path, Err: err}
}

func killCgroup(path string) {
	members, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil {
		return
	}
	for line := range bytes.Lines(members) {
		if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
