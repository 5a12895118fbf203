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
)

// ErrAlive says that a folder belongs to a living keeper and was left alone.
var ErrAlive = errors.New("belongs to a testbed that runs")

// Clean removes what a dead keeper left of the folder dir: processes, cgroups and the folder. It is an error wrapping
// [ErrAlive] if its keeper lives, and none if there is nothing to remove.
func Clean(dir string) error {
	lock, err := lockDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	killMarked(filepath.Base(dir))
	return remove(dir)
}

// lockDir takes the folder's lock, which a living keeper holds.
func lockDir(dir string) (*os.File, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("looking at the testbed's folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the testbed's lock: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s %w", filepath.Base(dir), ErrAlive), lock.Close())
	}
	return lock, nil
}

// remove removes cgroups and the folder; the processes are gone. The lock goes last, so that an interrupted removal
// is taken up again.
func remove(dir string) error {
	err := removeCgroups(CgroupName(dir))
	entries, readErr := os.ReadDir(dir)
	if errors.Is(readErr, os.ErrNotExist) {
		return err
	}
	err = errors.Join(err, readErr)
	for _, e := range entries {
		if e.Name() != lockName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("removing the testbed's folder: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the testbed's folder: %w", err)
	}
	return nil
}

// killMarked kills processes whose environment names the testbed: those of a keeper that was killed before their
// parent-death signal was set.
func killMarked(id string) {
	mark := []byte(markVariable + "=" + id)
	for _, pid := range processes() {
		env, err := os.ReadFile(procFile(pid, "environ"))
		if err == nil && pid != os.Getpid() && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(e []byte) bool {
			return bytes.Equal(e, mark)
		}) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func procFile(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

func processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// children returns the processes whose parent is this one.
func children() []int {
	var pids []int
	for _, pid := range processes() {
		stat, err := os.ReadFile(procFile(pid, "stat"))
		if err != nil {
			continue
		}
		// The command's name is in parentheses and may hold blanks: fields count from the last one on.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			pids = append(pids, pid)
		}
	}
	return pids
}
