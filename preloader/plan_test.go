// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/preloader/crc"
)

var allowPlanTypes = cmp.AllowUnexported(span{}, segment{})

func TestPartSizeStaysWithinItsBounds(t *testing.T) {
	for _, tc := range []struct {
		size  int64
		conns int
		want  int64
	}{
		{0, 8, minPart},
		{100 * mebibyte, 8, minPart},
		{1024 * mebibyte, 8, 32 * mebibyte},
		{1000*mebibyte + 7, 8, 31 * mebibyte},
		{100 << 30, 8, maxPart},
		{1024 * mebibyte, 0, maxPart},
	} {
		if got := partSize(tc.size, tc.conns); got != tc.want {
			t.Errorf("part of %d bytes over %d connections is %d, want %d", tc.size, tc.conns, got, tc.want)
		}
	}
}

func TestGaps(t *testing.T) {
	cases := map[string]struct {
		size int64
		have []segment
		want []span
	}{
		"nothing is there":    {size: 10, want: []span{{0, 10}}},
		"everything is there": {size: 10, have: []segment{{span: span{0, 10}}}},
		"an empty file":       {},
		"holes at every place": {
			size: 10,
			have: []segment{{span: span{1, 2}}, {span: span{5, 1}}},
			want: []span{{0, 1}, {3, 2}, {6, 4}},
		},
		"only the end is there": {size: 10, have: []segment{{span: span{4, 6}}}, want: []span{{0, 4}}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, gaps(tc.size, tc.have), allowPlanTypes); diff != "" {
				t.Errorf("gaps (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSplit(t *testing.T) {
	cases := map[string]struct {
		spans []span
		part  int64
		want  []span
	}{
		"even":                               {[]span{{0, 8}}, 4, []span{{0, 4}, {4, 4}}},
		"a small remainder joins the last":   {[]span{{0, 17}}, 8, []span{{0, 8}, {8, 9}}},
		"a larger remainder stands alone":    {[]span{{0, 18}}, 8, []span{{0, 8}, {8, 8}, {16, 2}}},
		"spans keep their order and borders": {[]span{{0, 3}, {10, 5}}, 4, []span{{0, 3}, {10, 4}, {14, 1}}},
		"nothing":                            {nil, 4, nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, split(tc.spans, tc.part), allowPlanTypes); diff != "" {
				t.Errorf("parts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPlanCoversEveryByteOnce takes random files of which random parts are
// there, and checks that what is there and what is planned make up the file.
func TestPlanCoversEveryByteOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		size := r.Int64N(1000)
		data := noise(r.Uint64(), int(size))
		var have []segment
		for range r.IntN(6) {
			// Also negative, too long and overlapping ones, as a bad journal could hold.
			off, n := r.Int64N(1100)-20, r.Int64N(300)-5
			s := segment{span: span{off, n}}
			if off >= 0 && n > 0 && off+n <= size {
				s.crc = crc.NVME.Update(0, data[off:off+n])
			}
			have = append(have, s)
		}
		merged := mergeSegments(crc.NVME, size, 0, have)
		all := append([]segment{}, merged...)
		for _, p := range split(gaps(size, merged), 1+r.Int64N(100)) {
			all = append(all, segment{p, crc.NVME.Update(0, data[p.off:p.end()])})
		}
		whole := mergeSegments(crc.NVME, size, 0, all)
		if size == 0 {
			if len(whole) != 0 {
				t.Fatalf("an empty file is planned as %v", whole)
			}
			continue
		}
		if len(whole) != 1 || whole[0] != (segment{span{0, size}, crc.NVME.Update(0, data)}) {
			t.Fatalf("%d bytes with %v there are planned as %v", size, have, whole)
		}
	}
}
