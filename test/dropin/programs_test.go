// SPDX-License-Identifier: Apache-2.0

package dropin

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/base64"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"serverless.xyz/outrigger/test/testbed"
)

// pythonPackages are what KServe's S3 path imports, in the versions of its lock
// file where that matters.
var pythonPackages = []string{"boto3==1.38.33", "requests==2.32.5", "certifi", "pyyaml"}

// kserveInitializer returns KServe's program, from the Go module that this
// repository requires, in a Python environment that is kept between runs.
func kserveInitializer(t *testing.T) invocation {
	t.Helper()
	cache, err := os.UserCacheDir()
	if root := os.Getenv("OUTRIGGER_CACHE"); root != "" {
		cache, err = root, nil
	} else {
		cache = filepath.Join(cache, "outrigger")
	}
	if err != nil {
		t.Fatalf("finding the cache folder, set OUTRIGGER_CACHE to choose one: %v", err)
	}
	venv := filepath.Join(cache, "python", "kserve-"+strings.ReplaceAll(strings.Join(pythonPackages, "-"), "=", ""))
	makeVenv(t, venv)
	module, err := testbed.ModuleDir(t.Context(), ".", "github.com/kserve/kserve")
	if err != nil {
		t.Fatal(err)
	}
	return invocation{
		argv: []string{
			filepath.Join(venv, "bin", "python"),
			filepath.Join(module, "python/storage-initializer/scripts/initializer-entrypoint"),
		},
		env: map[string]string{"PYTHONPATH": filepath.Join(module, "python/storage"), "PYTHONDONTWRITEBYTECODE": "1"},
	}
}

// makeVenv makes the environment unless an earlier run has finished it.
func makeVenv(t *testing.T, venv string) {
	t.Helper()
	if err := os.MkdirAll(venv, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(venv+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := filepath.Join(venv, "done")
	if _, err := os.Stat(done); err == nil {
		return
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is missing: install the Debian packages python3 and python3-venv")
	}
	output(t, python, "-m", "venv", venv)
	output(t, filepath.Join(venv, "bin", "pip"), append([]string{"install", "--quiet"}, pythonPackages...)...)
	if err := os.WriteFile(done, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func buildPreloader(t *testing.T) invocation {
	t.Helper()
	path := filepath.Join(t.TempDir(), "preloader")
	output(t, "go", "build", "-o", path, "serverless.xyz/outrigger/cmd/preloader")
	return invocation{argv: []string{path}, env: map[string]string{"PRELOADER_TERMINATION_LOG": os.DevNull}}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// server is a real S3 server with one bucket, models.
type server struct {
	endpoint, key, secret string
	client                *s3.Client
}

func startServer(t *testing.T) *server {
	t.Helper()
	bed, err := testbed.Start(t.Context(), testbed.Options{Size: testbed.API, With: []testbed.Part{testbed.S3}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := &server{}
	s.endpoint, s.key, s.secret = bed.S3()
	s.client = s3.New(s3.Options{
		BaseEndpoint: &s.endpoint, Region: "us-east-1", UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.key, s.secret, ""),
	})
	if _, err := s.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("models")}); err != nil {
		t.Fatal(err)
	}
	return s
}

// env is what KServe's webhook would set for a secret with these credentials.
func (s *server) env() map[string]string {
	return map[string]string{
		"AWS_ACCESS_KEY_ID": s.key, "AWS_SECRET_ACCESS_KEY": s.secret, "AWS_ENDPOINT_URL": s.endpoint,
		"S3_ENDPOINT": strings.TrimPrefix(s.endpoint, "http://"), "S3_USE_HTTPS": "0", "AWS_DEFAULT_REGION": "us-east-1",
		"AWS_EC2_METADATA_DISABLED": "true",
	}
}

// put uploads an object as a client of our day does: with a checksum, and in
// parts above 8 MiB.
func (s *server) put(t *testing.T, key string, data []byte) {
	t.Helper()
	if len(data) <= 8*mebibyte {
		_, err := s.client.PutObject(
			t.Context(),
			&s3.PutObjectInput{Bucket: aws.String("models"), Key: &key, Body: bytes.NewReader(data)},
		)
		if err != nil {
			t.Fatalf("uploading %s: %v", key, err)
		}
		return
	}
	upload, err := s.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: aws.String("models"), Key: &key, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32,
	})
	if err != nil {
		t.Fatal(err)
	}
	var parts []types.CompletedPart
	for n := int32(1); len(data) > 0; n++ {
		piece := data[:min(len(data), 8*mebibyte)]
		data = data[len(piece):]
		sum := md5.Sum(piece)
		out, err := s.client.UploadPart(t.Context(), &s3.UploadPartInput{
			Bucket: aws.String("models"), Key: &key, UploadId: upload.UploadId, PartNumber: &n, Body: bytes.NewReader(piece),
			ChecksumAlgorithm: types.ChecksumAlgorithmCrc32, ContentMD5: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
		})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{ETag: out.ETag, PartNumber: aws.Int32(n), ChecksumCRC32: out.ChecksumCRC32})
	}
	_, err = s.client.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: aws.String(
			"models",
		),
		Key:             &key,
		UploadId:        upload.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func noise(seed byte, n int) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(out)
	return out
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for rel, text := range files {
		path := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tarball holds a folder, a file, a script and a link.
func tarball(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	compressed := gzip.NewWriter(&out)
	w := tar.NewWriter(compressed)
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./model/", Typeflag: tar.TypeDir, Mode: 0o700},
		{Name: "./model/weights", Typeflag: tar.TypeReg, Mode: 0o600, Size: 7},
		{Name: "./run.sh", Typeflag: tar.TypeReg, Mode: 0o755, Size: 7},
		{Name: "./latest", Typeflag: tar.TypeSymlink, Linkname: "model/weights"},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("1234567")[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := compressed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipped(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for name, text := range map[string]string{"model/": "", "model/config.pbtxt": "name: x", "model/1/model.onnx": "onnx"} {
		f, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
