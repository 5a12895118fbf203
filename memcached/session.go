// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// sessionBufferBytes is the buffer for requests of a client, and the one for answers to it.
	sessionBufferBytes = 8 << 10
	// maxLineBytes bounds a command line: some 4,000 keys of the greatest length.
	maxLineBytes = 1 << 20
	// maxBatch bounds the requests of one client that are on their way together.
	maxBatch = 64
	// lingerTime bounds the end of a session whose client broke the rules.
	lingerTime = 200 * time.Millisecond
	// binaryMagic is the first byte of the binary protocol.
	binaryMagic = 0x80
)

const (
	lineTooLarge  = "SERVER_ERROR object too large for cache"
	lineNoMemory  = "SERVER_ERROR out of memory storing object"
	lineNoRequest = "SERVER_ERROR out of memory reading request"
	lineTooLong   = "CLIENT_ERROR line too long"
	lineNoFlush   = "CLIENT_ERROR flush_all not allowed"
	lineOK        = "OK"
)

var (
	// errHangUp ends a session whose client broke the rules, after what is on its way has been answered.
	errHangUp = errors.New("nobody knows where the next command starts")
	// errOver ends a session in the same way when nobody is at fault.
	errOver = errors.New("the session is over")
)

// session serves one client. Requests that have arrived together are sent to the servers together; the session reads on
// when all of them are answered, so that a client who does not take its answers is not read from either.
type session struct {
	proxy *Proxy
	conn  net.Conn
	r     *bufio.Reader
	w     *bufio.Writer
	// id picks the connection to each server, the same for all requests of the session, so that they keep their order.
	id int

	req request
	// long is a line that does not fit into the buffer of r, held what it takes from the budget.
	long []byte
	held int64
	// batch are the requests on their way, spare those for use again.
	batch, spare []*pending
	timer        *time.Timer
	// limited is set while the client has limited time to send the rest of a request.
	limited bool
	closing atomic.Bool
}

// pending is a request on its way, or the answer to it.
type pending struct {
	exchange

	// literal is the answer to a request that no server is asked about.
	literal string
	noreply bool
	start   time.Time
}

func newSession(p *Proxy, conn net.Conn, id int) *session {
	timer := time.NewTimer(0)
	timer.Stop()
	return &session{
		proxy: p,
		conn:  conn,
		id:    id,
		r:     bufio.NewReaderSize(conn, sessionBufferBytes),
		w:     bufio.NewWriterSize(conn, sessionBufferBytes),
		timer: timer,
	}
}

// serve answers requests until the client leaves, breaks the rules, or stop is called.
func (s *session) serve() {
	for {
		if len(s.batch) > 0 && (len(s.batch) == maxBatch || !s.lineBuffered()) {
			if s.finish() != nil {
				return
			}
		}
		line, err := s.readLine()
		if err == nil {
			err = s.handle(line)
		}
		s.forgetLong()
		if err != nil {
			if s.finish() == nil && errors.Is(err, errHangUp) {
				s.linger()
			}
			return
		}
	}
}

// linger drops what the client still sends, for a short time. Without it the kernel would answer that with a reset,
// which takes from the client the answer that says what was wrong.
func (s *session) linger() {
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || s.conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, s.conn)
}

// stop ends the session as soon as it waits for a request.
func (s *session) stop() {
	s.closing.Store(true)
	_ = s.conn.SetReadDeadline(time.Now())
}

// lineBuffered reports whether the next line can be read without waiting.
func (s *session) lineBuffered() bool {
	buffered, _ := s.r.Peek(s.r.Buffered())
	return bytes.IndexByte(buffered, '\n') >= 0
}

// readLine returns the next command line without its end.
func (s *session) readLine() ([]byte, error) {
	if s.r.Buffered() == 0 {
		if err := s.awaitRequest(); err != nil {
			return nil, err
		}
	}
	if first, err := s.r.Peek(1); err != nil || first[0] == binaryMagic {
		return nil, errOver
	}
	if !s.lineBuffered() {
		s.limit()
	}
	line, err := s.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line, err = s.readLong(line)
	}
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

// awaitRequest waits for the first byte of a request, for as long as it takes.
func (s *session) awaitRequest() error {
	if s.limited {
		s.limited = false
		if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	// The deadline that stop set may just have been lifted.
	if s.closing.Load() {
		return errOver
	}
	_, err := s.r.Peek(1)
	return err
}

// limit gives the client limited time to send the rest of its request.
func (s *session) limit() {
	s.limited = true
	_ = s.conn.SetReadDeadline(time.Now().Add(s.proxy.options.ClientTimeout))
}

// readLong reads on after the start of a line. Only the keys of a read can make a line so long.
func (s *session) readLong(start []byte) ([]byte, error) {
	word, _ := nextField(start)
	if !commandsByName[string(word)].reads() {
		return nil, s.hangUp(lineTooLong)
	}
	s.long = append(s.long[:0], start...)
	for {
		part, err := s.r.ReadSlice('\n')
		if !s.proxy.client.budget.take(int64(len(part))) {
			return nil, s.hangUp(lineNoRequest)
		}
		s.held += int64(len(part))
		s.long = append(s.long, part...)
		switch {
		case err == nil:
			return s.long, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(s.long) > maxLineBytes:
			return nil, s.hangUp(lineTooLong)
		}
	}
}

// forgetLong gives the memory of a long line back.
func (s *session) forgetLong() {
	if s.held == 0 {
		return
	}
	s.proxy.client.budget.give(s.held)
	s.long, s.req.keys, s.held = nil, nil, 0
}

// hangUp ends the session with a last answer.
func (s *session) hangUp(line string) error {
	s.req.noreply = false
	s.answer(line)
	return errHangUp
}

// handle starts what the line asks for.
func (s *session) handle(line []byte) error {
	err := s.req.parse(line)
	s.proxy.figures.requests[s.req.cmd].Add(1)
	if refused, ok := errors.AsType[requestError](err); ok {
		return s.refuse(refused)
	}
	switch {
	case s.req.cmd.stores():
		return s.store()
	case s.req.cmd == cmdQuit:
		return errOver
	case len(s.req.keys) == 0:
		s.answerLocally()
		return nil
	}
	p := s.next()
	p.begin(s.proxy.client, &s.req, s.id)
	s.send(p)
	return nil
}

// refuse answers a line that cannot be obeyed and drops the data behind it.
func (s *session) refuse(line requestError) error {
	cmd, size := s.req.cmd, s.req.size
	s.answer(string(line))
	switch {
	case !cmd.stores() && cmd != cmdMetaSet:
		return nil
	case size < 0:
		return errHangUp
	}
	return s.discard(size)
}

// answerLocally answers what needs no server.
func (s *session) answerLocally() {
	switch s.req.cmd {
	case cmdVersion:
		s.answer("VERSION " + protocolVersion + s.proxy.versionSuffix())
	case cmdStats:
		s.answer(s.proxy.statsText())
	case cmdFlushAll:
		s.answer(lineNoFlush)
	default:
		s.answer(lineOK)
	}
}

// store reads the data behind the line and sends both.
func (s *session) store() error {
	p := s.next()
	p.begin(s.proxy.client, &s.req, s.id)
	call, size := p.data(), s.req.size
	if call == nil {
		s.batch = append(s.batch, p)
		return s.discard(size)
	}
	if !call.hold(size) {
		return s.refuseData(p)
	}
	if err := s.readData(call, size+len(lineEnd)); err != nil {
		p.release()
		return err
	}
	if bytes.HasSuffix(call.req, lineEnd) {
		s.send(p)
		return nil
	}
	p.release()
	p.cmd, p.literal = cmdUnknown, string(errBadChunk)
	s.batch = append(s.batch, p)
	return errHangUp
}

// readData appends so many bytes to what the call sends.
func (s *session) readData(c *call, length int) error {
	if err := s.expect(length); err != nil {
		return err
	}
	head := len(c.req)
	c.req = slices.Grow(c.req, length)[:head+length]
	_, err := io.ReadFull(s.r, c.req[head:])
	return err
}

// refuseData answers a store for whose data there is no room. As in memcached, a set that fails so takes the old value
// with it, so that nobody goes on reading what the client wanted replaced.
func (s *session) refuseData(p *pending) error {
	p.release()
	p.cmd, p.literal = cmdUnknown, lineNoMemory
	if int64(s.req.size) > s.proxy.client.options.MaxBufferedBytes {
		p.literal = lineTooLarge
	}
	size := s.req.size
	if s.req.cmd == cmdSet {
		s.req.cmd = cmdDelete
		p.begin(s.proxy.client, &s.req, s.id)
		s.send(p)
	} else {
		s.batch = append(s.batch, p)
	}
	return s.discard(size)
}

// discard drops the data of a store.
func (s *session) discard(size int) error {
	if err := s.expect(size + len(lineEnd)); err != nil {
		return err
	}
	if err := discardData(s.r, size); err != nil {
		return errHangUp
	}
	return nil
}

// expect prepares for reading n bytes: if they are not here yet, requests before them are answered first.
func (s *session) expect(n int) error {
	if s.r.Buffered() >= n {
		return nil
	}
	s.limit()
	if len(s.batch) == 0 {
		return nil
	}
	return s.finish()
}

// next returns a pending request for what has just been parsed.
func (s *session) next() *pending {
	var p *pending
	if n := len(s.spare); n > 0 {
		p, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		p = new(pending)
	}
	p.cmd, p.literal, p.noreply = cmdUnknown, "", s.req.noreply
	return p
}

// send adds the request to the batch and enqueues it with its servers.
func (s *session) send(p *pending) {
	// The time that the client took to send the data is not the servers'.
	p.start = time.Now()
	p.submit(p.start)
	s.batch = append(s.batch, p)
}

// answer adds an answer to the batch.
func (s *session) answer(line string) {
	p := s.next()
	p.literal = line
	s.batch = append(s.batch, p)
}

// finish waits for the requests on their way and answers them in their order.
func (s *session) finish() error {
	for _, p := range s.batch {
		p.flush()
	}
	for _, p := range s.batch {
		p.await(p.start.Add(s.proxy.client.options.Timeout), s.timer)
		s.proxy.note(p)
	}
	// If this fails, so will the writing.
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.proxy.options.ClientTimeout))
	for _, p := range s.batch {
		s.write(p)
		p.release()
	}
	s.spare = append(s.spare, s.batch...)
	s.batch = s.batch[:0]
	return s.w.Flush()
}

// write writes the answer. Errors stay with the writer until it is flushed.
func (s *session) write(p *pending) {
	switch {
	case p.noreply:
	case p.literal != "":
		_, _ = s.w.WriteString(p.literal)
		_, _ = s.w.Write(lineEnd)
	case p.cmd.reads():
		p.writeValues(s.w)
	default:
		_, _ = s.w.Write(p.status())
		_, _ = s.w.Write(lineEnd)
	}
}
