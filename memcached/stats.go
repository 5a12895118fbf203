// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	// maxStatsLines bounds the answer to one stats command; 1.6 sends about 110 lines.
	maxStatsLines = 4096
	// scrapeTimeout bounds a scrape whose context has no earlier deadline.
	scrapeTimeout = 5 * time.Second
)

// Stats is what one memcached server says about itself at one moment. Counters start at 0 with the process: a changed
// PID, or an Uptime that went back, means that it was restarted.
type Stats struct {
	// Version is the server's version, such as "1.6.18".
	Version string
	// PID is the process id as the server sees it, always 1 in most containers.
	PID int64
	// Uptime is the time since the process started, in whole seconds.
	Uptime time.Duration
	// CurrConnections are the open connections as the server counts them: the scraper's own is one of them, and so is
	// each listening socket but the first. See ActiveConnections.
	CurrConnections int64
	// MaxConnections is the limit on CurrConnections.
	MaxConnections int64
	// Listeners are the listening sockets: one for each address of the server's -l, or 1 when it was started without.
	Listeners int64
	// CurrItems are the items stored now, expired ones not yet reclaimed included.
	CurrItems int64
	// Bytes is the size of the items stored now.
	Bytes int64
	// LimitMaxBytes is the size that items may reach (-m).
	LimitMaxBytes int64
	// ItemSizeMax is the size in bytes that one item may reach (-I).
	ItemSizeMax int64
	// GetHits counts keys that were asked for and found.
	GetHits int64
	// GetMisses counts keys that were asked for and not found.
	GetMisses int64
	// Evictions counts valid items that were thrown out to make room.
	Evictions int64
}

// ActiveConnections returns the connections of clients: those that the server counts, without the one that asked and
// without the listening sockets. A server that was started without -l listens on IPv4 and IPv6 but names neither, and
// is then counted one too high; start servers with -l.
func (s Stats) ActiveConnections() int64 {
	const own = 1
	return max(0, s.CurrConnections-own-(s.Listeners-1))
}

// ReadStats asks the server at addr ("host:port") for its statistics over a connection of its own, which it closes. It
// gives up when the context ends and after 5 seconds at the latest. An answer that lacks a field of Stats is an error.
func ReadStats(ctx context.Context, addr string) (Stats, error) {
	var s Stats
	err := scrape(ctx, addr, "stats settings\r\nstats\r\n", func(r *bufio.Reader) error {
		settings, err := readStatLines(r)
		if err != nil {
			return err
		}
		general, err := readStatLines(r)
		if err != nil {
			return err
		}
		s, err = newStats(general, settings)
		return err
	})
	if err != nil {
		return Stats{}, fmt.Errorf("reading stats of %s: %w", addr, err)
	}
	return s, nil
}

// Empty has the server forget all its items, over a connection of its own. Whoever else is found at the server's address
// keeps theirs, and that is an error. It gives up when the context ends and after 5 seconds at the latest.
func Empty(ctx context.Context, s Server) error {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	err := talkTo(ctx, s.DialAddress(), func(conn net.Conn) error {
		if err := identify(conn, s.Identity); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("flush_all\r\n")); err != nil {
			return err
		}
		line, err := readLine(bufio.NewReader(conn))
		if err == nil && string(line) != lineOK {
			err = unexpectedLine(line)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("emptying %s at %s: %w", s.Name, s.DialAddress(), err)
	}
	return nil
}

// errForeign is a server that is not the one which the ring names.
var errForeign = errors.New("another server has the address")

// identify asks who is at the other end of a new connection, on which nothing else may be under way; nil when it is
// whoever has the identity, and always for an empty one.
func identify(conn net.Conn, identity string) error {
	if identity == "" {
		return nil
	}
	if _, err := conn.Write([]byte("stats settings\r\n")); err != nil {
		return err
	}
	settings, err := readStatLines(bufio.NewReader(conn))
	if err != nil {
		return err
	}
	if inter := settings["inter"]; inter != identity {
		return fmt.Errorf("%w: it listens as %.126q and not as %q", errForeign, inter, identity)
	}
	return nil
}

// scrape sends the commands over a new connection and has read take the answer.
func scrape(ctx context.Context, addr, commands string, read func(*bufio.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	return talkTo(ctx, addr, func(conn net.Conn) error {
		if _, err := conn.Write([]byte(commands)); err != nil {
			return err
		}
		return read(bufio.NewReader(conn))
	})
}

// talkTo has talk use a new connection, which it closes, until the context ends.
func talkTo(ctx context.Context, addr string, talk func(net.Conn) error) error {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // Nothing is left to send.
	// Closing is what ends a read or a write when the context is cancelled without a deadline.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err = talk(conn)
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	return err
}

// readStatLines reads "STAT name value" lines up to END.
func readStatLines(r *bufio.Reader) (map[string]string, error) {
	stats := make(map[string]string, 128)
	for range maxStatsLines {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if string(line) == "END" {
			return stats, nil
		}
		rest, ok := strings.CutPrefix(string(line), "STAT ")
		if !ok {
			return nil, unexpectedLine(line)
		}
		name, value, _ := strings.Cut(rest, " ")
		stats[name] = value
	}
	return nil, fmt.Errorf("more than %d lines of stats", maxStatsLines)
}

func newStats(general, settings map[string]string) (Stats, error) {
	s := Stats{Version: general["version"], Listeners: listeners(settings["inter"])}
	if s.Version == "" {
		return Stats{}, errors.New("no version in the answer")
	}
	var uptime int64
	fields := []struct {
		from map[string]string
		name string
		to   *int64
	}{
		{general, "pid", &s.PID},
		{general, "uptime", &uptime},
		{general, "curr_connections", &s.CurrConnections},
		{general, "max_connections", &s.MaxConnections},
		{general, "curr_items", &s.CurrItems},
		{general, "bytes", &s.Bytes},
		{general, "limit_maxbytes", &s.LimitMaxBytes},
		{general, "get_hits", &s.GetHits},
		{general, "get_misses", &s.GetMisses},
		{general, "evictions", &s.Evictions},
		{settings, "item_size_max", &s.ItemSizeMax},
	}
	for _, f := range fields {
		text, ok := f.from[f.name]
		if !ok {
			return Stats{}, fmt.Errorf("no %s in the answer", f.name)
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return Stats{}, fmt.Errorf("%s is %q, which is no number", f.name, text)
		}
		*f.to = n
	}
	s.Uptime = time.Duration(uptime) * time.Second
	return s, nil
}

// listeners counts the addresses of the -l that the server was started with.
func listeners(inter string) int64 {
	if inter == "" || inter == "NULL" {
		return 1
	}
	return int64(strings.Count(inter, ",") + 1)
}

// readLine returns the next line without its end. Lines are bounded by the size of the reader's buffer.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

// unexpectedLine is the error for a line that does not belong where it stands. It quotes little of it.
func unexpectedLine(line []byte) error {
	const most = 64
	return fmt.Errorf("unexpected line %q", line[:min(len(line), most)])
}
