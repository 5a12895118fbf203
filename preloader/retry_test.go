// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestAListingThatStallsIsEnded: a store that begins to answer and falls silent is waited for no longer than for the
// bytes of an object.
func TestAListingThatStallsIsEnded(t *testing.T) {
	closing := make(chan struct{})
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		_, _ = io.WriteString(w, `<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated><Contents>`)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-closing:
		}
	}))
	t.Cleanup(func() {
		close(closing)
		store.CloseClientConnections()
		store.Close()
	})
	out := run(t, with(serverSettings(&faultServer{Server: store}), settings{
		"PRELOADER_STALL": "0.5", "S3_MAX_ATTEMPTS": "1", "S3_READ_TIMEOUT": "3",
	}), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitUnavailable, "Stalled")
}

// TestPartsAreAskedForWithoutASecondTurn: to learn the checksum of a small file of several parts takes another request.
// It must not wait for the connection that brought the file.
func TestPartsAreAskedForWithoutASecondTurn(t *testing.T) {
	for conns, files := range map[string]int{"1": 3, "8": 64} {
		t.Run(conns+" connections", func(t *testing.T) {
			s, want := newFaultServer(t), map[string][]byte{}
			for i := range files {
				first, second := noise(uint64(i), 50_000), noise(uint64(1000+i), 20_000)
				name := fmt.Sprintf("f%02d", i)
				s.putParts("m/"+name, first, second)
				want[name] = append(first, second...)
			}
			dir := t.TempDir()
			out := run(t, with(serverSettings(s), settings{
				"PRELOADER_CONNS": conns, "S3_MAX_ATTEMPTS": "1",
			}), "s3://models/m", dir)
			wantCode(t, out, ExitOK, "Completed")
			wantTree(t, dir, want)
			if out.report.Retries != 0 {
				t.Errorf("%d requests were repeated", out.report.Retries)
			}
		})
	}
}
