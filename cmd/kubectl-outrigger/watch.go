// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// redraw is how often a terminal shows how time passes.
const redraw = time.Second

// watch shows a rollout whenever it changes, until it is interrupted: as a picture in a terminal, and elsewhere as one
// picture, or one line of JSON, after the other.
func (a *app) watch(s *session, args []string) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	reports, failed := make(chan report), make(chan error, 1)
	go func() {
		failed <- s.follow(ctx, args[0], func(r *v1alpha1.CanaryRollout) (bool, error) {
			select {
			case reports <- reportOf(r):
				return false, nil
			case <-ctx.Done():
				return true, nil
			}
		})
	}()
	var ticks <-chan time.Time
	var last *report
	on := a.screen()
	if on != nil {
		ticker := time.NewTicker(redraw)
		defer ticker.Stop()
		ticks = ticker.C
		on.enter()
		defer func() { on.leave(last) }()
	}
	for {
		select {
		case err := <-failed:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case r := <-reports:
			if last == nil || !sameReport(*last, r) {
				last = &r
				a.draw(*last, on)
			}
		case <-ticks:
			if last != nil {
				a.draw(*last, on)
			}
		}
	}
}

func sameReport(a, b report) bool {
	one, _ := json.Marshal(a)
	other, _ := json.Marshal(b)
	return bytes.Equal(one, other)
}

// draw shows a rollout: on a screen over what was there, elsewhere after it.
func (a *app) draw(r report, on *screen) {
	now := time.Now()
	switch {
	case on != nil:
		on.draw(r, now)
	case a.output == "json":
		line, _ := json.Marshal(r) // a report has nothing that JSON lacks
		_, _ = fmt.Fprintln(a.out, string(line))
	default:
		_, _ = fmt.Fprintln(a.out, now.Format(time.RFC3339))
		r.picture(a.out, now)
	}
}

// screen is a terminal on which pictures are drawn over each other. It is the terminal's second one, so that what was in
// the first is there again afterwards.
type screen struct {
	out  io.Writer
	size func() (width, height int)
}

// screen returns the terminal that is written to, nil if it is none.
func (a *app) screen() *screen {
	file, ok := a.out.(*os.File)
	if !ok || a.output == "json" || !term.IsTerminal(int(file.Fd())) {
		return nil
	}
	return &screen{out: file, size: func() (int, int) {
		width, height, err := term.GetSize(int(file.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			return 80, 24
		}
		return width, height
	}}
}

// What a terminal is told. The cursor is hidden while pictures are drawn.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	goHome      = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

func (s *screen) enter() { _, _ = io.WriteString(s.out, enterScreen) }

// leave puts the terminal back, and leaves the last picture in it.
func (s *screen) leave(last *report) {
	_, _ = io.WriteString(s.out, leaveScreen)
	if last != nil {
		last.picture(s.out, time.Now())
	}
}

// draw draws a picture over the last one. Lines are cut at the edge, where a terminal would begin new ones.
func (s *screen) draw(r report, now time.Time) {
	var text strings.Builder
	r.picture(&text, now)
	width, height := s.size()
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	lines = lines[:min(len(lines), height)]
	for i := range lines {
		lines[i] = cut(lines[i], width) + clearLine
	}
	_, _ = io.WriteString(s.out, goHome+strings.Join(lines, "\r\n")+clearBelow)
}

// cut shortens a line to a width in characters.
func cut(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:max(0, width-1)]) + "…"
}
