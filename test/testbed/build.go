// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// modulesDir has a module for each program built from elsewhere, which pins its version.
const modulesDir = "test/testbed/modules"

// builder turns modules into programs in the cache, once a version.
type builder struct {
	root     string // The repository.
	cache    string
	progress io.Writer
}

func newBuilder(progress io.Writer) (*builder, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	if progress == nil {
		progress = os.Stderr
	}
	return &builder{root: root, cache: cache, progress: progress}, nil
}

// Build builds what testbeds of these options need and is not built yet, and says so on progress, standard error if
// nil. It needs the Go toolchain, and for size Node a C compiler and libseccomp's headers.
func Build(ctx context.Context, options Options, progress io.Writer) error {
	parts, err := options.parts()
	if err != nil {
		return err
	}
	b, err := newBuilder(progress)
	if err != nil {
		return err
	}
	_, err = b.install(ctx, programsFor(parts), manifestsFor(parts))
	return err
}

// installed says where the built things lie.
type installed struct {
	programs  map[string]string // Program name to executable.
	manifests map[string]string // Set name to folder.
}

// install makes sure that everything is in the cache. Builds of several testbeds wait for each other.
func (b *builder) install(ctx context.Context, programs []program, sets []manifestSet) (*installed, error) {
	have, missing, err := b.look(programs, sets)
	if err != nil || !missing {
		return have, err
	}
	if _, err := exec.LookPath("go"); err != nil {
		return nil, fmt.Errorf("the testbed's programs are not built yet, which needs the Go toolchain: %w", err)
	}
	lock, err := lockFile(ctx, filepath.Join(b.cache, "build.lock"), func() { b.say("waiting for another build to finish") })
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	for _, p := range programs {
		if err := b.build(ctx, p, have.programs[p.name]); err != nil {
			return nil, err
		}
	}
	for _, s := range sets {
		if err := b.copyManifests(ctx, s, have.manifests[s.name]); err != nil {
			return nil, err
		}
	}
	return have, nil
}

func (b *builder) look(programs []program, sets []manifestSet) (*installed, bool, error) {
	have := &installed{programs: map[string]string{}, manifests: map[string]string{}}
	missing := false
	for _, p := range programs {
		path, err := b.target(p)
		if err != nil {
			return nil, false, err
		}
		have.programs[p.name] = path
		missing = missing || !exists(path)
	}
	for _, s := range sets {
		key, err := b.key([]string{filepath.Join(modulesDir, s.module)}, strings.Join(s.files, " "))
		if err != nil {
			return nil, false, err
		}
		path := filepath.Join(b.cache, s.name+"-manifests-"+key)
		have.manifests[s.name] = path
		missing = missing || !exists(path)
	}
	return have, missing, nil
}

// target returns where the program lies: in a folder named for all that goes into it.
func (b *builder) target(p program) (string, error) {
	inputs, name := p.inputs, p.name
	if p.module != "" {
		inputs, name = []string{filepath.Join(modulesDir, p.module)}, p.module
	}
	key, err := b.key(inputs, p.tags, fmt.Sprint(p.stamp, p.cgo))
	if err != nil {
		return "", err
	}
	return filepath.Join(b.cache, name+"-"+key, p.name), nil
}

// key hashes the files of the folders, the toolchain and what else decides.
func (b *builder) key(folders []string, more ...string) (string, error) {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, strings.Join(more, "\n"))
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(b.root, folder))
		if err != nil {
			return "", fmt.Errorf("reading the testbed's sources: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			content, err := os.ReadFile(filepath.Join(b.root, folder, e.Name()))
			if err != nil {
				return "", fmt.Errorf("reading the testbed's sources: %w", err)
			}
			_, _ = fmt.Fprintf(h, "%s %d\n%s", e.Name(), len(content), content)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

func (b *builder) build(ctx context.Context, p program, target string) error {
	if exists(target) {
		return nil
	}
	dir, version := b.root, ""
	if p.module != "" {
		dir = filepath.Join(b.root, modulesDir, p.module)
		var err error
		if version, err = pinnedVersion(filepath.Join(dir, "go.mod"), p.from); err != nil {
			return err
		}
	}
	if p.cgo {
		if err := haveSeccompHeaders(ctx); err != nil {
			return err
		}
	}
	b.say("building %s, about %s the first time", strings.TrimSpace(p.name+" "+version), p.about)
	began := time.Now()
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fmt.Errorf("making the program's folder: %w", err)
	}
	fresh := target + ".new"
	cmd := exec.CommandContext(ctx, "go", buildArgs(p, version, fresh)...)
	cmd.Dir = dir
	cgo := "0"
	if p.cgo {
		cgo = "1"
	}
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("building %s: %w\n%s", p.name, err, tail(string(out), 40)), os.RemoveAll(fresh))
	}
	if err := os.Rename(fresh, target); err != nil {
		return fmt.Errorf("putting %s in place: %w", p.name, err)
	}
	b.say("built %s in %s", p.name, time.Since(began).Round(time.Second))
	return nil
}

func buildArgs(p program, version, output string) []string {
	ldflags := "-s -w"
	if p.stamp {
		number := strings.Split(strings.TrimPrefix(version, "v"), ".")
		const x = " -X k8s.io/component-base/version."
		ldflags += x + "gitVersion=" + version + x + "gitMajor=" + number[0] + x + "gitMinor=" + number[1]
	}
	args := []string{"build", "-trimpath", "-ldflags", ldflags, "-o", output}
	if p.tags != "" {
		args = append(args, "-tags", p.tags)
	}
	return append(args, p.pkg)
}

// copyManifests copies a module's files into the cache, so that a start needs no Go toolchain.
func (b *builder) copyManifests(ctx context.Context, s manifestSet, target string) error {
	if exists(target) {
		return nil
	}
	dir, err := ModuleDir(ctx, filepath.Join(b.root, modulesDir, s.module), s.from)
	if err != nil {
		return err
	}
	fresh := target + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("clearing an unfinished copy: %w", err)
	}
	for _, pattern := range s.files {
		if err := copyMatches(dir, pattern, fresh); err != nil {
			return fmt.Errorf("copying %s of %s: %w", pattern, s.from, err)
		}
	}
	if err := os.Rename(fresh, target); err != nil {
		return fmt.Errorf("putting the manifests of %s in place: %w", s.name, err)
	}
	return nil
}

func copyMatches(from, pattern, to string) error {
	paths, err := filepath.Glob(filepath.Join(from, pattern))
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return errors.New("no such file")
	}
	for _, path := range paths {
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, rel), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.progress, "testbed: "+format+"\n", args...)
}

// pinnedVersion returns the version that go.mod requires of a module.
func pinnedVersion(goMod, module string) (string, error) {
	content, err := os.ReadFile(goMod)
	if err != nil {
		return "", fmt.Errorf("reading a pinned version: %w", err)
	}
	for line := range bytes.Lines(content) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(string(line)), "require "))
		if len(fields) >= 2 && fields[0] == module {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("%s does not require %s", goMod, module)
}

func haveSeccompHeaders(ctx context.Context) error {
	if err := exec.CommandContext(ctx, "pkg-config", "--exists", "libseccomp").Run(); err != nil {
		return errors.New("runc needs the headers of libseccomp and pkg-config: run make deps")
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// tail returns the last lines of text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
