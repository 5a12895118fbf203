// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/crc64nvme"
)

const bucket = "bench"

// store is a synthetic S3 server, made for measuring clients: it does as little work as a server can. Objects are
// ranges of one file of noise, which go out by sendfile; ETags and checksums are computed before it listens. It takes
// any signature, and knows listing, HEAD and GET of one bucket only.
type store struct {
	path    string // of the noise
	period  int64  // its length; longer objects repeat it
	objects []object
	// sent counts the bytes of bodies.
	sent atomic.Int64
	// far makes it as slow as S3 is for one connection.
	far atomic.Bool
}

type object struct {
	file
	start int64
	etag  string
	crc   string
}

const (
	farDelay = 20 * time.Millisecond
	farRate  = 90e6 // bytes a second, each connection
)

// newStore lays the noise down in dir and computes what objects of the workloads have in their headers.
func newStore(dir string, all []workload) (*store, error) {
	s := &store{path: filepath.Join(dir, "noise")}
	for _, w := range all {
		s.period = max(s.period, min(w.bytes(), 256*mebibyte))
	}
	noise := make([]byte, s.period)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	if err := os.WriteFile(s.path, noise, 0o600); err != nil {
		return nil, fmt.Errorf("writing noise: %w", err)
	}
	for _, w := range all {
		for i, f := range w.files() {
			o := object{file: f, start: int64(i) * 1_234_567 % s.period}
			h := crc64nvme.New()
			o.pieces(0, f.Size, s.period, func(off, n int64) error {
				_, err := h.Write(noise[off : off+n])
				return err
			})
			o.crc = encodeSum(h.Sum64())
			// Not an MD5, as after an upload in parts: clients that would check one cannot.
			o.etag = fmt.Sprintf("%016x-1", h.Sum64())
			s.objects = append(s.objects, o)
		}
	}
	slices.SortFunc(s.objects, func(a, b object) int { return strings.Compare(a.Key, b.Key) })
	return s, nil
}

// encodeSum writes a CRC64NVME as S3 does.
func encodeSum(sum uint64) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, sum))
}

// pieces calls for each stretch of the noise that makes up [off, off+n) of the object.
func (o object) pieces(off, n, period int64, each func(off, n int64) error) error {
	for n > 0 {
		at := (o.start + off) % period
		piece := min(n, period-at)
		if err := each(at, piece); err != nil {
			return err
		}
		off += piece
		n -= piece
	}
	return nil
}

// address is a loopback address that nothing else uses.
const address = "127.0.0.80"

// listen serves plain and TLS until the context ends, and returns both URLs. It takes the usual ports if it may, because
// the AWS CRT that Debian has knows no others.
func (s *store) listen(ctx context.Context, certificate tls.Certificate) (plain, secure string, err error) {
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: time.Minute,
		// One read loop for all parts would be slow for clients that allow it.
		TLSConfig:    &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		// Clients are killed on purpose.
		ErrorLog: nil,
	}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	var hosts [2]string
	for i, port := range []string{"80", "443"} {
		hosts[i] = address
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(address, port))
		if err != nil {
			if listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(address, "0")); err != nil {
				return "", "", fmt.Errorf("listening: %w", err)
			}
			hosts[i] = listener.Addr().String()
		}
		if i == 0 {
			go server.Serve(listener)
		} else {
			go server.ServeTLS(listener, "", "")
		}
	}
	return "http://" + hosts[0], "https://" + hosts[1], nil
}

// ServeHTTP answers one request.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.far.Load() {
		time.Sleep(farDelay)
	}
	name, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if name != bucket {
		refuse(w, http.StatusNotFound, "NoSuchBucket")
		return
	}
	if key == "" {
		if r.Method == http.MethodGet {
			s.list(w, r)
		}
		return // HEAD of a bucket says that it is there
	}
	i, found := slices.BinarySearchFunc(s.objects, key, func(o object, key string) int { return strings.Compare(o.Key, key) })
	if !found {
		refuse(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	if err := s.answer(w, r, s.objects[i]); err != nil {
		panic(http.ErrAbortHandler)
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code></Error>", code)
}

func (s *store) answer(w http.ResponseWriter, r *http.Request, o object) error {
	h := w.Header()
	h.Set("ETag", `"`+o.etag+`"`)
	h.Set("Last-Modified", "Sat, 01 Nov 2025 00:00:00 GMT")
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Type", "binary/octet-stream")
	if match := r.Header.Get("If-Match"); match != "" && strings.Trim(match, `"`) != o.etag {
		refuse(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return nil
	}
	off, n, status := int64(0), o.Size, http.StatusOK
	var end int64
	if got, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &off, &end); got >= 1 {
		if got == 1 || end >= o.Size {
			end = o.Size - 1
		}
		if n = end - off + 1; n <= 0 {
			refuse(w, http.StatusRequestedRangeNotSatisfiable, "InvalidRange")
			return nil
		}
		status = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end, o.Size))
	} else if r.Header.Get("X-Amz-Checksum-Mode") == "ENABLED" {
		h.Set("X-Amz-Checksum-Crc64nvme", o.crc)
		h.Set("X-Amz-Checksum-Type", "FULL_OBJECT")
	}
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	return s.send(w, o, off, n)
}

// noises are open files of the noise; each has a position of its own, which sendfile moves.
var noises sync.Pool

func (s *store) send(w http.ResponseWriter, o object, off, n int64) error {
	noise, _ := noises.Get().(*os.File)
	if noise == nil {
		var err error
		if noise, err = os.Open(s.path); err != nil {
			return err
		}
	}
	defer noises.Put(noise)
	step := int64(8 * mebibyte)
	far := s.far.Load()
	if far {
		step = mebibyte
	}
	began, out := time.Now(), int64(0)
	return o.pieces(off, n, s.period, func(at, n int64) error {
		if _, err := noise.Seek(at, io.SeekStart); err != nil {
			return err
		}
		for n > 0 {
			sent, err := io.CopyN(w, noise, min(n, step))
			s.sent.Add(sent)
			if err != nil {
				return err
			}
			n -= sent
			if out += sent; far {
				time.Sleep(time.Until(began.Add(time.Duration(float64(out) / farRate * float64(time.Second)))))
			}
		}
		return nil
	})
}

type listResult struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name, Prefix          string
	KeyCount, MaxKeys     int
	IsTruncated           bool
	NextContinuationToken string `xml:",omitempty"`
	NextMarker            string `xml:",omitempty"`
	Contents              []listEntry
}

type listEntry struct {
	Key, LastModified, ETag string
	Size                    int64
	StorageClass            string
}

func (s *store) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	out := listResult{Name: bucket, Prefix: q.Get("prefix"), MaxKeys: 1000}
	after := max(q.Get("continuation-token"), q.Get("marker"))
	for _, o := range s.objects {
		if !strings.HasPrefix(o.Key, out.Prefix) || o.Key <= after {
			continue
		}
		if out.KeyCount == out.MaxKeys {
			out.IsTruncated = true
			out.NextContinuationToken = out.Contents[out.KeyCount-1].Key
			out.NextMarker = out.NextContinuationToken
			break
		}
		out.KeyCount++
		out.Contents = append(out.Contents, listEntry{
			Key:          o.Key,
			LastModified: "2025-11-01T00:00:00.000Z",
			ETag:         `"` + o.etag + `"`,
			Size:         o.Size,
			StorageClass: "STANDARD",
		})
	}
	w.Header().Set("Content-Type", "application/xml")
	if err := xml.NewEncoder(w).Encode(out); err != nil && !errors.Is(err, net.ErrClosed) {
		panic(http.ErrAbortHandler)
	}
}
