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

	"golang.org/x/sync/errgroup"

	"serverless.xyz/outrigger/test/testbed"
)

const (
	// PredictorImage is what the sample runtime names.
	PredictorImage = "outrigger.local/predictor:dev"
	// PreloaderGPUImage fetches models and checks GPUs.
	PreloaderGPUImage = "ghcr.io/outrigger/preloader-gpu:v0.1.0"
)

// Images are those of config/ and samples/, each made of one or two programs.
var images = []struct {
	archive, ref string
	programs     map[string]string // path in the image to Go package
	entrypoint   string
	// libraries are glibc's, for what a node puts into the container.
	libraries []string
	env       []string
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
		archive: "preloader-gpu.tar", ref: PreloaderGPUImage, entrypoint: "/preloader",
		programs: map[string]string{"/preloader": "./cmd/preloader", "/preloader-gpu": "./cmd/preloader-gpu"},
		// What NVIDIA's driver is linked with.
		libraries: []string{"libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"},
		env:       []string{"NVIDIA_DRIVER_CAPABILITIES=compute,utility"},
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
		if err := addLibraries(files, image.libraries); err != nil {
			return nil, err
		}
		group.Go(func() error {
			return testbed.BuildImage(ctx, archives[i], testbed.Image{
				Ref: image.ref, Files: files, Entrypoint: []string{image.entrypoint}, Env: image.env,
			})
		})
	}
	return archives, group.Wait()
}

// addLibraries adds this machine's libraries of those names, at the same places.
func addLibraries(files map[string]string, names []string) error {
	for _, name := range names {
		found, err := filepath.Glob("/lib/*-linux-gnu/" + name)
		if err != nil || len(found) == 0 {
			return fmt.Errorf("library %s is not in /lib/*-linux-gnu", name)
		}
		files[found[0]] = found[0]
	}
	return nil
}

func buildPrograms(ctx context.Context, dir string) error {
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/"}
	for _, image := range images {
		for _, pkg := range image.programs {
			args = append(args, pkg)
		}
	}
	root, err := testbed.Root()
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", args...)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building programs: %w\n%s", err, out)
	}
	return nil
}
