// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// window is how far back the compression looks. It bounds what unpacking takes of memory.
const window = 1 << 20

// ErrTooMany says that trees hold more files or folders than compiled kernels ever are.
var ErrTooMany = fmt.Errorf("the trees hold more than %d files or folders", mostMembers)

// ErrChanging says that files changed while they were packed.
var ErrChanging = errors.New("the trees are being written to")

// Contents is what an archive holds.
type Contents struct {
	// Files counts regular files, Folders the folders, and Bytes is the sum of the files' sizes.
	Files   int   `json:"files"`
	Folders int   `json:"folders"`
	Bytes   int64 `json:"bytes"`
	// Stream is the length of the archive before compression.
	Stream int64 `json:"stream"`
	// LeftOut counts what was not packed: locks, half-written files, links, devices, and
	// what has too long a name.
	LeftOut int `json:"leftOut,omitempty"`
}

// Pack writes the trees to w as a compressed tar archive. The same files give the same
// bytes. If a file changes meanwhile, the error is [ErrChanging]; if there are more than
// Unpack takes, it is [ErrTooMany].
func Pack(ctx context.Context, w io.Writer, trees []Tree) (Contents, error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return Contents{}, fmt.Errorf("compressing: %w", err)
	}
	stream := &counter{w: z}
	p := &packer{ctx: ctx, out: tar.NewWriter(stream), buf: make([]byte, 256<<10)}
	sorted := slices.SortedFunc(slices.Values(trees), func(a, b Tree) int { return cmp.Compare(a.Name, b.Name) })
	for _, tree := range sorted {
		if err := p.tree(tree); err != nil {
			return Contents{}, errors.Join(fmt.Errorf("packing tree %s: %w", tree.Name, err), z.Close())
		}
	}
	if err := errors.Join(p.out.Close(), z.Close()); err != nil {
		return Contents{}, fmt.Errorf("compressing: %w", err)
	}
	p.contents.Stream = stream.n
	return p.contents, nil
}

// counter counts what passes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

type packer struct {
	ctx      context.Context //nolint:containedctx // lives as long as one call of Pack
	out      *tar.Writer
	buf      []byte
	contents Contents
}

func (p *packer) tree(tree Tree) error {
	root, err := os.OpenRoot(tree.Path)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only read
	return fs.WalkDir(root.FS(), ".", func(rel string, d fs.DirEntry, err error) error {
		switch {
		case p.ctx.Err() != nil:
			return context.Cause(p.ctx)
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: %w", ErrChanging, err)
		case err != nil:
			return err
		case rel != "." && (isPassing(d.Name()) || len(tree.Name)+1+len(rel) > longestPath):
			p.contents.LeftOut++
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case p.contents.Files >= mostMembers || p.contents.Folders >= mostMembers:
			return ErrTooMany
		case d.IsDir():
			p.contents.Folders++
			return p.out.WriteHeader(&tar.Header{
				Typeflag: tar.TypeDir,
				Name:     strings.TrimSuffix(tree.Name+"/"+rel, "/.") + "/",
				Mode:     0o755,
				Format:   tar.FormatPAX,
			})
		case !d.Type().IsRegular():
			p.contents.LeftOut++
			return nil
		}
		return p.file(root, rel, tree.Name+"/"+rel)
	})
}

// isPassing tells by its name what an engine only needs while it compiles. A lock that
// stays behind makes PyTorch wait for ever.
func isPassing(name string) bool {
	return name == "lock" || strings.HasSuffix(name, ".lock") || strings.HasSuffix(name, ".tmp") ||
		strings.HasPrefix(name, "tmp.") || strings.Contains(name, ".tmp.") || strings.HasPrefix(name, ".preloader")
}

func (p *packer) file(root *os.Root, rel, name string) error {
	f, err := root.Open(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrChanging, err)
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	before, err := f.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: before.Size(), Mode: 0o644, ModTime: before.ModTime(), Format: tar.FormatPAX,
	}
	if before.Mode()&0o100 != 0 {
		header.Mode = 0o755
	}
	if err := p.out.WriteHeader(header); err != nil {
		return err
	}
	if err := p.copy(f, before.Size()); err != nil {
		return fmt.Errorf("%s: %w", rel, err)
	}
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return fmt.Errorf("%w: %s", ErrChanging, rel)
	}
	p.contents.Files++
	p.contents.Bytes += before.Size()
	return nil
}

func (p *packer) copy(f *os.File, left int64) error {
	for left > 0 {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := f.Read(p.buf[:min(left, int64(len(p.buf)))])
		if errors.Is(err, io.EOF) {
			return ErrChanging
		}
		if err != nil {
			return err
		}
		if _, err := p.out.Write(p.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
