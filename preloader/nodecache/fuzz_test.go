// SPDX-License-Identifier: Apache-2.0

package nodecache

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRecord lets another pod of the node leave anything in the place of a record. It
// gives the file that it lies beside, or nothing, and harms nobody.
func FuzzRecord(f *testing.F) {
	good, err := json.Marshal(Record{Identity: identity("key", 3), CRC: "CRC32", Sum: "AAAAAA=="})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, 'x'))
	f.Add([]byte(`{"store":"http://s3","bucket":"models","key":"other","version":"v1","size":3}`))
	f.Add([]byte(`{"size":1e99}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, record []byte) {
		dir := t.TempDir()
		c := open(t, dir, 1000)
		id := identity("key", 3)
		at := filepath.Join(dir, id.name())
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{at: []byte("abc"), at + recordExt: record} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		hit, err := c.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		if hit != nil {
			raw, err := io.ReadAll(hit.File)
			if hit.Identity != id || err != nil || string(raw) != "abc" {
				t.Errorf("record %+v with %q (%v)", hit.Record, raw, err)
			}
			hit.Close()
		}
		if err := put(t, c, "another", "content", false); err != nil {
			t.Error(err)
		}
		if got, ok := get(t, c, "another", len("content")); !ok || got != "content" {
			t.Errorf("what was put gives %q (%t)", got, ok)
		}
	})
}
