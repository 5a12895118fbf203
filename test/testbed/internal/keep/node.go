// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// NodeHostname is the host name inside a node's namespaces, and so the name of the node.
const NodeHostname = "node"

// nodeFolders are the places that a node's programs write to, each replaced by a folder of the testbed's own.
var nodeFolders = map[string]string{
	"/run":     "run",
	"/var/lib": "var-lib",
	"/var/log": "var-log",
}

// NodeFolders returns the folders of this machine that a node cannot see, for it has its own in their place.
func NodeFolders() []string { return slices.Sorted(maps.Keys(nodeFolders)) }

// InNode returns where a path inside one of the node's own folders lies on this machine.
func InNode(dir, path string) string {
	for target, name := range nodeFolders {
		if rest, ok := strings.CutPrefix(path, target+"/"); ok {
			return filepath.Join(dir, name, rest)
		}
	}
	return path
}

// serveNode is the first process of a node's namespaces. It ends by being killed, and everything with it.
func serveNode(dir string) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("role %s is for the first process of a pid namespace", roleInit)
	}
	if err := prepareMounts(dir); err != nil {
		return err
	}
	if err := enterCgroup(CgroupName(dir)); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(NodeHostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	return newManager(dir).serve(nil)
}

// prepareMounts gives the namespace its own /proc, /run, /var/lib and /var/log, and keeps every later mount to itself.
func prepareMounts(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for target, name := range nodeFolders {
		source := filepath.Join(dir, name)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return fmt.Errorf("making the node's %s: %w", target, err)
		}
		if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting the node's %s: %w", target, err)
		}
	}
	// The kubelet and CNI share mounts with containers, which needs a shared tree; it is shared within this namespace.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing mounts inside the node: %w", err)
	}
	return nil
}
