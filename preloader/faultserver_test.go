// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"serverless.xyz/outrigger/preloader/crc"
)

// faultServer is an S3 server for one bucket that keeps objects in memory and
// answers wrongly where a test asks it to.
type faultServer struct {
	*httptest.Server
	bucket string

	mu      sync.Mutex
	objects map[string]*stored
	// sorted are the keys in order, or nil after a change.
	sorted []string
	// decide says what is to go wrong with a request; nil means nothing.
	decide func(asked) fault
	// saw looks at every request.
	saw   func(*http.Request)
	pages int // keys a page; 0 means 1000
	// listing says how pages are listed: "" as today's S3 does, "1" by the first version
	// whatever is asked for, "stuck" with the same page again and again.
	listing string
	counts  map[string]int

	// putting lets one conditional request at a time be answered.
	putting sync.Mutex

	closing chan struct{}
}

// stored is an object.
type stored struct {
	data     []byte
	etag     string
	modified time.Time
	headers  map[string]string // checksum headers
	parts    []stored          // what a multipart upload was made of
}

// asked is a request as a fault sees it.
type asked struct {
	op   string // List, Head or Get; Put, Begin, Part, Complete, Abort or Delete
	key  string
	off  int64
	n    int64
	seen int // requests of this kind for this key before
}

// fault is what goes wrong. The zero value is a right answer.
type fault struct {
	status     int    // answer with this status
	code       string // and this S3 error code
	location   string // and where a redirect leads
	cut        bool   // break the connection after `after` bytes
	stall      bool   // send nothing more after `after` bytes
	flip       bool   // change the byte at `after`
	after      int64
	shiftRange int64  // claim another range
	addLength  int64  // claim another length
	before     func() // runs before the answer
	done       func() // runs after it, for Get
	chunked    bool   // do not say the length
	weak       bool   // call the ETag weak, as proxies do that change answers
	pause      time.Duration
	hold       <-chan struct{} // send nothing more after `after` bytes until this closes
	trickle    time.Duration   // let this pass after each 4 KiB beyond `after` bytes
}

const testBucket = "models"

func newFaultServer(t *testing.T) *faultServer {
	t.Helper()
	s := unstartedFaultServer(t)
	s.Start()
	return s
}

func unstartedFaultServer(t *testing.T) *faultServer {
	t.Helper()
	s := &faultServer{bucket: testBucket, objects: map[string]*stored{}, counts: map[string]int{}, closing: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.Config.ErrorLog = nil
	t.Cleanup(func() {
		close(s.closing)
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// put stores an object the way that a single upload with a CRC64NVME does.
func (s *faultServer) put(key string, data []byte) {
	s.putWith(key, data, map[string]string{
		"x-amz-checksum-crc64nvme": crc.NVME.Encode(crc.NVME.Update(0, data)), "x-amz-checksum-type": "FULL_OBJECT",
	})
}

func (s *faultServer) putWith(key string, data []byte, headers map[string]string) {
	sum := md5.Sum(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sorted = nil
	s.objects[key] = &stored{
		data:     data,
		etag:     hex.EncodeToString(sum[:]),
		modified: time.Unix(1_700_000_000, 0),
		headers:  headers,
	}
}

// putParts stores an object the way that a multipart upload with CRC32 does,
// which is what boto3 makes of files above 8 MiB.
func (s *faultServer) putParts(key string, parts ...[]byte) {
	var all, sums, etags []byte
	object := &stored{modified: time.Unix(1_700_000_000, 0)}
	for _, p := range parts {
		sum := crc32.ChecksumIEEE(p)
		sums = append(sums, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
		etag := md5.Sum(p)
		etags = append(etags, etag[:]...)
		all = append(all, p...)
		object.parts = append(object.parts, stored{data: p, headers: map[string]string{
			"x-amz-checksum-crc32": crc.IEEE.Encode(uint64(sum)),
		}})
	}
	whole := md5.Sum(etags)
	object.data, object.etag = all, fmt.Sprintf("%x-%d", whole, len(parts))
	object.headers = map[string]string{
		"x-amz-checksum-crc32": fmt.Sprintf("%s-%d", crc.IEEE.Encode(uint64(crc32.ChecksumIEEE(sums))), len(parts)),
		"x-amz-checksum-type":  "COMPOSITE",
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sorted = nil
	s.objects[key] = object
}

func (s *faultServer) faults(decide func(asked) fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decide = decide
}

// look has every request looked at from now on.
func (s *faultServer) look(saw func(*http.Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saw = saw
}

// count returns how many requests of a kind came in, and forget starts anew.
func (s *faultServer) count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

func (s *faultServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts = map[string]int{}
}

func (s *faultServer) ask(op, key string, off, n int64) fault {
	s.mu.Lock()
	a := asked{op: op, key: key, off: off, n: n, seen: s.counts[op+" "+key]}
	s.counts[op]++
	s.counts[op+" "+key]++
	decide := s.decide
	s.mu.Unlock()
	if decide == nil {
		return fault{}
	}
	f := decide(a)
	if f.before != nil {
		f.before()
	}
	time.Sleep(f.pause)
	return f
}

func (s *faultServer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	saw := s.saw
	s.mu.Unlock()
	if saw != nil {
		saw(r)
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	bucket, key, _ := strings.Cut(path, "/")
	if host, _, _ := strings.Cut(r.Host, "."); host == s.bucket {
		bucket, key = s.bucket, path
	}
	switch {
	case bucket != s.bucket:
		refuse(w, http.StatusNotFound, "NoSuchBucket")
	case key == "" && r.Method == http.MethodGet:
		s.list(w, r)
	case r.Method == http.MethodHead:
		s.head(w, r, key)
	case r.Method == http.MethodGet:
		s.get(w, r, key)
	default:
		s.write(w, r, key)
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>told to</Message></Error>", code)
}

type listResult struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	IsTruncated           bool
	NextContinuationToken string `xml:",omitempty"`
	EncodingType          string `xml:",omitempty"`
	Contents              []listEntry
}

type listEntry struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
}

func (s *faultServer) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if f := s.ask("List", q.Get("prefix"), 0, 0); f.status != 0 {
		refuse(w, f.status, f.code)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.pages
	if limit == 0 {
		limit = 1000
	}
	out := listResult{EncodingType: q.Get("encoding-type")}
	if s.sorted == nil {
		s.sorted = slices.Sorted(maps.Keys(s.objects))
	}
	after := map[string]string{"": q.Get("continuation-token"), "1": q.Get("marker")}[s.listing]
	from, _ := slices.BinarySearch(s.sorted, after+"\x00")
	last := ""
	for _, key := range s.sorted[from:] {
		if !strings.HasPrefix(key, q.Get("prefix")) {
			continue
		}
		if len(out.Contents) == limit {
			if out.IsTruncated = true; s.listing != "1" {
				out.NextContinuationToken = last
			}
			break
		}
		o := s.objects[key]
		last = key
		if out.EncodingType == "url" {
			key = url.QueryEscape(key)
		}
		out.Contents = append(out.Contents, listEntry{
			Key: key, Size: len(o.data), ETag: quoteETag(o.etag), LastModified: o.modified.UTC().Format(time.RFC3339),
		})
	}
	w.Header().Set("Content-Type", "application/xml")
	if err := xml.NewEncoder(w).Encode(out); err != nil {
		panic(err)
	}
}

func quoteETag(etag string) string {
	if etag == "" {
		return ""
	}
	return `"` + etag + `"`
}

// object returns a copy of what is stored now, so that it may change meanwhile.
func (s *faultServer) object(key string) (stored, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	if !ok {
		return stored{}, false
	}
	return *o, true
}

func describe(w http.ResponseWriter, r *http.Request, o stored) {
	if o.etag != "" {
		w.Header().Set("ETag", quoteETag(o.etag))
	}
	w.Header().Set("Last-Modified", o.modified.UTC().Format(http.TimeFormat))
	if r.Header.Get("x-amz-checksum-mode") == "ENABLED" && r.Header.Get("Range") == "" {
		for k, v := range o.headers {
			w.Header().Set(k, v)
		}
	}
}

func (s *faultServer) head(w http.ResponseWriter, r *http.Request, key string) {
	f := s.ask("Head", key, 0, 0)
	o, ok := s.object(key)
	switch {
	case f.status != 0:
		w.WriteHeader(f.status)
		return
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if part, err := strconv.Atoi(r.URL.Query().Get("partNumber")); err == nil && part <= len(o.parts) {
		w.Header().Set("x-amz-mp-parts-count", strconv.Itoa(len(o.parts)))
		p := o.parts[part-1]
		p.etag, p.modified = o.etag, o.modified
		o = p
	}
	describe(w, r, o)
	if w.Header().Set("Content-Length", strconv.Itoa(len(o.data))); f.chunked {
		w.Header().Del("Content-Length")
		_ = http.NewResponseController(w).Flush()
	}
}

func (s *faultServer) get(w http.ResponseWriter, r *http.Request, key string) {
	var off, end int64
	ranged, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &off, &end)
	n := end - off + 1
	if before, ok := s.object(key); ok && ranged == 0 {
		n = int64(len(before.data))
	}
	f := s.ask("Get", key, off, n)
	if f.done != nil {
		defer f.done()
	}
	o, ok := s.object(key)
	switch {
	case f.status != 0:
		if f.location != "" {
			w.Header().Set("Location", f.location)
		}
		refuse(w, f.status, f.code)
		return
	case !ok:
		refuse(w, http.StatusNotFound, "NoSuchKey")
		return
	case r.Header.Get("If-Match") != "" && r.Header.Get("If-Match") != quoteETag(o.etag):
		refuse(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return
	case off >= int64(len(o.data)) && ranged > 0:
		refuse(w, http.StatusRequestedRangeNotSatisfiable, "InvalidRange")
		return
	}
	if ranged == 0 {
		n = int64(len(o.data))
	}
	n = min(n, int64(len(o.data))-off)
	describe(w, r, o)
	if f.weak {
		w.Header().Set("ETag", "W/"+quoteETag(o.etag))
	}
	if w.Header().Set("Content-Length", strconv.FormatInt(n+f.addLength, 10)); f.chunked {
		w.Header().Del("Content-Length")
	}
	if ranged > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off+f.shiftRange, off+n-1+f.shiftRange, len(o.data)))
		w.WriteHeader(http.StatusPartialContent)
	}
	s.send(w, r, o.data[off:off+n], f)
}

// send writes the body, or as much of it as the fault lets through.
func (s *faultServer) send(w http.ResponseWriter, r *http.Request, data []byte, f fault) {
	if f.flip && f.after < int64(len(data)) {
		data = bytes.Clone(data)
		data[f.after] ^= 0x20
	}
	f.cut = f.cut && f.after < int64(len(data))
	f.stall = f.stall && f.after < int64(len(data))
	if f.cut || f.stall {
		data = data[:f.after]
	}
	if f.hold != nil || f.trickle > 0 {
		data = s.dawdle(w, r, data, f)
	}
	_, _ = io.Copy(w, bytes.NewReader(data))
	if f.addLength > 0 {
		_, _ = w.Write(make([]byte, f.addLength))
	}
	if f.stall {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-s.closing:
		}
	}
	if f.cut {
		_ = http.NewResponseController(w).Flush()
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// dawdle sends some of the body late, and returns what is still to be sent.
func (s *faultServer) dawdle(w http.ResponseWriter, r *http.Request, data []byte, f fault) []byte {
	send := func(n int) bool {
		_, err := w.Write(data[:n])
		data = data[n:]
		return err == nil && http.NewResponseController(w).Flush() == nil
	}
	if !send(int(min(f.after, int64(len(data))))) {
		return nil
	}
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-r.Context().Done():
		case <-s.closing:
		}
	}
	for f.trickle > 0 && len(data) > 0 {
		select {
		case <-time.After(f.trickle):
		case <-r.Context().Done():
			return nil
		case <-s.closing:
			return nil
		}
		if !send(min(4096, len(data))) {
			return nil
		}
	}
	return data
}
