// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// wire reads objects of one bucket with requests of its own making, over lines.
// The SDK says once how a request looks: its address, and how it is signed. What
// the SDK and net/http do beyond that for each request costs more than a small
// object itself. Where a request is not of the plain kind (a proxy, a session of
// S3 Express, a signature of another sort), there is no wire, and the SDK is used
// for all of them.
type wire struct {
	at *url.URL
	// prefix is the escaped path up to the key.
	prefix string
	// credentials is nil for unsigned requests.
	credentials     aws.CredentialsProvider
	region, service string
	signer          *v4.Signer
	// quick signs most requests for less than signer does.
	quick     *signer
	transport *http.Transport
	// headers are those that every request carries.
	headers http.Header
}

// emptyHash is the SHA256 of nothing, which a request without a body declares.
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// newWire asks the SDK for a request, which is not sent, and learns from it. It
// returns nil if requests of this sort are the SDK's alone.
func newWire(ctx context.Context, s *s3Source) *wire {
	const key = "key"
	client, ok := s.client.Options().HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil
	}
	var sample sampler
	_, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(key)}, s.atRegion,
		func(o *s3.Options) { o.HTTPClient, o.Retryer = &sample, aws.NopRetryer{} })
	r := sample.request
	if r == nil || !errors.Is(err, errSampled) {
		return nil
	}
	w := &wire{at: r.URL, transport: client.GetTransport(), signer: v4.NewSigner()}
	prefix, found := strings.CutSuffix(r.URL.EscapedPath(), key)
	if proxy, err := w.proxy(r); !found || proxy || err != nil || r.Host != "" && r.Host != r.URL.Host {
		return nil
	}
	w.prefix, w.headers = prefix, http.Header{}
	for _, name := range []string{headerPayer, headerOwner} {
		if v := r.Header.Values(name); len(v) > 0 {
			w.headers[name] = v
		}
	}
	switch signature := r.Header.Get("Authorization"); {
	case r.Header.Get("X-Amz-S3session-Token") != "":
		return nil
	case signature == "":
		if _, anonymous := s.client.Options().Credentials.(aws.AnonymousCredentials); !anonymous &&
			s.client.Options().Credentials != nil {
			return nil
		}
		return w
	default:
		if w.region, w.service, found = scopeOf(signature); !found {
			return nil
		}
	}
	w.credentials, w.quick = s.client.Options().Credentials, &signer{region: w.region, service: w.service}
	return w
}

func (w *wire) proxy(r *http.Request) (bool, error) {
	if w.transport.Proxy == nil {
		return false, nil
	}
	at, err := w.transport.Proxy(r)
	return at != nil, err
}

// scopeOf reads the region and the service that a plain signature is for.
func scopeOf(authorization string) (region, service string, ok bool) {
	rest, ok := strings.CutPrefix(authorization, "AWS4-HMAC-SHA256 Credential=")
	if !ok {
		return "", "", false
	}
	credential, _, _ := strings.Cut(rest, ",")
	// key/day/region/service/aws4_request, and a key may hold slashes.
	parts := strings.Split(credential, "/")
	if len(parts) < 5 {
		return "", "", false
	}
	return parts[len(parts)-3], parts[len(parts)-2], true
}

// errSampled says that a request was looked at and not sent.
var errSampled = errors.New("only a sample")

// sampler is a client that sends nothing.
type sampler struct{ request *http.Request }

// Do keeps the request.
func (s *sampler) Do(r *http.Request) (*http.Response, error) {
	s.request = r
	return nil, errSampled
}

// request makes the request for a span of an object, and tells what it is signed with.
func (w *wire) request(ctx context.Context, o object, part span) (*http.Request, aws.Credentials, error) {
	at := *w.at
	at.RawPath, at.RawQuery = w.prefix+escapeKey(o.key), ""
	var err error
	if at.Path, err = url.PathUnescape(at.RawPath); err != nil {
		return nil, aws.Credentials{}, err
	}
	r := &http.Request{
		Method: http.MethodGet, URL: &at, Host: at.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"X-Amz-Content-Sha256": {emptyHash}},
	}
	maps.Copy(r.Header, w.headers)
	if tag := o.ifMatch(); tag != nil {
		r.Header["If-Match"] = []string{*tag}
	}
	if part.off == 0 && part.n == o.size {
		r.Header["X-Amz-Checksum-Mode"] = []string{"ENABLED"}
	} else {
		r.Header["Range"] = []string{"bytes=" + strconv.FormatInt(part.off, 10) + "-" + strconv.FormatInt(part.end()-1, 10)}
	}
	if w.credentials == nil {
		return r, aws.Credentials{}, nil
	}
	credentials, err := w.credentials.Retrieve(ctx)
	if err != nil {
		return nil, credentials, err
	}
	if w.quick.sign(r, credentials, time.Now()) {
		return r, credentials, nil
	}
	err = w.signer.SignHTTP(ctx, credentials, r, emptyHash, w.service, w.region, time.Now(), func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = true
	})
	return r, credentials, err
}

// escapeKey writes a key as S3's signature wants it: everything but letters,
// digits, slashes and four more is escaped.
func escapeKey(key string) string {
	plain := func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("/-._~", c) >= 0
	}
	escaped := 0
	for i := range len(key) {
		if !plain(key[i]) {
			escaped++
		}
	}
	if escaped == 0 {
		return key
	}
	out := make([]byte, 0, len(key)+2*escaped)
	for i := range len(key) {
		if plain(key[i]) {
			out = append(out, key[i])
			continue
		}
		out = append(out, '%', "0123456789ABCDEF"[key[i]>>4], "0123456789ABCDEF"[key[i]&15])
	}
	return string(out)
}

// open is get over a line.
func (s *s3Source) open(ctx context.Context, l *line, o object, part span) (body, error) {
	w := s.wired(ctx)
	if w == nil || l == nil {
		return s.get(ctx, o, part)
	}
	for renewed := false; ; {
		r, used, err := w.request(ctx, o, part)
		switch {
		case err != nil:
			return body{}, fmt.Errorf("reading s3://%s/%s: %w", s.bucket, o.key, err)
		case !sendable(r.Header):
			return s.get(ctx, o, part) // the SDK words what is wrong with it
		}
		answer, err := l.do(ctx, w.transport, r)
		switch {
		case err != nil:
			return body{}, fmt.Errorf("reading s3://%s/%s: %w", s.bucket, o.key, s.explain(err, o.key))
		case answer.StatusCode == http.StatusOK, answer.StatusCode == http.StatusPartialContent:
			return s.accept(o, part, answer)
		case answer.StatusCode < http.StatusBadRequest:
			_ = answer.Body.Close()
			l.hangUp()
			return s.get(ctx, o, part) // the SDK knows which redirects to follow
		}
		err = refusal(answer)
		_ = answer.Body.Close()
		if !renewed {
			var trouble error
			if renewed, trouble = s.keys.renew(ctx, err, used); trouble != nil {
				err = trouble
			} else if renewed {
				continue
			}
		}
		return body{}, fmt.Errorf("reading s3://%s/%s: %w", s.bucket, o.key, s.explain(err, o.key))
	}
}

// sendable reports whether no value breaks out of its line, as a secret that ends
// in a line break would.
func sendable(h http.Header) bool {
	for _, values := range h {
		for _, c := range []byte(values[0]) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return false
			}
		}
	}
	return true
}

// wired returns the wire for the region that the store named, or nil.
func (s *s3Source) wired(ctx context.Context) *wire {
	s.wiring.Lock()
	defer s.wiring.Unlock()
	if region := s.region.Load(); !s.sampled || region != s.sampledAt {
		s.wire, s.sampled, s.sampledAt = newWire(ctx, s), ctx.Err() == nil, region
	}
	return s.wire
}

func (s *s3Source) secure(ctx context.Context) bool {
	w := s.wired(ctx)
	return w != nil && w.at.Scheme == schemeTLS
}

// accept checks an answer with a body against the request.
func (s *s3Source) accept(o object, part span, got *http.Response) (body, error) {
	h := got.Header
	b := body{ReadCloser: got.Body, object: object{
		key: o.key, etag: trimETag(h.Get("Etag")),
		answer: &answer{
			encrypted: keyEncrypted(
				types.ServerSideEncryption(h.Get("X-Amz-Server-Side-Encryption")),
				optional(h.Get("X-Amz-Server-Side-Encryption-Customer-Algorithm"))),
			sum: checksumOf(h),
		},
	}}
	modified, _ := http.ParseTime(h.Get("Last-Modified"))
	b.object.modified = modified.Unix()
	var length *int64
	if got.ContentLength >= 0 {
		length = &got.ContentLength
	}
	err := errChanged
	if b.object.version() == o.version() {
		err = checkRange(o, part, h.Get("Content-Range"), length)
	}
	if err != nil {
		_ = got.Body.Close()
		return body{}, fmt.Errorf("reading s3://%s/%s: %w", s.bucket, o.key, err)
	}
	return b.exactly(part.n, length), nil
}

func optional(v string) *string {
	if v == "" {
		return nil
	}
	return &v
}

// checksumOf reads the checksum that an answer's headers carry.
func checksumOf(h http.Header) checksum {
	values := map[string]*string{}
	for _, name := range checksumNames {
		if v := h.Get("X-Amz-Checksum-" + name); v != "" {
			values[name] = &v
		}
	}
	return pickChecksum(types.ChecksumType(h.Get("X-Amz-Checksum-Type")), values)
}

// refusal words an answer without an object as the SDK does.
func refusal(answer *http.Response) error {
	var told struct{ Code, Message string }
	const most = 64 << 10
	if raw, err := io.ReadAll(io.LimitReader(answer.Body, most)); err == nil {
		_ = xml.Unmarshal(raw, &told) // what cannot be read tells nothing beyond the status
	}
	return &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: answer},
		Err:      &smithy.GenericAPIError{Code: told.Code, Message: told.Message},
	}
}
