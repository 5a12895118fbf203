// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// job is what a client has to do: bring what lies under prefix/ to dest.
type job struct {
	endpoint string
	// authority is a PEM file that the endpoint's certificate is signed by.
	authority string
	workload  workload
	dest      string
	// home is a folder for settings and caches.
	home string
}

// client is a program that brings objects to a folder.
type client struct {
	name    string
	version string
	// command returns arguments, settings beside the common ones, and what to feed it.
	command func(job) (argv, env []string, stdin []byte)
}

const (
	nameFloor  = "floor"
	nameOurs   = "preloader"
	nameS5cmd  = "s5cmd"
	nameRclone = "rclone"
	nameTM     = "transfermanager"
	nameKServe = "kserve"
	nameCRT    = "awscli-crt"
	nameRunAI  = "runai-streamer"
)

// environment is what every client sees.
func (j job) environment() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + j.home, "TMPDIR=" + j.home,
		"AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1",
		"AWS_ENDPOINT_URL=" + j.endpoint, "AWS_CA_BUNDLE=" + j.authority, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=" + filepath.Join(j.home, "aws-config"), "AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull,
	}
}

func (j job) uri() string { return "s3://" + bucket + "/" + j.workload.name }

func floorClient(self string) client {
	return client{name: nameFloor, version: "4 connections, 16 MiB ranges, 1 MiB writes, no checks", command: func(j job) (
		argv, env []string, stdin []byte,
	) {
		order, err := json.Marshal(floorOrder{
			Endpoint: j.endpoint, Authority: j.authority, Files: j.workload.files(), Dest: j.dest,
		})
		if err != nil {
			panic(err)
		}
		return []string{self, floorVerb}, nil, order
	}}
}

func oursClient(program, version string) client {
	return client{name: nameOurs, version: version, command: func(j job) (argv, env []string, stdin []byte) {
		return []string{program, "pull", j.uri(), j.dest}, []string{"PRELOADER_TERMINATION_LOG=" + os.DevNull}, nil
	}}
}

func s5cmdClient(program, version string) client {
	return client{name: nameS5cmd, version: version, command: func(j job) (argv, env []string, stdin []byte) {
		return []string{
			program, "--endpoint-url", j.endpoint, "--no-verify-ssl", "--log", "error", "cp", j.uri() + "/*", j.dest + "/",
		}, nil, nil
	}}
}

func rcloneClient(program, version string) client {
	return client{name: nameRclone, version: version, command: func(j job) (argv, env []string, stdin []byte) {
		return []string{
			program, "copy", ":s3:" + bucket + "/" + j.workload.name, j.dest, "--config", "", "--ca-cert", j.authority,
			"--s3-provider", "Other", "--s3-env-auth", "--s3-endpoint", j.endpoint, "--s3-force-path-style",
		}, nil, nil
	}}
}

func transferManagerClient(program, version string) client {
	return client{
		name: nameTM, version: version + ", by ranges", command: func(j job) (argv, env []string, stdin []byte) {
			return []string{program, bucket, j.workload.name + "/", j.dest}, nil, nil
		},
	}
}

// kserveClient is KServe's own initializer, run from its Go module.
func kserveClient(python, module, version string) client {
	return client{name: nameKServe, version: version, command: func(j job) (argv, env []string, stdin []byte) {
		entry := filepath.Join(module, "python/storage-initializer/scripts/initializer-entrypoint")
		env = []string{
			"PYTHONPATH=" + filepath.Join(module, "python/storage"), "PYTHONDONTWRITEBYTECODE=1",
			"S3_ENDPOINT=" + strings.TrimPrefix(strings.TrimPrefix(j.endpoint, "https://"), "http://"),
		}
		return []string{python, entry, j.uri(), j.dest}, env, nil
	}}
}

// awsClient is Debian's awscli with its transfers handed to the AWS Common Runtime.
func awsClient(version string) client {
	return client{name: nameCRT, version: version, command: func(j job) (argv, env []string, stdin []byte) {
		return []string{
			debianAWS, "s3", "cp", "--recursive", "--only-show-errors", "--endpoint-url", j.endpoint, j.uri() + "/", j.dest,
		}, nil, nil
	}}
}

// runAIClient is run:ai's streamer, writing into mapped files.
func runAIClient(python, program, version string) client {
	return client{name: nameRunAI, version: version, command: func(j job) (argv, env []string, stdin []byte) {
		order, err := json.Marshal(struct {
			Bucket, Dest string
			Files        []file
		}{bucket, j.dest, j.workload.files()})
		if err != nil {
			panic(err)
		}
		return []string{python, program}, []string{"RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING=0"}, order
	}}
}

const (
	debianAWS = "/usr/bin/aws"
	awsConfig = "[default]\ns3 =\n  preferred_transfer_client = crt\n  addressing_style = path\n"
)

// builder makes clients ready; what it downloads and builds stays in the cache.
type builder struct {
	self  string // this program
	cache string
	say   func(format string, args ...any)
}

// clients returns all clients that this machine can run, and says which it cannot.
func (b builder) clients(ctx context.Context, wanted func(name string) bool) ([]client, error) {
	all := []client{floorClient(b.self)}
	makers := []struct {
		name string
		make func(context.Context) (client, error)
	}{
		{nameOurs, b.ours},
		{nameS5cmd, b.s5cmd},
		{nameRclone, b.rclone},
		{nameTM, b.transferManager},
		{nameKServe, b.kserve},
		{nameCRT, b.aws},
		{nameRunAI, b.runAI},
	}
	for _, m := range makers {
		if !wanted(m.name) {
			continue
		}
		c, err := m.make(ctx)
		switch {
		case err == nil:
			all = append(all, c)
		case m.name == nameOurs:
			return nil, err
		default:
			b.say("going without %s: %v", m.name, err)
		}
	}
	return all, nil
}

func (b builder) ours(ctx context.Context) (client, error) {
	program := filepath.Join(b.cache, "preloader")
	_, err := output(
		ctx,
		".",
		"go",
		"build",
		"-trimpath",
		"-ldflags",
		"-s -w",
		"-o",
		program,
		"serverless.xyz/outrigger/cmd/preloader",
	)
	return oursClient(program, "this tree"), err
}

func (b builder) s5cmd(ctx context.Context) (client, error) {
	program, version, err := b.module(ctx, "s5cmd", "github.com/peak/s5cmd/v2", "github.com/peak/s5cmd/v2")
	return s5cmdClient(program, version), err
}

func (b builder) rclone(ctx context.Context) (client, error) {
	program, version, err := b.module(ctx, "rclone", "github.com/rclone/rclone", ".")
	return rcloneClient(program, version), err
}

func (b builder) transferManager(ctx context.Context) (client, error) {
	program, version, err := b.module(ctx, "transfermanager", "github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager", ".")
	return transferManagerClient(program, version), err
}

// module builds a package in one of the modules beside this file, and returns the version of what it is about.
func (b builder) module(ctx context.Context, name, about, pkg string) (program, version string, err error) {
	root, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", "serverless.xyz/outrigger")
	if err != nil {
		return "", "", err
	}
	dir := filepath.Join(root, "test/bench/preloader/modules", name)
	if version, err = output(ctx, dir, "go", "list", "-m", "-f", "{{.Version}}", about); err != nil {
		return "", "", err
	}
	program = filepath.Join(b.cache, name+"-"+version)
	b.say("building %s %s", name, version)
	_, err = output(ctx, dir, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, pkg)
	return program, version, err
}

// pythonPackages are what KServe's S3 path imports, in the versions of its lock file where that matters.
var pythonPackages = []string{"boto3==1.38.33", "requests==2.32.5", "certifi", "pyyaml"}

func (b builder) kserve(ctx context.Context) (client, error) {
	about, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}} {{.Version}}", "github.com/kserve/kserve")
	if err != nil {
		return client{}, err
	}
	module, version, _ := strings.Cut(about, " ")
	python, err := b.venv(ctx, "python-", pythonPackages)
	if err != nil {
		return client{}, err
	}
	return kserveClient(python, module, version+", "+pythonPackages[0]), nil
}

// venv makes a Python environment of these packages, once.
func (b builder) venv(ctx context.Context, name string, install []string) (python string, err error) {
	venv := filepath.Join(b.cache, name+strings.ReplaceAll(strings.Join(install, "-"), "=", ""))
	python = filepath.Join(venv, "bin", "python")
	done := filepath.Join(venv, "done")
	if _, err := os.Stat(done); err == nil {
		return python, nil
	}
	b.say("installing %s", strings.Join(install, " "))
	if _, err := output(ctx, ".", "python3", "-m", "venv", venv); err != nil {
		return "", err
	}
	if _, err := output(ctx, ".", python, append([]string{"-m", "pip", "install", "--quiet"}, install...)...); err != nil {
		return "", err
	}
	return python, os.WriteFile(done, nil, 0o644)
}

// runAIPackages are run:ai's streamer, without torch and what else its Python layer wants.
var runAIPackages = []string{"--no-deps", "runai-model-streamer==0.17.0", "runai-model-streamer-s3==0.17.1"}

func (b builder) runAI(ctx context.Context) (client, error) {
	python, err := b.venv(ctx, "python-runai", runAIPackages)
	if err != nil {
		return client{}, err
	}
	root, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}", "serverless.xyz/outrigger")
	if err != nil {
		return client{}, err
	}
	_, version, _ := strings.Cut(runAIPackages[1], "==")
	return runAIClient(python, filepath.Join(root, "test/bench/preloader/runai.py"), version+", into mapped files"), nil
}

var awsVersion = regexp.MustCompile(`aws-cli/\S+`)

func (builder) aws(ctx context.Context) (client, error) {
	version, err := output(ctx, ".", debianAWS, "--version")
	if err != nil {
		return client{}, fmt.Errorf("it needs the Debian packages awscli and python3-awscrt: %w", err)
	}
	crt, err := output(ctx, ".", "/usr/bin/python3", "-c", "import awscrt; print(awscrt.__version__)")
	if err != nil {
		return client{}, fmt.Errorf("it needs the Debian package python3-awscrt: %w", err)
	}
	return awsClient(awsVersion.FindString(version) + ", awscrt " + crt), nil
}

// output runs a program in a folder and returns what it prints.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}
