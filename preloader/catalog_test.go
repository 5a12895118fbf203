// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/preloader/crc"
)

var allowEntries = cmp.AllowUnexported(entry{}, object{})

func TestCatalogGivesBackWhatItTook(t *testing.T) {
	c := &catalog{}
	defer c.free()
	md5, base := strings.Repeat("0af9", 8), "s3://b/m/"
	var want []entry
	for i, e := range []entry{
		{rel: "a", object: object{etag: md5, size: 1, modified: 1_700_000_000}},
		{rel: "b/c", object: object{etag: md5 + "-12", size: math.MaxInt64, modified: -1}},
		{rel: "d", object: object{etag: "0af"}},
		{rel: "e", object: object{etag: md5 + "-012"}},
		{rel: "f", object: object{etag: md5 + "-"}},
		{rel: "g", object: object{etag: strings.ToUpper(md5)}},
		{rel: "h", object: object{etag: "W/\"weak\""}},
		{rel: "i"},
		{rel: "j", object: object{etag: "-1"}},
		{rel: "k", uri: "s3://b/m//k"},
		{rel: "l", uri: "s3://other/l"},
		{rel: strings.Repeat("m", 2*chunkSize)},
		{rel: "n"},
	} {
		if e.at = i; e.uri == "" {
			e.uri = base + e.rel
		}
		_, e.object.key, _ = strings.Cut(strings.TrimPrefix(e.uri, "s3://"), "/")
		want = append(want, e)
		if !c.add(e) {
			t.Fatalf("no room for %v", e)
		}
	}
	c.sort()
	for i, e := range want {
		if diff := cmp.Diff(e, c.entry(i), allowEntries); diff != "" {
			t.Errorf("entry %d (-want +got):\n%s", i, diff)
		}
		if at, found := c.find(e.rel); !found || at != i || c.size(i) != e.object.size {
			t.Errorf("entry %d is found at %d (%t), with %d bytes", i, at, found, c.size(i))
		}
	}
	for _, rel := range []string{"", "0", "b", "z"} {
		if _, found := c.find(rel); found {
			t.Errorf("%q is found", rel)
		}
	}
}

func TestCatalogKeepsRecords(t *testing.T) {
	c := &catalog{}
	defer c.free()
	var want []*FileRecord
	for i, kind := range []*crc.Kind{crc.NVME, crc.Castagnoli, crc.IEEE} {
		for _, evidence := range []Evidence{
			EvidenceChecksum, EvidenceParts, EvidenceMD5, EvidenceSums, EvidenceSize,
		} {
			r := &FileRecord{
				Path: fmt.Sprintf("%d/%s", i, evidence), Object: "s3://b/k", Version: "v", Size: 7, Modified: -5, CRC: kind.Name,
				Sum: kind.Encode(0xfedc_ba98), Evidence: evidence,
			}
			want = append(want, r)
			if !c.put(r, ready) {
				t.Fatalf("%v is refused", r)
			}
		}
	}
	for name, r := range map[string]FileRecord{
		"a check that nobody knows":    {Path: "x", CRC: "CRC16", Sum: "AAA="},
		"a value that is none":         {Path: "x", CRC: "CRC32", Sum: "?"},
		"evidence that nobody has":     {Path: "x", CRC: "CRC32", Sum: "AAAAAA==", Evidence: "hearsay"},
		"a value of another check":     {Path: "x", CRC: "CRC64NVME", Sum: "AAAAAA=="},
		"no check, as in an empty one": {},
	} {
		if c.put(&r, ready) {
			t.Errorf("%s is taken", name)
		}
	}
	c.settle()
	slices.SortFunc(want, func(a, b *FileRecord) int { return strings.Compare(a.Path, b.Path) })
	if diff := cmp.Diff(want, slices.Collect(records(c, &catalog{}))); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestCatalogsAreOneInTheOrderOfPaths: of a path that both have, the first one counts.
func TestCatalogsAreOneInTheOrderOfPaths(t *testing.T) {
	of := func(object string, paths ...string) *catalog {
		c := &catalog{}
		t.Cleanup(c.free)
		for _, p := range paths {
			if !c.put(&FileRecord{Path: p, Object: object, CRC: "CRC32", Sum: "AAAAAA=="}, ready) {
				t.Fatalf("%s is refused", p)
			}
		}
		c.settle()
		return c
	}
	for name, tc := range map[string]struct {
		first, second []string
		want          string
	}{
		"nothing":               {},
		"one":                   {first: []string{"b", "a"}, want: "1a 1b"},
		"the other":             {second: []string{"b", "a"}, want: "2a 2b"},
		"both":                  {first: []string{"c", "a"}, second: []string{"b", "d", "0"}, want: "20 1a 2b 1c 2d"},
		"a path in both":        {first: []string{"a", "b"}, second: []string{"b", "c"}, want: "1a 1b 2c"},
		"a path twice":          {first: []string{"a", "a"}, second: []string{"a"}, want: "1a"},
		"the first ends sooner": {first: []string{"a"}, second: []string{"a", "b"}, want: "1a 2b"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for r := range records(of("1", tc.first...), of("2", tc.second...)) {
				got = append(got, r.Object+r.Path)
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCatalogForgetsWhatIsDroppedAndKeepsTheLast(t *testing.T) {
	c := &catalog{}
	defer c.free()
	for i, rel := range []string{"c", "a", "b", "a", "d"} {
		c.add(entry{rel: rel, uri: "s3://b/" + rel, object: object{size: int64(i)}})
	}
	c.settle()
	c.drop(func(i int) bool { return string(c.path(i)) == "c" })
	var got []string
	for i := range c.len() {
		got = append(got, fmt.Sprintf("%s%d", c.path(i), c.size(i)))
	}
	if diff := cmp.Diff([]string{"a3", "b2", "d4"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	changed := c.entry(1)
	changed.object = object{key: "b", size: 9, etag: "new"}
	r := &FileRecord{
		Path: "b", Object: "s3://b/b", Version: "new", Size: 9, CRC: "CRC32", Sum: "AAAAAA==", Evidence: EvidenceSize,
	}
	c.fetched(&changed, r)
	if diff := cmp.Diff(r, c.record(1)); diff != "" || c.standing(1) != ready || c.count(missing) != 2 {
		t.Errorf("standing %d, record (-want +got):\n%s", c.standing(1), diff)
	}
}

func FuzzCatalogTags(f *testing.F) {
	for _, tag := range []string{"", "-", "0af9-3", "0AF9", "0af9-03", "0af9-99999999999999999999", "x", "0af"} {
		f.Add(tag)
	}
	f.Fuzz(func(t *testing.T, tag string) {
		if got, rest := cutTag(append(appendTag(nil, tag), "rest"...)); got != tag || string(rest) != "rest" {
			t.Errorf("%q comes back as %q with %q behind it", tag, got, rest)
		}
	})
}
