// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"
)

func TestPullKeepsItsConnections(t *testing.T) {
	s := unstartedFaultServer(t)
	var mu sync.Mutex
	opened := 0
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if state == http.StateNew {
			opened++
		}
	}
	s.Start()
	want := map[string][]byte{"large": noise(1, 50*mebibyte)}
	for i := range 100 {
		want[fmt.Sprintf("small-%d", i)] = noise(uint64(i), 10_000)
	}
	for k, v := range want {
		s.put("m/"+k, v)
	}
	dir := t.TempDir()
	wantCode(t, run(t, with(serverSettings(s), settings{"PRELOADER_CONNS": "4"}), "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, want)
	mu.Lock()
	defer mu.Unlock()
	if opened > 4+2 { // those for data, and the SDK's for listing and heads
		t.Errorf("%d connections were opened for %d requests, want 6 at most", opened, s.count("Get")+s.count("Head")+1)
	}
}

func TestPullOutlastsConnectionsThatCloseUnasked(t *testing.T) {
	s := unstartedFaultServer(t)
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateIdle { // between an answer and the next request
			_ = c.Close()
		}
	}
	s.Start()
	want := map[string][]byte{}
	for i := range 40 {
		name := fmt.Sprintf("small-%d", i)
		want[name] = noise(uint64(i), 10_000)
		s.put("m/"+name, want[name])
	}
	dir := t.TempDir()
	out := run(t, with(serverSettings(s), settings{"PRELOADER_CONNS": "2", "S3_MAX_ATTEMPTS": "1"}), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, want)
}

func TestPullFollowsRedirects(t *testing.T) {
	elsewhere := newFaultServer(t)
	s := newFaultServer(t)
	data := noise(1, 30_000)
	s.put("m/model", data)
	elsewhere.put("m/model", data)
	s.faults(func(a asked) fault {
		if a.op == "Get" {
			return fault{status: http.StatusTemporaryRedirect, location: elsewhere.URL + "/models/" + a.key}
		}
		return fault{}
	})
	dir := t.TempDir()
	wantCode(t, run(t, serverSettings(s), "s3://models/m", dir), ExitOK, "Completed")
	wantTree(t, dir, map[string][]byte{"model": data})
	if elsewhere.count("Get") != 1 {
		t.Errorf("%d requests came where the redirect led, want 1", elsewhere.count("Get"))
	}
}

func TestWireAddressesLikeTheSDK(t *testing.T) {
	keys := []string{
		"model.bin",
		"a b+c%20d",
		"ü ö/漢字.txt",
		"a..b",
		"x//y",
		"~-._!*'()",
		"q?x=1&y#z",
		"c:\\d",
		"@$,;=",
		"../up",
		"./a",
		"tab\there",
	}
	endpoints := map[string]func(*s3.Options){
		"AWS": func(*s3.Options) {},
		"a custom endpoint": func(o *s3.Options) {
			o.BaseEndpoint, o.UsePathStyle = aws.String("http://minio.models:9000"), true
		},
		"a custom endpoint below a path": func(o *s3.Options) {
			o.BaseEndpoint, o.UsePathStyle = aws.String("https://gateway/s3/"), true
		},
		"buckets in host names": func(o *s3.Options) { o.BaseEndpoint = aws.String("http://store.test") },
		"acceleration":          func(o *s3.Options) { o.UseAccelerate = true },
	}
	for name, set := range endpoints {
		t.Run(name, func(t *testing.T) {
			s := newS3Source(s3.New(s3.Options{
				Region:      "eu-west-1",
				Credentials: credentials.NewStaticCredentialsProvider("id/with/slashes", "secret", "session"),
				HTTPClient:  httpClient(Options{}, 1),
			}, set), "models", Options{})
			w := s.wired(t.Context())
			if w == nil {
				t.Fatal("there is no wire")
			}
			for _, key := range keys {
				var theirs sampler
				_, _ = s.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("models"), Key: &key},
					func(o *s3.Options) { o.HTTPClient, o.Retryer = &theirs, aws.NopRetryer{} })
				if theirs.request == nil {
					t.Fatalf("the SDK makes no request for %q", key)
				}
				ours, _, err := w.request(t.Context(), object{key: key, etag: "e", size: 10}, span{2, 3})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(theirs.request.URL.Scheme+" "+theirs.request.URL.Host+" "+theirs.request.URL.EscapedPath(),
					ours.URL.Scheme+" "+ours.Host+" "+ours.URL.EscapedPath()); diff != "" {
					t.Errorf("key %q (-SDK's +ours):\n%s", key, diff)
				}
				their, our := theirs.request.Header.Get("Authorization"), ours.Header.Get("Authorization")
				if scope, _, _ := strings.Cut(their, ","); !strings.HasPrefix(our, scope+",") {
					t.Errorf("key %q is signed for %q, want %q", key, our, scope)
				}
				for _, header := range []string{"if-match", "range", "x-amz-security-token"} {
					if !strings.Contains(our, header) {
						t.Errorf("header %s is not signed: %s", header, our)
					}
				}
			}
		})
	}
}

func TestThereIsNoWireWhereOnlyTheSDKKnows(t *testing.T) {
	static := credentials.NewStaticCredentialsProvider("id", "secret", "")
	t.Setenv("HTTPS_PROXY", "")
	cases := map[string]struct {
		options s3.Options
		bucket  string
		want    bool
	}{
		"a plain bucket": {
			options: s3.Options{Credentials: static, HTTPClient: httpClient(Options{}, 1)},
			bucket:  "models",
			want:    true,
		},
		"nobody's": {
			options: s3.Options{Credentials: aws.AnonymousCredentials{}, HTTPClient: httpClient(Options{}, 1)},
			bucket:  "models",
			want:    true,
		},
		"a client of another sort": {
			options: s3.Options{Credentials: static, HTTPClient: http.DefaultClient},
			bucket:  "models",
		},
		"an access point everywhere": {
			options: s3.Options{Credentials: static, HTTPClient: httpClient(Options{}, 1)},
			bucket:  "arn:aws:s3::123456789012:accesspoint/m.mrap",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			tc.options.Region = "us-east-1"
			if got := newS3Source(s3.New(tc.options), tc.bucket, Options{}).wired(t.Context()) != nil; got != tc.want {
				t.Errorf("a wire: %t, want %t", got, tc.want)
			}
		})
	}
}
