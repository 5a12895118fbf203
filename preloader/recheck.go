// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"io"

	"serverless.xyz/outrigger/preloader/crc"
)

// recheck reads what an earlier run left and forgets what does not have the
// check that was noted for it.
func (p *pull) recheck(ctx context.Context) error {
	buf := make([]byte, bufferSize)
	for _, c := range []*catalog{p.files, p.others} {
		for i := range c.having(noted) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if r := c.record(i); !p.intact(r, buf) {
				p.log.Warn("A file does not hold what it should and is fetched again", "file", r.Path)
				c.set(i, missing)
			}
		}
	}
	for rel, s := range p.saved.begun {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.segments = p.intactSegments(rel, s, buf)
	}
	return nil
}

// intact reports whether the file of r, under its final or its gathering name,
// has the check that r says.
func (p *pull) intact(r *FileRecord, buf []byte) bool {
	return p.inPlace(r) && p.store.matches(r, buf)
}

// matches reads a final file and compares its check with its record.
func (s *store) matches(r *FileRecord, buf []byte) bool {
	kind := crc.ByName(r.CRC)
	if kind == nil {
		return false
	}
	want, err := kind.Decode(r.Sum)
	if err != nil {
		return false
	}
	f, err := s.root.Open(r.Path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	got, n, err := crcOf(kind, f, buf)
	return err == nil && n == r.Size && got == want
}

// intactSegments returns the segments of a gathering file whose bytes still
// have their check.
func (p *pull) intactSegments(rel string, s *savedFile, buf []byte) []segment {
	f, err := p.store.root.Open(tempName(rel))
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // only read
	kind := crc.ByName(s.CRC)
	var good []segment
	for _, seg := range s.segments {
		got, n, err := crcOf(kind, io.NewSectionReader(f, seg.off, seg.n), buf)
		if err == nil && n == seg.n && got == seg.crc {
			good = append(good, seg)
		}
	}
	return good
}
