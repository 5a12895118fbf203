// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"bytes"
	"time"
)

// outageAnswers are what a command that no server answered is told: what a cache without the key would say, so that no
// client fails for it. Only a delete says that it is not known to be done, because someone relies on it.
var outageAnswers = [commands]string{
	cmdSet: "NOT_STORED", cmdAdd: "NOT_STORED", cmdReplace: "NOT_STORED", cmdAppend: "NOT_STORED",
	cmdPrepend: "NOT_STORED", cmdCAS: "NOT_FOUND", cmdTouch: "NOT_FOUND", cmdIncr: "NOT_FOUND", cmdDecr: "NOT_FOUND",
	cmdDelete: "SERVER_ERROR delete not confirmed by its server",
}

// exchange is one request and what its servers say to it. It goes through begin, submit, flush and await, each of which
// is done for all requests that came together before the next. It is used again after release.
type exchange struct {
	cmd  command
	keys int
	// hasty is set while the caller waits for less than the client's timeout.
	hasty bool
	// parts are the servers that take part; there are none when the ring is empty.
	parts []part
	// order holds the part of each key, so that values are returned in the order in which they were asked for.
	order []int32
	// partOf holds, by server of the ring, the number of its part plus one; it is all zero between requests.
	partOf []int32
}

// part is the share of one server in an exchange. It has either a call or an error.
type part struct {
	server int
	peer   *peer
	link   *link
	call   *call
	err    *serverError
	// written counts the values of the call that were passed on, asked the keys of the call that were passed.
	written, asked int
}

// begin finds the servers of the request's keys and writes what each of them is asked, which for a store lacks its data
// still. It changes the expiry of the request while the ring settles. Requests with the same affinity reach a server in
// the order in which they are submitted.
func (x *exchange) begin(c *Client, r *request, affinity int) {
	x.cmd, x.keys = r.cmd, len(r.keys)
	rt := c.route.Load()
	n := rt.ring.Len()
	if n == 0 {
		return
	}
	if len(rt.former) > 0 {
		r.settle(rt, time.Now())
	}
	if len(x.partOf) < n {
		x.partOf = make([]int32, n)
	}
	for _, key := range r.keys {
		server := rt.ring.owner(key)
		if x.partOf[server] == 0 {
			peers := rt.peers[server]
			x.parts = append(x.parts, part{server: server, peer: peers[affinity%len(peers)], call: newCall(r.cmd, c.budget)})
			x.partOf[server] = int32(len(x.parts)) //nolint:gosec // At most MaxServers.
			call := x.parts[len(x.parts)-1].call
			call.req = r.appendHead(call.req)
		}
		i := x.partOf[server] - 1
		x.parts[i].call.addKey(key)
		x.order = append(x.order, i)
	}
	for i := range x.parts {
		x.parts[i].call.req = r.appendTail(x.parts[i].call.req)
		x.partOf[x.parts[i].server] = 0
	}
}

// data returns where the data of a store goes, behind its line; nil when no server would take it.
func (x *exchange) data() *call {
	if len(x.parts) == 0 {
		return nil
	}
	return x.parts[0].call
}

// submit enqueues what is asked.
func (x *exchange) submit(now time.Time) {
	for i := range x.parts {
		p := &x.parts[i]
		var err *serverError
		if p.link, err = p.peer.submit(p.call, now); err != nil {
			p.call.release()
			p.fail(err)
		}
	}
}

// flush sends what is enqueued.
func (x *exchange) flush() {
	for i := range x.parts {
		if x.parts[i].err == nil {
			x.parts[i].link.flush()
		}
	}
}

// await waits for all answers, until the timer fires.
func (x *exchange) await(deadline time.Time, timer *time.Timer) {
	for i := range x.parts {
		p := &x.parts[i]
		if p.err != nil {
			continue
		}
		if err := p.call.await(deadline, timer); err != nil {
			p.fail(err)
			// That a server is too slow for a caller in a hurry says nothing of it, unless it does not answer at all.
			if err == errTimeout && (!x.hasty || p.link.stalled(time.Now())) {
				p.peer.timedOut()
			}
		}
	}
}

// release takes the exchange back, and with it all that it returned.
func (x *exchange) release() {
	for i := range x.parts {
		if x.parts[i].call != nil {
			x.parts[i].call.release()
		}
		x.parts[i] = part{}
	}
	x.parts = x.parts[:0]
	if x.order = x.order[:0]; cap(x.order) > maxPooledKeys {
		x.order = nil
	}
}

// outcome counts the keys of a read that were found and those whose server failed; the others are not there.
func (x *exchange) outcome() (hits, failed int) {
	for i := range x.parts {
		if p := &x.parts[i]; p.err == nil {
			hits += len(p.call.values)
		}
	}
	for _, i := range x.order {
		if x.parts[i].err != nil {
			failed++
		}
	}
	return hits, failed
}

// status returns the answer to a command that is no read, without the end of the line.
func (x *exchange) status() []byte {
	switch {
	case len(x.parts) == 0 && x.cmd == cmdDelete:
		// A cache without servers holds no key.
		return wordNotFound
	case len(x.parts) == 0 || x.parts[0].err != nil:
		return []byte(outageAnswers[x.cmd])
	}
	return x.parts[0].call.reply
}

// writeValues writes the answer to a read, byte for byte what one server with all keys would say.
func (x *exchange) writeValues(w *bufio.Writer) {
	for _, i := range x.order {
		p := &x.parts[i]
		if p.err != nil {
			continue
		}
		if values := p.call.values; p.written < len(values) && values[p.written].key == p.asked {
			_, _ = w.Write(p.call.reply[values[p.written].start:values[p.written].end])
			p.written++
		}
		p.asked++
	}
	_, _ = w.WriteString("END\r\n")
}

// fail notes why the server did not answer. The call is gone.
func (p *part) fail(err *serverError) {
	p.call, p.err = nil, err
	p.peer.failed[err.reason].Add(1)
}

// addKey appends a key to the line of the call.
func (c *call) addKey(key []byte) {
	c.req = append(c.req, ' ')
	start := len(c.req)
	c.req = append(c.req, key...)
	c.keys = append(c.keys, span{start, len(c.req)})
}

// item returns the key and the data of a value in the reply.
func (c *call) item(v value) (key, data []byte) {
	block := c.reply[v.start:v.end]
	line, rest, _ := bytes.Cut(block, lineEnd)
	key, _ = nextField(line[len(wordValue):])
	return key, rest[:len(rest)-len(lineEnd)]
}
