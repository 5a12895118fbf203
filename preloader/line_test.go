// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// rawServer answers each request with bytes of the test's choice.
type rawServer struct {
	net.Listener
	connections, requests atomic.Int64
}

// newRawServer starts a server that calls answer for each request that it has
// read, and closes the connection if that returns false.
func newRawServer(t *testing.T, answer func(net.Conn) bool) *rawServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	s := &rawServer{Listener: listener}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.connections.Add(1)
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					s.requests.Add(1)
					if !answer(conn) {
						return
					}
				}
			}()
		}
	}()
	return s
}

func (s *rawServer) source(secret string) *s3Source {
	return newS3Source(s3.New(s3.Options{
		Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("id", "secret", secret),
		BaseEndpoint: aws.String("http://" + s.Addr().String()), UsePathStyle: true, Retryer: aws.NopRetryer{},
		HTTPClient: httpClient(Options{ConnectTimeout: time.Minute, ReadTimeout: time.Hour}, 1),
	}), "models", Options{})
}

func writes(text string, keep bool) func(net.Conn) bool {
	return func(conn net.Conn) bool {
		_, err := io.WriteString(conn, text)
		return err == nil && keep
	}
}

func TestLineReadsAnswers(t *testing.T) {
	const (
		ok    = "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 2-6/10\r\n"
		plain = ok + "Content-Length: 5\r\n\r\nhello"
	)
	cases := map[string]struct {
		answer func(net.Conn) bool
		// wantErr is part of the error of the second of two requests, empty if both
		// bring "hello" over so many connections.
		wantErr         string
		wantConnections int64
	}{
		"a plain answer": {answer: writes(plain, true), wantConnections: 1},
		"an answer before the answer": {
			answer:          writes("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"+plain, true),
			wantConnections: 1,
		},
		"answers that only promise": {
			answer:  writes(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 50), true),
			wantErr: "keeps answering",
		},
		"more than was asked for": {answer: writes(plain+plain, true), wantConnections: 2},
		"the connection's last answer": {
			answer:          writes(ok+"Connection: close\r\nContent-Length: 5\r\n\r\nhello", true),
			wantConnections: 2,
		},
		"a connection closed afterwards": {answer: writes(plain, false), wantConnections: 2},
		"chunks": {
			answer:          writes(ok+"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", true),
			wantConnections: 1,
		},
		"chunks, and a length besides": {
			answer:          writes(ok+"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true),
			wantConnections: 1,
		},
		"chunks that are none": {
			answer:  writes(ok+"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello", true),
			wantErr: "invalid byte in chunk length",
		},
		"no length at all":          {answer: writes(ok+"\r\nhello", false), wantConnections: 2},
		"no length, and too little": {answer: writes(ok+"\r\nhell", false), wantErr: "unexpected EOF"},
		"an old server":             {answer: writes(strings.Replace(plain, "1.1", "1.0", 1), false), wantConnections: 2},
		"two lengths": {
			answer:  writes(ok+"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", true),
			wantErr: "multiple Content-Length",
		},
		"a length below zero": {
			answer:  writes(ok+"Content-Length: -5\r\n\r\nhello", true),
			wantErr: "bad Content-Length",
		},
		"another length than the range": {
			answer:  writes(ok+"Content-Length: 6\r\n\r\nhello!", true),
			wantErr: "answered 6 bytes for a range of 5",
		},
		"less than it promises": {answer: writes(ok+"Content-Length: 5\r\n\r\nhell", false), wantErr: "unexpected EOF"},
		"no HTTP":               {answer: writes("SSH-2.0-OpenSSH_9.2\r\n", true), wantErr: "malformed HTTP"},
		"nothing":               {answer: func(net.Conn) bool { return false }, wantErr: "unexpected EOF"},
		"a head without end": {answer: func(conn net.Conn) bool {
			_, err := io.WriteString(conn, ok)
			for err == nil {
				_, err = io.WriteString(conn, "X-More: "+strings.Repeat("a", 8000)+"\r\n")
			}
			return false
		}, wantErr: "head of an answer is longer"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newRawServer(t, tc.answer)
			src, l := s.source(""), &line{}
			defer l.hangUp()
			var err error
			for range 2 {
				var got []byte
				if got, err = readOver(t.Context(), src, l); err == nil && string(got) != "hello" {
					t.Errorf("read %q, want hello", got)
				}
			}
			switch {
			case tc.wantErr != "":
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error %v, want one about %q", err, tc.wantErr)
				}
			case err != nil:
				t.Error(err)
			case s.connections.Load() != tc.wantConnections:
				t.Errorf("%d connections, want %d", s.connections.Load(), tc.wantConnections)
			}
		})
	}
}

// readOver reads five bytes of an object of ten, and to the end of the answer.
func readOver(ctx context.Context, src *s3Source, l *line) ([]byte, error) {
	b, err := src.open(ctx, l, object{key: "m", etag: "e", size: 10}, span{2, 5})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b)
}

func TestLineEndsWithTheContext(t *testing.T) {
	const head = "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 2-6/10\r\nContent-Length: 5\r\n"
	for name, sent := range map[string]string{
		"nothing was answered": "", "part of the head was": head, "part of the body was": head + "\r\nhel",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("told to end")
			s := newRawServer(t, func(conn net.Conn) bool {
				_, err := io.WriteString(conn, sent)
				cancel(why)
				return err == nil
			})
			l := &line{}
			defer l.hangUp()
			if _, err := readOver(ctx, s.source(""), l); err == nil || ctx.Err() == nil {
				t.Errorf("error %v, want the context's end", err)
			}
			if l.conn != nil {
				t.Error("the connection was kept")
			}
		})
	}
}

func TestLineSendsNoBrokenHeader(t *testing.T) {
	s := newRawServer(t, func(net.Conn) bool { return false })
	_, err := readOver(t.Context(), s.source("session\r\nX-Smuggled: yes"), &line{})
	if err == nil || !strings.Contains(err.Error(), "invalid header field value") {
		t.Errorf("error %v, want one about the header", err)
	}
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests were sent, want none", n)
	}
	if strings.Contains(err.Error(), "X-Smuggled") {
		t.Errorf("the error tells the secret: %v", err)
	}
}

func TestWeakETagsAreNoCondition(t *testing.T) {
	for etag, want := range map[string]string{"": "", "abc-2": `"abc-2"`, `W/"abc`: ""} {
		if got := aws.ToString(object{etag: etag}.ifMatch()); got != want {
			t.Errorf("the condition for %q is %q, want %q", etag, got, want)
		}
	}
}

// TestLineDialsOnceMoreAndNoMore: a connection that the store closed is made anew once. A store that has gone away is
// reported, not dialled until somebody ends it.
func TestLineDialsOnceMoreAndNoMore(t *testing.T) {
	s := newRawServer(t, writes("HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\n"+
		"Content-Range: bytes 2-6/10\r\nContent-Length: 5\r\n\r\nhello", false))
	src, l := s.source(""), &line{}
	defer l.hangUp()
	w := src.wired(t.Context())
	if w == nil {
		t.Fatal("there is no wire")
	}
	if _, err := readOver(t.Context(), src, l); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dials, dial := 0, w.transport.DialContext
	w.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		if dials > 10 {
			t.Fatal("the line goes on dialling a store that is gone")
		}
		return dial(ctx, network, address)
	}
	if _, err := readOver(t.Context(), src, l); !errors.Is(err, syscall.ECONNREFUSED) || dials > 2 {
		t.Errorf("%d dials, and the error %v; want two at most, and that nobody is there", dials, err)
	}
}

// TestATimeoutOfTheServerIsPassing: a server that gave up waiting for a request may be asked again.
func TestATimeoutOfTheServerIsPassing(t *testing.T) {
	for _, status := range []string{"408 Request Timeout", "425 Too Early"} {
		s := newRawServer(t, writes("HTTP/1.1 "+status+"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false))
		l := &line{}
		if _, err := readOver(t.Context(), s.source(""), l); err == nil || !retryable(err) {
			t.Errorf("%s: %v, want an error that a retry may mend", status, err)
		}
		l.hangUp()
	}
}

func TestEncryptedLinesReadAheadAndAreKept(t *testing.T) {
	s := unstartedFaultServer(t)
	var dialled atomic.Int64
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			dialled.Add(1)
		}
	}
	s.StartTLS()
	want := map[string][]byte{"large": noise(1, 24*mebibyte+5)}
	for i := range 100 {
		want[fmt.Sprintf("small-%d", i)] = noise(uint64(i), 40_000+i)
	}
	for rel, data := range want {
		s.put("m/"+rel, data)
	}
	var broken atomic.Bool
	s.faults(func(a asked) fault {
		if a.op == "Get" && strings.HasSuffix(a.key, "large") && broken.CompareAndSwap(false, true) {
			return fault{cut: true, after: 5*mebibyte + 3}
		}
		return fault{}
	})
	dir := t.TempDir()
	out := run(t, with(serverSettings(s), settings{"S3_VERIFY_SSL": "0", "PRELOADER_CONNS": "3"}), "s3://models/m", dir)
	wantCode(t, out, ExitOK, "Completed")
	wantTree(t, dir, want)
	// One for the SDK's own requests, three lines, and one in place of that which broke.
	most := int64(5)
	if out.report.Seconds >= slowAge.Seconds() { // then connections that are well may be given up for others
		most = int64(len(want)) / 2
	}
	if got := dialled.Load(); got > most {
		t.Errorf("%d connections were made, want %d at most", got, most)
	}
}

func TestAheadConnGivesEveryByteOnce(t *testing.T) {
	ours, theirs := net.Pipe()
	sent := noise(1, 10_000)
	go func() {
		for rest := sent; len(rest) > 0; rest = rest[min(len(rest), 777):] {
			_, _ = theirs.Write(rest[:min(len(rest), 777)])
		}
		_ = theirs.Close()
	}()
	got, err := io.ReadAll(iotest.OneByteReader(&aheadConn{Conn: ours, buf: make([]byte, 512)}))
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("read %d bytes, error %v; want the %d that were sent", len(got), err, len(sent))
	}
}
