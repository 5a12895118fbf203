// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// scripted is a connection over which these bytes come, whatever is sent.
type scripted struct {
	io.Reader
	closed bool
}

func (c *scripted) Write(p []byte) (int, error)      { return len(p), nil }
func (c *scripted) Close() error                     { c.closed = true; return nil }
func (c *scripted) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzAnswers has a store answer two requests over one connection with any bytes. What is
// taken for an answer must be what net/http takes the same bytes for, and the second one
// must begin where the first one ends.
func FuzzAnswers(f *testing.F) {
	const head = "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 2-6/10\r\n"
	const plain = head + "Content-Length: 5\r\n\r\nhello"
	for _, text := range []string{
		plain, plain + plain, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain,
		head + "Connection: close\r\nContent-Length: 5\r\n\r\nhello" + plain,
		head + "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n" + plain,
		head + "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		head + "\r\nhello", strings.Replace(plain, "1.1", "1.0", 1) + plain, plain + "X" + plain,
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
		"HTTP/1.1 503 Slow Down\r\nRetry-After: 3\r\nContent-Length: 3\r\n\r\n<a>" + plain,
	} {
		f.Add([]byte(text))
	}
	src := newS3Source(s3.New(s3.Options{
		Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
		BaseEndpoint: aws.String("http://store.test"), UsePathStyle: true, Retryer: aws.NopRetryer{},
		HTTPClient: httpClient(Options{}, 1),
	}), "models", Options{})
	w := src.wired(f.Context())
	if w == nil {
		f.Fatal("there is no wire")
	}
	errOver := errors.New("no second connection")
	f.Fuzz(func(t *testing.T, answers []byte) {
		var conn *scripted
		w.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			if conn != nil {
				return nil, errOver
			}
			conn = &scripted{Reader: bytes.NewReader(answers)}
			return conn, nil
		}
		l := &line{}
		defer l.hangUp()
		reference := bufio.NewReader(bytes.NewReader(answers))
		for range 2 {
			got, err := readOver(t.Context(), src, l)
			want := nextAnswer(reference)
			if err != nil {
				return
			}
			if len(got) != 5 || !bytes.Equal(got, want) {
				t.Errorf("read %q, want %q", got, want)
			}
		}
	})
}

// nextAnswer reads the next answer that is no interim one, as net/http does.
func nextAnswer(in *bufio.Reader) []byte {
	for {
		answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodGet})
		if err != nil {
			return nil
		}
		if answer.StatusCode < http.StatusOK && answer.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		raw, err := io.ReadAll(answer.Body)
		if err != nil {
			return nil
		}
		return raw
	}
}

// canned is a client that gets the same answer to everything.
type canned struct {
	status int
	body   string
	asked  int
}

func (c *canned) Do(r *http.Request) (*http.Response, error) {
	c.asked++
	return &http.Response{
		StatusCode: c.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: r,
		Body: io.NopCloser(strings.NewReader(c.body)), ContentLength: int64(len(c.body)),
	}, nil
}

// FuzzListing has a store list and refuse with any text. A listing ends, whatever it says,
// holds nothing that was not asked for, and trouble is either passing or has a code and a
// cause.
func FuzzListing(f *testing.F) {
	const entry = "<Contents><Key>m/a%20b</Key><Size>5</Size><ETag>&quot;e&quot;</ETag>" +
		"<LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
	for status, texts := range map[int][]string{
		http.StatusOK: {
			"<ListBucketResult><EncodingType>url</EncodingType>" + entry + "</ListBucketResult>",
			"<ListBucketResult><IsTruncated>true</IsTruncated>" + entry + "</ListBucketResult>",
			"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>" + entry +
				strings.Replace(entry, "a%20b", "%zz", 1) + "</ListBucketResult>",
			"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", "<html>", "",
			strings.Replace("<ListBucketResult>"+entry+"</ListBucketResult>", ">5<", ">-5<", 1),
		},
		http.StatusForbidden: {"<Error><Code>AccessDenied</Code><Message>no</Message></Error>", "<Error>", ""},
		http.StatusNotFound:  {"<Error><Code>NoSuchBucket</Code></Error>"},
		http.StatusFound:     {""},
	} {
		for _, text := range texts {
			f.Add(status, text)
		}
	}
	f.Fuzz(func(t *testing.T, status int, text string) {
		if status < http.StatusOK || status > 599 {
			return
		}
		client := &canned{status: status, body: text}
		src := newS3Source(s3.New(s3.Options{
			Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
			BaseEndpoint: aws.String("http://store.test"), UsePathStyle: true, Retryer: aws.NopRetryer{}, HTTPClient: client,
		}), "models", Options{})
		err := each(t.Context(), src, "m", false, func(o object) bool {
			if o.key != "m" && !strings.HasPrefix(o.key, "m/") || o.size < 0 || strings.Contains(o.etag, `"`) {
				t.Errorf("listed %+v", o)
			}
			return true
		})
		if client.asked > 4 {
			t.Errorf("%d requests for the same page", client.asked)
		}
		if err == nil && status >= http.StatusMultipleChoices {
			t.Errorf("status %d is a listing", status)
		}
		f, final := errors.AsType[*ExitError](err)
		if final && (f.Code == ExitOK || f.Reason == "" || f.Cause == "" || f.Advice == "") {
			t.Errorf("failure %+v", f)
		}
	})
}
