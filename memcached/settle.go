// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"slices"
	"time"
)

// SettleTime is for how long after a change of the ring it is reckoned that others may not have heard of it: the
// minute and a half that the kubelet may take to bring a document, and half a minute more.
//
// Until then, what one writes to the new owner of a key is not changed or deleted by those who go by the ring before. So
// nothing that is written there outlives that time: a value that missed a change is gone when the ring has settled.
const SettleTime = 2 * time.Minute

// maxRelativeExpiry is the greatest exptime that memcached takes for seconds from now; a greater one is a Unix time.
const maxRelativeExpiry = 30 * 24 * 60 * 60

// expires reports whether the command says when an item expires.
func (c command) expires() bool {
	return c.stores() || c.touches() || c == cmdTouch
}

// settle has the request expire no later than the ring has settled, if it concerns a key that has another owner than
// before.
func (r *request) settle(rt *route, now time.Time) {
	left := rt.settled.Sub(now)
	if left <= 0 || !r.cmd.expires() {
		return
	}
	if slices.ContainsFunc(r.keys, rt.moved) {
		r.exptime = sooner(r.exptime, int64((left+time.Second-1)/time.Second), now)
	}
}

// moved reports whether the key has another owner than in a ring before.
func (rt *route) moved(key []byte) bool {
	now := rt.ring.servers[rt.ring.owner(key)].ringName()
	return slices.ContainsFunc(rt.former, func(ring *Ring) bool {
		before := ring.owner(key)
		return before < 0 || ring.servers[before].ringName() != now
	})
}

// sooner returns an exptime bounded by some seconds from now.
func sooner(exptime, seconds int64, now time.Time) int64 {
	switch {
	case exptime == 0:
		return seconds
	case exptime > maxRelativeExpiry:
		return min(exptime, now.Unix()+seconds)
	default:
		return min(exptime, seconds)
	}
}
