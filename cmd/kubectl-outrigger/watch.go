// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

const (
	// glance is how often a terminal is asked for its size, and redraw how often it shows how time passes.
	glance = 200 * time.Millisecond
	redraw = time.Second
	// again is how long an API server that does not answer is left alone.
	again = 2 * time.Second
)

// news is what there is to show: a rollout, or why nothing is known of it at the moment.
type news struct {
	report *report
	lost   error
}

// watch shows a rollout whenever it changes, until it is interrupted: as a picture in a terminal, and elsewhere as one
// picture, or one line of JSON, after the other.
func (a *app) watch(s *session, args []string) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	heard, failed := make(chan news), make(chan error, 1)
	go func() { failed <- s.followOn(ctx, args[0], heard) }()
	on := a.screen()
	var ticks <-chan time.Time
	if on != nil {
		ticker := time.NewTicker(glance)
		defer ticker.Stop()
		ticks = ticker.C
		on.enter()
		defer on.leave()
	}
	var last *report
	for {
		select {
		case err := <-failed:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case n := <-heard:
			if on != nil {
				on.show(n, time.Now())
			}
			if n.report != nil && on == nil && (last == nil || !sameReport(*last, *n.report)) {
				last = n.report
				a.add(*last, time.Now())
			}
		case <-ticks:
			on.refresh(time.Now())
		}
	}
}

// followOn tells of a rollout until the context ends. Once the rollout has been seen, an API server that is away does not
// end it.
func (s *session) followOn(ctx context.Context, name string, heard chan<- news) error {
	tell := func(n news) bool {
		select {
		case heard <- n:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for seen := false; ; {
		err := s.follow(ctx, name, func(r *v1alpha1.CanaryRollout) (bool, error) {
			seen = true
			shown := reportOf(r)
			return !tell(news{report: &shown}), nil
		})
		if ctx.Err() != nil || err == nil || !seen || !passing(err) {
			return err
		}
		tell(news{lost: err})
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
}

// passing reports whether an error may pass without anybody's help.
func passing(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || utilnet.IsConnectionRefused(err) || utilnet.IsProbableEOF(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) ||
		apierrors.IsInternalError(err)
}

func sameReport(a, b report) bool {
	one, _ := json.Marshal(a)
	other, _ := json.Marshal(b)
	return bytes.Equal(one, other)
}

// add shows a rollout after what was shown before.
func (a *app) add(r report, now time.Time) {
	if a.output == "json" {
		line, _ := json.Marshal(r) // a report has nothing that JSON lacks
		_, _ = fmt.Fprintln(plainJSON{a.out}, string(line))
		return
	}
	_, _ = fmt.Fprintln(a.out, now.Format(time.RFC3339))
	r.picture(plain{a.out}, now, a.width())
}

// width is that of the terminal that is written to, 0 if it is none.
func (a *app) width() int {
	if on := a.screen(); on != nil {
		width, _ := on.size()
		return width
	}
	return 0
}

// screen is a terminal on which pictures are drawn over each other. It is the terminal's second one, so that what was in
// the first is there again afterwards.
type screen struct {
	out  io.Writer
	size func() (width, height int)

	last          news
	drawn         time.Time
	width, height int
}

// screen returns the terminal that is written to, nil if it is none, or none on which one can draw.
func (a *app) screen() *screen {
	file, ok := a.out.(*os.File)
	if kind := os.Getenv("TERM"); !ok || a.output == "json" || kind == "dumb" || !term.IsTerminal(int(file.Fd())) {
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

// What a terminal is told. The cursor is hidden while pictures are drawn. No colours are used.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	goHome      = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

func (s *screen) enter() { _, _ = io.WriteString(s.out, enterScreen) }

// leave puts the terminal back, and leaves the last picture in it.
func (s *screen) leave() {
	_, _ = io.WriteString(s.out, leaveScreen)
	if s.last.report != nil {
		width, _ := s.size()
		s.last.report.picture(plain{s.out}, time.Now(), width)
	}
}

// show draws what has been heard. While the API server is away the last picture stays.
func (s *screen) show(n news, now time.Time) {
	s.last.lost = n.lost
	if n.report != nil {
		s.last.report = n.report
	}
	s.draw(now)
}

// refresh draws the last picture again if the terminal has another size by now, or time has passed.
func (s *screen) refresh(now time.Time) {
	if s.last.report == nil {
		return
	}
	if width, height := s.size(); width != s.width || height != s.height || now.Sub(s.drawn) >= redraw {
		s.draw(now)
	}
}

// draw draws a picture over the last one. What the terminal has no room for is cut: a line that went on at the next one
// would push the first ones out.
func (s *screen) draw(now time.Time) {
	s.drawn = now
	s.width, s.height = s.size()
	var text strings.Builder
	if s.last.report != nil {
		s.last.report.picture(&text, now, s.width)
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	foot := ""
	if s.last.lost != nil {
		foot = "The API server does not answer: " + oneLine(s.last.lost.Error())
	}
	room := s.height
	if foot != "" {
		room--
	}
	if hidden := len(lines) - room; hidden > 0 {
		lines = append(lines[:max(0, room-1)], fmt.Sprintf("… and %d lines that the terminal has no room for", hidden+1))
	}
	if foot != "" {
		lines = append(lines, foot)
	}
	for i := range lines {
		lines[i] = plainText(cut(lines[i], s.width)) + clearLine
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
