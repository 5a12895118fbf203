// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"serverless.xyz/outrigger/test/testbed"
)

// contents returns the modes of the files in the image's one layer.
func contents(t *testing.T, archive string) map[string]int64 {
	t.Helper()
	image, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, error %v, want one layer", len(layers), err)
	}
	layer, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = layer.Close() }()
	modes := map[string]int64{}
	for r := tar.NewReader(layer); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return modes
		}
		if err != nil {
			t.Fatal(err)
		}
		modes["/"+header.Name] = header.Mode
	}
}

func TestBuildImage(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	image := testbed.Image{
		Ref: "outrigger.test/image:1", Files: map[string]string{"/bin/sh": "/bin/sh", "/opt/script": script},
		Entrypoint: []string{"/opt/script"},
	}
	archive, again := filepath.Join(dir, "a.tar"), filepath.Join(dir, "b.tar")
	for _, to := range []string{archive, again} {
		if err := testbed.BuildImage(t.Context(), to, image); err != nil {
			t.Fatal(err)
		}
	}
	first, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the same files gave two different images")
	}
	modes := contents(t, archive)
	for file, want := range map[string]int64{"/tmp/": 0o1777, "/opt/script": 0o744, "/opt/": 0o755} {
		if got, ok := modes[file]; !ok || got != want {
			t.Errorf("%s has mode %o, want %o", file, got, want)
		}
	}
	libraries := 0
	for file := range modes {
		if strings.Contains(file, "libc.so") || strings.Contains(file, "/ld-linux") {
			libraries++
		}
	}
	if libraries != 2 {
		t.Errorf("%d of libc and the loader in %v, want both beside /bin/sh", libraries, modes)
	}
	made, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := made.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" {
		t.Errorf("user %q, want a number other than 0, for runAsNonRoot", config.Config.User)
	}
}

func TestBuildImageRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		image testbed.Image
		want  string
	}{
		"no tag":                      {testbed.Image{Ref: "image"}, "latest"},
		"tag latest":                  {testbed.Image{Ref: "image:latest"}, "latest"},
		"malformed reference":         {testbed.Image{Ref: "A B"}, "A B"},
		"file that is not there":      {testbed.Image{Ref: "image:1", Files: map[string]string{"/a": "/no/such"}}, "/no/such"},
		"folder instead of a file":    {testbed.Image{Ref: "image:1", Files: map[string]string{"/a": "/usr"}}, "/usr"},
		"path that leaves the image":  {testbed.Image{Ref: "image:1", Files: map[string]string{"/../a": "/bin/sh"}}, "/../a"},
		"path relative to the image":  {testbed.Image{Ref: "image:1", Files: map[string]string{"a": "/bin/sh"}}, `"a"`},
		"archive in no writable path": {testbed.Image{Ref: "image:1"}, "no-such-folder"},
	} {
		t.Run(name, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "a.tar")
			if strings.HasPrefix(name, "archive") {
				archive = filepath.Join(t.TempDir(), "no-such-folder", "a.tar")
			}
			err := testbed.BuildImage(t.Context(), archive, tc.image)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestLoadImageNeedsANode(t *testing.T) {
	tb := testbed.Shared(t, testbed.API)
	if err := tb.LoadImage(t.Context(), "a.tar"); err == nil || !strings.Contains(err.Error(), "size node") {
		t.Errorf("error %v, want it to name size node", err)
	}
}
