// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
)

// maxValueBytes is the largest value that any memcached can be told to hold (-I).
const maxValueBytes = 1 << 30

var (
	wordValue       = []byte("VALUE ")
	wordEnd         = []byte("END")
	wordServerError = []byte("SERVER_ERROR ")
	wordClientError = []byte("CLIENT_ERROR ")
	wordVersion     = []byte("VERSION ")
	wordNotFound    = []byte("NOT_FOUND")
	lineEnd         = []byte("\r\n")

	errNotMemcached = errors.New("the answer is not memcached's")
)

// statusWords are the one-line answers to each command that has no values, besides errors and numbers.
var statusWords = [commands][][]byte{
	cmdSet: storeWords, cmdAdd: storeWords, cmdReplace: storeWords, cmdAppend: storeWords, cmdPrepend: storeWords,
	cmdCAS:    storeWords,
	cmdDelete: {[]byte("DELETED"), wordNotFound},
	cmdTouch:  {[]byte("TOUCHED"), wordNotFound},
	cmdIncr:   {wordNotFound},
	cmdDecr:   {wordNotFound},

	cmdFlushAll: {[]byte(lineOK)},
}

var storeWords = [][]byte{[]byte("STORED"), []byte("NOT_STORED"), []byte("EXISTS"), wordNotFound}

// readReply reads the server's answer to the call. An error means that nobody knows what the next bytes of the
// connection belong to; the connection must end, and the call with it.
func (c *call) readReply(r *bufio.Reader) error {
	if c.cmd.reads() {
		return c.readValues(r)
	}
	line, err := readLine(r)
	if err != nil {
		return err
	}
	if !c.isAnswer(line) {
		return fmt.Errorf("%w: %w to %s", errNotMemcached, unexpectedLine(line), c.cmd)
	}
	c.reply = append(c.reply[:0], line...)
	return nil
}

// isAnswer reports whether the line answers the command, with the connection still in step.
func (c *call) isAnswer(line []byte) bool {
	switch {
	case bytes.HasPrefix(line, wordServerError):
		return true
	case bytes.HasPrefix(line, wordClientError):
		// After a store that it refused to parse, the server would take the data for the next command.
		return !c.cmd.stores()
	case c.cmd == cmdVersion:
		return bytes.HasPrefix(line, wordVersion)
	case c.cmd == cmdIncr, c.cmd == cmdDecr:
		if _, ok := parseUint(line); ok {
			return true
		}
	}
	return slices.ContainsFunc(statusWords[c.cmd], func(word []byte) bool { return bytes.Equal(word, line) })
}

// readValues reads value blocks up to END. Values come in the order of their keys, so that a value for a key that was
// not asked for, or was asked for earlier, shows a connection out of step.
func (c *call) readValues(r *bufio.Reader) error {
	next := 0
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		// A server without memory for the rest of its answer says so in place of END.
		if bytes.Equal(line, wordEnd) || bytes.HasPrefix(line, wordServerError) {
			return nil
		}
		key, size, ok := parseValueLine(line, c.cmd.withUnique())
		if !ok {
			return fmt.Errorf("%w: %w to %s", errNotMemcached, unexpectedLine(line), c.cmd)
		}
		for next < len(c.keys) && !bytes.Equal(c.req[c.keys[next].start:c.keys[next].end], key) {
			next++
		}
		if next == len(c.keys) {
			return fmt.Errorf("%w: a value for a key that was not asked for", errNotMemcached)
		}
		if err := c.readBlock(r, next, line, size); err != nil {
			return err
		}
		next++
	}
}

// readBlock reads the data behind the line of a value. A value that nobody waits for, or that does not fit into the
// budget, is read and dropped: it is a miss.
func (c *call) readBlock(r *bufio.Reader, key int, line []byte, size int) error {
	length := len(line) + len(lineEnd) + size + len(lineEnd)
	if c.abandoned() || !c.hold(length) {
		return discardData(r, size)
	}
	start := len(c.reply)
	c.reply = slices.Grow(c.reply, length)
	c.reply = append(append(c.reply, line...), lineEnd...)
	data := c.reply[len(c.reply) : start+length]
	if _, err := io.ReadFull(r, data); err != nil {
		return err
	}
	if !bytes.HasSuffix(data, lineEnd) {
		return fmt.Errorf("%w: a value of another length than it says", errNotMemcached)
	}
	c.reply = c.reply[:start+length]
	c.values = append(c.values, value{span: span{start, start + length}, key: key})
	return nil
}

func discardData(r *bufio.Reader, size int) error {
	if _, err := r.Discard(size); err != nil {
		return err
	}
	end, err := r.Peek(len(lineEnd))
	if err != nil {
		return err
	}
	if !bytes.Equal(end, lineEnd) {
		return fmt.Errorf("%w: a value of another length than it says", errNotMemcached)
	}
	_, err = r.Discard(len(lineEnd))
	return err
}

// parseValueLine reads "VALUE <key> <flags> <bytes>", and the cas unique behind it where one is due.
func parseValueLine(line []byte, withUnique bool) (key []byte, size int, ok bool) {
	rest, ok := bytes.CutPrefix(line, wordValue)
	if !ok {
		return nil, 0, false
	}
	var buffer [5][]byte
	fields := splitFields(buffer[:0], rest)
	want := 3
	if withUnique {
		want = 4
	}
	if len(fields) != want {
		return nil, 0, false
	}
	for _, number := range fields[1:] {
		if _, ok := parseUint(number); !ok {
			return nil, 0, false
		}
	}
	n, _ := parseUint(fields[2])
	return fields[0], int(n), n <= maxValueBytes //nolint:gosec // The bound goes with it.
}
