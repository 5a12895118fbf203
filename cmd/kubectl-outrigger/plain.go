// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
)

// plain is a writer of text that comes from the cluster, where whoever may edit an object, or answers as its Prometheus,
// chooses the words: nothing of it moves the cursor, sets a title, or turns the order of letters. It is given whole
// characters.
type plain struct {
	out io.Writer
}

// Write implements io.Writer.
func (p plain) Write(text []byte) (int, error) {
	_, err := io.WriteString(p.out, plainText(string(text)))
	return len(text), err //nolint:wrapcheck // it is the writer's own.
}

// plainText replaces each character that a terminal may obey, or does not show, by one that it shows.
func plainText(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// plainJSON is such a writer of JSON, of which nothing is lost: what JSON leaves as it is, it writes as escapes.
type plainJSON struct {
	out io.Writer
}

// Write implements io.Writer.
func (p plainJSON) Write(text []byte) (int, error) {
	var escaped strings.Builder
	for _, r := range string(text) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			escaped.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			_, _ = fmt.Fprintf(&escaped, `\u%04x\u%04x`, high, low)
		default:
			_, _ = fmt.Fprintf(&escaped, `\u%04x`, r)
		}
	}
	_, err := io.WriteString(p.out, escaped.String())
	return len(text), err //nolint:wrapcheck // it is the writer's own.
}
