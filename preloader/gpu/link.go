// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

const (
	// linkBuffer is how much one copy of a measurement moves, unless all of it is less.
	linkBuffer = 32 << 20
	// linkRounds is of how many rounds the best counts: the first ones wake the link up.
	linkRounds = 3
)

// measureLink copies size bytes each way, of page-locked memory, and compares what
// comes back with what was sent. It frees what it took.
func (d *device) measureLink(ctx context.Context, size int64) (link *Link, err error) {
	mark := len(d.owned)
	defer func() {
		if released := d.release(ctx, mark); err == nil {
			err = released
		}
	}()
	p, err := d.prepareProbe(ctx, int(min(size, linkBuffer)))
	if err != nil {
		return nil, err
	}
	copies := int(size) / len(p.out.bytes)
	p.fill()
	link = &Link{Intact: true}
	for range linkRounds {
		clear(p.back.bytes)
		for _, direction := range []struct {
			best *float64
			copy func(context.Context) error
		}{{&link.ToDevice, p.send}, {&link.ToHost, p.fetch}} {
			start := time.Now()
			for range copies {
				if err := direction.copy(ctx); err != nil {
					return nil, err
				}
			}
			if err := d.wait(ctx, p.event); err != nil {
				return nil, err
			}
			*direction.best = max(*direction.best, float64(copies*len(p.out.bytes))/since(start))
		}
		link.Intact = link.Intact && bytes.Equal(p.out.bytes, p.back.bytes)
	}
	return link, nil
}

// probe is what a measurement copies between.
type probe struct {
	device        *device
	out, back     *pinned
	there         uintptr
	stream, event uintptr
}

func (d *device) prepareProbe(ctx context.Context, size int) (*probe, error) {
	p := &probe{device: d}
	var err error
	if p.out, err = d.allocPinned(ctx, size); err != nil {
		return nil, err
	}
	if p.back, err = d.allocPinned(ctx, size); err != nil {
		return nil, err
	}
	if p.there, err = d.alloc(ctx, int64(size)); err != nil {
		return nil, err
	}
	if p.stream, err = d.stream(ctx); err != nil {
		return nil, err
	}
	if p.event, err = d.event(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// fill writes bytes without a period, so that a copy that goes astray shows.
func (p *probe) fill() {
	x := uint64(p.device.index)*0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d //nolint:gosec // not below zero
	for i := 0; i+8 <= len(p.out.bytes); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p.out.bytes[i:], x)
	}
}

func (p *probe) send(ctx context.Context) error {
	return p.device.send(ctx, p.there, p.out, len(p.out.bytes), p.stream, p.event)
}

func (p *probe) fetch(ctx context.Context) error {
	return p.device.fetch(ctx, p.back, p.there, len(p.back.bytes), p.stream, p.event)
}

// judgeLink says what is wrong with a link.
func judgeLink(l *Link, pcie *PCIe) []Finding {
	var found []Finding
	if !l.Intact {
		found = append(found, Finding{
			Severity: Failure, Reason: "LinkCorruptsBytes",
			Cause: "bytes that were copied to the GPU and back are not the same", Advice: drainAndReport,
		})
	}
	if pcie == nil {
		return found
	}
	if pcie.Width < pcie.MaxWidth {
		found = append(found, Finding{
			Severity: Warning, Reason: "LinkNarrow",
			Cause:  fmt.Sprintf("the PCIe link runs on %d of %d lanes", pcie.Width, pcie.MaxWidth),
			Advice: "Reseat the GPU or its riser, and look at the slot's settings in the firmware.",
		})
	}
	slower := min(l.ToDevice, l.ToHost)
	if carries := pcie.carries(); slower < carries/2 {
		found = append(found, Finding{
			Severity: Warning, Reason: "LinkSlow",
			Cause: fmt.Sprintf("copies run at %s, less than half of the %s that PCIe %d x%d can carry",
				rate(slower), rate(carries), pcie.Gen, pcie.Width),
			Advice: "Another pod may use the link just now; if it stays, look at the node's NUMA placement and PCIe switches.",
		})
	}
	return found
}

// carries is what the link moves each way at most, in bytes a second, without the
// overhead of packets; 0 if the generation is not known.
func (p *PCIe) carries() float64 {
	// Gigatransfers a second and lane, times the share of payload bits.
	perLane := map[uint32]float64{
		1: 2.5e9 * 8 / 10, 2: 5e9 * 8 / 10, 3: 8e9 * 128 / 130, 4: 16e9 * 128 / 130, 5: 32e9 * 128 / 130, 6: 64e9 * 242 / 256,
	}
	return perLane[p.Gen] * float64(p.Width) / 8
}
