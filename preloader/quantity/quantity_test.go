// SPDX-License-Identifier: Apache-2.0

package quantity

import "testing"

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"4096": 4096, "64Mi": 64 << 20, "1.5Gi": 3 << 29, "500M": 5e8, "2k": 2000, "1Ti": 1 << 40, "0": 0,
	} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "Mi", "-1", "NaN", "1e300", "1Xi", "Inf"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", text, got)
		}
	}
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1500: "1.5 kB", 15_100_000_000: "15.1 GB", 2e12: "2.00 TB"} {
		if got := FormatBytes(n); got != want {
			t.Errorf("FormatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}
