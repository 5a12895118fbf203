// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
)

// result is a CUresult, what a call into the driver returns.
type result int32

// The values of CUresult that something here depends on, from cuda.h.
const (
	success        result = 0
	outOfMemory    result = 2
	systemNotReady result = 802
)

// Flags and attributes from cuda.h.
const (
	attributeEccEnabled   int32  = 32
	attributeComputeMajor int32  = 75
	attributeComputeMinor int32  = 76
	streamNonBlocking     uint32 = 1
	eventBlockingSync     uint32 = 1
	eventDisableTiming    uint32 = 2
)

// cudaLibrary is the soname of the driver's library.
const cudaLibrary = "libcuda.so.1"

// cuda holds the functions of the CUDA driver API. Pointers are memory addresses of
// the driver or the GPU; they are no Go pointers.
type cuda struct {
	initialize     func(flags uint32) result
	driverVersion  func(version *int32) result
	errorName      func(code result, name **byte) result
	errorText      func(code result, text **byte) result
	deviceCount    func(count *int32) result
	deviceGet      func(device *int32, ordinal int32) result
	deviceName     func(name *byte, length, device int32) result
	deviceUUID     func(uuid *[16]byte, device int32) result
	devicePCI      func(id *byte, length, device int32) result
	deviceMemory   func(bytes *uint64, device int32) result
	attribute      func(value *int32, attribute, device int32) result
	retainContext  func(context *uintptr, device int32) result
	releaseContext func(device int32) result
	setContext     func(context uintptr) result
	memoryInfo     func(free, total *uint64) result
	alloc          func(pointer *uintptr, bytes uint64) result
	free           func(pointer uintptr) result
	allocPinned    func(pointer *unsafe.Pointer, bytes uint64, flags uint32) result
	freePinned     func(pointer unsafe.Pointer) result
	copyToDevice   func(to uintptr, from unsafe.Pointer, bytes uint64, stream uintptr) result
	copyToHost     func(to unsafe.Pointer, from uintptr, bytes uint64, stream uintptr) result
	createStream   func(stream *uintptr, flags uint32) result
	waitStream     func(stream uintptr) result
	destroyStream  func(stream uintptr) result
	createEvent    func(event *uintptr, flags uint32) result
	recordEvent    func(event, stream uintptr) result
	waitEvent      func(event uintptr) result
	destroyEvent   func(event uintptr) result
}

// symbols are the names under which libcuda exports the functions; the header hides
// the suffixes behind macros.
func (c *cuda) symbols() map[string]any {
	return map[string]any{
		"cuInit": &c.initialize, "cuDriverGetVersion": &c.driverVersion,
		"cuGetErrorName": &c.errorName, "cuGetErrorString": &c.errorText,
		"cuDeviceGetCount": &c.deviceCount, "cuDeviceGet": &c.deviceGet, "cuDeviceGetName": &c.deviceName,
		"cuDeviceGetUuid_v2": &c.deviceUUID, "cuDeviceGetPCIBusId": &c.devicePCI,
		"cuDeviceTotalMem_v2": &c.deviceMemory, "cuDeviceGetAttribute": &c.attribute,
		"cuDevicePrimaryCtxRetain": &c.retainContext, "cuDevicePrimaryCtxRelease_v2": &c.releaseContext,
		"cuCtxSetCurrent": &c.setContext, "cuMemGetInfo_v2": &c.memoryInfo,
		"cuMemAlloc_v2": &c.alloc, "cuMemFree_v2": &c.free,
		"cuMemHostAlloc": &c.allocPinned, "cuMemFreeHost": &c.freePinned,
		"cuMemcpyHtoDAsync_v2": &c.copyToDevice, "cuMemcpyDtoHAsync_v2": &c.copyToHost,
		"cuStreamCreate": &c.createStream, "cuStreamSynchronize": &c.waitStream, "cuStreamDestroy_v2": &c.destroyStream,
		"cuEventCreate": &c.createEvent, "cuEventRecord": &c.recordEvent,
		"cuEventSynchronize": &c.waitEvent, "cuEventDestroy_v2": &c.destroyEvent,
	}
}

// libraryError says that a library of the driver cannot be used.
type libraryError struct {
	soname string
	// missing are the functions that it lacks; empty if it cannot be loaded at all.
	missing []string
	err     error
}

func (l *libraryError) Error() string {
	if len(l.missing) > 0 {
		return fmt.Sprintf("%s lacks %s", l.soname, strings.Join(l.missing, ", "))
	}
	return fmt.Sprintf("%s cannot be loaded: %v", l.soname, l.err)
}

func (l *libraryError) Unwrap() error { return l.err }

// openCUDA loads the driver's library. All functions must be there.
func openCUDA() (*cuda, error) {
	c := &cuda{}
	missing, err := load(cudaLibrary, c.symbols())
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, &libraryError{soname: cudaLibrary, missing: missing}
	}
	return c, nil
}

// load opens a library and sets functions by their names. It returns the names that
// the library lacks, sorted.
func load(soname string, symbols map[string]any) ([]string, error) {
	handle, err := purego.Dlopen(soname, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, &libraryError{soname: soname, err: err}
	}
	var missing []string
	for _, name := range sortedKeys(symbols) {
		address, err := purego.Dlsym(handle, name)
		if err != nil {
			missing = append(missing, name)
			continue
		}
		purego.RegisterFunc(symbols[name], address)
	}
	return missing, nil
}

// cudaError is a call that the driver refused.
type cudaError struct {
	call string
	code result
	// name is what cuda.h calls the code, text what the driver says about it. Both may
	// be empty.
	name, text string
}

func (e *cudaError) Error() string {
	return fmt.Sprintf("%s returned %s", e.call, e.label())
}

// label names the code: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory.
func (e *cudaError) label() string {
	label := fmt.Sprintf("CUDA error %d", e.code)
	if e.name != "" {
		label = fmt.Sprintf("%s (%d)", e.name, e.code)
	}
	if e.text != "" {
		label += ": " + e.text
	}
	return label
}

// hasCode reports whether err is the driver's refusal with that code.
func hasCode(err error, code result) bool {
	refused, ok := errors.AsType[*cudaError](err)
	return ok && refused.code == code
}

// check makes an error of a result. It calls into the driver, so it belongs on the
// thread of the call.
func (c *cuda) check(call string, r result) error {
	if r == success {
		return nil
	}
	e := &cudaError{call: call, code: r}
	var name, text *byte
	if c.errorName(r, &name) == success {
		e.name = stringAt(name)
	}
	if c.errorText(r, &text) == success {
		e.text = stringAt(text)
	}
	return e
}

// stringAt copies a C string.
func stringAt(p *byte) string {
	if p == nil {
		return ""
	}
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 { //nolint:gosec // up to the zero that ends it
		n++
	}
	return string(unsafe.Slice(p, n)) //nolint:gosec // as far as was looked
}

// textOf returns the text before the zero that ends it.
func textOf(buf []byte) string {
	text, _, _ := strings.Cut(string(buf), "\x00")
	return text
}
