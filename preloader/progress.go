// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"serverless.xyz/outrigger/preloader/quantity"
)

const (
	// lineEvery is how often a run says where it stands in its log.
	lineEvery = 5 * time.Second
	// readEvery is how often it reads its counters for that.
	readEvery = time.Second
	// drawEvery is how often it redraws its bar on a terminal.
	drawEvery = 200 * time.Millisecond
	// roomForKeys is what a terminal shows behind the bar of a key such as ^C.
	roomForKeys = 3
)

// startFollowing follows a run, which does what a word says, until it is told to stop.
func startFollowing(ctx context.Context, m *Meter, log *slog.Logger, doing string, s *screen) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { follow(ctx, m, log, doing, s) })
	return func() {
		cancel()
		group.Wait()
	}
}

// followed returns the log and the meter of a command that reads trees, which is followed
// until it is told to stop.
func (c *Command) followed(ctx context.Context, inJSON bool, doing string) (log *slog.Logger, m *Meter, stop func()) {
	var bar *screen
	if !inJSON {
		c, bar = c.onScreen()
	}
	log, m = c.logger(inJSON), &Meter{}
	return log, m, startFollowing(ctx, m, log, doing, bar)
}

// follow says where a run stands until the context ends: by a bar on a terminal,
// elsewhere by a line every few seconds while bytes are moving.
func follow(ctx context.Context, m *Meter, log *slog.Logger, doing string, s *screen) {
	every := readEvery
	if s != nil {
		every = drawEvery
		defer s.show("")
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var pace speed
	for lines := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			status := m.Status()
			rate := pace.add(now, status.FetchedBytes)
			lines += every
			switch {
			case !status.Moving:
				pace, lines = speed{}, 0
				pace.add(now, status.FetchedBytes)
				if s != nil {
					s.show("")
				}
			case s != nil:
				s.show(status.bar(rate, s.width()-roomForKeys))
			case lines >= lineEvery:
				lines = 0
				log.Info(doing, status.attrs(rate)...)
			}
		}
	}
}

// attrs is the status for a line of the log.
func (s Status) attrs(rate float64) []any {
	attrs := []any{
		"done",
		byteCount(s.ReadyBytes),
		"total",
		byteCount(s.Bytes),
		"percent",
		percent(s.ReadyBytes, s.Bytes),
		"rate",
		byteRate(rate),
		"files",
		s.ReadyFiles,
		"retries",
		s.Retries,
	}
	if left, ok := s.left(rate); ok {
		attrs = append(attrs, "left", left.String())
	}
	return attrs
}

// bar is the status for a terminal of this many columns.
func (s Status) bar(rate float64, columns int) string {
	share := percent(min(s.ReadyBytes, s.Bytes), s.Bytes)
	text := fmt.Sprintf(
		"%3d%% %s of %s, %s/s, %d of %d files",
		share,
		quantity.FormatBytes(s.ReadyBytes),
		quantity.FormatBytes(s.Bytes),
		quantity.FormatBytes(int64(rate)),
		s.ReadyFiles,
		s.Files,
	)
	if left, ok := s.left(rate); ok {
		text += ", " + left.String() + " left"
	}
	if s.Retries > 0 {
		text += fmt.Sprintf(", %d retries", s.Retries)
	}
	const shortest = 10
	if room := min(columns-len(text)-4, 40); room >= shortest {
		full := int(share) * room / 100
		text = "[" + strings.Repeat("#", full) + strings.Repeat(".", room-full) + "] " + text
	}
	if len(text) >= columns {
		text = text[:max(columns-1, 0)]
	}
	return text
}

// screen is a terminal whose last line is a bar that other output does not tear.
type screen struct {
	mu  sync.Mutex
	out *os.File
	bar string
}

// screenOf returns the terminal behind a writer, or nil if there is none that
// can redraw a line.
func screenOf(w io.Writer, terminal string) *screen {
	f, ok := w.(*os.File)
	if !ok || terminal == "" || terminal == "dumb" {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return &screen{out: f}
}

// onScreen returns the command with its errors written above a bar, and the
// terminal that shows it, or nil if they do not go to one.
func (c *Command) onScreen() (*Command, *screen) {
	s := screenOf(c.Stderr, c.Getenv("TERM"))
	if s == nil {
		return c, nil
	}
	with := *c
	with.Stderr = s
	return &with, s
}

func (s *screen) width() int {
	const usual = 80
	size, err := unix.IoctlGetWinsize(int(s.out.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return usual
	}
	return int(size.Col)
}

const clearLine = "\r\x1b[K"

// Write puts whole lines above the bar.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bar == "" {
		return s.out.Write(p)
	}
	if _, err := s.out.WriteString(clearLine + string(p) + s.bar); err != nil {
		return 0, err
	}
	return len(p), nil
}

// show replaces the bar; an empty one removes it.
func (s *screen) show(bar string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bar == bar {
		return
	}
	s.bar = bar
	// A terminal that is gone is nothing that this program can mend.
	_, _ = s.out.WriteString(clearLine + bar)
}
