// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"fmt"
	"slices"
)

// nvmlResult is an nvmlReturn_t.
type nvmlResult int32

// The values of nvmlReturn_t that something here depends on, from nvml.h.
const (
	nvmlSuccess          nvmlResult = 0
	nvmlNotSupported     nvmlResult = 3
	nvmlNoPermission     nvmlResult = 4
	nvmlInsufficientSize nvmlResult = 7
	nvmlDriverNotLoaded  nvmlResult = 9
	nvmlTimeout          nvmlResult = 10
	nvmlNoFunction       nvmlResult = 13
	nvmlGPUIsLost        nvmlResult = 15
	nvmlResetRequired    nvmlResult = 16
	nvmlOperatingSystem  nvmlResult = 17
	nvmlVersionMismatch  nvmlResult = 18
	nvmlNoData           nvmlResult = 21
	nvmlArgumentVersion  nvmlResult = 25
	nvmlDeprecated       nvmlResult = 26
	nvmlUnknown          nvmlResult = 999
)

// Constants from nvml.h.
const (
	memoryErrorUncorrected int32  = 1
	eccSinceDriverLoad     int32  = 0
	eventXid               uint64 = 8
	fieldRecoveryAction    uint32 = 230
	fabricInfoV2           uint32 = 2 << 24
)

// nvmlLibrary is the soname of NVML.
const nvmlLibrary = "libnvidia-ml.so.1"

// fieldValue is nvmlFieldValue_t: the field, the scope, two times, the type, the result,
// and a union of numbers of up to eight bytes.
type fieldValue struct {
	field  uint32
	_      uint32
	_      [2]int64
	_      uint32
	result nvmlResult
	value  uint64
}

// eventData is nvmlEventData_t: the device, the type, the Xid, and two instances.
type eventData struct {
	_   uintptr
	_   uint64
	xid uint64
	_   [2]uint32
}

// processInfo is nvmlProcessInfo_t.
type processInfo struct {
	pid    uint32
	_      uint32
	memory uint64
	_      [2]uint32
}

// fabricInfo is nvmlGpuFabricInfo_v2_t.
type fabricInfo struct {
	version uint32
	_       [16]byte
	status  nvmlResult
	_       uint32
	state   uint8
	_       [3]uint8
	health  uint32
}

// nvml holds the functions of NVML. Those that an older library lacks are nil.
type nvml struct {
	initialize    func() nvmlResult
	shutdown      func() nvmlResult
	errorText     func(code nvmlResult) string
	driverVersion func(version *byte, length uint32) nvmlResult
	byPCI         func(id string, device *uintptr) nvmlResult
	eccErrors     func(device uintptr, kind, counter int32, count *uint64) nvmlResult
	remappedRows  func(device uintptr, correctable, uncorrectable, pending, failed *uint32) nvmlResult
	pendingPages  func(device uintptr, pending *uint32) nvmlResult
	fields        func(device uintptr, count int32, values *fieldValue) nvmlResult
	fabric        func(device uintptr, info *fabricInfo) nvmlResult
	processes     func(device uintptr, count *uint32, infos *processInfo) nvmlResult
	persistence   func(device uintptr, mode *uint32) nvmlResult
	pcieGen       func(device uintptr, gen *uint32) nvmlResult
	pcieMaxGen    func(device uintptr, gen *uint32) nvmlResult
	pcieWidth     func(device uintptr, width *uint32) nvmlResult
	pcieMaxWidth  func(device uintptr, width *uint32) nvmlResult
	createEvents  func(set *uintptr) nvmlResult
	watchEvents   func(device uintptr, kinds uint64, set uintptr) nvmlResult
	nextEvent     func(set uintptr, event *eventData, milliseconds uint32) nvmlResult
	freeEvents    func(set uintptr) nvmlResult
}

func (n *nvml) symbols() map[string]any {
	return map[string]any{
		"nvmlInit_v2": &n.initialize, "nvmlShutdown": &n.shutdown, "nvmlErrorString": &n.errorText,
		"nvmlSystemGetDriverVersion": &n.driverVersion, "nvmlDeviceGetHandleByPciBusId_v2": &n.byPCI,
		"nvmlDeviceGetTotalEccErrors": &n.eccErrors, "nvmlDeviceGetRemappedRows": &n.remappedRows,
		"nvmlDeviceGetRetiredPagesPendingStatus": &n.pendingPages, "nvmlDeviceGetFieldValues": &n.fields,
		"nvmlDeviceGetGpuFabricInfoV": &n.fabric, "nvmlDeviceGetComputeRunningProcesses_v3": &n.processes,
		"nvmlDeviceGetPersistenceMode":        &n.persistence,
		"nvmlDeviceGetCurrPcieLinkGeneration": &n.pcieGen, "nvmlDeviceGetMaxPcieLinkGeneration": &n.pcieMaxGen,
		"nvmlDeviceGetCurrPcieLinkWidth": &n.pcieWidth, "nvmlDeviceGetMaxPcieLinkWidth": &n.pcieMaxWidth,
		"nvmlEventSetCreate": &n.createEvents, "nvmlDeviceRegisterEvents": &n.watchEvents,
		"nvmlEventSetWait_v2": &n.nextEvent, "nvmlEventSetFree": &n.freeEvents,
	}
}

// openNVML loads NVML. Starting, stopping and naming errors must be there;
// other functions may be missing in an older library.
func openNVML() (*nvml, error) {
	n := &nvml{}
	missing, err := load(nvmlLibrary, n.symbols())
	if err != nil {
		return nil, err
	}
	missing = slices.DeleteFunc(missing, func(name string) bool {
		return name != "nvmlInit_v2" && name != "nvmlShutdown" && name != "nvmlErrorString"
	})
	if len(missing) > 0 {
		return nil, &libraryError{soname: nvmlLibrary, missing: missing}
	}
	return n, nil
}

// nvmlError is a query that NVML did not answer.
type nvmlError struct {
	call string
	code nvmlResult
	text string
}

func (e *nvmlError) Error() string {
	return fmt.Sprintf("%s returned NVML error %d: %s", e.call, e.code, e.text)
}

// absent reports whether the code only says that this GPU, this driver or this
// container does not tell.
func (r nvmlResult) absent() bool {
	return slices.Contains([]nvmlResult{
		nvmlNotSupported, nvmlNoPermission, nvmlNoFunction, nvmlNoData, nvmlArgumentVersion, nvmlDeprecated,
	}, r)
}

// check makes an error of a result.
func (n *nvml) check(call string, r nvmlResult) error {
	if r == nvmlSuccess {
		return nil
	}
	return &nvmlError{call: call, code: r, text: n.errorText(r)}
}
