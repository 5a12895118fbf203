// SPDX-License-Identifier: Apache-2.0

// Package quantity reads and writes sizes and times as people and Kubernetes write
// them.
package quantity

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ParseBytes reads a size such as 64Mi, 1.5Gi, 500M or 4096, the way that
// Kubernetes writes quantities.
func ParseBytes(text string) (int64, error) {
	units := []struct {
		suffix string
		factor float64
	}{
		{"Ki", 1 << 10},
		{"Mi", 1 << 20},
		{"Gi", 1 << 30},
		{"Ti", 1 << 40},
		{"k", 1e3},
		{"M", 1e6},
		{"G", 1e9},
		{"T", 1e12},
	}
	number, factor := text, 1.0
	for _, u := range units {
		if n, ok := strings.CutSuffix(text, u.suffix); ok {
			number, factor = n, u.factor
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || v < 0 || math.IsNaN(v) || v*factor > math.MaxInt64/2 {
		return 0, fmt.Errorf("reading size %q: want a number with an optional unit, such as 64Mi", text)
	}
	return int64(v * factor), nil
}

// ParseSeconds reads a duration such as 20s or 5m; a bare number means seconds,
// as in KServe's own variables.
func ParseSeconds(text string) (time.Duration, error) {
	if v, err := strconv.ParseFloat(text, 64); err == nil && v >= 0 && v < math.MaxInt32 {
		return time.Duration(v * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("reading duration %q: want seconds, or a duration such as 20s", text)
	}
	return d, nil
}

// FormatBytes renders a size for people: 512 B, 3.2 MB, 15.1 GB.
func FormatBytes(n int64) string {
	v := float64(n)
	for _, unit := range []string{"B", "kB", "MB", "GB"} {
		if v < 1000 {
			if unit == "B" {
				return fmt.Sprintf("%d B", n)
			}
			return fmt.Sprintf("%.1f %s", v, unit)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.2f TB", v)
}
