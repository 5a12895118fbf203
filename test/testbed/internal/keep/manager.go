// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
)

// manager starts processes on request and collects every child, also those that it inherits from processes that died.
type manager struct {
	dir   string
	forks chan fork

	mu      sync.Mutex
	byName  map[string]*child
	byPid   map[int]*child
	closing bool
}

type child struct {
	pid    int
	ended  chan struct{} // Closed once status is set.
	status string
}

type fork struct {
	process Process
	answer  chan reply
}

func newManager(dir string) *manager {
	return &manager{dir: dir, forks: make(chan fork), byName: map[string]*child{}, byPid: map[int]*child{}}
}

// serve answers requests on the socket until stop is closed, then kills every process and returns when all are gone.
// The calling goroutine is bound to its thread: the kernel sends the parent-death signal when the forking thread ends,
// not when the process does.
func (m *manager) serve(stop <-chan struct{}) error {
	runtime.LockOSThread()
	listener, err := net.Listen("unix", filepath.Join(m.dir, socketName))
	if err != nil {
		return fmt.Errorf("listening for the testbed: %w", err)
	}
	go m.reap()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go m.answer(conn)
		}
	}()
	for {
		select {
		case f := <-m.forks:
			f.answer <- m.start(f.process)
		case <-stop:
			_ = listener.Close()
			m.killAll()
			return nil
		}
	}
}

func (m *manager) answer(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	var req request
	if err := json.NewDecoder(conn).Decode(&req); err != nil {
		return
	}
	var r reply
	switch req.Op {
	case opStart:
		f := fork{process: req.Process, answer: make(chan reply, 1)}
		m.forks <- f
		r = <-f.answer
	case opWait:
		r = m.wait(req.Process.Name)
	case opSignal:
		r = m.signal(req.Process.Name, syscall.Signal(req.Signal))
	default:
		r.Error = "unknown request " + req.Op
	}
	_ = json.NewEncoder(conn).Encode(r)
}

func (m *manager) start(p Process) reply {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.byName[p.Name]; ok && !c.hasEnded() {
		return reply{Error: p.Name + " already runs"}
	}
	pid, err := forkExec(p, m.dir)
	if err != nil {
		return reply{Error: err.Error()}
	}
	c := &child{pid: pid, ended: make(chan struct{})}
	m.byName[p.Name], m.byPid[pid] = c, c
	return reply{Pid: pid}
}

func forkExec(p Process, dir string) (int, error) {
	in := p.Stdin
	if in == "" {
		in = os.DevNull
	}
	stdin, err := os.Open(in)
	if err != nil {
		return 0, fmt.Errorf("opening its input: %w", err)
	}
	defer func() { _ = stdin.Close() }()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, fmt.Errorf("opening its log: %w", err)
	}
	defer func() { _ = log.Close() }()
	if p.Dir == "" {
		p.Dir = dir
	}
	return syscall.ForkExec(p.Path, append([]string{p.Path}, p.Args...), &syscall.ProcAttr{
		Dir:   p.Dir,
		Env:   append(p.Env, markVariable+"="+filepath.Base(dir)),
		Files: []uintptr{stdin.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	})
}

func (m *manager) wait(name string) reply {
	m.mu.Lock()
	c, ok := m.byName[name]
	m.mu.Unlock()
	if !ok {
		return reply{Error: name + " was never started"}
	}
	<-c.ended
	return reply{Exited: true, Status: c.status}
}

func (m *manager) signal(name string, s syscall.Signal) reply {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.byName[name]
	if !ok || c.hasEnded() {
		return reply{Error: name + " does not run"}
	}
	if err := syscall.Kill(c.pid, s); err != nil {
		return reply{Error: err.Error()}
	}
	return reply{}
}

// reap collects ended children for ever.
func (m *manager) reap() {
	signals := make(chan os.Signal, 1)
	notifyChild(signals)
	for {
		m.reapEnded()
		<-signals
	}
}

func (m *manager) reapEnded() {
	for {
		var status syscall.WaitStatus
		m.mu.Lock()
		// While closing, killAll waits for the children itself.
		if m.closing {
			m.mu.Unlock()
			return
		}
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == nil && pid > 0 {
			m.ended(pid, status)
		}
		m.mu.Unlock()
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}

func (m *manager) ended(pid int, status syscall.WaitStatus) {
	c, ok := m.byPid[pid]
	if !ok {
		return
	}
	delete(m.byPid, pid)
	switch {
	case status.Signaled():
		c.status = "killed by signal " + status.Signal().String()
	case status.ExitStatus() != 0:
		c.status = fmt.Sprintf("exit code %d", status.ExitStatus())
	}
	close(c.ended)
}

// killAll kills every child and all their descendants, and returns when none is left.
func (m *manager) killAll() {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	for {
		for _, pid := range children() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		// A killed child's own children come to this process, which is their subreaper, and die in the next round.
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.ECHILD) {
			return
		}
		if err == nil {
			m.mu.Lock()
			m.ended(pid, status)
			m.mu.Unlock()
		}
	}
}

func (c *child) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}
