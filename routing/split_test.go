// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"testing"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func TestSplit(t *testing.T) {
	tests := map[string]struct {
		percent, stable, canary int32
		wantCanary              int32
		wantOutcome             Outcome
	}{
		"both ready: as asked": {
			percent:     20,
			stable:      3,
			canary:      1,
			wantCanary:  20,
			wantOutcome: OutcomeAsAsked,
		},
		"nothing asked, both ready": {
			percent:     0,
			stable:      3,
			canary:      1,
			wantCanary:  0,
			wantOutcome: OutcomeAsAsked,
		},
		"everything asked, both ready": {
			percent:     100,
			stable:      3,
			canary:      1,
			wantCanary:  100,
			wantOutcome: OutcomeAsAsked,
		},
		"everything asked and stable gone already: as asked": {
			percent:     100,
			stable:      0,
			canary:      1,
			wantCanary:  100,
			wantOutcome: OutcomeAsAsked,
		},
		"canary not ready: stable keeps all": {
			percent:     20,
			stable:      3,
			canary:      0,
			wantCanary:  0,
			wantOutcome: OutcomeCanaryNotReady,
		},
		"canary dies at 100 percent: stable takes all back": {
			percent:     100,
			stable:      3,
			canary:      0,
			wantCanary:  0,
			wantOutcome: OutcomeCanaryNotReady,
		},
		"stable down, canary may take traffic: it takes all": {
			percent:     1,
			stable:      0,
			canary:      1,
			wantCanary:  100,
			wantOutcome: OutcomeStableNotReady,
		},
		"stable down, canary was asked for nothing: gets nothing": {
			percent:     0,
			stable:      0,
			canary:      5,
			wantCanary:  0,
			wantOutcome: OutcomeNoneReady,
		},
		"none ready: stable has all": {
			percent:     50,
			stable:      0,
			canary:      0,
			wantCanary:  0,
			wantOutcome: OutcomeNoneReady,
		},
		"more than everything is everything": {
			percent:     130,
			stable:      1,
			canary:      1,
			wantCanary:  100,
			wantOutcome: OutcomeAsAsked,
		},
		"less than nothing is nothing": {
			percent:     -5,
			stable:      1,
			canary:      1,
			wantCanary:  0,
			wantOutcome: OutcomeAsAsked,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, outcome := Split(tc.percent, tc.stable, tc.canary)
			want := v1alpha1.WeightPair{Stable: 100 - tc.wantCanary, Canary: tc.wantCanary}
			if got != want || outcome != tc.wantOutcome {
				t.Errorf("Split(%d, %d, %d) = %+v, %s; want %+v, %s",
					tc.percent, tc.stable, tc.canary, got, outcome, want, tc.wantOutcome)
			}
		})
	}
}

// TestSplitInvariants goes through every percentage and state of the sides that Split can tell apart.
func TestSplitInvariants(t *testing.T) {
	for percent := int32(-3); percent <= 103; percent++ {
		asked := min(max(percent, 0), 100)
		for stable := range int32(3) {
			for canary := range int32(3) {
				got, outcome := Split(percent, stable, canary)
				if got.Stable+got.Canary != 100 || got.Stable < 0 || got.Canary < 0 {
					t.Fatalf("Split(%d, %d, %d) = %+v: not two shares of 100", percent, stable, canary, got)
				}
				if got.Canary > 0 && canary == 0 {
					t.Fatalf(
						"Split(%d, %d, %d) = %+v: a canary without a ready endpoint gets traffic",
						percent,
						stable,
						canary,
						got,
					)
				}
				if got.Canary > asked && (stable > 0 || asked == 0) {
					t.Fatalf("Split(%d, %d, %d) = %+v: the canary gets more than asked", percent, stable, canary, got)
				}
				if got.Stable > 0 && stable == 0 && canary > 0 && asked > 0 {
					t.Fatalf("Split(%d, %d, %d) = %+v: stable gets traffic that nobody can answer", percent, stable, canary, got)
				}
				if (outcome == OutcomeAsAsked) && got != Desired(percent) {
					t.Fatalf("Split(%d, %d, %d) = %+v is called as asked", percent, stable, canary, got)
				}
			}
		}
	}
}
