// SPDX-License-Identifier: Apache-2.0

package quantity

import "testing"

func FuzzParse(f *testing.F) {
	for _, text := range []string{"64Mi", "1.5Gi", "500M", "4096", "-1", "NaN", "1e400", "20s", "5m", "0x1p62", "Inf", "1e18Ti", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := ParseBytes(text); err == nil && n < 0 {
			t.Errorf("%q is %d bytes", text, n)
		}
		if d, err := ParseSeconds(text); err == nil && d < 0 {
			t.Errorf("%q is %v", text, d)
		}
	})
}
