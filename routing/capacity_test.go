// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"math/rand/v2"
	"testing"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

func TestMaxSafe(t *testing.T) {
	const small, cold, asked = OutcomeCanaryAtCapacity, OutcomeCanaryCold, OutcomeAsAsked
	for when, tc := range map[string]struct {
		needed, headroom int32
		pods             Pods
		inForce          int32
		want             int32
		wantWhy          Outcome
	}{
		"one of four pods":                    {4, 0, Pods{Ready: 1, Warm: 1}, 0, 25, small},
		"one of three pods":                   {3, 0, Pods{Ready: 1, Warm: 1}, 0, 33, small},
		"all pods":                            {4, 0, Pods{Ready: 4, Warm: 4}, 0, 100, asked},
		"more than all pods":                  {4, 0, Pods{Ready: 400, Warm: 400}, 0, 100, asked},
		"all pods, with a fifth in reserve":   {4, 20, Pods{Ready: 4, Warm: 4}, 0, 83, small},
		"five pods, with a fifth in reserve":  {4, 20, Pods{Ready: 5, Warm: 5}, 0, 100, asked},
		"no pod":                              {4, 0, Pods{}, 50, 0, small},
		"failed pods take their share along":  {4, 0, Pods{Ready: 1, Ill: 1, Warm: 1}, 50, 25, small},
		"pods that are scaled away do not":    {4, 0, Pods{Ready: 1, Warm: 1}, 50, 50, small},
		"a cold pod carries nothing yet":      {4, 0, Pods{Ready: 2, Warm: 1}, 0, 25, cold},
		"no pod is warm":                      {4, 0, Pods{Ready: 2}, 0, 0, cold},
		"no pod is known to be warm any more": {4, 0, Pods{Ready: 2}, 50, 50, cold},
		"a cold pod stands in for a warm one": {4, 0, Pods{Ready: 2, Ill: 1, Warm: 1}, 75, 50, cold},
		"without a capacity one is cold":      {0, 0, Pods{Ready: 2, Warm: 1}, 10, 10, cold},
		"without a capacity a pod fails":      {0, 0, Pods{Ready: 2, Ill: 1, Warm: 1}, 10, 10, cold},
		"without a capacity and all warm":     {0, 0, Pods{Ready: 2, Warm: 2}, 0, 100, asked},
	} {
		got, why := MaxSafe(v1alpha1.RolloutCapacity{HeadroomPercent: tc.headroom}, tc.needed, tc.pods, tc.inForce)
		if got != tc.want || why != tc.wantWhy {
			t.Errorf("%s: %d, %s; want %d, %s", when, got, why, tc.want, tc.wantWhy)
		}
	}
}

// TestMaxSafeKeepsItsPromise with random pods: a share never grows beyond what warm pods carry, never is more than ready
// pods carry once a pod has failed, and grows with every pod.
func TestMaxSafeKeepsItsPromise(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		needed, policy := 1+random.Int32N(20), v1alpha1.RolloutCapacity{HeadroomPercent: random.Int32N(201)}
		pods := Pods{Ready: random.Int32N(30), Ill: random.Int32N(2)}
		pods.Warm = random.Int32N(pods.Ready + 1)
		inForce := random.Int32N(101)
		most, _ := MaxSafe(policy, needed, pods, inForce)
		carries := func(n int32) int32 { return min(100, 100*100*n/(needed*(100+policy.HeadroomPercent))) }
		switch {
		case most < 0 || most > 100,
			most > inForce && most > carries(pods.Warm),
			pods.Ill > 0 && most > carries(pods.Ready):
			t.Fatalf("%d percent for %+v of %d with %+v, %d in force", most, pods, needed, policy, inForce)
		}
		more := pods
		more.Ready, more.Warm = more.Ready+1, more.Warm+1
		if with, _ := MaxSafe(policy, needed, more, inForce); with < most {
			t.Fatalf("one more warm pod than %+v lowers the share from %d to %d", pods, most, with)
		}
	}
}

func TestNeededPods(t *testing.T) {
	shared, alone := &v1alpha1.WeightPair{Stable: 80, Canary: 20}, &v1alpha1.WeightPair{Stable: 100}
	for when, tc := range map[string]struct {
		policy  v1alpha1.RolloutCapacity
		was     int32
		applied *v1alpha1.WeightPair
		ready   int32
		want    int32
	}{
		"nothing is known":                       {v1alpha1.RolloutCapacity{}, 0, nil, 3, 3},
		"stable has everything":                  {v1alpha1.RolloutCapacity{}, 5, alone, 3, 3},
		"stable has everything and is away":      {v1alpha1.RolloutCapacity{}, 5, alone, 0, 5},
		"stable shrinks as it loses traffic":     {v1alpha1.RolloutCapacity{}, 5, shared, 3, 5},
		"stable grows although it shares":        {v1alpha1.RolloutCapacity{}, 5, shared, 7, 7},
		"the rollout begins with shared traffic": {v1alpha1.RolloutCapacity{}, 0, shared, 3, 3},
		"the user says":                          {v1alpha1.RolloutCapacity{PodsForAllTraffic: new(int32(2))}, 5, alone, 9, 2},
	} {
		if got := NeededPods(tc.policy, tc.was, tc.applied, tc.ready); got != tc.want {
			t.Errorf("%s: %d, want %d", when, got, tc.want)
		}
	}
}

func TestLimit(t *testing.T) {
	for when, tc := range map[string]struct {
		weights int32
		outcome Outcome
		most    int32
		want    int32
		wantWhy Outcome
	}{
		"less than the most":                    {20, OutcomeAsAsked, 25, 20, OutcomeAsAsked},
		"more than the most":                    {50, OutcomeAsAsked, 25, 25, OutcomeCanaryAtCapacity},
		"nothing is possible":                   {50, OutcomeAsAsked, 0, 0, OutcomeCanaryAtCapacity},
		"stable is away, so it is not bounded":  {100, OutcomeStableNotReady, 25, 100, OutcomeStableNotReady},
		"the canary is away, which says enough": {0, OutcomeCanaryNotReady, 0, 0, OutcomeCanaryNotReady},
	} {
		got, why := Limit(pair(tc.weights), tc.outcome, tc.most, OutcomeCanaryAtCapacity)
		if got != pair(tc.want) || why != tc.wantWhy {
			t.Errorf("%s: %+v, %s; want %d, %s", when, got, why, tc.want, tc.wantWhy)
		}
	}
}
