// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"os"
)

func canRunPods(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("size node runs pods, which needs root; sizes api and control do not")
	}
	return nil
}

func (t *Testbed) kubeletClientArgs() ([]string, error) { return nil, nil }
