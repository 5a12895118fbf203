// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	// MemcachedImage is the reference of the image that [BuildMemcachedImage] makes, which every node has.
	MemcachedImage = "docker.io/library/memcached:1.6.18"
	// StorageInitializerImage is the image of KServe's own storage initializer in the testbed's KServe. No testbed has
	// it: a pod that still asks for it was not taken over.
	StorageInitializerImage = "kserve/storage-initializer:v0.20.0"

	pauseImage = "outrigger.test/pause:1"
	nonRoot    = "65532:65532"
)

// Image describes an image made of files of this machine, without a registry and without a base image.
type Image struct {
	// Ref is the reference that pods name, with a tag other than latest, for which the kubelet always asks a registry.
	Ref string
	// Files maps absolute paths in the image to files on this machine, symbolic links followed. A dynamically linked
	// program brings the libraries that ldd lists.
	Files map[string]string
	// Entrypoint is the program with its first arguments, Cmd what a pod's args replace.
	Entrypoint, Cmd []string
	// User is the numeric user, or user:group. Empty means 65532:65532, so that runAsNonRoot holds.
	User string
	// Env is NAME=value settings. PATH is set unless given.
	Env []string
}

// BuildImage writes the image to the file archive in the format of docker save. The same files give the same image.
// The image has /tmp, and works with a read-only root file system.
func BuildImage(ctx context.Context, archive string, image Image) error {
	tag, err := name.NewTag(image.Ref)
	if err != nil {
		return fmt.Errorf("building image %q: %w", image.Ref, err)
	}
	if tag.TagStr() == name.DefaultTag {
		return fmt.Errorf("building image %q: the tag must be another than latest, which is always pulled", image.Ref)
	}
	files, err := withLibraries(ctx, image.Files)
	if err != nil {
		return fmt.Errorf("building image %q: %w", image.Ref, err)
	}
	content, err := layerOf(files)
	if err != nil {
		return fmt.Errorf("building image %q: %w", image.Ref, err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
	if err != nil {
		return fmt.Errorf("building image %q: %w", image.Ref, err)
	}
	made, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("building image %q: %w", image.Ref, err)
	}
	made, err = mutate.ConfigFile(made, configOf(image, made))
	if err != nil {
		return fmt.Errorf("building image %q: %w", image.Ref, err)
	}
	if err := tarball.WriteToFile(archive, tag, made); err != nil {
		return fmt.Errorf("building image %q: %w", image.Ref, err)
	}
	return nil
}

// BuildMemcachedImage writes an image of Debian's memcached to the file archive. Its entrypoint is memcached itself,
// so that a pod's args are memcached's options.
func BuildMemcachedImage(ctx context.Context, archive string) error {
	program, err := debianProgram("memcached")
	if err != nil {
		return err
	}
	return BuildImage(ctx, archive, Image{
		Ref:        MemcachedImage,
		Files:      map[string]string{"/usr/local/bin/memcached": program},
		Entrypoint: []string{"memcached"},
		User:       "11211:11211",
	})
}

func configOf(image Image, made v1.Image) *v1.ConfigFile {
	config, err := made.ConfigFile()
	if err != nil {
		config = &v1.ConfigFile{}
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{
		Entrypoint: image.Entrypoint, Cmd: image.Cmd, User: image.User, Env: slices.Clone(image.Env), WorkingDir: "/",
	}
	if image.User == "" {
		config.Config.User = nonRoot
	}
	if !slices.ContainsFunc(image.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		config.Config.Env = append(config.Config.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return config
}

// withLibraries adds the shared libraries of the programs among the files, at their places on this machine.
func withLibraries(ctx context.Context, files map[string]string) (map[string]string, error) {
	all := maps.Clone(files)
	for _, file := range files {
		libraries, err := librariesOf(ctx, file)
		if err != nil {
			return nil, err
		}
		for _, l := range libraries {
			all[l] = l
		}
	}
	return all, nil
}

var lddLine = regexp.MustCompile(`(?m)(/\S+) \(0x[0-9a-f]+\)$`)

func librariesOf(ctx context.Context, file string) ([]string, error) {
	program, err := elf.Open(file)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, nil // A script, or data.
		}
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	defer func() { _ = program.Close() }()
	if !slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return nil, nil
	}
	out, err := exec.CommandContext(ctx, "ldd", file).Output()
	if err != nil {
		return nil, fmt.Errorf("listing the libraries of %s: %w", file, err)
	}
	if strings.Contains(string(out), "not found") {
		return nil, fmt.Errorf("listing the libraries of %s: one is missing:\n%s", file, out)
	}
	var libraries []string
	for _, match := range lddLine.FindAllStringSubmatch(string(out), -1) {
		libraries = append(libraries, match[1])
	}
	return libraries, nil
}

// layerOf packs the files and the folders above them, in order and without times or owners.
func layerOf(files map[string]string) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	modes := map[string]int64{"/tmp": 0o1777}
	for target := range files {
		if !path.IsAbs(target) || path.Clean(target) != target {
			return nil, fmt.Errorf("path %q in the image is not absolute and clean", target)
		}
		for dir := path.Dir(target); dir != "/"; dir = path.Dir(dir) {
			if _, ok := modes[dir]; !ok {
				modes[dir] = 0o755
			}
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(modes)) {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: modes[dir]}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("packing %s: %w", dir, err)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(files)) {
		if err := packFile(w, target, files[target]); err != nil {
			return nil, fmt.Errorf("packing %s: %w", target, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing the layer: %w", err)
	}
	return layer.Bytes(), nil
}

func packFile(w *tar.Writer, target, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", source)
	}
	// Everybody may read: the user in the container is another than the file's owner.
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(target, "/"), Size: info.Size(),
		Mode: int64(info.Mode().Perm()) | 0o444,
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// LoadImage makes the images in the archives known to the node. Pods use them with imagePullPolicy IfNotPresent or
// Never.
func (t *Testbed) LoadImage(ctx context.Context, archives ...string) error {
	if t.options.Size != Node {
		return fmt.Errorf("loading images needs size node, not %s", t.options.Size)
	}
	ctr, err := debianProgram("ctr")
	if err != nil {
		return err
	}
	for _, archive := range archives {
		archive, err := filepath.Abs(archive)
		if err != nil {
			return fmt.Errorf("loading image: %w", err)
		}
		_, err = t.runProcess(ctx, "ctr-import", ctr, "--address", containerdSocket, "--namespace", "k8s.io",
			"images", "import", archive)
		if err != nil {
			return fmt.Errorf("loading image %s: %w", archive, err)
		}
	}
	return nil
}
