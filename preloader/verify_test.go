// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"serverless.xyz/outrigger/preloader/crc"
)

func base64Of(sum []byte) string { return base64.StdEncoding.EncodeToString(sum) }

// TestPullClimbsTheLadderOfEvidence stores one object in every way that S3 does,
// pulls it rightly and with one byte changed on the way, and checks that the
// evidence reported is evidence indeed.
func TestPullClimbsTheLadderOfEvidence(t *testing.T) {
	large := noise(1, 21*mebibyte+5)
	pieces := [][]byte{
		large[:5*mebibyte],
		large[5*mebibyte : 10*mebibyte],
		large[10*mebibyte : 15*mebibyte],
		large[15*mebibyte : 20*mebibyte],
		large[20*mebibyte:],
	}
	sha := sha256.Sum256(large)
	sha1sum := sha1.Sum(large)
	single := func(headers map[string]string) func(*faultServer, []byte) {
		return func(s *faultServer, data []byte) { s.putWith("m/model", data, headers) }
	}
	partDigests := func(s *faultServer, _ []byte) {
		s.putParts("m/model", pieces...)
		var sums []byte
		for _, p := range pieces {
			sum := sha256.Sum256(p)
			sums = append(sums, sum[:]...)
		}
		whole := sha256.Sum256(sums)
		s.objects["m/model"].headers = map[string]string{
			"x-amz-checksum-sha256": fmt.Sprintf("%s-%d", base64Of(whole[:]), len(pieces)), "x-amz-checksum-type": "COMPOSITE",
		}
	}
	cases := map[string]struct {
		put  func(*faultServer, []byte)
		data []byte
		mode string
		want Evidence // empty: the mode refuses
	}{
		"CRC64NVME of the object": {
			put: func(s *faultServer, data []byte) { s.put("m/model", data) }, data: large, want: EvidenceChecksum,
		},
		"CRC32C of the object": {
			put:  single(map[string]string{"x-amz-checksum-crc32c": crc.Castagnoli.Encode(crc.Castagnoli.Update(0, large))}),
			data: large, mode: "require", want: EvidenceChecksum,
		},
		"CRC32 of the object": {
			put:  single(map[string]string{"x-amz-checksum-crc32": crc.IEEE.Encode(crc.IEEE.Update(0, large))}),
			data: large, want: EvidenceChecksum,
		},
		"SHA256 of the object": {
			put:  single(map[string]string{"x-amz-checksum-sha256": base64Of(sha[:])}),
			data: large, want: EvidenceChecksum,
		},
		"SHA1 of the object": {
			put:  single(map[string]string{"x-amz-checksum-sha1": base64Of(sha1sum[:])}),
			data: large, want: EvidenceChecksum,
		},
		"CRC32 of the parts": {
			put:  func(s *faultServer, _ []byte) { s.putParts("m/model", pieces...) },
			data: large,
			mode: "require",
			want: EvidenceParts,
		},
		"CRC32 of the parts of a small object": {
			put: func(s *faultServer, _ []byte) {
				s.putParts("m/model", large[:5*mebibyte], large[5*mebibyte:6*mebibyte])
			},
			data: large[:6*mebibyte], want: EvidenceParts,
		},
		"SHA256 of the parts": {put: partDigests, data: large, want: EvidenceParts},
		"parts of unequal length cannot be told": {
			put: func(s *faultServer, _ []byte) {
				s.putParts("m/model", large[:6*mebibyte], large[6*mebibyte:20*mebibyte], large[20*mebibyte:])
			},
			data: large, want: EvidenceSize,
		},
		"a large object with an MD5 as ETag is only checked if required": {put: single(nil), data: large, want: EvidenceSize},
		"an MD5 as ETag, required": {
			put:  single(nil),
			data: large,
			mode: "require",
			want: EvidenceMD5,
		},
		"a small MD5 costs nothing": {
			put:  single(nil),
			data: large[:1000],
			want: EvidenceMD5,
		},
		"the MD5s of the parts, required": {
			put: func(s *faultServer, _ []byte) {
				s.putParts("m/model", pieces...)
				s.objects["m/model"].headers = nil
			},
			data: large, mode: "require", want: EvidenceMD5,
		},
		"an encrypted object's ETag is no MD5": {
			put:  single(map[string]string{"x-amz-server-side-encryption": "aws:kms"}),
			data: large[:1000], want: EvidenceSize,
		},
		"an encrypted object, required": {
			put:  single(map[string]string{"x-amz-server-side-encryption": "aws:kms"}),
			data: large[:1000], mode: "require",
		},
		"nothing is checked if told so": {
			put: func(s *faultServer, data []byte) { s.put("m/model", data) }, data: large, mode: "off", want: EvidenceSize,
		},
		"an empty object":           {put: single(nil), want: EvidenceMD5},
		"an empty object, required": {put: single(nil), mode: "require", want: EvidenceMD5},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			tc.put(s, tc.data)
			env := with(serverSettings(s), settings{"PRELOADER_VERIFY": firstOf(tc.mode, "auto"), "S3_MAX_ATTEMPTS": "2"})
			dir := t.TempDir()
			out := run(t, env, "s3://models/m", dir)
			if tc.want == "" {
				wantCode(t, out, ExitIntegrity, "NoChecksum")
				return
			}
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dir, map[string][]byte{"model": tc.data})
			if got := Evidence(out.report.rungs()); got != tc.want {
				t.Errorf("evidence is %q, want %q", got, tc.want)
			}
			if len(tc.data) == 0 || tc.want == EvidenceSize {
				return
			}
			s.faults(func(a asked) fault {
				return fault{flip: a.op == "Get", after: a.n - 1}
			})
			dir = t.TempDir()
			wantCode(t, run(t, env, "s3://models/m", dir), ExitIntegrity, "ChecksumMismatch")
			wantTree(t, dir, map[string][]byte{})
		})
	}
}

func TestPullResumesAnUploadInParts(t *testing.T) {
	s := newFaultServer(t)
	data := noise(1, 40*mebibyte)
	var pieces [][]byte
	for i := 0; i < len(data); i += 5*mebibyte + 1 { // parts that end within our requests and writes
		pieces = append(pieces, data[i:min(len(data), i+5*mebibyte+1)])
	}
	s.putParts("m/model", pieces...)
	s.faults(func(a asked) fault {
		return fault{stall: a.op == "Get", after: 7 * mebibyte}
	})
	dir := t.TempDir()
	p := start(t, serverSettings(s), "s3://models/m", dir)
	eventually(t, "ranges are recorded", func() bool { return recorded(dir) >= 6 })
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	s.faults(nil)
	out := run(t, with(serverSettings(s), settings{"PRELOADER_VERIFY": "require"}), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
	if out.report.rungs() != string(EvidenceParts) || out.report.Resumed < 8*mebibyte {
		t.Errorf("evidence %q after resuming %d bytes", out.report.rungs(), out.report.Resumed)
	}
}

func TestPullRefusesAChecksumThatIsNone(t *testing.T) {
	for _, value := range []string{"!!", "AAA=", ""} {
		s := newFaultServer(t)
		s.putWith("m/model", []byte("data"), map[string]string{"x-amz-checksum-crc32": value})
		out := run(t, serverSettings(s), "s3://models/m", t.TempDir())
		want := ExitIntegrity
		if value == "" {
			want = ExitOK
		}
		if out.code != want {
			t.Errorf("checksum %q: exit code %d, want %d; %s", value, out.code, want, out.log)
		}
	}
}

func TestEtagMD5(t *testing.T) {
	sum := md5.Sum([]byte("x"))
	text := hex.EncodeToString(sum[:])
	for etag, want := range map[string]int{text: 0, text + "-7": 7, text + "-0": -1, text + "-x": -1, "abc": -1, "": -1, text + "00": -1} {
		got, parts := etagMD5(object{etag: etag})
		if want < 0 && got != nil || want >= 0 && (!bytes.Equal(got, sum[:]) || parts != want) {
			t.Errorf("ETag %q: MD5 %x of %d parts, want %d", etag, got, parts, want)
		}
	}
}

// TestVerifyNamesWhatDiffers damages a tree in several ways at once.
func TestVerifyNamesWhatDiffers(t *testing.T) {
	s := newFaultServer(t)
	names := []string{"changed", "cut", "gone", "linked", "longer", "sound", "wrong/a", "wrong/b"}
	for i, name := range names {
		s.put("m/"+name, noise(uint64(i), 100+i*2*mebibyte))
	}
	dir, other := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, other} {
		wantCode(t, run(t, serverSettings(s), "s3://models/m", d), ExitOK, "Completed")
	}
	wantCode(t, run(t, nil, "verify", dir, other), ExitOK, "")
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, off int64, text string) {
		f, err := os.OpenFile(at(name), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte(text), off)
			err = cmp.Or(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("changed", 50, "another")
	write("longer", 9<<20, "more")
	write("wrong/a", 0, "another")
	write("wrong/b", 0, "another")
	for _, err := range []error{
		os.Truncate(at("cut"), 99), os.Remove(at("gone")), os.Remove(at("linked")), os.Symlink(filepath.Join(other, "linked"), at("linked")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, nil, "verify", other, dir)
	if out.code != ExitIntegrity {
		t.Errorf("exit code %d, want %d", out.code, ExitIntegrity)
	}
	for _, want := range []string{
		"Every file in " + other, "7 of 8 files in " + dir, `"changed" holds other bytes`, `"cut" has 99 bytes in place of 2097252`,
		`"gone" is missing`, `"linked" is a link`, `"longer" has`, "and 2 more", "reason=FileChanged",
	} {
		if !strings.Contains(out.log, want) {
			t.Errorf("the log lacks %q:\n%s", want, out.log)
		}
	}
	if strings.Contains(out.log, `"sound"`) {
		t.Errorf("the log names a file that is sound:\n%s", out.log)
	}
	for _, tc := range []struct {
		dir    string
		reason string
	}{{filepath.Join(dir, "nowhere"), "NotFound"}, {t.TempDir(), "Incomplete"}} {
		if out := run(t, nil, "verify", tc.dir); out.code != ExitNotFound || !strings.Contains(out.log, "reason="+tc.reason) {
			t.Errorf("exit code %d, want %d with %s:\n%s", out.code, ExitNotFound, tc.reason, out.log)
		}
	}
}
