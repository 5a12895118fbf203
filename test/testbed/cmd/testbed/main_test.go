// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

func TestRunRefusesWrongUsage(t *testing.T) {
	for name, args := range map[string][]string{
		"no command":         nil,
		"unknown command":    {"sideways"},
		"unknown flag":       {"up", "--sideways"},
		"resource by itself": {"up", "--resource", "nvidia.com/gpu"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{}); !errors.Is(err, errUsage) {
				t.Errorf("error %v, want wrong usage", err)
			}
		})
	}
}

func TestKeptTestbedIsListedUntilDown(t *testing.T) {
	var env, progress bytes.Buffer
	if err := run(t.Context(), []string{"up", "--size", "api", "--keep"}, &env, &progress); err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`TESTBED_ID='(.+)'`).FindStringSubmatch(env.String())
	if found == nil {
		t.Fatalf("up printed no id:\n%s", env.String())
	}
	id := found[1]
	defer func() {
		// Others on this machine may have testbeds too: only this one is ours to end.
		if err := run(t.Context(), []string{"down", id}, &bytes.Buffer{}, &bytes.Buffer{}); err != nil {
			t.Error(err)
		}
		if err := run(t.Context(), []string{"down", id}, &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
			t.Error("no error for a testbed that is down already")
		}
	}()
	var listed bytes.Buffer
	if err := run(
		t.Context(),
		[]string{"status"},
		&listed,
		&bytes.Buffer{},
	); err != nil ||
		!strings.Contains(listed.String(), id) {
		t.Errorf("status printed %q, error %v, want %s in it", listed.String(), err, id)
	}
	var again bytes.Buffer
	if err := run(t.Context(), []string{"env", id}, &again, &bytes.Buffer{}); err != nil || again.String() != env.String() {
		t.Errorf("env printed %q, error %v, want what up printed: %q", again.String(), err, env.String())
	}
	// The lines are for a shell.
	script := env.String() + `"$KUBECTL" get namespaces --output=name`
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", script).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "namespace/default") {
		t.Errorf("kubectl with these lines: %v\n%s", err, out)
	}
}
