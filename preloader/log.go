// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"serverless.xyz/outrigger/preloader/quantity"
)

// logger writes to standard error, as KServe's initializer does: plain lines,
// or JSON if asked for.
func (c *Command) logger(inJSON bool) *slog.Logger {
	if inJSON {
		return slog.New(slog.NewJSONHandler(c.Stderr, nil))
	}
	return slog.New(&plainHandler{out: c.Stderr, mu: &sync.Mutex{}})
}

// byteCount is a number of bytes in the log: for people in plain lines, a number in JSON.
type byteCount int64

// String is the number for people.
func (n byteCount) String() string { return quantity.FormatBytes(int64(n)) }

// byteRate is bytes a second in the log, as byteCount.
type byteRate int64

// String is the rate for people.
func (r byteRate) String() string { return quantity.FormatBytes(int64(r)) + "/s" }

// plainHandler writes one line a record: time, level, message, name=value.
type plainHandler struct {
	mu    *sync.Mutex
	out   io.Writer
	attrs []slog.Attr
}

// Enabled leaves out what only matters while looking for faults.
func (h *plainHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle writes the line in one piece.
func (h *plainHandler) Handle(_ context.Context, r slog.Record) error {
	var line strings.Builder
	fmt.Fprintf(&line, "%s %-5s %s", r.Time.UTC().Format(time.RFC3339), r.Level, shown(r.Message))
	write := func(a slog.Attr) bool {
		value := a.Value.String()
		if strings.ContainsAny(value, " \"=") || shown(value) != value {
			value = strconv.Quote(value)
		}
		line.WriteString(" " + a.Key + "=" + value)
		return true
	}
	for _, a := range h.attrs {
		write(a)
	}
	r.Attrs(write)
	line.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.out, line.String())
	return err
}

// shown returns text with characters that a terminal would obey, or that show nothing,
// written as Go writes them: names come from a store, and anybody may have chosen them.
func shown(text string) string {
	hidden := func(r rune) bool { return !strconv.IsPrint(r) }
	if !strings.ContainsFunc(text, hidden) && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		quoted := strconv.Quote(text[:n])
		if (r == utf8.RuneError && n == 1) || hidden(r) {
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(text[:n])
		}
		text = text[n:]
	}
	return b.String()
}

// WithAttrs returns a handler that adds attrs to every line.
func (h *plainHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &plainHandler{mu: h.mu, out: h.out, attrs: append(slices.Clip(h.attrs), attrs...)}
}

// WithGroup returns the handler itself: nothing here is grouped.
func (h *plainHandler) WithGroup(string) slog.Handler { return h }
