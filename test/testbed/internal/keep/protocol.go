// SPDX-License-Identifier: Apache-2.0

// Package keep holds a testbed's processes on a short leash: whatever becomes of the process that asked for a testbed,
// nothing of it is left behind.
//
// A keeper is a small process between the owner of a testbed (a test, the command) and the testbed's processes. It holds
// the reading end of a pipe whose writing end only the owner has, so it learns of the owner's death however it came,
// kill -9 included, and then kills its processes and removes their folder. Its processes carry a parent-death signal,
// so that they die with a keeper that is itself killed; what such a keeper leaves on disk is found by the lock that
// it no longer holds, and removed by [Clean].
//
// For a node the keeper starts a second one as the first process of its own pid, mount, network, IPC and UTS
// namespaces: its mounts, bridges, routes and iptables rules exist only in there, and the kernel ends all of it with
// that process. The package imports the standard library alone, so that the keeper stays a few megabytes.
package keep

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// Process is a program to be run by a keeper.
type Process struct {
	// Name is unique within the testbed; it names the process in errors.
	Name string `json:"name"`
	// Path is the program, absolute.
	Path string `json:"path"`
	// Args are its arguments, without the program's own name.
	Args []string `json:"args,omitempty"`
	// Env is its whole environment; nothing is inherited.
	Env []string `json:"env,omitempty"`
	// Dir is its working directory; empty means the testbed's folder.
	Dir string `json:"dir,omitempty"`
	// Log is the file that its standard output and error are appended to.
	Log string `json:"log"`
	// Stdin is a file that it reads as its standard input; empty means none.
	Stdin string `json:"stdin,omitempty"`
}

const (
	opStart  = "start"
	opWait   = "wait"
	opSignal = "signal"
)

type request struct {
	Op      string  `json:"op"`
	Process Process `json:"process"`
	Signal  int     `json:"signal,omitempty"`
}

type reply struct {
	Error  string `json:"error,omitempty"`
	Exited bool   `json:"exited,omitempty"`
	// Status is how the process ended, in words; empty for exit code 0.
	Status string `json:"status,omitempty"`
	Pid    int    `json:"pid,omitempty"`
}

// Client speaks to the keeper of one testbed.
type Client struct {
	socket string
}

// NewClient returns a client of the keeper whose folder is dir. It does not connect.
func NewClient(dir string) *Client {
	return &Client{socket: filepath.Join(dir, socketName)}
}

// Start starts p and returns its process number as the keeper sees it, which is not the caller's for a node.
func (c *Client) Start(ctx context.Context, p Process) (int, error) {
	r, err := c.call(ctx, request{Op: opStart, Process: p})
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", p.Name, err)
	}
	return r.Pid, nil
}

// Wait blocks until the process ends. It returns nil for exit code 0 and otherwise an error that says how it ended.
func (c *Client) Wait(ctx context.Context, name string) error {
	r, err := c.call(ctx, request{Op: opWait, Process: Process{Name: name}})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w", name, err)
	}
	if r.Status != "" {
		return fmt.Errorf("%s ended: %s", name, r.Status)
	}
	return nil
}

// Signal sends a signal number to the process. It is an error if the process has ended.
func (c *Client) Signal(ctx context.Context, name string, signal int) error {
	_, err := c.call(ctx, request{Op: opSignal, Process: Process{Name: name}, Signal: signal})
	if err != nil {
		return fmt.Errorf("signalling %s: %w", name, err)
	}
	return nil
}

// Ready waits until the keeper answers.
func (c *Client) Ready(ctx context.Context) error {
	for {
		conn, err := c.dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reaching the keeper: %w", errors.Join(err, ctx.Err()))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.socket)
}

func (c *Client) call(ctx context.Context, req request) (reply, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return reply{}, fmt.Errorf("reaching the keeper: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return reply{}, fmt.Errorf("asking the keeper: %w", errors.Join(ctx.Err(), err))
	}
	var r reply
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&r); err != nil {
		return reply{}, fmt.Errorf("hearing from the keeper: %w", errors.Join(ctx.Err(), err))
	}
	if r.Error != "" {
		return reply{}, errors.New(r.Error)
	}
	return r, nil
}
