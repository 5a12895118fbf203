// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"strconv"
)

const (
	// maxKeyBytes is memcached's limit on a key.
	maxKeyBytes = 250
	// maxFields bounds the fields of a line that names one key; "cas" with noreply has seven.
	maxFields = 8
)

// command is a command of memcached's text protocol.
type command uint8

const (
	cmdUnknown command = iota
	cmdGet
	cmdGets
	cmdGat
	cmdGats
	cmdSet
	cmdAdd
	cmdReplace
	cmdAppend
	cmdPrepend
	cmdCAS
	cmdDelete
	cmdTouch
	cmdIncr
	cmdDecr
	cmdVersion
	cmdVerbosity
	cmdFlushAll
	cmdStats
	cmdQuit
	cmdMetaSet
	commands
)

// commandNames are the words on the wire.
var commandNames = [commands]string{
	cmdUnknown: "unknown", cmdGet: "get", cmdGets: "gets", cmdGat: "gat", cmdGats: "gats", cmdSet: "set", cmdAdd: "add",
	cmdReplace: "replace", cmdAppend: "append", cmdPrepend: "prepend", cmdCAS: "cas", cmdDelete: "delete",
	cmdTouch: "touch", cmdIncr: "incr", cmdDecr: "decr", cmdVersion: "version", cmdVerbosity: "verbosity",
	cmdFlushAll: "flush_all", cmdStats: "stats", cmdQuit: "quit", cmdMetaSet: "ms",
}

// commandsByName leaves out unknown, which is a word of ours.
var commandsByName = func() map[string]command {
	byName := make(map[string]command, commands)
	for c := cmdUnknown + 1; c < commands; c++ {
		byName[commandNames[c]] = c
	}
	return byName
}()

func (c command) String() string {
	return commandNames[c]
}

// reads reports whether the answer is made of values.
func (c command) reads() bool {
	return c >= cmdGet && c <= cmdGats
}

// stores reports whether a data block follows the line.
func (c command) stores() bool {
	return c >= cmdSet && c <= cmdCAS
}

// touches reports whether a read also sets the expiry, which then stands before the keys.
func (c command) touches() bool {
	return c == cmdGat || c == cmdGats
}

// withUnique reports whether values come with their cas unique.
func (c command) withUnique() bool {
	return c == cmdGets || c == cmdGats
}

// request is one parsed command line. Its keys point into the line.
type request struct {
	cmd     command
	keys    [][]byte
	flags   uint64
	exptime int64
	// size is the length of the data block of a store.
	size int
	// number is the cas unique of cas and the delta of incr and decr.
	number  uint64
	noreply bool
}

// requestError is a line that cannot be obeyed: the answer to it, in memcached's own words where it has some.
type requestError string

const (
	errUnknownCommand requestError = "ERROR"
	errBadLine        requestError = "CLIENT_ERROR bad command line format"
	errBadDelete      requestError = "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]"
	errBadExptime     requestError = "CLIENT_ERROR invalid exptime argument"
	errBadDelta       requestError = "CLIENT_ERROR invalid numeric delta argument"
	errBadChunk       requestError = "CLIENT_ERROR bad data chunk"
)

func (e requestError) Error() string {
	return string(e)
}

// parse reads a command line without its end into r, which it reuses. After an error, cmd, size and noreply still hold
// what could be read of them: a store with size >= 0 is followed by that much data; with size < 0 nobody knows where
// the next command starts.
func (r *request) parse(line []byte) error {
	*r = request{keys: r.keys[:0], size: -1}
	word, rest := nextField(line)
	r.cmd = commandsByName[string(word)]
	if r.cmd.reads() {
		return r.parseRead(rest)
	}
	parse := fieldParsers[r.cmd]
	if parse == nil {
		return errUnknownCommand
	}
	var buffer [maxFields][]byte
	return parse(r, splitFields(buffer[:0], rest))
}

// fieldParsers read the fields after the word of every command that is no read.
var fieldParsers = [commands]func(*request, [][]byte) error{
	cmdSet: (*request).parseStore, cmdAdd: (*request).parseStore, cmdReplace: (*request).parseStore,
	cmdAppend: (*request).parseStore, cmdPrepend: (*request).parseStore, cmdCAS: (*request).parseStore,
	cmdDelete: (*request).parseDelete, cmdTouch: (*request).parseTouch, cmdIncr: (*request).parseDelta,
	cmdDecr: (*request).parseDelta, cmdVerbosity: (*request).parseVerbosity, cmdMetaSet: (*request).parseMetaSet,
	cmdStats: (*request).parseStats, cmdFlushAll: (*request).parseOptions, cmdVersion: (*request).parseOptions,
	cmdQuit: (*request).parseOptions,
}

func (r *request) parseRead(rest []byte) error {
	if r.cmd.touches() {
		var field []byte
		field, rest = nextField(rest)
		var ok bool
		if r.exptime, ok = parseInt(field); !ok && len(field) > 0 {
			return errBadExptime
		}
	}
	for {
		var key []byte
		if key, rest = nextField(rest); len(key) == 0 {
			break
		}
		if !validKey(key) {
			return errBadLine
		}
		r.keys = append(r.keys, key)
	}
	if len(r.keys) == 0 {
		return errUnknownCommand
	}
	return nil
}

// parseStore reads "<key> <flags> <exptime> <bytes> [<cas unique>] [noreply]".
func (r *request) parseStore(fields [][]byte) error {
	least := 4
	if r.cmd == cmdCAS {
		least = 5
	}
	if len(fields) >= 4 {
		r.setSize(fields[3])
	}
	if len(fields) < least || len(fields) > least+1 {
		return errUnknownCommand
	}
	r.setNoreply(fields[least:])
	var flagsOK, exptimeOK bool
	uniqueOK := true
	r.flags, flagsOK = parseUint(fields[1])
	r.exptime, exptimeOK = parseInt(fields[2])
	if r.cmd == cmdCAS {
		r.number, uniqueOK = parseUint(fields[4])
	}
	if !flagsOK || !exptimeOK || !uniqueOK || r.size < 0 {
		return errBadLine
	}
	return r.setKey(fields[0])
}

func (r *request) parseDelete(fields [][]byte) error {
	if len(fields) < 1 || len(fields) > 3 {
		return errUnknownCommand
	}
	options := fields[1:]
	r.setNoreply(options)
	// Old clients send the time that a delete once could wait; only 0 is left of it.
	if len(options) > 0 && string(options[0]) == "0" {
		options = options[1:]
	}
	if len(options) > 1 || len(options) == 1 && !r.noreply {
		return errBadDelete
	}
	return r.setKey(fields[0])
}

func (r *request) parseTouch(fields [][]byte) error {
	if len(fields) < 2 || len(fields) > 3 {
		return errUnknownCommand
	}
	r.setNoreply(fields[2:])
	var ok bool
	if r.exptime, ok = parseInt(fields[1]); !ok {
		return errBadExptime
	}
	return r.setKey(fields[0])
}

func (r *request) parseDelta(fields [][]byte) error {
	if len(fields) < 2 || len(fields) > 3 {
		return errUnknownCommand
	}
	r.setNoreply(fields[2:])
	var ok bool
	if r.number, ok = parseUint(fields[1]); !ok {
		return errBadDelta
	}
	return r.setKey(fields[0])
}

func (r *request) parseVerbosity(fields [][]byte) error {
	if len(fields) == 0 {
		return errUnknownCommand
	}
	r.setNoreply(fields)
	if _, ok := parseUint(fields[0]); !ok {
		return errBadLine
	}
	return nil
}

// parseMetaSet refuses the command, but finds the size of the data behind it: read as commands, that data would be
// obeyed.
func (r *request) parseMetaSet(fields [][]byte) error {
	if len(fields) >= 2 {
		r.setSize(fields[1])
	}
	return errUnknownCommand
}

func (r *request) parseStats(fields [][]byte) error {
	if len(fields) > 0 {
		return errUnknownCommand
	}
	return nil
}

func (r *request) parseOptions(fields [][]byte) error {
	r.setNoreply(fields)
	return nil
}

func (r *request) setKey(key []byte) error {
	if !validKey(key) {
		return errBadLine
	}
	r.keys = append(r.keys, key)
	return nil
}

func (r *request) setSize(field []byte) {
	const most = 1<<31 - 1 - len("\r\n")
	if n, ok := parseInt(field); ok && n >= 0 && n <= int64(most) {
		r.size = int(n)
	}
}

// setNoreply looks for the word where memcached does: at the end.
func (r *request) setNoreply(options [][]byte) {
	r.noreply = len(options) > 0 && string(options[len(options)-1]) == "noreply"
}

// appendHead and appendTail write the line to a server around its keys: never with noreply, so that each request has an
// answer, and with numbers written anew, so that nothing but valid keys is passed on as it came.
func (r *request) appendHead(line []byte) []byte {
	line = append(line, r.cmd.String()...)
	if r.cmd.touches() {
		line = strconv.AppendInt(append(line, ' '), r.exptime, 10)
	}
	return line
}

func (r *request) appendTail(line []byte) []byte {
	switch {
	case r.cmd.stores():
		line = strconv.AppendUint(append(line, ' '), r.flags, 10)
		line = strconv.AppendInt(append(line, ' '), r.exptime, 10)
		line = strconv.AppendInt(append(line, ' '), int64(r.size), 10)
		if r.cmd == cmdCAS {
			line = strconv.AppendUint(append(line, ' '), r.number, 10)
		}
	case r.cmd == cmdTouch:
		line = strconv.AppendInt(append(line, ' '), r.exptime, 10)
	case r.cmd == cmdIncr, r.cmd == cmdDecr:
		line = strconv.AppendUint(append(line, ' '), r.number, 10)
	}
	return append(line, "\r\n"...)
}

// validKey refuses what would not reach a server as one key of the same bytes. The protocol forbids all control
// characters, but servers take most of them, and so do clients that put numbers into keys.
func validKey(key []byte) bool {
	if len(key) == 0 || len(key) > maxKeyBytes {
		return false
	}
	for _, c := range key {
		switch c {
		case ' ', '\r', '\n', 0:
			return false
		}
	}
	return true
}

// nextField returns the text up to the next space, after any spaces before it, and what follows.
func nextField(line []byte) (field, rest []byte) {
	for len(line) > 0 && line[0] == ' ' {
		line = line[1:]
	}
	end := bytes.IndexByte(line, ' ')
	if end < 0 {
		return line, nil
	}
	return line[:end], line[end+1:]
}

// splitFields appends the fields of the line, at most as many as fit.
func splitFields(fields [][]byte, line []byte) [][]byte {
	for len(fields) < cap(fields) {
		var field []byte
		if field, line = nextField(line); len(field) == 0 {
			break
		}
		fields = append(fields, field)
	}
	return fields
}

func parseUint(field []byte) (uint64, bool) {
	n, err := strconv.ParseUint(string(field), 10, 64)
	return n, err == nil
}

func parseInt(field []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(field), 10, 64)
	return n, err == nil
}
