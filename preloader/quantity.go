// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"time"

	"serverless.xyz/outrigger/preloader/quantity"
)

func parseBytes(text string) (int64, error) { return quantity.ParseBytes(text) }

func parseSeconds(text string) (time.Duration, error) { return quantity.ParseSeconds(text) }

func formatBytes(n int64) string { return quantity.FormatBytes(n) }
