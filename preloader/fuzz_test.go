// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"errors"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"
)

// Targets for what has no better place; the others stand beside the tests of what they
// read. `make fuzz` runs them all.

func FuzzStorageConfig(f *testing.F) {
	f.Add(`{"type":"s3","endpoint_url":"http://minio:9000","verify_ssl":false}`, `{"region":"eu-west-1"}`)
	f.Add(`{"type":"s3","secret_access_key":"hunter2-secret",}`, `["hunter2-secret"]`)
	f.Add(`{"type":"s3","access_key_id":12,"anonymous":null}`, `null`)
	f.Fuzz(func(t *testing.T, config, override string) {
		_, err := overlayStorageConfig(func(name string) string {
			return map[string]string{"STORAGE_CONFIG": config, "STORAGE_OVERRIDE_CONFIG": override}[name]
		})
		if err == nil {
			return
		}
		if asFailure(err).Code != ExitConfig {
			t.Errorf("exit code %d for %v", asFailure(err).Code, err)
		}
		// Words of the error itself are in many a short text; secrets are longer.
		for _, text := range []string{config, override} {
			if len(text) > 40 && strings.Contains(err.Error(), text) {
				t.Errorf("error %q shows %q", err, text)
			}
		}
	})
}

func FuzzParseSource(f *testing.F) {
	for _, uri := range []string{"s3://b/k", "s3://", "s3:///k", "file://x", "/mnt/pvc/x", "gs://b", "s3://b//a/../b", "", "b"} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		at, err := parseSource(uri)
		switch {
		case err != nil:
			if code := asFailure(err).Code; code != ExitConfig && code != ExitNotFound {
				t.Errorf("exit code %d for %q", code, uri)
			}
		case at.kind == sourceS3 && (at.bucket == "" || strings.Contains(at.bucket, "/") || strings.HasPrefix(at.path, "/")):
			t.Errorf("%q is %+v", uri, at)
		}
	})
}

func FuzzCheckRange(f *testing.F) {
	f.Add("bytes 10-19/100", int64(10), int64(10), int64(100), int64(10))
	f.Add("bytes 10-19/*", int64(10), int64(10), int64(100), int64(-1))
	f.Add("", int64(0), int64(100), int64(100), int64(-1))
	f.Fuzz(func(t *testing.T, text string, off, n, size, length int64) {
		if off < 0 || n <= 0 || size < n || off > size-n {
			return
		}
		said := &length
		if length < 0 {
			said = nil
		}
		if checkRange(object{size: size}, span{off, n}, text, said) != nil {
			return
		}
		if said != nil && length != n {
			t.Errorf("an answer of %d bytes passes for %d", length, n)
		}
		if text == "" && off != 0 {
			t.Errorf("an answer from the start passes for one from %d", off)
		}
	})
}

// FuzzLayout looks at what keys become: whatever they hold, files of their own below the
// destination, none of them the preloader's.
func FuzzLayout(f *testing.F) {
	f.Add("m", "m/a\nm/b/c\nm/d/")
	f.Add("m/", "m//a\nm/./a\nm/../b")
	f.Add("", ".preloader/x\n.preloader.json\n/\n//")
	f.Fuzz(func(t *testing.T, prefix, keys string) {
		l := newLayout("b", prefix, Filter{})
		defer l.free()
		for key := range strings.SplitSeq(keys, "\n") {
			if strings.HasPrefix(key, prefix) && !l.take(object{key: key}) {
				break
			}
		}
		if l.done() != nil {
			return
		}
		files := map[string]bool{}
		for i := range l.files.len() {
			e := l.files.entry(i)
			first, _, _ := strings.Cut(e.rel, "/")
			if !filepath.IsLocal(e.rel) || filepath.Clean(e.rel) != e.rel || e.rel == "." || isOwn(first) || files[e.rel] {
				t.Errorf("key %q becomes %q", e.object.key, e.rel)
			}
			files[e.rel] = true
			if want := "s3://b/" + e.object.key; e.uri != want {
				t.Errorf("key %q is called %q", e.object.key, e.uri)
			}
		}
		for rel := range files {
			for dir := filepath.Dir(rel); dir != "."; dir = filepath.Dir(dir) {
				if files[dir] {
					t.Errorf("%q is a file and a folder", dir)
				}
			}
		}
	})
}

func FuzzEscapeKey(f *testing.F) {
	f.Add("a b/ü%2F+~*\x00")
	f.Fuzz(func(t *testing.T, key string) {
		escaped := escapeKey(key)
		plain, err := url.PathUnescape(escaped)
		if err != nil || plain != key || strings.ContainsFunc(escaped, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("key %q becomes %q, and that %q: %v", key, escaped, plain, err)
		}
	})
}

func FuzzShown(f *testing.F) {
	f.Add("plain, ünd\t\x1b[31m\xff\u202e\u009b")
	f.Fuzz(func(t *testing.T, text string) {
		got := shown(text)
		if shown(got) != got || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\r\x1b\x00\u009b\u202e") {
			t.Errorf("%q is shown as %q", text, got)
		}
	})
}

func FuzzParsePatterns(f *testing.F) {
	for _, text := range []string{`["*.json","a"]`, "a, b,,c", `"x"`, `[1,null,{"a":[2]}]`, "[a-", ""} {
		f.Add(text, "a/b.json")
	}
	f.Fuzz(func(t *testing.T, text, rel string) {
		if len(text) > 1000 || len(rel) > 1000 {
			return
		}
		for _, p := range parsePatterns(text) {
			if strings.TrimSpace(p) == "" {
				t.Errorf("%q holds an empty pattern", text)
			}
		}
		Filter{Allow: parsePatterns(text)}.Wants(rel)
	})
}

// FuzzLimits reads control groups that say anything.
func FuzzLimits(f *testing.F) {
	f.Add("0::/pod/a\n", "1073741824\n", "max 100000\n", "inactive_file 5\nactive_file 6\n", "MemAvailable: 100 kB\n")
	f.Add("4:memory:/x\n3:cpu,cpuacct:/x\n", "max\n", "-1 0\n", "", "")
	f.Fuzz(func(t *testing.T, groups, limit, cpu, stat, info string) {
		root := fstest.MapFS{}
		put := func(name, text string) { root[name] = &fstest.MapFile{Data: []byte(text)} }
		put("proc/self/cgroup", groups)
		put("proc/meminfo", info)
		for _, dir := range []string{"sys/fs/cgroup", "sys/fs/cgroup/pod/a", "sys/fs/cgroup/memory", "sys/fs/cgroup/memory/x"} {
			put(dir+"/memory.max", limit)
			put(dir+"/memory.high", limit)
			put(dir+"/memory.current", limit)
			put(dir+"/memory.limit_in_bytes", limit)
			put(dir+"/memory.usage_in_bytes", limit)
			put(dir+"/memory.stat", stat)
			put(dir+"/cpu.max", cpu)
		}
		l := readLimits(root)
		if l.room() < 0 || l.memory < 0 || l.used < 0 || l.used > l.memory || l.cpus < 0 || l.available < 0 {
			t.Errorf("limits %+v, room %d", l, l.room())
		}
	})
}

func FuzzETagAndChecksum(f *testing.F) {
	f.Add("d41d8cd98f00b204e9800998ecf8427e-3", "CRC32", "AAAAAA==-3", int64(100), int64(40))
	f.Add(`W/"x`, "SHA256", "=", int64(0), int64(0))
	f.Fuzz(func(t *testing.T, etag, algorithm, value string, size, part int64) {
		if size < 0 {
			return
		}
		o := object{etag: etag, size: size, answer: &answer{
			part: part, sum: checksum{algorithm: algorithm, value: value, composite: strings.Contains(value, "-")},
		}}
		for _, mode := range []VerifyMode{VerifyAuto, VerifyRequire, VerifyOff} {
			p, err := choose(mode, o, true)
			if err != nil {
				if _, wrong := errors.AsType[*protocolError](err); !wrong {
					t.Errorf("error %v", err)
				}
				continue
			}
			if p.crc == nil || p.cut < 0 || p.want == nil && p.evidence != EvidenceSize {
				t.Errorf("proof %+v", p)
			}
		}
	})
}
