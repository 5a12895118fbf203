// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"

	"serverless.xyz/outrigger/preloader/crc"
)

// soleArchive returns the path of the only file of a model if that is an
// archive, else nothing. Like KServe, it does not count empty files.
func soleArchive(files *catalog) string {
	sole := ""
	for i := range files.len() {
		switch {
		case files.size(i) == 0:
		case sole != "" || archiveOf(string(files.path(i))) == notArchive:
			return ""
		default:
			sole = string(files.path(i))
		}
	}
	return sole
}

// fetchArchive brings a model that is one archive, unpacks it and removes it.
// The archive goes only when the marker stands: a run that is killed before
// unpacks again, and one that is killed after has nothing to do.
func (p *pull) fetchArchive(ctx context.Context, sole string, marker *Marker) error {
	at, _ := p.files.find(sole)
	if old := p.unpackedBefore(p.files.entry(at), marker); old != nil {
		p.log.Info("Everything is in place already", "archive", sole, "files", p.report.Files)
		p.adopt()
		p.believeFromNowOn(marker)
		return cmp.Or(p.meetsPin(), p.removeArchive(old))
	}
	p.sift()
	p.tally()
	if err := p.fetch(ctx); err != nil {
		return err
	}
	archive := p.files.record(at)
	p.files.drop(func(i int) bool { return i == at })
	f, err := p.store.root.Open(sole)
	if err != nil {
		return diskFailure(p.store.dir, err)
	}
	defer f.Close() //nolint:errcheck // only read
	p.log.Info("Unpacking", "archive", sole)
	members, err := p.store.unpack(ctx, f, sole, p.opts.archive(), make([]byte, bufferSize))
	if err != nil {
		return err
	}
	p.report.Files, p.report.Bytes = len(members), 0
	for path, u := range members {
		p.report.Bytes += u.size
		p.files.put(&FileRecord{
			Path: path, Object: archive.Object, Version: archive.Version, Size: u.size, Modified: u.modified,
			CRC: crc.NVME.Name, Sum: crc.NVME.Encode(u.crc), Evidence: archive.Evidence,
		}, ready)
	}
	p.files.settle()
	if err := p.complete(marker, *archive); err != nil {
		return err
	}
	if _, ok := members[sole]; ok { // a member of the archive's own name has replaced it
		return nil
	}
	return p.removeArchive(archive)
}

// unpackedBefore returns the record of the archive if the marker says that it
// was unpacked and all that it held is still in place.
func (p *pull) unpackedBefore(e entry, marker *Marker) *FileRecord {
	if marker == nil || !slices.Contains(marker.Sources, p.pair.Source) {
		return nil
	}
	uri := e.uri
	at := slices.IndexFunc(marker.Archives, func(r FileRecord) bool {
		return r.Object == uri && r.Version == e.object.version() && r.Size == e.object.size && p.enough(&r)
	})
	if at < 0 {
		return nil
	}
	files, bytes := 0, int64(0)
	for i := range p.others.len() {
		r := p.others.record(i)
		if r.Object != uri {
			continue
		}
		// After a restart of the machine, a file that had lost its content is missing.
		if p.others.standing(i) == missing || !p.store.holds(r) {
			return nil
		}
		files++
		bytes += r.Size
	}
	p.report.Files, p.report.Skipped, p.report.Bytes = files, files, bytes
	p.report.believe(marker.Archives[at].Evidence, 1)
	return &marker.Archives[at]
}

// removeArchive removes an archive that was unpacked, if it is still there.
func (p *pull) removeArchive(r *FileRecord) error {
	if !p.store.holds(r) {
		return nil
	}
	if err := p.store.root.Remove(r.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskFailure(p.store.dir, err)
	}
	return nil
}
