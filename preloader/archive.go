// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/therootcompany/xz"

	"serverless.xyz/outrigger/preloader/crc"
)

// A model that is one archive is unpacked into the destination, as KServe does,
// and the archive is removed. Its members are treated as what they are, names
// chosen by somebody else: they stay beneath the destination, links must not
// lead out of it, devices are refused, and a member shows its final name only
// once it is whole.

// archiveFormat is what a name promises of the content.
type archiveFormat int

const (
	notArchive archiveFormat = iota
	tarArchive
	zipArchive
)

// archiveOf tells by name what Python's mimetypes would call a tar or a zip.
// Compression is told by the content.
func archiveOf(name string) archiveFormat {
	lower := strings.ToLower(name)
	for _, suffix := range []string{".tar", ".tgz", ".taz", ".tz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"} {
		if strings.HasSuffix(lower, suffix) {
			return tarArchive
		}
	}
	if strings.HasSuffix(lower, ".zip") {
		return zipArchive
	}
	return notArchive
}

// unpacked is one file out of an archive.
type unpacked struct {
	size     int64
	modified int64
	crc      uint64
}

// unpacker writes the members of one archive into a tree.
type unpacker struct {
	ctx   context.Context //nolint:containedctx // lives as long as one call of unpack
	store *store
	buf   []byte
	files map[string]unpacked // by path
	links []string
	may   *allowance
}

// unpack puts the members of the archive f, whose name is given, into the tree
// and returns the files by path. What it wrote before an error stays, whole file
// by whole file. The working directory must exist.
func (s *store) unpack(
	ctx context.Context, f *os.File, name string, bounds archiveBounds, buf []byte,
) (map[string]unpacked, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, diskFailure(s.dir, err)
	}
	u := &unpacker{
		ctx: ctx, store: s, buf: buf, files: map[string]unpacked{}, may: bounds.allow(name, info.Size(), s),
	}
	if archiveOf(name) == zipArchive {
		err = u.zip(f)
	} else {
		err = u.tar(f)
	}
	err = errors.Join(err, u.checkLinks())
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, archiveFailure(name, err)
	}
	return u.files, nil
}

func archiveFailure(rel string, err error) error {
	var known *ExitError
	if errors.As(err, &known) && known.Reason != reasonEscapes {
		return err
	}
	return &ExitError{
		Code: ExitIntegrity, Reason: "BadArchive", Cause: "archive " + rel + " cannot be unpacked",
		Advice: "Make the archive anew; it must hold files, folders and links that stay within it.", Err: err,
	}
}

// decompress returns what a compressed stream holds, told by its first bytes.
func decompress(r io.Reader) (io.Reader, error) {
	in := bufio.NewReaderSize(r, 256<<10)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(in)
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(in), nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return xz.NewReader(in, xz.DefaultDictMax)
	}
	return in, nil
}

func (u *unpacker) tar(f *os.File) error {
	plain, err := decompress(f)
	if err != nil {
		return err
	}
	members := tar.NewReader(plain)
	for {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.tarMember(h, members); err != nil {
			return fmt.Errorf("member %q: %w", h.Name, err)
		}
	}
}

func (u *unpacker) tarMember(h *tar.Header, content io.Reader) error {
	// Like Python's data filter: a leading slash is dropped.
	rel, err := memberPath(strings.TrimLeft(h.Name, "/"))
	if err != nil || rel == "." {
		return err
	}
	if err := u.may.member(h.Size); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.folder(rel)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(rel, content, h.FileInfo().Mode())
	case tar.TypeSymlink:
		return u.symlink(rel, h.Linkname)
	case tar.TypeLink:
		return u.hardLink(rel, h.Linkname)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("kind %q is neither a file, a folder nor a link", string(h.Typeflag))
}

func (u *unpacker) zip(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	content := u.may.directory(f)
	members, err := zip.NewReader(content, info.Size())
	content.done()
	if err != nil {
		return err
	}
	if err := u.announced(members.File); err != nil {
		return err
	}
	for _, m := range members.File {
		if err := u.zipMember(m); err != nil {
			return fmt.Errorf("member %q: %w", m.Name, err)
		}
	}
	return nil
}

// announced looks at what the members of a zip say that they come to.
func (u *unpacker) announced(members []*zip.File) error {
	if len(members) > u.may.members {
		return u.may.tooMany()
	}
	var total uint64
	for _, m := range members {
		if m.UncompressedSize64 > uint64(u.may.size) || total > uint64(u.may.size) { //nolint:gosec // not below zero
			return u.may.tooLarge()
		}
		total += m.UncompressedSize64
	}
	if total > uint64(u.may.size) { //nolint:gosec // not below zero
		return u.may.tooLarge()
	}
	return u.may.room(int64(total))
}

func (u *unpacker) zipMember(m *zip.File) error {
	rel, err := memberPath(m.Name)
	if err != nil || rel == "." {
		return err
	}
	if err := u.may.member(int64(m.UncompressedSize64)); err != nil { //nolint:gosec // announced has looked
		return err
	}
	if strings.HasSuffix(m.Name, "/") {
		return u.folder(rel)
	}
	content, err := m.Open()
	if err != nil {
		return err
	}
	defer content.Close() //nolint:errcheck // only read; a bad checksum shows while reading
	// Python's zipfile knows no links and writes their text: so do we.
	return u.file(rel, content, m.Mode())
}

// memberPath cleans a member's name, or says why it cannot be taken.
func memberPath(name string) (string, error) {
	switch {
	case strings.ContainsRune(name, 0):
		return "", errors.New("its name holds a zero byte")
	case strings.HasPrefix(name, "/"):
		return "", errors.New("its name would leave the destination")
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == ".." {
			return "", errors.New("its name would leave the destination")
		}
	}
	rel := path.Clean(name)
	if first, _, _ := strings.Cut(rel, "/"); isOwn(first) {
		return "", errors.New("its name collides with the preloader's own files")
	}
	return rel, nil
}

func (u *unpacker) folder(rel string) error {
	if err := u.store.root.MkdirAll(rel, dirMode); err != nil {
		return diskFailure(u.store.dir, err)
	}
	return nil
}

// file gathers a member's content and gives it its name.
func (u *unpacker) file(rel string, content io.Reader, mode fs.FileMode) error {
	f, err := u.store.openTemp(rel, 0, true)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // closed before its name counts, below
	var got unpacked
	if err := u.copy(f, content, &got); err != nil {
		return err
	}
	if mode.Perm()&0o100 != 0 {
		if err := f.Chmod(dirMode); err != nil {
			return diskFailure(u.store.dir, err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		return diskFailure(u.store.dir, err)
	}
	if err := f.Close(); err != nil {
		return diskFailure(u.store.dir, err)
	}
	got.modified = info.ModTime().UnixNano()
	u.files[rel] = got
	return u.store.publish(rel, info)
}

func (u *unpacker) copy(f *os.File, content io.Reader, got *unpacked) error {
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		n, readErr := readFull(content, u.buf)
		if err := u.may.bytes(n); err != nil {
			return err
		}
		if _, err := f.Write(u.buf[:n]); err != nil {
			return diskFailure(u.store.dir, err)
		}
		got.crc = crc.NVME.Update(got.crc, u.buf[:n])
		got.size += int64(n)
		if errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}

// readFull reads until p is full. Unlike io.ReadFull it leaves the end of the
// stream apart from a stream that broke off.
func readFull(r io.Reader, p []byte) (int, error) {
	total := 0
	for total < len(p) {
		n, err := r.Read(p[total:])
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// symlink makes a link that stays beneath the destination, as far as its text
// tells; checkLinks looks where it really leads.
func (u *unpacker) symlink(rel, target string) error {
	if path.IsAbs(target) || escapes(path.Join(path.Dir(rel), target)) {
		return fmt.Errorf("its link to %q would leave the destination", target)
	}
	if err := u.folder(path.Dir(rel)); err != nil {
		return err
	}
	if err := u.replace(rel); err != nil {
		return err
	}
	if err := u.store.root.Symlink(target, rel); err != nil {
		return diskFailure(u.store.dir, err)
	}
	u.links = append(u.links, rel)
	return nil
}

func escapes(clean string) bool { return clean == ".." || strings.HasPrefix(clean, "../") }

// hardLink makes a second name for an earlier member, which must be a file: a second
// name of a symbolic link would lead elsewhere than the first.
func (u *unpacker) hardLink(rel, target string) error {
	from, err := memberPath(strings.TrimLeft(target, "/"))
	if err != nil {
		return err
	}
	if info, err := u.store.root.Lstat(from); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("its hard link to %q, which is no file, cannot be made", target)
	}
	if err := u.folder(path.Dir(rel)); err != nil {
		return err
	}
	if err := u.replace(rel); err != nil {
		return err
	}
	if err := u.store.root.Link(from, rel); err != nil {
		return fmt.Errorf("linking to member %q: %w", target, err)
	}
	if f, ok := u.files[from]; ok {
		u.files[rel] = f
	}
	return nil
}

// replace makes way for a link; files are replaced by renaming.
func (u *unpacker) replace(rel string) error {
	if err := u.store.root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskFailure(u.store.dir, err)
	}
	delete(u.files, rel)
	return nil
}

// checkLinks removes links that lead out of the destination through other
// links, which their text alone does not show.
func (u *unpacker) checkLinks() error {
	var bad error
	for _, rel := range u.links {
		_, err := u.store.root.Stat(rel)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		bad = errors.Join(bad, fmt.Errorf("link %q leads out of the destination", rel), u.store.root.Remove(rel))
	}
	return bad
}
