// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// readCall returns a call that asks for the keys, to read an answer into.
func readCall(cmd command, keys ...string) *call {
	c := newCall(cmd, newBudget(1<<20))
	for _, key := range keys {
		c.addKey([]byte(key))
	}
	return c
}

func TestReadReply(t *testing.T) {
	tests := map[string]struct {
		cmd    command
		answer string
		want   string
		// wantErr is a piece of the error that ends the connection.
		wantErr string
	}{
		"no value":             {cmd: cmdGet, answer: "END\r\n"},
		"one value":            {cmd: cmdGet, answer: "VALUE a 5 1\r\nx\r\nEND\r\n", want: "a=x"},
		"all values":           {cmd: cmdGet, answer: "VALUE a 0 1\r\nx\r\nVALUE b 0 0\r\n\r\nEND\r\n", want: "a=x b="},
		"value with an END":    {cmd: cmdGet, answer: "VALUE a 0 7\r\nEND\r\nx\n\r\nEND\r\n", want: "a=END\r\nx\n"},
		"value with a unique":  {cmd: cmdGets, answer: "VALUE b 0 1 77\r\nx\r\nEND\r\n", want: "b=x"},
		"server out of memory": {cmd: cmdGet, answer: "VALUE a 0 1\r\nx\r\nSERVER_ERROR out of memory\r\n", want: "a=x"},
		"too large for us": {
			cmd:    cmdGet,
			answer: "VALUE a 0 2000000\r\n" + strings.Repeat("x", 2000000) + "\r\nVALUE b 0 1\r\nx\r\nEND\r\n",
			want:   "b=x",
		},

		"value of another key": {cmd: cmdGet, answer: "VALUE c 0 1\r\nx\r\nEND\r\n", wantErr: "not asked for"},
		"values in another order": {
			cmd:     cmdGet,
			answer:  "VALUE b 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
			wantErr: "not asked for",
		},
		"value twice": {
			cmd:     cmdGet,
			answer:  "VALUE b 0 1\r\nx\r\nVALUE b 0 1\r\nx\r\nEND\r\n",
			wantErr: "not asked for",
		},
		"value too long": {cmd: cmdGet, answer: "VALUE a 0 1\r\nxyz\r\nEND\r\n", wantErr: "another length"},
		"large value too long": {
			cmd:     cmdGet,
			answer:  "VALUE a 0 2000000\r\n" + strings.Repeat("x", 2000003) + "\r\n",
			wantErr: "another length",
		},
		"size beyond all bounds": {cmd: cmdGet, answer: "VALUE a 0 18446744073709551615\r\n", wantErr: "unexpected line"},
		"size below zero":        {cmd: cmdGet, answer: "VALUE a 0 -1\r\n", wantErr: "unexpected line"},
		"unique not asked for":   {cmd: cmdGet, answer: "VALUE a 0 1 77\r\nx\r\nEND\r\n", wantErr: "unexpected line"},
		"unique missing":         {cmd: cmdGets, answer: "VALUE a 0 1\r\nx\r\nEND\r\n", wantErr: "unexpected line"},
		"fields missing":         {cmd: cmdGet, answer: "VALUE a\r\n", wantErr: "unexpected line"},
		"answer of a set":        {cmd: cmdGet, answer: "STORED\r\n", wantErr: "unexpected line"},
		"another protocol":       {cmd: cmdGet, answer: "HTTP/1.1 400 Bad Request\r\n", wantErr: "unexpected line"},
		"endless line":           {cmd: cmdGet, answer: strings.Repeat("x", 1<<16), wantErr: "buffer full"},
		"cut in the value":       {cmd: cmdGet, answer: "VALUE a 0 10\r\nx", wantErr: "unexpected EOF"},
		"cut in a large value":   {cmd: cmdGet, answer: "VALUE a 0 2000000\r\nx", wantErr: "EOF"},
		"cut before END":         {cmd: cmdGet, answer: "VALUE a 0 1\r\nx\r\n", wantErr: "EOF"},
		"closed":                 {cmd: cmdGet, answer: "", wantErr: "EOF"},

		"stored": {cmd: cmdSet, answer: "STORED\r\n", want: "STORED"},
		"exists": {cmd: cmdCAS, answer: "EXISTS\r\n", want: "EXISTS"},
		"too large": {
			cmd:    cmdSet,
			answer: "SERVER_ERROR object too large for cache\r\n",
			want:   "SERVER_ERROR object too large for cache",
		},
		"store refused":        {cmd: cmdSet, answer: "CLIENT_ERROR bad data chunk\r\n", wantErr: "unexpected line"},
		"store not understood": {cmd: cmdSet, answer: "ERROR\r\n", wantErr: "unexpected line"},
		"answer of a delete":   {cmd: cmdSet, answer: "DELETED\r\n", wantErr: "unexpected line"},
		"too many connections": {cmd: cmdSet, answer: "ERROR Too many open connections\r\n", wantErr: "Too many open"},
		"deleted":              {cmd: cmdDelete, answer: "DELETED\r\n", want: "DELETED"},
		"touched":              {cmd: cmdTouch, answer: "TOUCHED\r\n", want: "TOUCHED"},
		"number":               {cmd: cmdIncr, answer: "18446744073709551615\r\n", want: "18446744073709551615"},
		"no number":            {cmd: cmdDecr, answer: "12x\r\n", wantErr: "unexpected line"},
		"incr of text": {
			cmd:    cmdIncr,
			answer: "CLIENT_ERROR cannot increment\r\n",
			want:   "CLIENT_ERROR cannot increment",
		},
		"number after a delete":    {cmd: cmdDelete, answer: "5\r\n", wantErr: "unexpected line"},
		"version":                  {cmd: cmdVersion, answer: "VERSION 1.6.18\r\n", want: "VERSION 1.6.18"},
		"version that is not said": {cmd: cmdVersion, answer: "STORED\r\n", wantErr: "unexpected line"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c := readCall(tc.cmd, "a", "b")
			err := c.readReply(bufio.NewReaderSize(strings.NewReader(tc.answer), linkReadBytes))
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Fatalf("error = %v, want one with %q", err, tc.wantErr)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tc.want, contents(c)); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
		})
	}
}

// contents renders the reply of a call: its values, or its line.
func contents(c *call) string {
	if !c.cmd.reads() {
		return string(c.reply)
	}
	items := make([]string, 0, len(c.values))
	for _, v := range c.values {
		key, data := c.item(v)
		items = append(items, fmt.Sprintf("%s=%s", key, data))
	}
	return strings.Join(items, " ")
}

// FuzzReadReply checks that nothing from a server makes the reader panic, take memory without bounds, or return a value
// for a key that was not asked for.
func FuzzReadReply(f *testing.F) {
	for _, answer := range []string{
		"VALUE a 0 1\r\nx\r\nEND\r\n", "VALUE a 0 1 5\r\nx\r\nVALUE bb 0 0 6\r\n\r\nEND\r\n", "STORED\r\n", "5\r\n",
		"SERVER_ERROR x\r\n", "VALUE a 0 1073741824\r\n", "END\r\nx\r\n",
	} {
		f.Add(uint8(cmdGet), []byte(answer))
		f.Add(uint8(cmdGets), []byte(answer))
		f.Add(uint8(cmdIncr), []byte(answer))
	}
	f.Fuzz(func(t *testing.T, cmd uint8, answer []byte) {
		keys := []string{"a", "bb", "a"}
		c := readCall(command(cmd)%commands, keys...)
		r := bufio.NewReaderSize(bytes.NewReader(answer), linkReadBytes)
		if err := c.readReply(r); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && answerFailure(err).reason != reasonProtocol {
				t.Fatalf("error %v is neither an end nor a fault of the server", err)
			}
			return
		}
		if len(c.reply) > len(answer) {
			t.Fatalf("%d bytes became %d", len(answer), len(c.reply))
		}
		last := -1
		for _, v := range c.values {
			key, data := c.item(v)
			if v.key <= last || string(key) != keys[v.key] || !bytes.Contains(answer, data) {
				t.Fatalf("value %d is %q=%q", v.key, key, data)
			}
			last = v.key
		}
	})
}
