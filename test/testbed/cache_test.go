// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestLockFileWaitsUntilCancelled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := lockFile(t.Context(), path, func() { t.Error("the first had to wait") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := lockFile(ctx, path, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the cancellation", err)
	}
	waited := false
	second, err := lockFile(t.Context(), path, func() {
		waited = true
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil || !waited {
		t.Errorf("error %v, waited %t, want the lock after waiting", err, waited)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

func TestRoot(t *testing.T) {
	root, err := Root()
	if err != nil || moduleOf(filepath.Join(root, "go.mod")) != modulePath {
		t.Errorf("root %q, error %v", root, err)
	}
	t.Chdir(t.TempDir())
	if _, err := Root(); err == nil || !strings.Contains(err.Error(), "OUTRIGGER_ROOT") {
		t.Errorf("error %v, want it to name OUTRIGGER_ROOT", err)
	}
	t.Setenv("OUTRIGGER_ROOT", root)
	if got, err := Root(); err != nil || got != root {
		t.Errorf("root %q, error %v, want %q", got, err, root)
	}
}

func TestCacheFolderIsChosenByTheUser(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("OUTRIGGER_CACHE", dir)
	if got, err := cacheDir(); err != nil || got != filepath.Join(dir, "testbed") || !exists(got) {
		t.Errorf("cache %q, error %v", got, err)
	}
	t.Setenv("OUTRIGGER_CACHE", "/dev/null")
	if _, err := cacheDir(); err == nil || !strings.Contains(err.Error(), "OUTRIGGER_CACHE") {
		t.Errorf("error %v, want it to name OUTRIGGER_CACHE", err)
	}
}
