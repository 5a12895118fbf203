// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// write answers requests that change the bucket.
func (s *faultServer) write(w http.ResponseWriter, r *http.Request, key string) {
	q := r.URL.Query()
	_, begins := q["uploads"]
	op := map[string]string{
		http.MethodPut: "Put", http.MethodPost: "Complete", http.MethodDelete: "Delete",
	}[r.Method]
	switch {
	case begins:
		op = "Begin"
	case q.Get("uploadId") != "" && r.Method == http.MethodPut:
		op = "Part"
	case q.Get("uploadId") != "" && r.Method == http.MethodDelete:
		op = "Abort"
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if f := s.ask(op, key, 0, int64(len(body))); f.status != 0 {
		refuse(w, f.status, f.code)
		return
	}
	if sum := md5.Sum(body); op == "Put" || op == "Part" {
		if r.Header.Get("Content-MD5") != base64.StdEncoding.EncodeToString(sum[:]) {
			refuse(w, http.StatusBadRequest, "BadDigest")
			return
		}
		w.Header().Set("ETag", quoteETag(hex.EncodeToString(sum[:])))
	}
	switch op {
	case "Put":
		s.putting.Lock() // the condition holds until the object is there
		defer s.putting.Unlock()
		if !s.allows(w, r, key) {
			return
		}
		s.put(key, body)
	case "Begin":
		_, _ = fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>"+key+"</UploadId></InitiateMultipartUploadResult>")
	case "Part":
		s.put(q.Get("uploadId")+"?"+q.Get("partNumber"), body)
	case "Complete":
		s.complete(w, key, q.Get("uploadId"), body)
	case "Abort", "Delete":
		s.drop(key, op == "Abort")
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

// allows checks the conditions of a request, and answers it if they are not met.
func (s *faultServer) allows(w http.ResponseWriter, r *http.Request, key string) bool {
	o, there := s.object(key)
	if there && r.Header.Get("If-None-Match") == "*" ||
		r.Header.Get("If-Match") != "" && r.Header.Get("If-Match") != quoteETag(o.etag) {
		refuse(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return false
	}
	return true
}

// complete joins the parts that a request lists.
func (s *faultServer) complete(w http.ResponseWriter, key, id string, body []byte) {
	var listed struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(body, &listed); err != nil {
		refuse(w, http.StatusBadRequest, "MalformedXML")
		return
	}
	var parts [][]byte
	for _, p := range listed.Part {
		o, ok := s.object(id + "?" + strconv.Itoa(p.PartNumber))
		if !ok || quoteETag(o.etag) != p.ETag && o.etag != p.ETag {
			refuse(w, http.StatusBadRequest, "InvalidPart")
			return
		}
		parts = append(parts, o.data)
	}
	s.drop(id, true)
	s.putParts(key, parts...)
	s.mu.Lock()
	s.objects[key].modified = time.Now()
	s.mu.Unlock()
	_, _ = fmt.Fprint(w, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
}

// drop removes an object, or the parts of an upload.
func (s *faultServer) drop(key string, parts bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !parts {
		delete(s.objects, key)
		s.sorted = nil
		return
	}
	for k := range s.objects {
		if strings.HasPrefix(k, key+"?") {
			delete(s.objects, k)
			s.sorted = nil
		}
	}
}

// keys lists the objects below a prefix by what follows it, without parts of uploads.
func (s *faultServer) keys(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []string
	for k := range s.objects {
		if rest, ok := strings.CutPrefix(k, prefix); ok && !strings.Contains(k, "?") {
			found = append(found, rest)
		}
	}
	return found
}
