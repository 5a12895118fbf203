// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

const (
	socketName   = "keeper.sock"
	lockName     = "lock"
	pidName      = "keeper.pid"
	initPidName  = "init.pid"
	markVariable = "OUTRIGGER_TESTBED"

	// detachByte, written to the owner's pipe, says that the testbed is to outlive its owner.
	detachByte = 'd'

	prSetChildSubreaper = 36
)

// Roles of the keeper's own program, its first argument.
const (
	roleKeep = "keep" // Watches the owner, cleans up.
	roleNode = "node" // As roleKeep, with the processes in namespaces of their own.
	roleInit = "init" // The first process of these namespaces.
)

// Main is the keeper's program: role and folder are its arguments. It returns the exit code.
func Main(args []string) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: keeper keep|node|init FOLDER; the testbed package starts it")
		return 2
	}
	role, dir := args[0], args[1]
	closeOnExec()
	var err error
	switch role {
	case roleKeep:
		err = keepHere(dir)
	case roleNode:
		err = keepNode(dir)
	case roleInit:
		err = serveNode(dir)
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "keeper:", err)
		return 1
	}
	return 0
}

// closeOnExec keeps the files that the owner handed over, locks among them, from the processes to come: a lock must end
// with the keeper.
func closeOnExec() {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// keepHere runs the processes as plain children until the owner is gone, and then removes the folder.
func keepHere(dir string) error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		return fmt.Errorf("becoming the reaper of orphans: %w", errno)
	}
	stop := ownerGone()
	if err := writePid(dir, pidName, os.Getpid()); err != nil {
		return err
	}
	if err := newManager(dir).serve(stop); err != nil {
		return err
	}
	return remove(dir)
}

// keepNode runs the first process of new namespaces until the owner is gone or that process is, and then removes what
// namespaces do not hold: cgroups and the folder.
func keepNode(dir string) error {
	stop := ownerGone()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the keeper's program: %w", err)
	}
	first := exec.CommandContext(context.Background(), self, roleInit, dir)
	first.Stdout, first.Stderr = os.Stdout, os.Stderr
	first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC |
			syscall.CLONE_NEWUTS,
		Pdeathsig: syscall.SIGKILL,
	}
	// The main goroutine keeps its thread (see the program's init), so the parent-death signal means this process.
	if err := first.Start(); err != nil {
		return fmt.Errorf("making namespaces: %w", err)
	}
	if err := writePid(dir, initPidName, first.Process.Pid); err != nil {
		return err
	}
	if err := writePid(dir, pidName, os.Getpid()); err != nil {
		return err
	}
	go func() {
		<-stop
		_ = first.Process.Kill()
	}()
	// The kernel lets this return only when every process of the pid namespace is gone. How it ended does not matter.
	_ = first.Wait()
	return remove(dir)
}

// ownerGone returns a channel that is closed when the owner's pipe on standard input ends, unless the owner detached
// first, or when this process is asked to terminate.
func ownerGone() <-chan struct{} {
	stop := make(chan struct{})
	var once sync.Once
	// Ctrl-C reaches the owner, who decides; a closing terminal must not either.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		once.Do(func() { close(stop) })
	}()
	go func() {
		said, _ := io.ReadAll(os.Stdin)
		if len(said) > 0 && said[0] == detachByte {
			return
		}
		once.Do(func() { close(stop) })
	}()
	return stop
}

func notifyChild(c chan<- os.Signal) { signal.Notify(c, syscall.SIGCHLD) }

func writePid(dir, name string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, name), []byte(strconv.Itoa(pid)+"\n"), 0o644); err != nil {
		return fmt.Errorf("noting the keeper's process number: %w", err)
	}
	return nil
}
