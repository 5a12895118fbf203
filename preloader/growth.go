// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"time"

	"golang.org/x/sys/unix"
)

// growth decides whether a run has too few connections: each of them brings little,
// and the processor waits more than it works. It looks from time to time, doubles
// them, and leaves off as soon as doubling them has not brought more: then it is the
// network, the store or the disk that holds the run back.
type growth struct {
	// cpus is how many processors' worth of time there is.
	cpus float64
	// at, fetched and spent are when it last looked, and the bytes and the processor
	// time of the run until then.
	at      time.Time
	fetched int64
	spent   time.Duration
	// before is the bytes a second before connections were last added.
	before float64
	// full means that more connections did not bring more.
	full bool
}

const (
	// growthLook is how long it watches before it decides.
	growthLook = 250 * time.Millisecond
	// fastConnection is how many bytes a second a connection brings that is not to blame.
	fastConnection = 200e6
	// busyShare is the share of its processor time from which on a run is busy.
	busyShare = 0.5
	// worthwhile is how much more twice the connections have to bring.
	worthwhile = 1.15
)

func (g *growth) begin(now time.Time, spent time.Duration, cpus float64) {
	*g = growth{at: now, spent: spent, cpus: cpus}
}

// due reports whether it is time to look again.
func (g *growth) due(now time.Time) bool { return !g.full && now.Sub(g.at) >= growthLook }

// look returns how many connections to add to those that there are, given the bytes
// that the run has fetched and the processor time that it has spent until now.
func (g *growth) look(now time.Time, fetched int64, spent time.Duration, conns int) int {
	took := now.Sub(g.at).Seconds()
	rate := float64(fetched-g.fetched) / took
	busy := (spent - g.spent).Seconds() / took
	g.at, g.fetched, g.spent = now, fetched, spent
	switch {
	case rate <= 0, busy > busyShare*g.cpus, rate >= fastConnection*float64(conns):
		return 0
	case rate < worthwhile*g.before:
		g.full = true
		return 0
	}
	g.before = rate
	return conns
}

// processorTime returns what this process has used of all processors.
func processorTime() time.Duration {
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
