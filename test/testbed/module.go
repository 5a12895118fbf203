// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
)

// ModuleDir returns the folder with the files of a module, in the version that the go.mod of a folder asks for. A module
// that no build has needed yet is downloaded first: `go list -m` knows no folder for it.
func ModuleDir(ctx context.Context, folder, module string) (string, error) {
	download := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	download.Dir = folder
	out, failed := download.Output()
	var answer struct{ Dir, Error string }
	if err := errors.Join(failed, json.Unmarshal(out, &answer)); err != nil {
		return "", fmt.Errorf("downloading module %s: %w %s", module, err, answer.Error)
	}
	return answer.Dir, nil
}
