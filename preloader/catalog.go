// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"slices"
	"strconv"
	"strings"

	"serverless.xyz/outrigger/preloader/crc"
)

// entry is an object and the file that it becomes.
type entry struct {
	object object
	// rel is the path below the destination, cleaned, with slashes.
	rel string
	// uri names the object for people and for what is noted on disk.
	uri string
	// at is where it is in the catalog that it was taken from.
	at int
}

// catalog is what is known of files, by path. A model may have a million, so each
// takes few bytes beyond its path, outside the heap, and is made an entry or a
// record only while somebody looks at it. Files are told apart by their index,
// which holds until the catalog is sorted, or something is dropped from it.
// Its methods must not be called at once.
type catalog struct {
	// base is what most URIs have before the path.
	base string
	rows []place
	text arena
	buf  []byte
}

// standing is how far a file has come.
type standing byte

const (
	// missing files have to be fetched.
	missing standing = iota
	// noted files were fetched by an earlier run. Whether they are still in place
	// has yet to be looked at.
	noted
	// ready files are in place.
	ready
	// stale files are in place too, but the source no longer has them.
	stale
)

// A row begins with what may change: the standing, evidence and kind of check in
// one byte, the file's modification time, and its check. Behind that are path,
// size, the object's date, its ETag and, unless it is base and path, its URI.
const (
	rowTime = 1
	rowSum  = rowTime + 8
	rowText = rowSum + 8

	evidenceShift, kindShift = 2, 5
	standingMask             = 1<<evidenceShift - 1
	evidenceMask             = 1<<(kindShift-evidenceShift) - 1
)

var (
	rowEvidence = []Evidence{"", EvidenceChecksum, EvidenceParts, EvidenceMD5, EvidenceSums, EvidenceSize}
	rowKinds    = []*crc.Kind{nil, crc.NVME, crc.Castagnoli, crc.IEEE}
)

func (c *catalog) len() int { return len(c.rows) }

// free gives the memory back.
func (c *catalog) free() {
	c.text.free()
	*c = catalog{}
}

// add puts a file that is missing behind all others. It reports whether there was
// room.
func (c *catalog) add(e entry) bool {
	at, ok := c.write(e)
	if ok {
		c.rows = append(c.rows, at)
	}
	return ok
}

func (c *catalog) write(e entry) (place, bool) {
	if c.base == "" && strings.HasSuffix(e.uri, e.rel) {
		c.base = strings.TrimSuffix(e.uri, e.rel)
	}
	b := appendText(append(c.buf[:0], make([]byte, rowText)...), e.rel)
	b = binary.AppendVarint(b, e.object.size)
	b = binary.AppendVarint(b, e.object.modified)
	b = appendTag(b, e.object.etag)
	if rest, ok := strings.CutPrefix(e.uri, c.base); ok && rest == e.rel && c.base != "" {
		b = append(b, 0)
	} else {
		b = appendText(append(b, 1), e.uri)
	}
	c.buf = b
	return c.text.put(b)
}

// put puts a file that has a record behind all others, and reports whether it
// could: a record that this program did not make may say what it cannot note.
func (c *catalog) put(r *FileRecord, s standing) bool {
	e := entry{object: object{etag: r.Version, size: r.Size}, rel: r.Path, uri: r.Object}
	if !c.add(e) {
		return false
	}
	last := len(c.rows) - 1
	if !c.note(last, r, s) {
		c.rows = c.rows[:last]
		return false
	}
	return true
}

// note takes the time, the check and the evidence of a record over, and reports
// whether it could.
func (c *catalog) note(i int, r *FileRecord, s standing) bool {
	evidence := slices.Index(rowEvidence, r.Evidence)
	kind := crc.ByName(r.CRC)
	if evidence < 0 || kind == nil {
		return false
	}
	sum, err := kind.Decode(r.Sum)
	if err != nil {
		return false
	}
	row := c.text.at(c.rows[i])
	row[0] = byte(s) | byte(evidence<<evidenceShift|slices.Index(rowKinds, kind)<<kindShift) //nolint:gosec // few bits
	binary.LittleEndian.PutUint64(row[rowTime:], uint64(r.Modified))                         //nolint:gosec // read back as it was
	binary.LittleEndian.PutUint64(row[rowSum:], sum)
	return true
}

// fetched notes a file that is ready, of an object that may be another than was
// listed.
func (c *catalog) fetched(e *entry, r *FileRecord) {
	if now := c.entry(e.at); now.object.version() != e.object.version() || now.object.size != e.object.size {
		if at, ok := c.write(*e); ok {
			c.rows[e.at] = at
		}
	}
	c.note(e.at, r, ready)
}

func (c *catalog) standing(i int) standing {
	return standing(c.text.at(c.rows[i])[0] & standingMask)
}

func (c *catalog) set(i int, s standing) {
	row := c.text.at(c.rows[i])
	row[0] = row[0]&^standingMask | byte(s)
}

// promote has files in place that were noted.
func (c *catalog) promote() {
	for i := range c.having(noted) {
		c.set(i, ready)
	}
}

// path returns the path of a file, which is the catalog's own memory.
func (c *catalog) path(i int) []byte {
	text, _ := cutText(c.text.at(c.rows[i])[rowText:])
	return text
}

// size returns the length of a file.
func (c *catalog) size(i int) int64 {
	_, rest := cutText(c.text.at(c.rows[i])[rowText:])
	size, _ := binary.Varint(rest)
	return size
}

// entry returns a file as it was listed.
func (c *catalog) entry(i int) entry {
	rel, rest := cutText(c.text.at(c.rows[i])[rowText:])
	e := entry{at: i}
	var n int
	e.object.size, n = binary.Varint(rest)
	rest = rest[n:]
	e.object.modified, n = binary.Varint(rest)
	e.object.etag, rest = cutTag(rest[n:])
	if rest[0] == 0 {
		e.uri = c.base + string(rel)
		e.rel = e.uri[len(c.base):]
	} else {
		uri, _ := cutText(rest[1:])
		e.uri, e.rel = string(uri), string(rel)
	}
	_, e.object.key, _ = strings.Cut(strings.TrimPrefix(e.uri, "s3://"), "/")
	return e
}

// record returns what was noted of a file.
func (c *catalog) record(i int) *FileRecord {
	row, e := c.text.at(c.rows[i]), c.entry(i)
	r := &FileRecord{
		Path: e.rel, Object: e.uri, Version: e.object.version(), Size: e.object.size,
		Modified: int64(binary.LittleEndian.Uint64(row[rowTime:])), //nolint:gosec // written as it is
		Evidence: rowEvidence[row[0]>>evidenceShift&evidenceMask],
	}
	if kind := rowKinds[row[0]>>kindShift]; kind != nil {
		r.CRC, r.Sum = kind.Name, kind.Encode(binary.LittleEndian.Uint64(row[rowSum:]))
	}
	return r
}

// evidence returns why a file is believed.
func (c *catalog) evidence(i int) Evidence {
	return rowEvidence[c.text.at(c.rows[i])[0]>>evidenceShift&evidenceMask]
}

// find returns the index of a path. The catalog must be sorted.
func (c *catalog) find(rel string) (int, bool) {
	i, found := 0, len(c.rows)
	for i < found { // as slices.BinarySearch does
		middle := int(uint(i+found) >> 1)
		if string(c.path(middle)) < rel {
			i = middle + 1
		} else {
			found = middle
		}
	}
	return i, i < len(c.rows) && string(c.path(i)) == rel
}

// sort puts the files in the order of their paths; those of one path stay in the
// order in which they came.
func (c *catalog) sort() {
	byPath := func(a, b place) int {
		one, _ := cutText(c.text.at(a)[rowText:])
		other, _ := cutText(c.text.at(b)[rowText:])
		return bytes.Compare(one, other)
	}
	if !slices.IsSortedFunc(c.rows, byPath) {
		slices.SortStableFunc(c.rows, byPath)
	}
}

// settle sorts the files and drops all of one path but the last.
func (c *catalog) settle() {
	c.sort()
	c.drop(func(i int) bool { return i+1 < len(c.rows) && bytes.Equal(c.path(i), c.path(i+1)) })
}

// drop forgets the files that the function wants gone. It is called with indexes
// as they were before.
func (c *catalog) drop(gone func(i int) bool) {
	kept := make([]place, 0, len(c.rows))
	for i, at := range c.rows {
		if !gone(i) {
			kept = append(kept, at)
		}
	}
	if len(kept) < len(c.rows) {
		c.rows = kept
	}
}

// paths returns all paths, in order.
func (c *catalog) paths() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range c.rows {
			if !yield(string(c.path(i))) {
				return
			}
		}
	}
}

// having returns the indexes of the files of a standing, in order.
func (c *catalog) having(s standing) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range c.rows {
			if c.standing(i) == s && !yield(i) {
				return
			}
		}
	}
}

// present returns the indexes of the files in place, in order.
func (c *catalog) present() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range c.rows {
			if c.standing(i) >= ready && !yield(i) {
				return
			}
		}
	}
}

// count returns how many files have a standing.
func (c *catalog) count(s standing) int {
	n := 0
	for range c.having(s) {
		n++
	}
	return n
}

// records returns the records of what is in place of two catalogs, in the order of
// paths. Where both have a file, that of the first one counts.
func records(first, second *catalog) iter.Seq[*FileRecord] {
	return func(yield func(*FileRecord) bool) {
		next, stop := iter.Pull(second.present())
		defer stop()
		j, more := next()
		for i := range first.present() {
			for ; more && bytes.Compare(second.path(j), first.path(i)) <= 0; j, more = next() {
				if !bytes.Equal(second.path(j), first.path(i)) && !yield(second.record(j)) {
					return
				}
			}
			if !yield(first.record(i)) {
				return
			}
		}
		for ; more; j, more = next() {
			if !yield(second.record(j)) {
				return
			}
		}
	}
}

// appendText writes a text behind its length.
func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// cutText reads what appendText wrote.
func cutText(b []byte) (text, rest []byte) {
	n, length := binary.Uvarint(b)
	end := length + int(n) //nolint:gosec // it was an int
	return b[length:end], b[end:]
}

// appendTag writes an ETag. What most are, hexadecimal digits with the number of
// parts behind them, takes half of their length.
func appendTag(b []byte, tag string) []byte {
	digits, count, inParts := strings.Cut(tag, "-")
	raw, err := hex.DecodeString(digits)
	var parts uint64
	if inParts && err == nil {
		if parts, err = strconv.ParseUint(count, 10, 32); err == nil {
			parts++
		}
	}
	if err != nil || tagOf(raw, parts) != tag { // such as one in capitals
		b = binary.AppendUvarint(b, uint64(len(tag))<<1)
		return append(b, tag...)
	}
	b = binary.AppendUvarint(b, uint64(len(raw))<<1|1)
	return binary.AppendUvarint(append(b, raw...), parts)
}

// cutTag reads what appendTag wrote.
func cutTag(b []byte) (tag string, rest []byte) {
	n, length := binary.Uvarint(b)
	end := length + int(n>>1)
	text, rest := b[length:end], b[end:]
	if n&1 == 0 {
		return string(text), rest
	}
	parts, length := binary.Uvarint(rest)
	return tagOf(text, parts), rest[length:]
}

// tagOf is an ETag of digits and, unless parts is 0, of one part less.
func tagOf(raw []byte, parts uint64) string {
	if parts == 0 {
		return hex.EncodeToString(raw)
	}
	return hex.EncodeToString(raw) + "-" + strconv.FormatUint(parts-1, 10)
}
