// SPDX-License-Identifier: Apache-2.0

// Package cluster brings up the testbed's real node with Outrigger installed on it as a user would install it. The demo
// and the end-to-end tests share it.
package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"serverless.xyz/outrigger/test/testbed"
)

// PredictorImage is what the sample runtime names.
const PredictorImage = "outrigger.local/predictor:dev"

// Images are those of config/ and samples/, each made of one or two static programs.
var images = []struct {
	archive, ref string
	programs     map[string]string // path in the image to Go package
	entrypoint   string
}{
	{
		archive: "outrigger.tar", ref: "ghcr.io/outrigger/outrigger:v0.1.0", entrypoint: "/manager",
		programs: map[string]string{"/manager": "./cmd/manager", "/featurecache": "./cmd/featurecache"},
	},
	{
		archive: "preloader.tar", ref: "ghcr.io/outrigger/preloader:v0.1.0", entrypoint: "/preloader",
		programs: map[string]string{"/preloader": "./cmd/preloader"},
	},
	{
		archive: "predictor.tar", ref: PredictorImage, entrypoint: "/predictor",
		programs: map[string]string{"/predictor": "./samples/predictor"},
	},
}

// BuildImages builds all programs and writes an archive for each image into a folder. It returns the archives.
func BuildImages(ctx context.Context, dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder for images: %w", err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the folder for images: %w", err)
	}
	if err := buildPrograms(ctx, dir); err != nil {
		return nil, err
	}
	archives := make([]string, len(images))
	group, ctx := errgroup.WithContext(ctx)
	for i, image := range images {
		archives[i] = filepath.Join(dir, image.archive)
		files := map[string]string{}
		for path := range image.programs {
			files[path] = filepath.Join(dir, filepath.Base(path))
		}
		group.Go(func() error {
			return testbed.BuildImage(ctx, archives[i], testbed.Image{
				Ref: image.ref, Files: files, Entrypoint: []string{image.entrypoint},
			})
		})
	}
	return archives, group.Wait()
}

func buildPrograms(ctx context.Context, dir string) error {
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/"}
	for _, image := range images {
		for _, pkg := range image.programs {
			args = append(args, pkg)
		}
	}
	build := exec.CommandContext(ctx, "go", args...)
	build.Dir = Root()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building programs: %w\n%s", err, out)
	}
	return nil
}

// Root returns the folder of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "../..")
}
