// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// file is what a test puts into a tree.
type file struct {
	text string
	mode os.FileMode
	time time.Time
}

var built = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

// plant writes files below a folder.
func plant(t *testing.T, dir string, files map[string]file) {
	t.Helper()
	for rel, f := range files {
		at := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(at, f.time, f.time); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, dir string) map[string]file {
	t.Helper()
	found := map[string]file{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		found[rel] = file{string(raw), info.Mode(), info.ModTime().UTC()}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// packed packs trees and describes the archive as a publisher would.
func packed(t *testing.T, trees ...Tree) ([]byte, *Manifest) {
	t.Helper()
	var out bytes.Buffer
	contents, err := Pack(t.Context(), &out, trees)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), describe(out.Bytes(), contents, trees...)
}

func describe(archive []byte, contents Contents, trees ...Tree) *Manifest {
	sum := sha256.Sum256(archive)
	return &Manifest{
		Form: form, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(archive)), Contents: contents, Trees: trees,
	}
}

func unpackInto(ctx context.Context, t *testing.T, archive io.Reader, m *Manifest, dir string) error {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return Unpack(ctx, archive, m, root, "fresh")
}

func TestWhatIsPackedIsUnpacked(t *testing.T) {
	dir := t.TempDir()
	vllm, triton := Tree{"vllm", filepath.Join(dir, "a")}, Tree{"triton", filepath.Join(dir, "b")}
	kept := map[string]file{
		"torch_compile_cache/1f/rank_0_0/graph.py": {"compiled", 0o644, built},
		"empty":       {"", 0o644, built.Add(time.Nanosecond)},
		"ö/kernel.so": {strings.Repeat("machine code ", 100_000), 0o755, built},
	}
	long := strings.Repeat("long/", 205)
	passing := map[string]file{
		long + "x": {"", 0o644, built},
		"x.lock":   {"1", 0o644, built}, "lock": {"", 0o644, built}, "a.tmp": {"half", 0o644, built},
		"tmp.pid_7_ab/kernel.cubin": {"half", 0o644, built}, "k.json.tmp.7": {"half", 0o644, built},
		".preloader.json": {"{}", 0o644, built},
	}
	plant(t, vllm.Path, kept)
	plant(t, vllm.Path, passing)
	plant(t, triton.Path, map[string]file{"AB12/k.cubin": {"cubin", 0o600, built}})
	if err := os.Symlink("/etc/passwd", filepath.Join(vllm.Path, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(vllm.Path, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	archive, m := packed(t, triton, vllm)
	if m.Files != 4 || m.LeftOut != len(passing)+2 {
		t.Errorf("contents %+v", m.Contents)
	}
	again, _ := packed(t, vllm, triton)
	if !bytes.Equal(archive, again) {
		t.Error("the same trees gave other bytes")
	}
	to := t.TempDir()
	if err := unpackInto(t.Context(), t, bytes.NewReader(archive), m, to); err != nil {
		t.Fatal(err)
	}
	want := map[string]file{"triton/AB12/k.cubin": {"cubin", 0o644, built}}
	for rel, f := range kept {
		want["vllm/"+rel] = f
	}
	if diff := cmp.Diff(want, read(t, filepath.Join(to, "fresh")), cmp.AllowUnexported(file{})); diff != "" {
		t.Errorf("unpacked (-want +got):\n%s", diff)
	}
}

func TestTreesAreWritableForWhomTheDirectoryIs(t *testing.T) {
	tree := Tree{"vllm", t.TempDir()}
	plant(t, tree.Path, map[string]file{"a/text": {"a", 0o600, built}, "a/program": {"b", 0o755, built}})
	archive, m := packed(t, tree)
	tests := map[os.FileMode][3]os.FileMode{ // the directory's, that of folders, of programs, of files
		0o700: {0o755, 0o755, 0o644}, 0o755: {0o755, 0o755, 0o644}, 0o775: {0o775, 0o775, 0o664}, 0o777: {0o777, 0o777, 0o666},
	}
	for mode, want := range tests {
		to := t.TempDir()
		if err := os.Chmod(to, mode); err != nil {
			t.Fatal(err)
		}
		if err := unpackInto(t.Context(), t, bytes.NewReader(archive), m, to); err != nil {
			t.Fatal(err)
		}
		for i, rel := range []string{"fresh/vllm/a", "fresh/vllm/a/program", "fresh/vllm/a/text"} {
			info, err := os.Stat(filepath.Join(to, rel))
			if err != nil || info.Mode().Perm() != want[i] {
				t.Errorf("in a directory of mode %v, %s is %v, %v; want %v", mode, rel, info.Mode(), err, want[i])
			}
		}
	}
}

// crafted builds an archive of any members.
func crafted(t *testing.T, members ...tar.Header) ([]byte, *Manifest) {
	t.Helper()
	var plain, out bytes.Buffer
	w := tar.NewWriter(&plain)
	contents := Contents{}
	for _, h := range members {
		text := "x"
		if h.Typeflag != tar.TypeReg {
			text = ""
		}
		h.Size = int64(len(text))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			contents.Folders++
		case tar.TypeReg:
			contents.Files++
			contents.Bytes += h.Size
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	contents.Stream = int64(plain.Len())
	z, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), describe(out.Bytes(), contents, Tree{Name: "vllm"})
}

func TestHostileArchivesAreRefused(t *testing.T) {
	regular := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	tests := map[string][]tar.Header{
		"a name that climbs":            {regular("vllm/../../outside")},
		"a name that climbs at once":    {regular("../outside")},
		"an absolute name":              {regular("/vllm/x")},
		"a tree that was not announced": {regular("triton/x")},
		"a file beside the trees":       {regular("x")},
		"a name with a dot":             {regular("vllm/./x")},
		"a very long name":              {regular("vllm/" + strings.Repeat("d/", 600) + "x")},
		"a symbolic link":               {{Typeflag: tar.TypeSymlink, Name: "vllm/l", Linkname: "/etc"}},
		"a hard link":                   {regular("vllm/x"), {Typeflag: tar.TypeLink, Name: "vllm/l", Linkname: "vllm/x"}},
		"a device":                      {{Typeflag: tar.TypeChar, Name: "vllm/null", Devmajor: 1, Devminor: 3}},
		"a pipe":                        {{Typeflag: tar.TypeFifo, Name: "vllm/p"}},
		"a name that comes twice":       {regular("vllm/x"), regular("vllm/x")},
		"a file that is a folder too":   {regular("vllm/x"), regular("vllm/x/y")},
		"a folder that is a file too":   {regular("vllm/x/y"), regular("vllm/x")},
		"a file of a tree's name":       {regular("vllm"), regular("vllm/x")},
		"a folder over a file":          {regular("vllm/x"), {Typeflag: tar.TypeDir, Name: "vllm/x/", Mode: 0o755}},
	}
	for name, members := range tests {
		t.Run(name, func(t *testing.T) {
			archive, m := crafted(t, members...)
			to := t.TempDir()
			err := unpackInto(t.Context(), t, bytes.NewReader(archive), m, to)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v, want a corrupt archive", err)
			}
			entries, readErr := os.ReadDir(to)
			if readErr != nil || len(entries) != 1 || entries[0].Name() != "fresh" {
				t.Errorf("left %v outside, %v", entries, readErr)
			}
		})
	}
}

func TestArchivesThatDoNotMatchTheirManifestAreRefused(t *testing.T) {
	tree := Tree{"vllm", t.TempDir()}
	plant(t, tree.Path, map[string]file{"a": {strings.Repeat("a", 300_000), 0o644, built}, "b/c": {"c", 0o644, built}})
	tests := map[string]func(archive []byte, m *Manifest) []byte{
		"a flipped byte":      func(a []byte, _ *Manifest) []byte { a[len(a)/2] ^= 1; return a },
		"the last byte":       func(a []byte, _ *Manifest) []byte { a[len(a)-1] ^= 1; return a },
		"cut short":           func(a []byte, _ *Manifest) []byte { return a[:len(a)-9] },
		"nothing":             func([]byte, *Manifest) []byte { return nil },
		"no archive":          func([]byte, *Manifest) []byte { return []byte("<html>503</html>") },
		"bytes behind it":     func(a []byte, _ *Manifest) []byte { return append(a, 1, 2, 3) },
		"a frame behind it":   func(a []byte, _ *Manifest) []byte { return append(a, a...) },
		"another digest":      func(a []byte, m *Manifest) []byte { m.SHA256 = strings.Repeat("0", 64); return a },
		"more bytes":          func(a []byte, m *Manifest) []byte { m.Bytes--; return a },
		"fewer bytes":         func(a []byte, m *Manifest) []byte { m.Bytes++; return a },
		"more files":          func(a []byte, m *Manifest) []byte { m.Files--; return a },
		"fewer files":         func(a []byte, m *Manifest) []byte { m.Files++; return a },
		"more folders":        func(a []byte, m *Manifest) []byte { m.Folders--; return a },
		"fewer folders":       func(a []byte, m *Manifest) []byte { m.Folders++; return a },
		"more before packing": func(a []byte, m *Manifest) []byte { m.Stream -= 512; return a },
		"less before packing": func(a []byte, m *Manifest) []byte { m.Stream += 512; return a },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			archive, m := packed(t, tree)
			archive = spoil(bytes.Clone(archive), m)
			if err := unpackInto(t.Context(), t, bytes.NewReader(archive), m, t.TempDir()); !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v, want a corrupt archive", err)
			}
		})
	}
}

// TestBombEndsAtWhatWasAnnounced unpacks what swells a thousandfold.
func TestBombEndsAtWhatWasAnnounced(t *testing.T) {
	var plain, out bytes.Buffer
	w := tar.NewWriter(&plain)
	const size = 64 << 20
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "vllm/x", Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	m := describe(out.Bytes(), Contents{Files: 1, Bytes: size, Stream: 1 << 20}, Tree{Name: "vllm"})
	to := t.TempDir()
	if err := unpackInto(t.Context(), t, &out, m, to); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	info, err := os.Stat(filepath.Join(to, "fresh/vllm/x"))
	if err == nil && info.Size() > 2<<20 {
		t.Errorf("wrote %d bytes", info.Size())
	}
}

func TestUnpackingEndsWithTheContext(t *testing.T) {
	tree := Tree{"vllm", t.TempDir()}
	plant(t, tree.Path, map[string]file{"a": {"a", 0o644, built}})
	archive, m := packed(t, tree)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := unpackInto(ctx, t, bytes.NewReader(archive), m, t.TempDir()); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	if _, err := Pack(ctx, io.Discard, []Tree{tree}); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
}

// writerFunc is a writer that does something else too.
type writerFunc func()

func (w writerFunc) Write(p []byte) (int, error) { w(); return len(p), nil }

func TestTreesThatChangeAreNotPacked(t *testing.T) {
	tests := map[string]func(path string) error{
		"a file that grows":    func(path string) error { return os.WriteFile(path, make([]byte, 20<<20), 0o644) },
		"a file that shrinks":  func(path string) error { return os.Truncate(path, 1) },
		"a file that is newer": func(path string) error { return os.Chtimes(path, built, time.Now()) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			tree := Tree{"vllm", t.TempDir()}
			path := filepath.Join(tree.Path, "a")
			noise := make([]byte, 10<<20)
			for i := range noise {
				noise[i] = byte(i*i*i>>3) ^ byte(i>>11)
			}
			plant(t, tree.Path, map[string]file{"a": {string(noise), 0o644, built}})
			once := false
			_, err := Pack(t.Context(), writerFunc(func() {
				if !once {
					once = true
					if err := change(path); err != nil {
						t.Error(err)
					}
				}
			}), []Tree{tree})
			if !errors.Is(err, ErrChanging) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestParseKey(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    string
		wantErr string
	}{
		"nothing": {"", "", ""},
		"parts": {
			"tp=2, engine=vllm/vllm-openai:v0.11.0@sha256:ab",
			"engine=vllm/vllm-openai:v0.11.0@sha256:ab,tp=2",
			"",
		},
		"spaces in a value":  {"gpu=NVIDIA H100 80GB HBM3", "gpu=NVIDIA H100 80GB HBM3", ""},
		"no value":           {"engine", "", "form name=value"},
		"an empty value":     {"engine=", "", "one line"},
		"an upper case name": {"Engine=x", "", "lower case"},
		"twice":              {"tp=1,tp=2", "", "twice"},
		"two lines":          {"engine=a\nb", "", "one line"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			k, err := ParseKey(tc.text)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error %v, want %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || k.String() != tc.want {
				t.Errorf("key %q, error %v, want %q", k, err, tc.want)
			}
		})
	}
}

func TestKeysNameOneCache(t *testing.T) {
	a := Key{"engine": "x", "gpu": "H100"}
	if b := (Key{"gpu": "H100"}).Under(Key{"engine": "x", "gpu": "found"}); a.Digest() != b.Digest() {
		t.Errorf("%s is not %s", a, b)
	}
	c := Key{"engine": "y", "gpu": "H100", "tp": "2"}
	if a.Digest() == c.Digest() {
		t.Error("two keys, one digest")
	}
	if diff := cmp.Diff([]string{"engine", "tp"}, a.Differences(c)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	if got := (Key{"gpu": "x"}).Missing(); got != "engine" {
		t.Errorf("missing %q", got)
	}
}

func TestMachineIsReadFromProc(t *testing.T) {
	gpu := func(model string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte("Model: \t\t " + model + "\nIRQ:   \t\t 16\nGPU UUID: \t GPU-1\n")}
	}
	open := "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)\nGCC version:  gcc version 12.2.0\n"
	closed := "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 11.4.0\n"
	tests := map[string]struct {
		proc fstest.MapFS
		want Key
	}{
		"no driver": {fstest.MapFS{}, Key{}},
		"one kind of GPU": {fstest.MapFS{
			"proc/driver/nvidia/version":                       {Data: []byte(closed)},
			"proc/driver/nvidia/gpus/0000:01:00.0/information": gpu("NVIDIA H100 80GB HBM3"),
			"proc/driver/nvidia/gpus/0000:02:00.0/information": gpu("NVIDIA H100 80GB HBM3"),
		}, Key{"driver": "550", "gpu": "NVIDIA H100 80GB HBM3"}},
		"two kinds": {fstest.MapFS{
			"proc/driver/nvidia/version":                       {Data: []byte(open)},
			"proc/driver/nvidia/gpus/0000:01:00.0/information": gpu("NVIDIA L4"),
			"proc/driver/nvidia/gpus/0000:02:00.0/information": gpu("NVIDIA A10"),
		}, Key{"driver": "570", "gpu": "NVIDIA A10 + NVIDIA L4"}},
		"odd words": {fstest.MapFS{
			"proc/driver/nvidia/version":                       {Data: []byte("beta\n")},
			"proc/driver/nvidia/gpus/0000:01:00.0/information": gpu("a\x00b"),
		}, Key{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := Machine(tc.proc)
			if got[KeyArch] == "" {
				t.Error("the processor is not named")
			}
			delete(got, KeyArch)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("machine (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindTrees(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"cache/vllm", "cache/triton", "cache/.hidden", "cache/Odd", "elsewhere", "tensorrt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cache/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args    []string
		dir     string
		env     map[string]string
		want    []string
		wantErr string
	}{
		"the folders of the cache directory": {dir: "cache", want: []string{"triton cache/triton", "vllm cache/vllm"}},
		"the engines' variables go first": {
			dir: "cache", env: map[string]string{"TRITON_CACHE_DIR": "elsewhere", "CUDA_CACHE_PATH": "none"},
			want: []string{"triton elsewhere", "vllm cache/vllm"},
		},
		"a directory":         {args: []string{"cache"}, want: []string{"triton cache/triton", "vllm cache/vllm"}},
		"a tree by name":      {args: []string{"tensorrt=tensorrt"}, dir: "cache", want: []string{"tensorrt tensorrt"}},
		"nothing":             {dir: "none"},
		"a tree that is none": {args: []string{"vllm=none"}, wantErr: "no such file"},
		"a file":              {args: []string{"vllm=cache/file"}, wantErr: "invalid argument"},
		"a directory of none": {args: []string{"none"}, wantErr: "no such file"},
		"an odd name":         {args: []string{"V=cache"}, wantErr: "no name for a tree"},
		"a name twice":        {args: []string{"vllm=elsewhere", "cache"}, wantErr: "twice"},
	}
	t.Chdir(dir)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			found, err := FindTrees(tc.args, tc.dir, func(n string) string { return tc.env[n] })
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error %v, want %q", err, tc.wantErr)
				}
				return
			}
			var got []string
			for _, f := range found {
				rel, _ := filepath.Rel(dir, f.Path)
				got = append(got, f.Name+" "+rel)
			}
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
				t.Errorf("error %v, trees (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestParseManifest(t *testing.T) {
	good := func() *Manifest {
		return &Manifest{
			Form: form, Key: Key{"engine": "x"}, SHA256: strings.Repeat("ab", 32), Size: 10,
			Contents: Contents{Files: 1, Bytes: 1, Stream: 2048}, Trees: []Tree{{"triton", "/t"}, {"vllm", "/v"}},
		}
	}
	tests := map[string]func(*Manifest){
		"another key":        func(m *Manifest) { m.Key = Key{"engine": "y"} },
		"no digest":          func(m *Manifest) { m.SHA256 = "../../x" },
		"no size":            func(m *Manifest) { m.Size = 0 },
		"a negative size":    func(m *Manifest) { m.Bytes = -1 },
		"a size beyond all":  func(m *Manifest) { m.Stream = 1 << 62 },
		"too many files":     func(m *Manifest) { m.Files = 1 << 30 },
		"no tree":            func(m *Manifest) { m.Trees = nil },
		"a tree that climbs": func(m *Manifest) { m.Trees[0].Name = "../x" },
		"a tree twice":       func(m *Manifest) { m.Trees[0].Name = "vllm" },
	}
	long := good()
	for i := range 1000 {
		long.Trees = append(long.Trees, Tree{fmt.Sprintf("w%04d", i), strings.Repeat("x", 80)})
	}
	if _, err := long.Encode(); err == nil {
		t.Error("a manifest that nobody would read was written")
	}
	raw, err := good().Encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseManifest(raw, Key{"engine": "x"})
	if diff := cmp.Diff(good(), m); err != nil || diff != "" {
		t.Fatalf("error %v (-want +got):\n%s", err, diff)
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			m := good()
			spoil(m)
			raw, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParseManifest(raw, Key{"engine": "x"}); err == nil {
				t.Error("it was taken")
			}
			if _, err := m.Encode(); (err == nil) != (name == "another key") {
				t.Errorf("writing it ends with %v", err)
			}
		})
	}
	if _, err := ParseManifest([]byte(`{"form":2}`), nil); err == nil || !strings.Contains(err.Error(), "form 2") {
		t.Errorf("error %v", err)
	}
}

// FuzzUnpack looks for panics and for anything outside of the folder.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("x"), int64(100))
	f.Fuzz(func(t *testing.T, plain []byte, stream int64) {
		var out bytes.Buffer
		z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = z.Write(plain)
		_ = z.Close()
		m := describe(out.Bytes(), Contents{Files: 3, Bytes: 1 << 16, Stream: stream & 0xfffff}, Tree{Name: "vllm"})
		to := t.TempDir()
		_ = unpackInto(t.Context(), t, &out, m, to)
		entries, err := os.ReadDir(to)
		if err != nil || len(entries) > 1 {
			t.Errorf("left %v, %v", entries, err)
		}
	})
}
