// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"io"
	"math"
	"os"

	"serverless.xyz/outrigger/preloader/quantity"
)

// archiveBounds bound what comes out of an archive: a few kilobytes can be made to
// say that they hold terabytes, or millions of files.
type archiveBounds struct {
	// size is how many bytes may come out; 0 stands for what is usual.
	size int64
	// members bounds files, folders and links together.
	members int
}

const (
	// usualRatio is how many times its own length an archive may come to, unless more
	// is allowed. Weights hardly compress at all.
	usualRatio = 100
	// smallestBound is what any archive may come to.
	smallestBound = 1 << 30
	// directoryBytes is what a member may take of a zip's directory, on average.
	directoryBytes = 256
	// lookAgain is after how many bytes the room that is left is looked at again.
	lookAgain = mebibyte
)

// archive returns the bounds that the options set.
func (o Options) archive() archiveBounds {
	return archiveBounds{size: o.ArchiveSize, members: o.ArchiveFiles}
}

// allowance is what may still come out of one archive.
type allowance struct {
	archiveBounds

	name  string
	store *store
	// left counts bytes, and taken members.
	left  int64
	taken int
	// unseen is what came since the room was looked at.
	unseen int64
}

// allow settles the bounds for an archive of so many bytes.
func (b archiveBounds) allow(name string, packed int64, s *store) *allowance {
	if b.size == 0 {
		b.size = max(smallestBound, min(packed, math.MaxInt64/usualRatio)*usualRatio)
	}
	return &allowance{archiveBounds: b, name: name, store: s, left: b.size, unseen: lookAgain}
}

// member counts one more member, which says that it has so many bytes.
func (a *allowance) member(size int64) error {
	if a.taken++; a.taken > a.members {
		return a.tooMany()
	}
	if size < 0 || size > a.left {
		return a.tooLarge()
	}
	if a.unseen += size; a.unseen < lookAgain {
		return nil
	}
	a.unseen = 0
	return a.room(size)
}

// bytes counts bytes that came out.
func (a *allowance) bytes(n int) error {
	if a.left -= int64(n); a.left < 0 {
		return a.tooLarge()
	}
	return nil
}

// room compares with what the destination still takes.
func (a *allowance) room(size int64) error {
	free, known := a.store.takes()
	if !known || size <= free {
		return nil
	}
	return &ExitError{
		Code: ExitNoSpace, Reason: "NoSpace",
		Cause: fmt.Sprintf("unpacking %s needs at least %s more in %s, which has room for %s",
			a.name, quantity.FormatBytes(size), a.store.dir, quantity.FormatBytes(free)),
		Advice: "Give the volume room for the archive and for what it holds.",
	}
}

func (a *allowance) tooLarge() error {
	return &ExitError{
		Code: ExitNoSpace, Reason: "TooLarge",
		Cause:  fmt.Sprintf("archive %s comes to more than %s when it is unpacked", a.name, quantity.FormatBytes(a.size)),
		Advice: "If that is right, set PRELOADER_ARCHIVE_SIZE to what it comes to.",
	}
}

func (a *allowance) tooMany() error {
	return &ExitError{
		Code: ExitNoSpace, Reason: "TooLarge",
		Cause:  fmt.Sprintf("archive %s holds more than %d files, folders and links", a.name, a.members),
		Advice: "If that is right, set PRELOADER_ARCHIVE_FILES to how many it holds.",
	}
}

// directory reads a zip whose directory, which is held in memory, must not be longer
// than so many members need.
type directory struct {
	io.ReaderAt

	left int64
	err  error
}

// directory returns a reader for the time that the directory of a zip is read.
func (a *allowance) directory(r io.ReaderAt) *directory {
	return &directory{ReaderAt: r, left: mebibyte + int64(a.members)*directoryBytes, err: a.tooMany()}
}

// ReadAt reads as long as the directory is not too long.
func (d *directory) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.ReaderAt.ReadAt(p, off)
	if d.left -= int64(n); d.left < 0 {
		return 0, d.err
	}
	return n, err
}

// done lifts the bound: what is read from now on is content.
func (d *directory) done() { d.left = math.MaxInt64 }

// takes returns how many bytes more the destination takes, by its file system and,
// where files are in memory, by the memory that is left.
func (s *store) takes() (int64, bool) {
	free, known := s.free()
	if !s.memory {
		return free, known
	}
	room := max(0, readLimits(os.DirFS("/")).room()-breath)
	if !known {
		return room, true
	}
	return min(free, room), true
}
