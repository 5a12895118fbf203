// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Names of the systems.
const (
	nameOutrigger = "Outrigger"
	nameArgo      = "Argo Rollouts"
	nameFlagger   = "Flagger"
)

// program is a built controller.
type program struct {
	path, version string
}

// build builds the controllers; what is built stays in the cache.
func build(ctx context.Context, say func(string, ...any)) (map[string]program, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	root, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", "serverless.xyz/outrigger")
	if err != nil {
		return nil, err
	}
	modules := filepath.Join(root, "test/bench/rollout/modules")
	programs := map[string]program{}
	for _, one := range []struct{ name, file, dir, about, pkg string }{
		{nameOutrigger, "manager", root, "", "./cmd/manager"},
		{nameArgo, "rollouts", filepath.Join(modules, "rollouts"), argoModule, argoModule + "/cmd/rollouts-controller"},
		{nameFlagger, "flagger", filepath.Join(modules, "flagger"), flaggerModule, flaggerModule + "/cmd/flagger"},
	} {
		made := program{version: "of this tree"}
		if one.about != "" {
			if made.version, err = output(ctx, one.dir, "go", "list", "-m", "-f", "{{.Version}}", one.about); err != nil {
				return nil, err
			}
		}
		made.path = filepath.Join(cache, one.file)
		say("building %s %s", one.name, made.version)
		if _, err := output(ctx, one.dir, "go", "build", "-trimpath", "-o", made.path, one.pkg); err != nil {
			return nil, err
		}
		programs[one.name] = made
	}
	return programs, nil
}

const (
	argoModule    = "github.com/argoproj/argo-rollouts"
	flaggerModule = "github.com/fluxcd/flagger"
)

// moduleDir returns the folder of a module that a benchmark's module requires.
func moduleDir(ctx context.Context, name, module string) (string, error) {
	root, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", "serverless.xyz/outrigger")
	if err != nil {
		return "", err
	}
	return output(ctx, filepath.Join(root, "test/bench/rollout/modules", name), "go", "list", "-m", "-f", "{{.Dir}}", module)
}

func cacheDir() (string, error) {
	root := os.Getenv("OUTRIGGER_CACHE")
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding the cache folder, set OUTRIGGER_CACHE to choose one: %w", err)
		}
		root = filepath.Join(user, "outrigger")
	}
	dir := filepath.Join(root, "bench-rollout")
	return dir, os.MkdirAll(dir, 0o755)
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// launch runs a controller until the context ends, with its output in a file beside the program.
func (l *lab) launch(ctx context.Context, path string, env []string, args ...string) error {
	log, err := os.Create(path + ".log")
	if err != nil {
		return fmt.Errorf("making the log: %w", err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", path, err)
	}
	l.running.Go(func() {
		if err := cmd.Wait(); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "%s ended: %v; see %s\n", filepath.Base(path), err, log.Name())
		}
		_ = log.Close()
	})
	return nil
}
