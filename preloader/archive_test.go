// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// member is one entry of an archive that a test makes.
type member struct {
	name string
	body string
	kind byte // tar's type flag; 0 is a file
	link string
	mode int64
}

func tarOf(tb testing.TB, members ...member) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Linkname: m.link, Size: int64(len(m.body)), Mode: m.mode}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o600
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func zipOf(tb testing.TB, members ...member) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, m := range members {
		f, err := w.Create(m.name)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := f.Write([]byte(m.body)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func gzipOf(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// The tars of one file a with the text hello, as bzip2 and xz make them; Go's
// library writes neither.
const (
	bzipTar = "QlpoOTFBWSZTWe4/J1kAAHL7hMkQAERAAG+AAADiRJ4AAACACCAAVDSMo9TQ0PTUZHqCSp5TRpo0AZGlbcyd0IMYAJGk4mxGBO5JAyow9Wa8F05UkanN0s6bqhsqyMTDteMehhYXpiEERkREB+LuSKcKEh3H5Osg"
	xzTar   = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AGddADCAM1AYaImDAdzibkdnSCXwWlIDNCblHDMtxgoGpFJvaSejgeXoROXsRu8UCLPZ1tpvSqbHk+msUdSvNy/7lNVK98/rFeMML8jgspR5XxHlFs5sxziRhq7eUODNVuJCPYqtISdYTAAAAKgULj0nOIzyAAGDAYBQAACQA/TnscRn+wIAAAAABFla"
)

func TestPullUnpacksTheOneArchive(t *testing.T) {
	plain := []member{
		{name: "model/", kind: tar.TypeDir},
		{name: "./model/weights.bin", body: "weights"},
		{name: "run.sh", body: "#!", mode: 0o755},
	}
	want := map[string][]byte{"model/weights.bin": []byte("weights"), "run.sh": []byte("#!")}
	bzip, err := base64.StdEncoding.DecodeString(bzipTar)
	if err != nil {
		t.Fatal(err)
	}
	xz, err := base64.StdEncoding.DecodeString(xzTar)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		key  string
		data []byte
		also map[string][]byte
		want map[string][]byte
	}{
		"tar":                      {key: "m/model.tar", data: tarOf(t, plain...), want: want},
		"gzip":                     {key: "m/model.tar.gz", data: gzipOf(t, tarOf(t, plain...)), want: want},
		"gzip by its short name":   {key: "m/model.TGZ", data: gzipOf(t, tarOf(t, plain...)), want: want},
		"gzip that is named a tar": {key: "m/model.tar", data: gzipOf(t, tarOf(t, plain...)), want: want},
		"bzip2":                    {key: "m/model.tar.bz2", data: bzip, want: map[string][]byte{"a": []byte("hello\n")}},
		"xz":                       {key: "m/model.tar.xz", data: xz, want: map[string][]byte{"a": []byte("hello\n")}},
		"zip":                      {key: "m/model.zip", data: zipOf(t, plain[1:]...), want: want},
		"zip beside an empty file": {
			key:  "m/model.zip",
			data: zipOf(t, plain[1:]...),
			also: map[string][]byte{"m/_SUCCESS": nil},
			want: map[string][]byte{
				"model/weights.bin": []byte("weights"), "run.sh": []byte("#!"), "_SUCCESS": nil,
			},
		},
		"an archive beside another file stays": {
			key: "m/model.zip", data: zipOf(t, plain[1:]...), also: map[string][]byte{"m/x": []byte("x")},
			want: map[string][]byte{"model.zip": zipOf(t, plain[1:]...), "x": []byte("x")},
		},
		"a model archive of TorchServe stays": {
			key:  "m/model.mar",
			data: zipOf(t, plain[1:]...),
			want: map[string][]byte{"model.mar": zipOf(t, plain[1:]...)},
		},
		"a member of the archive's own name": {
			key:  "m/a.tar",
			data: tarOf(t, member{name: "a.tar", body: "inner"}),
			want: map[string][]byte{"a.tar": []byte("inner")},
		},
		"a leading slash is dropped": {
			key:  "m/a.tar",
			data: tarOf(t, member{name: "/abs/file", body: "x"}),
			want: map[string][]byte{"abs/file": []byte("x")},
		},
		"a member twice: the last counts": {
			key:  "m/a.tar",
			data: tarOf(t, member{name: "f", body: "old"}, member{name: "f", body: "new"}),
			want: map[string][]byte{"f": []byte("new")},
		},
		"links that stay": {
			key: "m/a.tar",
			data: tarOf(t, member{name: "d/f", body: "text"}, member{name: "d/soft", kind: tar.TypeSymlink, link: "../d/f"},
				member{name: "hard", kind: tar.TypeLink, link: "d/f"}),
			want: map[string][]byte{"d/f": []byte("text"), "d/soft": []byte("text"), "hard": []byte("text")},
		},
		"an empty archive": {key: "m/a.tar", data: tarOf(t), want: map[string][]byte{}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put(tc.key, tc.data)
			for k, v := range tc.also {
				s.put(k, v)
			}
			dir := t.TempDir()
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
			wantTree(t, dir, tc.want)
			if out := run(t, nil, "verify", dir); out.code != ExitOK {
				t.Errorf("the tree does not verify: %s", out.log)
			}
			s.forget()
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
			wantTree(t, dir, tc.want)
			if s.count("Get") != 0 {
				t.Errorf("the second run made %d gets, want none", s.count("Get"))
			}
		})
	}
}

func TestPullUnpacksAgainWhatIsGone(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/a.tar", tarOf(t, member{name: "one", body: "1"}, member{name: "two", body: "2"}))
	dir := t.TempDir()
	for range 2 {
		wantCode(t, run(t, serverSettings(s), "s3://models/m/a.tar", dir), ExitOK, "Completed")
		wantTree(t, dir, map[string][]byte{"one": []byte("1"), "two": []byte("2")})
		if err := os.Remove(filepath.Join(dir, "two")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPullRefusesHarmfulArchives(t *testing.T) {
	good := member{name: "good", body: "fine"}
	cases := map[string][]byte{
		"a name that climbs out":    tarOf(t, good, member{name: "../evil", body: "x"}),
		"a name that climbs within": tarOf(t, good, member{name: "a/../../evil", body: "x"}),
		"the preloader's marker":    tarOf(t, good, member{name: ".preloader.json", body: "{}"}),
		"the preloader's folder":    tarOf(t, good, member{name: ".preloader/journal.jsonl", body: "{}"}),
		"an absolute link":          tarOf(t, good, member{name: "l", kind: tar.TypeSymlink, link: "/etc/passwd"}),
		"a link that climbs out":    tarOf(t, good, member{name: "l", kind: tar.TypeSymlink, link: "../../evil"}),
		"a file through a link that leads out": tarOf(t,
			member{name: "d", kind: tar.TypeDir}, member{name: "d/l", kind: tar.TypeSymlink, link: "."},
			member{name: "out", kind: tar.TypeSymlink, link: "d/l/../.."}, member{name: "out/evil", body: "x"}),
		"a link that leads out through a link": tarOf(
			t,
			good,
			member{
				name: "d/l",
				kind: tar.TypeSymlink,
				link: ".",
			},
			member{name: "out", kind: tar.TypeSymlink, link: "d/l/../../"},
		),
		"a hard link to a link, which leads elsewhere from there": tarOf(t, good,
			member{name: "a/b/c/l", kind: tar.TypeSymlink, link: "../../../etc/hostname"},
			member{name: "m", kind: tar.TypeLink, link: "a/b/c/l"}),
		"a hard link that climbs out": tarOf(t, good, member{name: "l", kind: tar.TypeLink, link: "../evil"}),
		"a device":                    tarOf(t, good, member{name: "null", kind: tar.TypeChar}),
		"a pipe":                      tarOf(t, good, member{name: "pipe", kind: tar.TypeFifo}),
		"half a tar":                  tarOf(t, good, member{name: "long", body: strings.Repeat("x", 5000)})[:3000],
		"half a gzip":                 gzipOf(t, tarOf(t, good, member{name: "long", body: string(noise(1, 5000))}))[:3000],
		"no tar at all":               noise(1, 5000),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/model.tar", data)
			parent := t.TempDir()
			dir := filepath.Join(parent, "a", "dest")
			wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitIntegrity, "BadArchive")
			wantNothingOutside(t, parent, dir)
		})
	}
	zips := map[string][]byte{
		"a zip's name that climbs out": zipOf(t, good, member{name: "../evil", body: "x"}),
		"a zip's absolute name":        zipOf(t, good, member{name: "/tmp/evil-of-a-zip", body: "x"}),
		"no zip at all":                noise(1, 5000),
		"a zip with a bad member": bytes.Replace(
			zipOf(t, good, member{name: "x", body: "yyyyyyyy"}),
			[]byte("good"),
			[]byte("g\x00\x00d"),
			1,
		),
	}
	for name, data := range zips {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/model.zip", data)
			parent := t.TempDir()
			dir := filepath.Join(parent, "a", "dest")
			if out := run(
				t,
				serverSettings(s),
				"s3://models/m",
				dir,
			); out.code != ExitIntegrity &&
				name != "a zip with a bad member" {
				t.Errorf("exit code %d, want %d; %s", out.code, ExitIntegrity, out.log)
			}
			wantNothingOutside(t, parent, dir)
		})
	}
}

// wantNothingOutside fails if anything beside dest was written beneath parent,
// or if a link in dest leads out of it, or if dest is marked complete.
func wantNothingOutside(t *testing.T, parent, dest string) {
	t.Helper()
	root, err := os.OpenRoot(dest)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dest, path)
		switch {
		case err != nil || relErr != nil:
			return errors.Join(err, relErr)
		case strings.HasPrefix(rel, "..") && !d.IsDir():
			t.Errorf("%s was written outside", path)
		case d.Type()&fs.ModeSymlink != 0:
			if _, err := root.Stat(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("link %s leads out: %v", path, err)
			}
		case !d.IsDir() && !d.Type().IsRegular():
			t.Errorf("%s is neither a file nor a folder", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPullUnpacksALocalArchive(t *testing.T) {
	claim, dir := t.TempDir(), t.TempDir()
	path := filepath.Join(claim, "model.tgz")
	if err := os.WriteFile(path, gzipOf(t, tarOf(t, member{name: "weights", body: "w"})), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantCode(t, run(t, nil, claim, dir), ExitOK, "Completed")
		wantTree(t, dir, map[string][]byte{"weights": []byte("w")})
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the claim's own file is gone: %v", err)
	}
}

// bomb is a gzip of a tar with one member of so many zeros, which are left out
// where they are too many for a test.
func bomb(t *testing.T, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Size: size, Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if size > 64*mebibyte {
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	if _, err := io.CopyN(w, zeros{}, size); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// manyTimes are n empty members.
func manyTimes(n int) []member {
	var all []member
	for i := range n {
		all = append(all, member{name: "folder/" + strconv.Itoa(i)})
	}
	return all
}

// lyingZip says of its first member that it has this many bytes.
func lyingZip(t *testing.T, data []byte, size uint32) []byte {
	t.Helper()
	at := bytes.Index(data, []byte("PK\x01\x02"))
	if at < 0 {
		t.Fatal("no directory")
	}
	data = bytes.Clone(data)
	binary.LittleEndian.PutUint32(data[at+24:], size)
	return data
}

func TestPullBoundsWhatComesOutOfAnArchive(t *testing.T) {
	cases := map[string]struct {
		key        string
		data       []byte
		env        settings
		memory     string // the destination's size, if it is in memory
		wantCode   ExitCode
		wantReason string
		wantText   string
		// wantFiles are those that may be there afterwards.
		wantFiles int
	}{
		"a tar that comes to much more than it is": {
			key: "m/a.tgz", data: bomb(t, 2<<30), wantCode: ExitNoSpace, wantReason: "TooLarge",
			wantText: "comes to more than 1.1 GB when it is unpacked. If that is right, set PRELOADER_ARCHIVE_SIZE",
		},
		"the same, and it is right": {
			key: "m/a.tgz", data: bomb(t, 3*mebibyte), env: settings{"PRELOADER_ARCHIVE_SIZE": "3Mi"}, wantFiles: 1,
		},
		"members that are too much together": {
			key: "m/a.tar", data: tarOf(t, member{name: "a", body: strings.Repeat("x", 600_000)},
				member{name: "b", body: strings.Repeat("x", 600_000)}),
			env: settings{"PRELOADER_ARCHIVE_SIZE": "1Mi"}, wantCode: ExitNoSpace, wantReason: "TooLarge", wantFiles: 1,
		},
		"a zip that comes to too much": {
			key: "m/a.zip", data: zipOf(t, member{name: "a", body: strings.Repeat("x", 600_000)},
				member{name: "b", body: strings.Repeat("x", 600_000)}),
			env: settings{"PRELOADER_ARCHIVE_SIZE": "1Mi"}, wantCode: ExitNoSpace, wantReason: "TooLarge",
		},
		"a zip that says that it comes to too much": {
			key: "m/a.zip", data: lyingZip(t, zipOf(t, member{name: "a", body: "x"}, member{name: "b"}), 1<<31),
			wantCode: ExitNoSpace, wantReason: "TooLarge",
		},
		"a zip with a member that has more than it says": {
			key: "m/a.zip", data: lyingZip(t, zipOf(t, member{name: "a", body: strings.Repeat("x", 5000)}), 10),
			wantCode: ExitIntegrity, wantReason: "BadArchive",
		},
		"a tar of too many members": {
			key: "m/a.tar", data: tarOf(t, manyTimes(11)...), env: settings{"PRELOADER_ARCHIVE_FILES": "10"},
			wantCode: ExitNoSpace, wantReason: "TooLarge", wantText: "more than 10 files, folders and links", wantFiles: 10,
		},
		"a zip of too many members": {
			key: "m/a.zip", data: zipOf(t, manyTimes(11)...), env: settings{"PRELOADER_ARCHIVE_FILES": "10"},
			wantCode: ExitNoSpace, wantReason: "TooLarge", wantText: "PRELOADER_ARCHIVE_FILES",
		},
		"a zip whose directory is longer than its members need": {
			key: "m/a.zip", data: zipOf(t, manyTimes(30_000)...), env: settings{"PRELOADER_ARCHIVE_FILES": "10"},
			wantCode: ExitNoSpace, wantReason: "TooLarge",
		},
		"a tar that is larger than the volume": {
			key: "m/a.tgz", data: bomb(t, 30*mebibyte), memory: "20m", wantCode: ExitNoSpace, wantReason: "NoSpace",
			wantText: "unpacking a.tgz needs at least 31.5 MB more",
		},
		"a zip that is larger than the volume": {
			key: "m/a.zip", data: zipOf(t, member{name: "a", body: strings.Repeat("x", 15*mebibyte)},
				member{name: "b", body: strings.Repeat("x", 15*mebibyte)}),
			memory: "20m", wantCode: ExitNoSpace, wantReason: "NoSpace", wantText: "unpacking a.zip needs at least 31.5 MB more",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put(tc.key, tc.data)
			dir := t.TempDir()
			if tc.memory != "" {
				dir = mountMemory(t, tc.memory)
			}
			reason := firstOf(tc.wantReason, "Completed")
			out := run(t, with(serverSettings(s), tc.env), "s3://models/"+tc.key, dir)
			wantCode(t, out, tc.wantCode, reason)
			if !strings.Contains(out.last, tc.wantText) {
				t.Errorf("termination message %q does not tell of %q", out.last, tc.wantText)
			}
			found := tree(t, dir)
			delete(found, path.Base(tc.key))
			if len(found) != tc.wantFiles {
				t.Errorf("%d files are there, want %d", len(found), tc.wantFiles)
			}
		})
	}
}

func TestArchiveOf(t *testing.T) {
	for name, want := range map[string]archiveFormat{
		"a.tar": tarArchive, "a.tgz": tarArchive, "a.tar.gz": tarArchive, "a.taz": tarArchive, "a.tbz2": tarArchive,
		"a.tar.xz": tarArchive, "a.txz": tarArchive, "a.ZIP": zipArchive, "a.mar": notArchive, "a.gz": notArchive,
		"a.tar.zst": notArchive, "a.jar": notArchive, "tar": notArchive, "a.tar/b": notArchive,
	} {
		if got := archiveOf(name); got != want {
			t.Errorf("archiveOf(%q) = %d, want %d", name, got, want)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, member{name: "a", body: "x"}, member{name: "l", kind: tar.TypeSymlink, link: "a"}), false)
	f.Add(tarOf(f, member{name: "../a", body: "x"}), false)
	f.Add(gzipOf(f, tarOf(f, member{name: "d/", kind: tar.TypeDir})), false)
	f.Add(zipOf(f, member{name: "a/b", body: "x"}), true)
	f.Fuzz(func(t *testing.T, data []byte, zipped bool) {
		parent := t.TempDir()
		archive := filepath.Join(parent, "archive.tar")
		if zipped {
			archive = filepath.Join(parent, "archive.zip")
		}
		if err := os.WriteFile(archive, data, 0o600); err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(archive)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		dest := filepath.Join(parent, "a", "dest")
		s, err := openStore(t.Context(), dest, queue{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if err := s.prepare(newSaved()); err != nil {
			t.Fatal(err)
		}
		files, err := s.unpack(t.Context(), in, archive, archiveBounds{size: 64 * mebibyte, members: 1000}, make([]byte, 4096))
		if err != nil && asFailure(err).Code != ExitIntegrity && asFailure(err).Code != ExitNoSpace {
			t.Errorf("exit code %d for %v", asFailure(err).Code, err)
		}
		for rel := range files {
			if _, err := s.root.Lstat(rel); err != nil {
				t.Errorf("file %q is said to be there: %v", rel, err)
			}
		}
		_ = os.Remove(archive)
		wantNothingOutside(t, parent, dest)
	})
}
