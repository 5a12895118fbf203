// SPDX-License-Identifier: Apache-2.0

package gpu

// piece is a stretch of a file that goes to one GPU as one allocation.
type piece struct {
	// shard is the index of the file.
	shard int
	// offset and bytes bound it in the file.
	offset, bytes int64
}

// part is what one GPU gets.
type part struct {
	pieces []piece
	// free is the GPU's memory, before counts its pieces but for the last one, as they
	// are allocated.
	free, before int64
	// taken is how many bytes of the model it holds.
	taken int64
}

// granule is what an allocation is rounded up to.
const granule = 2 << 20

func allocated(bytes int64) int64 { return (bytes + granule - 1) / granule * granule }

// place cuts a model between GPUs with that much free memory each. Tensors stay whole
// and keep their order, so that each GPU gets neighbouring layers; each GPU gets a
// share of the model that is proportional to its free memory. The error is a
// *noRoomError.
func place(shards []*shard, free []uint64) ([][]piece, error) {
	parts := make([]part, len(free))
	var need, room int64
	for _, s := range shards {
		need += s.header.FileBytes() - s.header.Start
	}
	for i, f := range free {
		parts[i].free = int64(f) //nolint:gosec // bytes of memory
		room += parts[i].free
	}
	gpu := 0
	for index, s := range shards {
		for _, t := range s.header.Tensors {
			if t.Bytes() == 0 {
				continue
			}
			next := piece{index, s.header.Start + t.Begin, t.Bytes()}
			for gpu < len(parts) && !parts[gpu].takes(next, need, room, gpu == len(parts)-1) {
				gpu++
			}
			if gpu == len(parts) {
				return nil, &noRoomError{need: need, free: free}
			}
			parts[gpu].add(next)
		}
	}
	layout := make([][]piece, len(parts))
	for i, p := range parts {
		layout[i] = p.pieces
	}
	return layout, nil
}

// takes reports whether the next tensor goes to this GPU: it must fit, and unless this
// is the last GPU, there must be something left of its share.
func (p *part) takes(next piece, need, room int64, last bool) bool {
	if !last && float64(p.taken) >= float64(need)*float64(p.free)/float64(room) {
		return false
	}
	end := p.last()
	if end != nil && end.shard == next.shard {
		return p.before+allocated(end.bytes+next.bytes) <= p.free
	}
	total := p.before + allocated(next.bytes)
	if end != nil {
		total += allocated(end.bytes)
	}
	return total <= p.free
}

// add puts a tensor behind what is there, in the same piece if it is of the same file.
func (p *part) add(next piece) {
	p.taken += next.bytes
	end := p.last()
	if end != nil && end.shard == next.shard {
		end.bytes += next.bytes
		return
	}
	if end != nil {
		p.before += allocated(end.bytes)
	}
	p.pieces = append(p.pieces, next)
}

func (p *part) last() *piece {
	if len(p.pieces) == 0 {
		return nil
	}
	return &p.pieces[len(p.pieces)-1]
}
