// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestLaunchReportsAFailedComponent(t *testing.T) {
	tb := Shared(t, API)
	never := func(context.Context) error { return errors.New("not yet") }
	err := tb.launch(t.Context(), component{
		name: "doomed", path: "/bin/sh", args: []string{"-c", "echo the reason; exit 3"}, ready: never,
	})
	for _, want := range []string{"starting doomed", "exit code 3", "the reason"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

func TestRunProcessReturnsOutputAndFailure(t *testing.T) {
	tb := Shared(t, API)
	out, err := tb.runProcess(t.Context(), "said", "/bin/echo", "well")
	if err != nil || out != "well\n" {
		t.Errorf("output %q, error %v", out, err)
	}
	_, err = tb.runProcess(t.Context(), "failed", "/bin/sh", "-c", "echo badly; exit 1")
	if err == nil || !strings.Contains(err.Error(), "badly") {
		t.Errorf("error %v, want the output in it", err)
	}
	if _, err := tb.runProcess(t.Context(), "absent", "/no/such/program"); err == nil {
		t.Error("no error for a program that does not exist")
	}
}
