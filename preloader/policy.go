// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"strconv"

	"serverless.xyz/outrigger/preloader/quantity"
)

// IOMode says how written bytes relate to memory. Bytes that go through the
// page cache are charged to this container until it ends, and stay cached for
// the model server that starts next, without being charged to it.
type IOMode string

const (
	// IOAuto chooses by limits, file system and size.
	IOAuto IOMode = "auto"
	// IOWarm leaves everything in the page cache. It needs memory for the model.
	IOWarm IOMode = "warm"
	// IOBounded sends bytes to disk as they come and keeps few in memory, so
	// that a small limit neither stalls nor kills the container.
	IOBounded IOMode = "bounded"
	// IODirect writes around the page cache.
	IODirect IOMode = "direct"
	// IOMemory is what files in memory come to; it cannot be asked for.
	IOMemory IOMode = "memory"
)

// ioPolicy is what was chosen.
type ioPolicy struct {
	mode IOMode
	// window is how many bytes may be on their way to disk; 0 means no bound.
	window int64
	// why says what decided, for people.
	why string
}

const (
	// breath is what is left beside the model: this process itself, and pages
	// that the kernel needs on the way.
	breath = 64 * mebibyte
	// smallestWindow still keeps a disk busy.
	smallestWindow = 16 * mebibyte
	largestWindow  = 256 * mebibyte
)

// choosePolicy decides how to write a model of this many bytes. inMemory means
// that the destination's files live in memory. A mode that was asked for is
// taken, or refused with the memory that it needs; it is never replaced.
func choosePolicy(asked IOMode, l limits, inMemory bool, model int64) (ioPolicy, error) {
	room := l.room()
	needed := wantedMemory(model, inMemory)
	bound := describeLimit(l)
	if inMemory {
		if needed > room {
			return ioPolicy{}, tooLittleMemory(needed, l, "its volume is in memory, where every byte counts")
		}
		return ioPolicy{mode: IOMemory, why: "the volume is in memory"}, nil
	}
	switch asked {
	case IOWarm:
		if needed > room {
			return ioPolicy{}, tooLittleMemory(needed, l, "PRELOADER_IO is warm, which keeps it in the page cache")
		}
		return ioPolicy{mode: IOWarm, why: "asked for"}, nil
	case IOBounded:
		return ioPolicy{mode: IOBounded, window: window(l), why: "asked for"}, nil
	case IODirect:
		return ioPolicy{mode: IODirect, why: "asked for"}, nil
	case IOAuto, IOMemory:
	}
	if needed <= room {
		return ioPolicy{mode: IOWarm, why: "the model fits into " + bound}, nil
	}
	return ioPolicy{
		mode: IOBounded, window: window(l),
		why: fmt.Sprintf("the model would need %s, more than %s", quantity.FormatBytes(needed), bound),
	}, nil
}

// wantedMemory returns what a model of this many bytes needs to stay in memory.
func wantedMemory(model int64, inMemory bool) int64 {
	if inMemory {
		return model + breath
	}
	return model + model/4 + breath
}

// window is a quarter of the room, within bounds that keep a disk busy and a
// limit unharmed.
func window(l limits) int64 {
	return min(max(l.room()/4, smallestWindow), largestWindow)
}

func describeLimit(l limits) string {
	switch {
	case l.memory > 0 && l.memory-l.used <= l.room():
		return "the memory limit of " + quantity.FormatBytes(l.memory)
	case l.available > 0:
		return "the machine's available memory of " + quantity.FormatBytes(l.available)
	}
	return "unlimited memory"
}

func tooLittleMemory(needed int64, l limits, why string) error {
	return &ExitError{
		Code: ExitNoSpace, Reason: "NoMemory",
		Cause: fmt.Sprintf("the model needs %s of memory but has %s of %s left, because %s",
			quantity.FormatBytes(needed), quantity.FormatBytes(l.room()), describeLimit(l), why),
		Advice: "Give the storage-initializer container a memory limit of at least " +
			strconv.FormatInt((needed+l.used)/mebibyte+1, 10) + "Mi, or use a volume on disk and PRELOADER_IO=auto.",
	}
}
