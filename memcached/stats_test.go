// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"serverless.xyz/outrigger/memcached/memcachedtest"
)

func TestReadStatsOfARealServer(t *testing.T) {
	server := memcachedtest.Start(t, "-m", "32", "-I", "2m", "-c", "100")
	conn, err := net.Dial("tcp", server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp(t, conn)
	say(t, conn, "set a 0 0 3\r\nabc\r\nget a\r\nget a\r\nget b\r\nversion\r\n")
	lines := bufio.NewScanner(conn)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "VERSION") {
	}

	var s Stats
	// The server may not have heard yet that whoever waited for its start has hung up.
	eventually(t, "one connection is active", func() bool {
		if s, err = ReadStats(t.Context(), server.Addr); err != nil {
			t.Fatal(err)
		}
		return s.ActiveConnections() == 1
	})
	if s.GetHits != 2 || s.GetMisses != 1 || s.CurrItems != 1 || s.Bytes == 0 || s.Evictions != 0 {
		t.Errorf("stats = %+v, want 2 hits, 1 miss, 1 item and its bytes", s)
	}
	if s.LimitMaxBytes != 32<<20 || s.ItemSizeMax != 2<<20 || s.MaxConnections != 100 {
		t.Errorf("stats = %+v, want the limits that the server was started with", s)
	}
	if s.PID == 0 || s.Version == "" {
		t.Errorf("stats = %+v, want a process id and a version", s)
	}
}

// TestReadStatsEndsWithItsContext has a process that accepts and never answers.
func TestReadStatsEndsWithItsContext(t *testing.T) {
	server := memcachedtest.Start(t)
	server.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := ReadStats(ctx, server.Addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v, want the deadline", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(5*time.Millisecond, cancel)
	if _, err := ReadStats(ctx, server.Addr); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want the cancellation", err)
	}
}

func TestActiveConnections(t *testing.T) {
	tests := map[string]struct {
		current int64
		inter   string
		want    int64
	}{
		"our own only":         {1, "10.0.0.1", 0},
		"one client":           {2, "10.0.0.1", 1},
		"two listeners":        {4, "127.0.0.1,10.0.0.1", 2},
		"no -l":                {3, "NULL", 2},
		"never below 0":        {0, "", 0},
		"never below 0, again": {1, "a,b,c", 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := Stats{CurrConnections: tc.current, Listeners: listeners(tc.inter)}
			if got := s.ActiveConnections(); got != tc.want {
				t.Errorf("active connections = %d, want %d", got, tc.want)
			}
		})
	}
}

// answering is a server that answers every connection with the text and closes it.
func answering(tb testing.TB, text string) string {
	tb.Helper()
	return faultyServer(tb, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, text)
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
	})
}

func TestReadStatsRefusesWrongAnswers(t *testing.T) {
	tests := map[string]struct {
		answer, want string
	}{
		"another protocol":    {"HTTP/1.1 400 Bad Request\r\n\r\n", "unexpected line"},
		"closed at once":      {"", "EOF"},
		"cut short":           {"STAT pid 1\r\nSTAT version 1.6.18\r\n", "EOF"},
		"error line":          {"ERROR\r\n", "unexpected line"},
		"fields missing":      {"END\r\nSTAT version 1.6.18\r\nEND\r\n", "no pid"},
		"nothing in it":       {strings.Repeat("END\r\n", 2), "no version"},
		"field is no number":  {"END\r\nSTAT version 1\r\nSTAT pid x\r\nEND\r\n", "pid"},
		"line without an end": {strings.Repeat("x", 1<<16), "buffer full"},
		"lines without an end": {
			strings.Repeat("STAT a 1\r\n", maxStatsLines+1), "more than",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ReadStats(t.Context(), answering(t, tc.answer))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}
