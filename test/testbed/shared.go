// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"sync"
	"testing"
)

var shared struct {
	mu       sync.Mutex
	testbeds map[Size]*Testbed
	failed   map[Size]error
}

// Shared returns the testbed of this size that all tests of the process share. The first call starts it; it ends with
// the process, however that ends, so nobody stops it. Tests keep apart by namespaces of their own. One of size [API] is
// uncached.
func Shared(t testing.TB, size Size) *Testbed {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if tb, ok := shared.testbeds[size]; ok {
		return tb
	}
	if err, ok := shared.failed[size]; ok {
		t.Fatalf("the shared testbed failed to start in an earlier test: %v", err)
	}
	// The testbed serves later tests too: the first one's context would end with it.
	tb, err := Start(context.WithoutCancel(t.Context()), Options{Size: size, Uncached: size == API})
	if err != nil {
		if shared.failed == nil {
			shared.failed = map[Size]error{}
		}
		shared.failed[size] = err
		t.Fatalf("starting the shared testbed: %v", err)
	}
	if shared.testbeds == nil {
		shared.testbeds = map[Size]*Testbed{}
	}
	shared.testbeds[size] = tb
	return tb
}
