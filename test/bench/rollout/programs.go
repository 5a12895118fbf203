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

const (
	argoModule    = "github.com/argoproj/argo-rollouts"
	flaggerModule = "github.com/fluxcd/flagger"
	// modules is the folder of the modules that require the peers.
	modules = "test/bench/rollout/modules"
)

// program is a built controller.
type program struct {
	path, version string
}

// build builds the controllers; what is built stays in the cache.
func build(ctx context.Context, o options, say func(string, ...any)) (map[string]program, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	programs := map[string]program{}
	for _, one := range []struct{ name, file, dir, module, pkg string }{
		{nameOutrigger, "manager", root, "", "./cmd/manager"},
		{nameArgo, "rollouts", filepath.Join(root, modules, "rollouts"), argoModule, argoModule + "/cmd/rollouts-controller"},
		{nameFlagger, "flagger", filepath.Join(root, modules, "flagger"), flaggerModule, flaggerModule + "/cmd/flagger"},
	} {
		if o.only != "" && o.only != one.name {
			continue
		}
		made := program{path: filepath.Join(cache, one.file), version: "of this tree"}
		if one.module != "" {
			if made.version, err = output(ctx, one.dir, "go", "list", "-m", "-f", "{{.Version}}", one.module); err != nil {
				return nil, err
			}
		}
		say("building %s %s", one.name, made.version)
		if _, err := output(ctx, one.dir, "go", "build", "-trimpath", "-o", made.path, one.pkg); err != nil {
			return nil, err
		}
		programs[one.name] = made
	}
	return programs, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	return output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", "serverless.xyz/outrigger")
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
func (l *lab) launch(ctx context.Context, name, path string, env []string, args ...string) error {
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
	l.processes[name] = cmd.Process.Pid
	l.running.Go(func() {
		if err := cmd.Wait(); err != nil && ctx.Err() == nil {
			l.say("%s ended: %v; see %s", name, err, log.Name())
		}
		_ = log.Close()
	})
	return nil
}
