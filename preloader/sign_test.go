// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/google/go-cmp/cmp"
)

// TestSignatureIsThatOfTheSDK signs requests both ways.
func TestSignatureIsThatOfTheSDK(t *testing.T) {
	own := &signer{region: "eu-west-1", service: "s3"}
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.FixedZone("", 3600))
	for name, tc := range map[string]struct {
		host, path string
		headers    map[string]string
		token      string
		secret     string
		later      time.Duration
		wantNot    bool
	}{
		"a small object": {headers: map[string]string{"If-Match": `"0af9"`, "X-Amz-Checksum-Mode": "ENABLED"}},
		"a range":        {headers: map[string]string{"Range": "bytes=1-2"}},
		"the next day":   {later: 12 * time.Hour},
		"another secret": {secret: "another"},
		"a session":      {token: "token/+="},
		"who pays":       {headers: map[string]string{headerPayer: "requester", headerOwner: "123"}},
		"an odd key":     {path: "/b/a%20b/%2F//%C3%A4=~"},
		"a port":         {host: "store:9000"},
		"a space within": {headers: map[string]string{"If-Match": `"a b"`}},
		"more spaces":    {headers: map[string]string{"If-Match": `"a  b"`}, wantNot: true},
		"a space behind": {headers: map[string]string{"If-Match": `"a" `}, wantNot: true},
		"a usual port":   {host: "store:443", wantNot: true},
		"another usual":  {host: "store:80", wantNot: true},
	} {
		t.Run(name, func(t *testing.T) {
			host, path := firstOf(tc.host, "store"), firstOf(tc.path, "/b/key")
			request := func() *http.Request {
				at := &url.URL{Scheme: "https", Host: host, RawPath: path}
				var err error
				if at.Path, err = url.PathUnescape(path); err != nil {
					t.Fatal(err)
				}
				headers := http.Header{"X-Amz-Content-Sha256": {emptyHash}}
				r := &http.Request{Method: http.MethodGet, URL: at, Host: host, Header: headers}
				for k, v := range tc.headers {
					r.Header[http.CanonicalHeaderKey(k)] = []string{v}
				}
				return r
			}
			keys := aws.Credentials{AccessKeyID: "id", SecretAccessKey: firstOf(tc.secret, "secret"), SessionToken: tc.token}
			want, got := request(), request()
			err := v4.NewSigner().SignHTTP(t.Context(), keys, want, emptyHash, "s3", "eu-west-1", noon.Add(tc.later),
				func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
			if err != nil {
				t.Fatal(err)
			}
			if tc.wantNot {
				want = request()
			}
			if signed := own.sign(got, keys, noon.Add(tc.later)); signed == tc.wantNot {
				t.Errorf("signed: %t", signed)
			}
			if diff := cmp.Diff(want.Header, got.Header); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}
