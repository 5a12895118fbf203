// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// dialer opens connections to all addresses of a name in turn. Large stores are
// many machines behind one name: a client that keeps to one of them gets its
// share of that machine only, and stands still when it does.
type dialer struct {
	net.Dialer
	resolver *net.Resolver

	mu    sync.Mutex
	names map[string]*addresses
}

// addresses is what a name stands for.
type addresses struct {
	// all are the addresses to use, best family first, those that failed last.
	all    []netip.Addr
	failed map[netip.Addr]bool
	next   int
	asked  time.Time
}

const (
	// nameLife is how long an answer of the name service is used.
	nameLife = 30 * time.Second
	// addressPatience bounds the wait for one address while there are others.
	addressPatience = 3 * time.Second
)

func newDialer(timeout time.Duration) *dialer {
	d := &dialer{resolver: net.DefaultResolver, names: map[string]*addresses{}}
	d.Timeout = timeout
	return d
}

// DialContext connects to the next address of the name, or to one after it if
// that does not answer.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return d.Dialer.DialContext(ctx, network, address)
	}
	turns, err := d.turns(ctx, host)
	if err != nil {
		return nil, err
	}
	var failures []error
	for i, a := range turns {
		conn, err := d.one(ctx, network, net.JoinHostPort(a.String(), port), i < len(turns)-1)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		d.avoid(host, a)
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

func (d *dialer) one(ctx context.Context, network, address string, others bool) (net.Conn, error) {
	if others {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, addressPatience)
		defer cancel()
	}
	return d.Dialer.DialContext(ctx, network, address)
}

// turns returns the addresses in the order in which this connection should try
// them, each call beginning with another one.
func (d *dialer) turns(ctx context.Context, host string) ([]netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.names[host]
	if known == nil || time.Since(known.asked) > nameLife {
		found, err := d.resolver.LookupNetIP(ctx, "ip", host)
		switch {
		case err == nil:
			known = &addresses{all: found, failed: map[netip.Addr]bool{}, asked: time.Now()}
			d.names[host] = known
		case known == nil:
			return nil, err
		default: // what was true half a minute ago is better than nothing
			known.asked = time.Now()
		}
	}
	return known.turns(), nil
}

// turns rotates the addresses of the family that the resolver puts first. The
// rest, and those that failed before, are for emergencies.
func (a *addresses) turns() []netip.Addr {
	var good, others, bad []netip.Addr
	for _, addr := range a.all {
		switch {
		case a.failed[addr]:
			bad = append(bad, addr)
		case addr.Unmap().Is4() != a.all[0].Unmap().Is4():
			others = append(others, addr)
		default:
			good = append(good, addr)
		}
	}
	if len(good) > 0 {
		at := a.next % len(good)
		a.next++
		good = slices.Concat(good[at:], good[:at])
	}
	return slices.Concat(good, others, bad)
}

// avoid puts an address last until the name is asked for again.
func (d *dialer) avoid(host string, addr netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known := d.names[host]; known != nil {
		known.failed[addr] = true
	}
}
