// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"fmt"
	"slices"
	"unsafe"
)

// device is one GPU with the thread on which all its calls are made. It belongs to one
// goroutine.
type device struct {
	cuda   *cuda
	nvml   *nvml // nil if there is none
	thread *thread
	index  int
	// ordinal is the same for the driver, which calls the GPU handle from then on.
	ordinal, handle int32
	// query is NVML's handle, 0 if it has none.
	query uintptr
	// owned undoes what was allocated, in order.
	owned []owned
	info  *Device
}

// owned is something to give back.
type owned struct {
	name string
	undo func() result
	// settle, if not nil, waits until nothing uses the memory beneath any more.
	settle func() result
}

// pinned is page-locked memory of the driver.
type pinned struct {
	pointer unsafe.Pointer
	bytes   []byte
}

// call makes a call into the driver on the GPU's thread.
func (d *device) call(ctx context.Context, name string, f func() result) error {
	var err error
	if lost := d.thread.do(ctx, name, func() { err = d.cuda.check(name, f()) }); lost != nil {
		return lost // and err may yet be written
	}
	return err
}

// own remembers how to give something back.
func (d *device) own(name string, undo func() result) {
	d.owned = append(d.owned, owned{name: name, undo: undo})
}

// release gives back what was allocated since a mark, latest first, once no copy is on
// its way. It goes on after a refusal and returns the first.
func (d *device) release(ctx context.Context, mark int) error {
	var first error
	for _, o := range d.owned[mark:] {
		if o.settle != nil {
			first = d.call(ctx, "cuStreamSynchronize", o.settle)
		}
	}
	for _, o := range slices.Backward(d.owned[mark:]) {
		if err := d.call(ctx, o.name, o.undo); err != nil && first == nil {
			first = err
		}
	}
	d.owned = d.owned[:mark]
	return first
}

// close gives everything back and ends the thread. A thread that is lost can do
// neither, which is no new error.
func (d *device) close(ctx context.Context) error {
	err := d.release(ctx, 0)
	if d.thread.stuck() {
		return nil // whoever lost it has said so
	}
	d.thread.close()
	return err
}

// identify fills in what is known of a GPU without a context.
func (d *device) identify(ctx context.Context) error {
	var handle int32
	if err := d.call(ctx, "cuDeviceGet", func() result { return d.cuda.deviceGet(&handle, d.ordinal) }); err != nil {
		return err
	}
	d.handle = handle
	const nameLength, busLength = 128, 32
	name, bus := make([]byte, nameLength), make([]byte, busLength)
	var uuid [16]byte
	var memory uint64
	var major, minor, ecc int32
	queries := []struct {
		name string
		call func() result
	}{
		{"cuDeviceGetName", func() result { return d.cuda.deviceName(&name[0], nameLength, d.handle) }},
		{"cuDeviceGetPCIBusId", func() result { return d.cuda.devicePCI(&bus[0], busLength, d.handle) }},
		{"cuDeviceGetUuid_v2", func() result { return d.cuda.deviceUUID(&uuid, d.handle) }},
		{"cuDeviceTotalMem_v2", func() result { return d.cuda.deviceMemory(&memory, d.handle) }},
		{"cuDeviceGetAttribute", func() result { return d.cuda.attribute(&major, attributeComputeMajor, d.handle) }},
		{"cuDeviceGetAttribute", func() result { return d.cuda.attribute(&minor, attributeComputeMinor, d.handle) }},
		{"cuDeviceGetAttribute", func() result { return d.cuda.attribute(&ecc, attributeEccEnabled, d.handle) }},
	}
	for _, q := range queries {
		if err := d.call(ctx, q.name, q.call); err != nil {
			return err
		}
	}
	d.info.Name, d.info.PCI, d.info.UUID = textOf(name), textOf(bus), uuidText(uuid)
	d.info.Compute = fmt.Sprintf("%d.%d", major, minor)
	d.info.MemoryTotal, d.info.ECC = memory, ecc == 1
	return nil
}

// uuidText writes a GPU's name as nvidia-smi does.
func uuidText(u [16]byte) string {
	return fmt.Sprintf("GPU-%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// open makes the GPU's context current on its thread, and asks for the free memory.
func (d *device) open(ctx context.Context) error {
	var context uintptr
	err := d.call(ctx, "cuDevicePrimaryCtxRetain", func() result { return d.cuda.retainContext(&context, d.handle) })
	if err != nil {
		return err
	}
	d.own("cuDevicePrimaryCtxRelease_v2", func() result { return d.cuda.releaseContext(d.handle) })
	if err := d.call(ctx, "cuCtxSetCurrent", func() result { return d.cuda.setContext(context) }); err != nil {
		return err
	}
	d.own("cuCtxSetCurrent", func() result { return d.cuda.setContext(0) })
	var free, total uint64
	if err := d.call(ctx, "cuMemGetInfo_v2", func() result { return d.cuda.memoryInfo(&free, &total) }); err != nil {
		return err
	}
	d.info.MemoryFree, d.info.MemoryTotal = free, total
	return nil
}

// alloc takes memory of the GPU.
func (d *device) alloc(ctx context.Context, bytes int64) (uintptr, error) {
	var pointer uintptr
	err := d.call(ctx, "cuMemAlloc_v2", func() result { return d.cuda.alloc(&pointer, uint64(bytes)) }) //nolint:gosec // sizes
	if err != nil {
		return 0, err
	}
	d.own("cuMemFree_v2", func() result { return d.cuda.free(pointer) })
	return pointer, nil
}

// allocPinned takes page-locked memory of the host.
func (d *device) allocPinned(ctx context.Context, bytes int) (*pinned, error) {
	var pointer unsafe.Pointer
	err := d.call(ctx, "cuMemHostAlloc", func() result {
		return d.cuda.allocPinned(&pointer, uint64(bytes), 0) //nolint:gosec // a length
	})
	if err != nil {
		return nil, err
	}
	d.own("cuMemFreeHost", func() result { return d.cuda.freePinned(pointer) })
	return &pinned{pointer, unsafe.Slice((*byte)(pointer), bytes)}, nil //nolint:gosec // the driver gave that much
}

// stream makes a queue for copies.
func (d *device) stream(ctx context.Context) (uintptr, error) {
	var stream uintptr
	err := d.call(ctx, "cuStreamCreate", func() result { return d.cuda.createStream(&stream, streamNonBlocking) })
	if err != nil {
		return 0, err
	}
	d.owned = append(d.owned, owned{
		name: "cuStreamDestroy_v2",
		undo: func() result { return d.cuda.destroyStream(stream) }, settle: func() result { return d.cuda.waitStream(stream) },
	})
	return stream, nil
}

// event makes something to wait for. Waiting sleeps: with little processor time, the
// thread that reads files needs it more than one that spins.
func (d *device) event(ctx context.Context) (uintptr, error) {
	var event uintptr
	err := d.call(ctx, "cuEventCreate", func() result {
		return d.cuda.createEvent(&event, eventBlockingSync|eventDisableTiming)
	})
	if err != nil {
		return 0, err
	}
	d.own("cuEventDestroy_v2", func() result { return d.cuda.destroyEvent(event) })
	return event, nil
}

// send queues a copy to the GPU and records event behind it.
func (d *device) send(ctx context.Context, to uintptr, from *pinned, n int, stream, event uintptr) error {
	err := d.call(ctx, "cuMemcpyHtoDAsync_v2", func() result {
		return d.cuda.copyToDevice(to, from.pointer, uint64(n), stream) //nolint:gosec // a length
	})
	if err != nil {
		return err
	}
	return d.record(ctx, event, stream)
}

// fetch queues a copy from the GPU and records event behind it.
func (d *device) fetch(ctx context.Context, to *pinned, from uintptr, n int, stream, event uintptr) error {
	err := d.call(ctx, "cuMemcpyDtoHAsync_v2", func() result {
		return d.cuda.copyToHost(to.pointer, from, uint64(n), stream) //nolint:gosec // a length
	})
	if err != nil {
		return err
	}
	return d.record(ctx, event, stream)
}

func (d *device) record(ctx context.Context, event, stream uintptr) error {
	return d.call(ctx, "cuEventRecord", func() result { return d.cuda.recordEvent(event, stream) })
}

// wait waits until everything before the event is done.
func (d *device) wait(ctx context.Context, event uintptr) error {
	return d.call(ctx, "cuEventSynchronize", func() result { return d.cuda.waitEvent(event) })
}
