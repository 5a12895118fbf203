// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

// ErrCorrupt says that an archive is not what its manifest says.
var ErrCorrupt = errors.New("the archive does not match its manifest")

// corrupt words a mismatch.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Unpack reads the archive that the manifest speaks of and puts its trees into the folder
// dir beneath root, which must be empty or not exist. Everybody may read them, and those
// may write to them who may write to root: an engine is often another user. Until it returns nil nothing there
// may be believed. Wrong bytes are an [ErrCorrupt]; other errors are the file system's,
// the reader's, or the cause of the context's end.
func Unpack(ctx context.Context, archive io.Reader, m *Manifest, root *os.Root, dir string) error {
	hash := sha256.New()
	whole := io.TeeReader(archive, hash)
	z, err := zstd.NewReader(whole, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(1<<30), zstd.WithDecoderMaxWindow(8*window))
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	defer z.Close()
	stream := &bounded{r: z, left: m.Stream}
	u := &unpacker{
		ctx: ctx, root: root, dir: dir, members: tar.NewReader(stream), buf: make([]byte, 256<<10),
		left: m.Contents, trees: map[string]bool{},
	}
	for _, t := range m.Trees {
		u.trees[t.Name] = true
	}
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	u.mode = 0o755 | info.Mode().Perm()
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := u.all(); err != nil {
		return u.blame(err)
	}
	// What follows the last member counts too.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return u.blame(err)
	}
	if _, err := io.Copy(io.Discard, whole); err != nil {
		return fmt.Errorf("reading the archive: %w", err)
	}
	if sum := hex.EncodeToString(hash.Sum(nil)); sum != m.SHA256 {
		return corrupt("its SHA-256 is %s, not %s", sum, m.SHA256)
	}
	if u.left.Files != 0 || u.left.Folders != 0 || u.left.Bytes != 0 || stream.left != 0 {
		return corrupt("%d files, %d folders and %d bytes are missing", u.left.Files, u.left.Folders, u.left.Bytes)
	}
	return nil
}

// bounded ends a stream that is longer than it should be.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, corrupt("it is longer than announced")
	}
	return n, err
}

// longestPath bounds a member's name, in bytes.
const longestPath = 1024

type unpacker struct {
	ctx     context.Context //nolint:containedctx // lives as long as one call of Unpack
	root    *os.Root
	dir     string
	members *tar.Reader
	buf     []byte
	trees   map[string]bool
	// mode is that of folders and of programs.
	mode os.FileMode
	// left is what may still come.
	left Contents
	// disk is set by errors that are not the archive's fault.
	disk error
}

// blame tells the archive's faults from those of the disk and of the reader.
func (u *unpacker) blame(err error) error {
	switch {
	case u.ctx.Err() != nil:
		return context.Cause(u.ctx)
	case u.disk != nil:
		return u.disk
	case errors.Is(err, ErrCorrupt):
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

func (u *unpacker) all() error {
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		h, err := u.members.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.member(h); err != nil {
			return fmt.Errorf("member %q: %w", h.Name, err)
		}
	}
}

func (u *unpacker) member(h *tar.Header) error {
	rel := strings.TrimSuffix(h.Name, "/")
	tree, _, _ := strings.Cut(rel, "/")
	if path.Clean(rel) != rel || !u.trees[tree] || strings.ContainsRune(rel, 0) || len(rel) > longestPath {
		return corrupt("its name leads out of the trees, or is too long")
	}
	at := u.dir + "/" + rel
	switch h.Typeflag {
	case tar.TypeDir:
		if u.left.Folders--; u.left.Folders < 0 {
			return corrupt("it has more folders than announced")
		}
		return u.folder(at)
	case tar.TypeReg:
		return u.file(h, at)
	}
	return corrupt("kind %q is neither a file nor a folder", string(h.Typeflag))
}

// failed notes an error of the disk. What is in the way in a folder that was empty came
// out of the archive.
func (u *unpacker) failed(err error) error {
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR) {
		return corrupt("its name comes twice")
	}
	if err != nil {
		u.disk = err
	}
	return err
}

func (u *unpacker) folder(at string) error {
	if err := u.root.MkdirAll(at, 0o755); err != nil {
		return u.failed(err)
	}
	return u.failed(u.root.Chmod(at, u.mode))
}

func (u *unpacker) file(h *tar.Header, at string) error {
	if u.left.Files--; u.left.Files < 0 {
		return corrupt("it has more files than announced")
	}
	if u.left.Bytes -= h.Size; u.left.Bytes < 0 {
		return corrupt("it has more bytes than announced")
	}
	mode := u.mode &^ 0o111
	if h.Mode&0o100 != 0 {
		mode = u.mode
	}
	if err := u.root.MkdirAll(path.Dir(at), 0o755); err != nil {
		return u.failed(err)
	}
	f, err := u.root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return u.failed(err)
	}
	if err = u.copy(f); err == nil {
		err = u.failed(f.Chmod(mode)) // whatever the umask
	}
	if closeErr := u.failed(f.Close()); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return u.failed(u.root.Chtimes(at, h.ModTime, h.ModTime))
}

func (u *unpacker) copy(f *os.File) error {
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		n, readErr := u.members.Read(u.buf)
		if _, err := f.Write(u.buf[:n]); err != nil {
			return u.failed(err)
		}
		if errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}
