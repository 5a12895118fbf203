// SPDX-License-Identifier: Apache-2.0

package controllers

import "testing"

func TestKnowsNativeSidecars(t *testing.T) {
	for version, want := range map[[2]string]bool{
		{"1", "27"}: false, {"1", "28+"}: false, {"1", "29"}: true, {"1", "29+"}: true, {"1", "36"}: true,
		{"2", "0"}: true, {"1", ""}: true,
	} {
		if got := knowsNativeSidecars(version[0], version[1]); got != want {
			t.Errorf("Kubernetes %s.%s: %v, want %v", version[0], version[1], got, want)
		}
	}
}
