// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"testing"
	"time"

	"serverless.xyz/outrigger/test/testbed"
)

func TestCtl(t *testing.T) {
	a := time.Now()
	tb, err := testbed.Start(t.Context(), testbed.Options{Size: testbed.Control, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("up", time.Since(a))
	a = time.Now()
	if err := tb.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Log("stop", time.Since(a))
}
