// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"strings"
	"testing"
)

func TestACheckThatWouldTakeThePullAlongIsNotRun(t *testing.T) {
	opts := Options{Memory: 64 * mebibyte, GPUHostMemory: 512 * mebibyte}
	cases := map[string]struct {
		limits   limits
		wantText string
	}{
		"room for both": {
			limits: limits{memory: 1 << 30, used: 100 * mebibyte, together: true},
		},
		"no room, and the check dies alone": {
			limits: limits{memory: 256 * mebibyte},
		},
		"no room, and all processes die": {
			limits: limits{memory: 600 * mebibyte, together: true}, wantText: "41.9 MB more of the memory limit",
		},
		"no limit, but the machine has little": {
			limits: limits{available: 128 * mebibyte, together: true}, wantText: "available memory",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			v := tooTight(opts, "preflight", tc.limits)
			if (v != nil) != (tc.wantText != "") {
				t.Fatalf("verdict %+v, want one: %t", v, tc.wantText != "")
			}
			if v != nil && (v.Reason != "NoMemory" || v.Verdict != unhealthy || !strings.Contains(v.Summary, tc.wantText)) {
				t.Errorf("verdict %+v does not tell of %q", v, tc.wantText)
			}
		})
	}
}
