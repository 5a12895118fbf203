// SPDX-License-Identifier: Apache-2.0

package memcached

import "time"

const (
	// missedBytes bounds what a client remembers of changes that servers missed. A server that missed more is emptied.
	missedBytes = 8 << 20
	// missedKeyBytes is what a remembered key takes besides itself.
	missedKeyBytes = 64
	// mendBatch is how many keys are deleted with one wait.
	mendBatch = 128
)

// missed is what a server may hold old values of, because changes of them were not answered: the keys, or everything
// when they became too many. It takes its memory from a budget.
type missed struct {
	budget *budget
	keys   map[string]struct{}
	all    bool
}

// changes reports whether a server that missed the command goes on with a value that it should not have. One that missed
// an add has the value that stopped it, or none.
func (c command) changes() bool {
	return c >= cmdSet && c <= cmdDecr && c != cmdAdd
}

// note remembers a call that was not answered.
func (m *missed) note(c *call) {
	switch {
	case c.cmd == cmdFlushAll:
		m.noteAll()
	case !c.cmd.changes() || m.all:
		return
	default:
		for _, k := range c.keys {
			m.noteKey(c.req[k.start:k.end])
		}
	}
}

func (m *missed) noteKey(key []byte) {
	if _, known := m.keys[string(key)]; known {
		return
	}
	if !m.budget.take(int64(len(key) + missedKeyBytes)) {
		m.noteAll()
		return
	}
	if m.keys == nil {
		m.keys = map[string]struct{}{}
	}
	m.keys[string(key)] = struct{}{}
}

func (m *missed) noteAll() {
	m.forget()
	m.all = true
}

// forget gives the memory back.
func (m *missed) forget() {
	for key := range m.keys {
		m.budget.give(int64(len(key) + missedKeyBytes))
	}
	m.keys, m.all = nil, false
}

// none reports whether the server missed nothing.
func (m *missed) none() bool {
	return !m.all && len(m.keys) == 0
}

// take returns the next commands that make up for what was missed, and forgets it: a command that is not answered is
// noted like any other.
func (m *missed) take() []*call {
	if m.all {
		m.all = false
		c := newCall(cmdFlushAll, unlimited)
		c.req = append(c.req, "flush_all\r\n"...)
		return []*call{c}
	}
	var calls []*call
	for key := range m.keys {
		if len(calls) == mendBatch {
			break
		}
		c := newCall(cmdDelete, unlimited)
		c.req = append(c.req, cmdDelete.String()...)
		c.addKey([]byte(key))
		c.req = append(c.req, lineEnd...)
		calls = append(calls, c)
		delete(m.keys, key)
		m.budget.give(int64(len(key) + missedKeyBytes))
	}
	return calls
}

// mend has the server delete what it missed, as far as one batch goes, and then lets calls through if that was all: they
// follow the deletes on the same connection. It reports whether that was all, and whether the server keeps pace.
func (p *peer) mend() (done, ok bool) {
	now := time.Now()
	p.mu.Lock()
	l := p.link
	if l == nil {
		p.mu.Unlock()
		return false, false
	}
	emptying := p.missed.all
	calls := p.missed.take()
	sent := calls[:0]
	for _, c := range calls {
		if l.enqueue(c, now) != nil {
			p.note(c)
			c.release()
			continue
		}
		sent = append(sent, c)
	}
	refused := len(sent) < len(calls)
	done = p.missed.none()
	if done && p.down {
		p.inARow.Store(0)
		p.down = false
		p.upSince = now
	}
	p.mu.Unlock()
	l.flush()
	if emptying {
		p.log.Warn("Server missed too many changes, emptying it", "server", p.server.Name)
	}
	return done, p.awaitAll(sent, now.Add(p.timeout)) && !refused
}

// awaitAll waits for the answers, and reports whether all came.
func (p *peer) awaitAll(calls []*call, deadline time.Time) bool {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	all := true
	for _, c := range calls {
		if c.await(deadline, timer) != nil {
			all = false
			continue
		}
		c.release()
	}
	return all
}

// recover lets calls through again, after the server has made up for what it missed. It reports false when the
// connection that was probed has ended meanwhile, or is too slow for that.
func (p *peer) recover() bool {
	for {
		if done, ok := p.mend(); done || !ok {
			return done
		}
	}
}

// note remembers a call that was not answered, while there is a use for it. The caller holds the lock.
func (p *peer) note(c *call) {
	if !p.isClosed() {
		p.missed.note(c)
	}
}

// miss notes a call that did not reach a server which is not down, and has it made up for soon.
func (p *peer) miss(c *call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(c)
	if p.down || p.mending || p.missed.none() {
		return
	}
	p.mending = true
	go p.mendSoon()
}

// mendSoon mends until nothing is missed, or somebody else will.
func (p *peer) mendSoon() {
	for {
		select {
		case <-p.closed:
			return
		case <-time.After(minBackoff):
		}
		p.recover()
		p.mu.Lock()
		if p.down || p.missed.none() {
			p.mending = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
}
