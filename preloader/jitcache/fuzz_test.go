// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzParseKey(f *testing.F) {
	for _, text := range []string{"engine=vllm-0.11.0,tp=2", "a=b=c", "a", "a=,b=1", "A=1", " gpu = H100 80GB , ", "a=1,a=2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseKey(text)
		if err != nil {
			return
		}
		again, err := ParseKey(key.String())
		if diff := cmp.Diff(key, again); err != nil || diff != "" {
			t.Errorf("key %q reads differently once written: %v\n%s", text, err, diff)
		}
		if strings.ContainsAny(key.String(), "\n\x1b") {
			t.Errorf("key %q", key)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	key := Key{"engine": "e", "gpu": "none"}
	m := Manifest{
		Key: key, SHA256: strings.Repeat("ab", 32), Size: 10,
		Contents: Contents{Files: 1, Bytes: 1, Stream: 1024}, Trees: []Tree{{Name: "vllm", Path: "/x"}},
	}
	raw, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"form":1,"key":{"engine":"e","gpu":"none"},"trees":[{"name":"../x"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseManifest(raw, key)
		if err != nil {
			return
		}
		for _, tree := range m.Trees {
			if strings.ContainsAny(tree.Name, "/.") || tree.Name == "" {
				t.Errorf("a tree is called %q", tree.Name)
			}
		}
		if strings.Contains(m.ArchiveName(), "/") {
			t.Errorf("the archive is called %q", m.ArchiveName())
		}
		if _, err := m.Encode(); err != nil && len(raw) < LongestManifest/8 {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
