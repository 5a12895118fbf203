// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"strconv"
	"testing"
)

// TestFieldManagersAreBounded: whoever edits routes under ever new names makes no series without end.
func TestFieldManagersAreBounded(t *testing.T) {
	m, labels := managers{known: map[string]bool{}}, map[string]bool{}
	for n := range 10 * maxManagers {
		labels[m.label(strconv.Itoa(n))] = true
	}
	if len(labels) != maxManagers+1 || !labels["other"] {
		t.Errorf("%d labels, want %d and other", len(labels), maxManagers)
	}
	if got := m.label("0"); got != "0" {
		t.Errorf("a manager with a series of its own is called %q later", got)
	}
}
