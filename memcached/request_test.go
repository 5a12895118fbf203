// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRequestParse(t *testing.T) {
	longest := strings.Repeat("k", maxKeyBytes)
	tests := map[string]struct {
		line string
		// wantLine is what a server is sent.
		wantLine string
		wantErr  requestError
		// wantSize is the data to expect behind the line, -1 when there is none or nobody knows.
		wantSize    int
		wantNoreply bool
	}{
		"get":                        {line: "get a", wantLine: "get a", wantSize: -1},
		"get of many":                {line: "gets  a b  c ", wantLine: "gets a b c", wantSize: -1},
		"get of nothing":             {line: "get ", wantErr: errUnknownCommand, wantSize: -1},
		"get with the longest key":   {line: "get " + longest, wantLine: "get " + longest, wantSize: -1},
		"get with a longer key":      {line: "get a " + longest + "k", wantErr: errBadLine, wantSize: -1},
		"get with a zero byte":       {line: "get a\x00b", wantErr: errBadLine, wantSize: -1},
		"get with a carriage return": {line: "get a\rb", wantErr: errBadLine, wantSize: -1},
		"get of a number in a key":   {line: "get \x10\x7fa\t", wantLine: "get \x10\x7fa\t", wantSize: -1},
		"get of UTF-8":               {line: "get träume", wantLine: "get träume", wantSize: -1},
		"gat":                        {line: "gat 010 a b", wantLine: "gat 10 a b", wantSize: -1},
		"gat without keys":           {line: "gat 10", wantErr: errUnknownCommand, wantSize: -1},
		"gat with a bad time":        {line: "gats x a", wantErr: errBadExptime, wantSize: -1},
		"set":                        {line: "set a 1 -2 3", wantLine: "set a 1 -2 3", wantSize: 3},
		"set with noreply":           {line: "set a 1 2 3 noreply", wantLine: "set a 1 2 3", wantSize: 3, wantNoreply: true},
		"set with a bad key":         {line: "set a\x00 0 0 3", wantErr: errBadLine, wantSize: 3},
		"set with bad flags":         {line: "set a -1 0 3 noreply", wantErr: errBadLine, wantSize: 3, wantNoreply: true},
		"set with a bad size":        {line: "set a 0 0 3x", wantErr: errBadLine, wantSize: -1},
		"set with a negative size":   {line: "set a 0 0 -3", wantErr: errBadLine, wantSize: -1},
		"set with a huge size":       {line: "set a 0 0 2147483646", wantErr: errBadLine, wantSize: -1},
		"set with the largest size":  {line: "set a 0 0 2147483645", wantLine: "set a 0 0 2147483645", wantSize: 2147483645},
		"set with too few fields":    {line: "set a 0 0", wantErr: errUnknownCommand, wantSize: -1},
		"set with too many fields":   {line: "set a 0 0 3 4 5", wantErr: errUnknownCommand, wantSize: 3},
		"cas":                        {line: "cas a 1 2 3 4", wantLine: "cas a 1 2 3 4", wantSize: 3},
		"cas with noreply":           {line: "cas a 1 2 3 4 noreply", wantLine: "cas a 1 2 3 4", wantSize: 3, wantNoreply: true},
		"cas without a unique":       {line: "cas a 1 2 3", wantErr: errUnknownCommand, wantSize: 3},
		"cas with a bad unique":      {line: "cas a 1 2 3 x", wantErr: errBadLine, wantSize: 3},
		"delete":                     {line: "delete a", wantLine: "delete a", wantSize: -1},
		"delete with the old zero":   {line: "delete a 0 noreply", wantLine: "delete a", wantSize: -1, wantNoreply: true},
		"delete with a time":         {line: "delete a 10", wantErr: errBadDelete, wantSize: -1},
		"touch":                      {line: "touch a 10 noreply", wantLine: "touch a 10", wantSize: -1, wantNoreply: true},
		"touch without a time":       {line: "touch a", wantErr: errUnknownCommand, wantSize: -1},
		"incr": {
			line:     "incr a 18446744073709551615",
			wantLine: "incr a 18446744073709551615",
			wantSize: -1,
		},
		"incr by too much":          {line: "incr a 18446744073709551616", wantErr: errBadDelta, wantSize: -1},
		"decr by less than nothing": {line: "decr a -1", wantErr: errBadDelta, wantSize: -1},
		"meta set":                  {line: "ms a 5 T0", wantErr: errUnknownCommand, wantSize: 5},
		"meta get":                  {line: "mg a v", wantErr: errUnknownCommand, wantSize: -1},
		"upper case":                {line: "GET a", wantErr: errUnknownCommand, wantSize: -1},
		"our own word":              {line: "unknown", wantErr: errUnknownCommand, wantSize: -1},
		"nothing":                   {line: "", wantErr: errUnknownCommand, wantSize: -1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var r request
			err := r.parse([]byte(tc.line))
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && !errors.Is(err, tc.wantErr) {
				t.Fatalf("error = %v, want %q", err, tc.wantErr)
			}
			if err == nil {
				if got := string(lineFor(&r)); got != tc.wantLine+"\r\n" {
					t.Errorf("line to a server = %q, want %q", got, tc.wantLine)
				}
			}
			if r.size != tc.wantSize {
				t.Errorf("size = %d, want %d", r.size, tc.wantSize)
			}
			if r.noreply != tc.wantNoreply {
				t.Errorf("noreply = %v, want %v", r.noreply, tc.wantNoreply)
			}
		})
	}
}

// lineFor writes the line to one server that owns all keys.
func lineFor(r *request) []byte {
	call := newCall(r.cmd, unlimited)
	call.req = r.appendHead(call.req)
	for _, key := range r.keys {
		call.addKey(key)
	}
	return r.appendTail(call.req)
}

// FuzzRequestParse checks that a line which is passed on says to a server what it said to the proxy, and nothing more.
func FuzzRequestParse(f *testing.F) {
	for _, line := range []string{
		"get a b", "gats -1 k", "set a 1 2 3 noreply", "cas a 1 2 3 4", "delete a 0", "touch a 1", "incr a 1", "ms a 5 T0",
		"verbosity 1", "flush_all noreply", "stats", "get a\x00b",
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var r, again request
		if r.parse(line) != nil || len(r.keys) == 0 {
			return
		}
		sent := lineFor(&r)
		body, ok := bytes.CutSuffix(sent, lineEnd)
		if !ok || bytes.ContainsAny(body, "\r\n\x00") {
			t.Fatalf("line %q is sent as %q, which a server reads otherwise", line, sent)
		}
		if err := again.parse(body); err != nil {
			t.Fatalf("line %q is sent as %q, which is refused: %v", line, sent, err)
		}
		sameKeys := slices.EqualFunc(r.keys, again.keys, bytes.Equal)
		if !sameKeys || r.cmd != again.cmd || r.size != again.size || r.number != again.number ||
			r.flags != again.flags || r.exptime != again.exptime || again.noreply {
			t.Fatalf("line %q is sent as %q: %+v became %+v", line, sent, r, again)
		}
	})
}
