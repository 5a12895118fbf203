// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"errors"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/preloader/safetensors"
)

const mib = int64(1 << 20)

// model makes shards with tensors of these lengths.
func model(lengths ...[]int64) []*shard {
	var shards []*shard
	for _, tensors := range lengths {
		h := &safetensors.Header{Start: 100}
		at := int64(0)
		for i, n := range tensors {
			h.Tensors = append(h.Tensors, safetensors.Tensor{Name: strconv.Itoa(i), DType: "U8", Begin: at, End: at + n})
			at += n
		}
		shards = append(shards, &shard{header: h})
	}
	return shards
}

func TestPlace(t *testing.T) {
	tests := map[string]struct {
		shards []*shard
		free   []uint64
		want   [][]piece
	}{
		"one GPU takes all, a piece for each file": {
			shards: model([]int64{3 * mib, 5 * mib}, []int64{7 * mib}), free: []uint64{1 << 30},
			want: [][]piece{{{0, 100, 8 * mib}, {1, 100, 7 * mib}}},
		},
		"equal GPUs take equal shares, cut between tensors": {
			shards: model([]int64{4 * mib, 4 * mib}, []int64{4 * mib, 4 * mib}), free: []uint64{1 << 30, 1 << 30},
			want: [][]piece{{{0, 100, 8 * mib}}, {{1, 100, 8 * mib}}},
		},
		"a file is cut where a GPU has its share": {
			shards: model([]int64{2 * mib, 2 * mib, 2 * mib, 2 * mib}), free: []uint64{1 << 30, 1 << 30},
			want: [][]piece{{{0, 100, 4 * mib}}, {{0, 100 + 4*mib, 4 * mib}}},
		},
		"a GPU with a third of the memory takes a third as much": {
			shards: model([]int64{2 * mib, 2 * mib, 2 * mib, 2 * mib}), free: []uint64{1 << 30, 3 << 30},
			want: [][]piece{{{0, 100, 2 * mib}}, {{0, 100 + 2*mib, 6 * mib}}},
		},
		"a GPU that is full is left out": {
			shards: model([]int64{2 * mib}), free: []uint64{0, 1 << 30}, want: [][]piece{nil, {{0, 100, 2 * mib}}},
		},
		"what does not fit one goes to the next": {
			shards: model([]int64{1 * mib, 9 * mib, 1 * mib}), free: []uint64{8 << 20, 16 << 20},
			want: [][]piece{{{0, 100, mib}}, {{0, 100 + mib, 10 * mib}}},
		},
		"it fits to the last granule": {
			shards: model([]int64{4*mib + 1, 2*mib - 1}), free: []uint64{6 << 20}, want: [][]piece{{{0, 100, 6 * mib}}},
		},
		"tensors without elements go nowhere": {
			shards: model([]int64{0, 2 * mib, 0}), free: []uint64{1 << 30}, want: [][]piece{{{0, 100, 2 * mib}}},
		},
		"no tensors at all": {shards: model(nil), free: []uint64{1 << 30}, want: [][]piece{nil}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := place(tc.shards, tc.free)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(piece{})); diff != "" {
				t.Errorf("layout (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlaceRefusesWhatDoesNotFit(t *testing.T) {
	tests := map[string]struct {
		shards   []*shard
		free     []uint64
		wantMore int64
	}{
		"too little memory":                    {model([]int64{8 * mib}), []uint64{3 << 20, 3 << 20}, 2 * mib},
		"no memory":                            {model([]int64{8 * mib}), []uint64{0}, 8 * mib},
		"enough together, too little for each": {model([]int64{8 * mib}), []uint64{6 << 20, 6 << 20}, -4 * mib},
		"rounding up takes the rest":           {model([]int64{1}, []int64{1}), []uint64{2 << 20}, 2 - 2*mib},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := place(tc.shards, tc.free)
			room, ok := errors.AsType[*noRoomError](err)
			if !ok {
				t.Fatalf("place gives %v, %v; want a noRoomError", got, err)
			}
			if room.more() != tc.wantMore {
				t.Errorf("%d bytes are missing, want %d", room.more(), tc.wantMore)
			}
			if f := explain(err); f.Reason != "NotEnoughMemory" || f.Advice == "" {
				t.Errorf("finding is %+v", f)
			}
		})
	}
}

// FuzzPlace checks that each byte of the tensors goes to one place, in order, and that
// no GPU gets more than it has.
func FuzzPlace(f *testing.F) {
	f.Add([]byte{3, 5, 0, 255, 1}, uint32(40), uint32(60), uint32(0))
	f.Add([]byte{}, uint32(0), uint32(0), uint32(0))
	f.Fuzz(func(t *testing.T, sizes []byte, a, b, c uint32) {
		free := []uint64{uint64(a), uint64(b) << 4, uint64(c)}
		var files [][]int64
		for i, n := range sizes {
			if i%3 == 0 {
				files = append(files, nil)
			}
			files[len(files)-1] = append(files[len(files)-1], int64(n)*int64(n)*997)
		}
		shards := model(files...)
		layout, err := place(shards, free)
		if err != nil {
			return
		}
		next := 0
		at := int64(100)
		for gpu, pieces := range layout {
			var total int64
			for _, p := range pieces {
				total += allocated(p.bytes)
				for next < p.shard {
					if at != shards[next].header.FileBytes() {
						t.Fatalf("file %d is placed up to %d of %d", next, at, shards[next].header.FileBytes())
					}
					next, at = next+1, 100
				}
				if p.shard != next || p.offset != at || p.bytes <= 0 {
					t.Fatalf("piece %+v, want file %d from %d", p, next, at)
				}
				at += p.bytes
			}
			if total > int64(free[gpu]) {
				t.Errorf("GPU %d gets %d bytes, has %d", gpu, total, free[gpu])
			}
		}
		for ; next < len(shards); next++ {
			if at != shards[next].header.FileBytes() {
				t.Fatalf("file %d is placed up to %d of %d", next, at, shards[next].header.FileBytes())
			}
			at = 100
		}
	})
}
