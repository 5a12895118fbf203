// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience bounds what takes milliseconds, and more where many processes end at once on a busy machine.
const patience = time.Minute

// Keeper is the owner's hold on a keeper process.
type Keeper struct {
	dir   string
	leash *os.File // The writing end of the pipe: its end is the keeper's sign that the owner is gone.
	cmd   *exec.Cmd
	done  chan struct{}
}

// Launch starts the keeper program for the folder dir, which must exist, and waits until it answers. With node set, its
// processes run in namespaces of their own, which needs root. Held files stay open in the keeper as long as it lives,
// so that whatever they lock stays locked. The folder is removed when the keeper ends.
func Launch(ctx context.Context, program, dir string, node bool, held ...*os.File) (*Keeper, error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	leashed, leash, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making the keeper's pipe: %w", err)
	}
	defer func() { _ = leashed.Close() }()
	log, err := os.Create(filepath.Join(dir, "keeper.log"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the keeper's log: %w", err), leash.Close())
	}
	defer func() { _ = log.Close() }()
	role := roleKeep
	if node {
		role = roleNode
	}
	// The keeper outlives any context: the pipe is what ends it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, role, dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = leashed, log, log
	cmd.ExtraFiles = append([]*os.File{lock}, held...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), markVariable + "=" + filepath.Base(dir)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the keeper: %w", err), leash.Close())
	}
	k := &Keeper{dir: dir, leash: leash, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(k.done)
	}()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	go func() {
		select {
		case <-k.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := NewClient(dir).Ready(ctx); err != nil {
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w; the keeper said: %s", errors.Join(err, k.Stop()), strings.TrimSpace(string(said)))
	}
	return k, nil
}

// Stop ends the keeper and all that it holds, and returns when nothing is left.
func (k *Keeper) Stop() error {
	_ = k.leash.Close()
	select {
	case <-k.done:
	case <-time.After(patience):
		return fmt.Errorf("the keeper of %s did not end within %s; run: testbed clean", k.dir, patience)
	}
	return cleanSoon(k.dir)
}

// cleanSoon is Clean for a folder whose keeper has ended; somebody else may be at it for a moment.
func cleanSoon(dir string) error {
	var err error
	for began := time.Now(); time.Since(began) < patience; time.Sleep(10 * time.Millisecond) {
		if err = Clean(dir); !errors.Is(err, ErrAlive) {
			return err
		}
	}
	return err
}

// Detach lets the keeper outlive its owner. [Terminate] ends it then.
func (k *Keeper) Detach() error {
	if _, err := k.leash.Write([]byte{detachByte}); err != nil {
		return fmt.Errorf("detaching from the keeper: %w", err)
	}
	return k.leash.Close()
}

// InitPid returns the process number of the first process in the namespaces of the node in dir.
func InitPid(dir string) (int, error) { return readPid(dir, initPidName) }

// Alive says whether the folder dir has a living keeper.
func Alive(dir string) bool {
	lock, err := lockDir(dir)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	_ = lock.Close()
	return false
}

// Terminate ends the keeper of dir, whoever owns it, and returns when nothing is left of it or ctx is done.
func Terminate(ctx context.Context, dir string) error {
	if Alive(dir) {
		pid, err := readPid(dir, pidName)
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ending the keeper of %s: %w", filepath.Base(dir), err)
		}
	}
	for Alive(dir) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the keeper of %s to end: %w", filepath.Base(dir), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return cleanSoon(dir)
}

func readPid(dir, name string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, fmt.Errorf("reading the keeper's process number: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("reading the keeper's process number: %w", err)
	}
	return pid, nil
}
