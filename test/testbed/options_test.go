// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParts(t *testing.T) {
	for name, tc := range map[string]struct {
		options Options
		want    []Part
	}{
		"size api has none":              {Options{}, nil},
		"size control has all but pods":  {Options{Size: Control}, controlParts},
		"size node has pods too":         {Options{Size: Node}, append(append([]Part(nil), controlParts...), Pods)},
		"one part added":                 {Options{With: []Part{S3}}, []Part{S3}},
		"a part added twice":             {Options{With: []Part{S3, S3}}, []Part{S3}},
		"KServe brings the Gateway API":  {Options{With: []Part{KServe}}, []Part{GatewayAPI, KServe}},
		"parts left out":                 {Options{Size: Control, Without: []Part{Istio, KServe, S3}}, controlParts[:3]},
		"Prometheus comes with its text": {Options{Prometheus: "global: {}"}, []Part{Prometheus}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.options.parts()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("parts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStartRefusesImpossibleOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		options Options
		want    string
	}{
		"pods added to a small size": {Options{With: []Part{Pods}}, `part "pods" cannot be added`},
		"unknown part left out":      {Options{Without: []Part{"x"}}, `part "x" cannot be left out`},
		"extended resources without a node": {
			Options{ExtendedResources: map[string]string{"nvidia.com/gpu": "1"}}, "need size node",
		},
		"extended resource without a number": {
			Options{Size: Node, ExtendedResources: map[string]string{"nvidia.com/gpu": "many"}}, "nvidia.com/gpu",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Start(t.Context(), tc.options); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for _, want := range []Size{API, Control, Node} {
		if got, err := ParseSize(want.String()); err != nil || got != want {
			t.Errorf("%s gives %s, error %v", want, got, err)
		}
	}
	if _, err := ParseSize("huge"); err == nil {
		t.Error("no error for an unknown size")
	}
}

// Two slots that shared an address or a port would be two testbeds that break each other.
func TestSlotsKeepApart(t *testing.T) {
	seen := map[string]int{}
	for slot := range slots {
		n := network{slot: slot}
		for _, a := range []string{n.hostIP(), n.nodeIP(), n.pods(), n.services(), n.linkName()} {
			if other, ok := seen[a]; ok {
				t.Errorf("slots %d and %d both have %s", other, slot, a)
			}
			seen[a] = slot
		}
	}
	if last := slotPort(slots-1, portsPerSlot-1); last >= 32768 {
		t.Errorf("port %d can be taken by any client", last)
	}
}
