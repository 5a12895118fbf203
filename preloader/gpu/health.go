// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"context"
	"fmt"
)

// examiner asks NVML about one GPU, on the GPU's thread.
type examiner struct {
	device *device
	health *Health
	events uintptr
}

// examine asks for everything that does not change during a check, and starts to
// watch for critical events. A query that is refused for another reason than that
// nobody answers it is an error: health that cannot be told is not good health.
func (d *device) examine(ctx context.Context) (*examiner, error) {
	x := &examiner{device: d, health: &Health{}}
	n := d.nvml
	var query uintptr
	ok, err := x.ask(ctx, "nvmlDeviceGetHandleByPciBusId_v2", n.byPCI != nil, func() nvmlResult {
		return n.byPCI(d.info.PCI, &query)
	})
	if !ok || err != nil {
		return x, err
	}
	d.query = query
	d.info.Health = x.health
	for _, step := range []func(context.Context) error{x.memory, x.recovery, x.fabric, x.processes, x.watch} {
		if err := step(ctx); err != nil {
			return x, err
		}
	}
	return x, nil
}

// ask makes one query. It returns false if this GPU, driver or container does not
// answer it.
func (x *examiner) ask(ctx context.Context, name string, there bool, f func() nvmlResult) (bool, error) {
	r := nvmlNoFunction
	var err error
	if there {
		lost := x.device.thread.do(ctx, name, func() {
			r = f()
			err = x.device.nvml.check(name, r)
		})
		if lost != nil {
			return false, lost
		}
	}
	if r.absent() {
		x.health.Silent = append(x.health.Silent, name)
		return false, nil
	}
	return err == nil, err
}

// flag asks a question with the answer yes or no.
func (x *examiner) flag(ctx context.Context, name string, f func(uintptr, *uint32) nvmlResult) (*bool, error) {
	n, ok, err := x.number(ctx, name, f)
	if !ok {
		return nil, err
	}
	yes := n != 0
	return &yes, nil
}

// number asks for a number.
func (x *examiner) number(ctx context.Context, name string, f func(uintptr, *uint32) nvmlResult) (uint32, bool, error) {
	var n uint32
	ok, err := x.ask(ctx, name, f != nil, func() nvmlResult { return f(x.device.query, &n) })
	if !ok {
		return 0, false, err
	}
	return n, true, nil
}

// memory asks for errors of the GPU's memory.
func (x *examiner) memory(ctx context.Context) error {
	n := x.device.nvml
	var count uint64
	ok, err := x.ask(ctx, "nvmlDeviceGetTotalEccErrors", n.eccErrors != nil, func() nvmlResult {
		return n.eccErrors(x.device.query, memoryErrorUncorrected, eccSinceDriverLoad, &count)
	})
	if err != nil {
		return err
	}
	if ok {
		x.health.EccErrors = &count
	}
	var correctable, uncorrectable, pending, failed uint32
	ok, err = x.ask(ctx, "nvmlDeviceGetRemappedRows", n.remappedRows != nil, func() nvmlResult {
		return n.remappedRows(x.device.query, &correctable, &uncorrectable, &pending, &failed)
	})
	if err != nil {
		return err
	}
	if ok {
		waits, broken := pending != 0, failed != 0
		x.health.RowsPending, x.health.RowsFailed = &waits, &broken
	}
	x.health.PagesPending, err = x.flag(ctx, "nvmlDeviceGetRetiredPagesPendingStatus", n.pendingPages)
	if err != nil {
		return err
	}
	x.health.Persistence, err = x.flag(ctx, "nvmlDeviceGetPersistenceMode", n.persistence)
	return err
}

// recovery asks what the driver wants done with the GPU.
func (x *examiner) recovery(ctx context.Context) error {
	const name = "nvmlDeviceGetFieldValues"
	n := x.device.nvml
	value := fieldValue{field: fieldRecoveryAction}
	ok, err := x.ask(ctx, name, n.fields != nil, func() nvmlResult {
		if r := n.fields(x.device.query, 1, &value); r != nvmlSuccess {
			return r
		}
		return value.result
	})
	if !ok {
		return err
	}
	x.health.RecoveryAction = &value.value
	return nil
}

// fabric asks for the links between GPUs.
func (x *examiner) fabric(ctx context.Context) error {
	n := x.device.nvml
	info := fabricInfo{}
	info.version = fabricInfoV2 | fabricInfoBytes
	ok, err := x.ask(
		ctx,
		"nvmlDeviceGetGpuFabricInfoV",
		n.fabric != nil,
		func() nvmlResult { return n.fabric(x.device.query, &info) },
	)
	if !ok || info.state == fabricNotSupported {
		return err
	}
	x.health.Fabric = &Fabric{State: info.state, Status: int32(info.status), Health: info.health}
	return nil
}

// processes asks who holds memory. In a container, NVML names only those that it may
// see.
func (x *examiner) processes(ctx context.Context) error {
	n := x.device.nvml
	const most = 64
	infos, count := make([]processInfo, most), uint32(most)
	ok, err := x.ask(ctx, "nvmlDeviceGetComputeRunningProcesses_v3", n.processes != nil, func() nvmlResult {
		r := n.processes(x.device.query, &count, &infos[0])
		if r == nvmlInsufficientSize {
			// There are more; those that fit are enough for advice.
			return nvmlSuccess
		}
		return r
	})
	if !ok {
		return err
	}
	for _, p := range infos[:min(int(count), len(infos))] {
		if p.pid != 0 {
			x.health.Processes = append(x.health.Processes, Process{PID: p.pid, Memory: p.memory})
		}
	}
	return nil
}

// watch registers for critical events, so that those of the copies show.
func (x *examiner) watch(ctx context.Context) error {
	const name = "nvmlDeviceRegisterEvents"
	n := x.device.nvml
	if n.createEvents == nil || n.watchEvents == nil || n.nextEvent == nil || n.freeEvents == nil {
		x.health.Silent = append(x.health.Silent, name)
		return nil
	}
	var set uintptr
	ok, err := x.ask(ctx, "nvmlEventSetCreate", true, func() nvmlResult { return n.createEvents(&set) })
	if !ok {
		return err
	}
	x.device.own("nvmlEventSetFree", func() result {
		n.freeEvents(set)
		return success
	})
	ok, err = x.ask(ctx, name, true, func() nvmlResult { return n.watchEvents(x.device.query, eventXid, set) })
	if ok {
		x.events = set
	}
	return err
}

// conclude asks for what the check itself brought about: the state of the link while
// it was in use, and critical events.
func (x *examiner) conclude(ctx context.Context) error {
	if x.device.query == 0 {
		return nil
	}
	if err := x.link(ctx); err != nil {
		return err
	}
	const enough = 16
	for x.events != 0 && len(x.health.Xids) < enough {
		var event eventData
		r := nvmlTimeout
		_, err := x.ask(ctx, "nvmlEventSetWait_v2", true, func() nvmlResult {
			if r = x.device.nvml.nextEvent(x.events, &event, 0); r == nvmlTimeout {
				return nvmlSuccess
			}
			return r
		})
		if err != nil || r != nvmlSuccess {
			return err
		}
		x.health.Xids = append(x.health.Xids, event.xid)
	}
	return nil
}

func (x *examiner) link(ctx context.Context) error {
	n := x.device.nvml
	pcie := &PCIe{}
	for _, q := range []struct {
		name string
		ask  func(uintptr, *uint32) nvmlResult
		into *uint32
	}{
		{"nvmlDeviceGetCurrPcieLinkGeneration", n.pcieGen, &pcie.Gen},
		{"nvmlDeviceGetMaxPcieLinkGeneration", n.pcieMaxGen, &pcie.MaxGen},
		{"nvmlDeviceGetCurrPcieLinkWidth", n.pcieWidth, &pcie.Width},
		{"nvmlDeviceGetMaxPcieLinkWidth", n.pcieMaxWidth, &pcie.MaxWidth},
	} {
		value, ok, err := x.number(ctx, q.name, q.ask)
		if !ok {
			return err
		}
		*q.into = value
	}
	x.health.PCIe = pcie
	return nil
}

// judgeHealth says what is wrong with a GPU by what NVML tells.
func judgeHealth(h *Health) []Finding {
	var found []Finding
	add := func(severity Severity, reason, advice, cause string, args ...any) {
		found = append(found, Finding{Severity: severity, Reason: reason, Cause: fmt.Sprintf(cause, args...), Advice: advice})
	}
	is := func(p *bool) bool { return p != nil && *p }
	if is(h.RowsFailed) {
		add(Failure, "RowRemapFailed", drainAndReport, "a broken memory row could not be remapped")
	}
	if is(h.RowsPending) {
		add(
			Warning,
			"RowRemapPending",
			"Reset the GPU when the node is next drained.",
			"a remapping of memory rows waits for a reset",
		)
	}
	if is(h.PagesPending) {
		add(
			Warning,
			"PageRetirementPending",
			"Reboot the node when it is next drained.",
			"a retirement of memory pages waits for a reboot",
		)
	}
	if h.EccErrors != nil && *h.EccErrors > 0 {
		add(Warning, "EccErrors", "Reset the GPU when the node is next drained, and have it replaced if they come again.",
			"%d uncorrectable memory errors since the driver was loaded", *h.EccErrors)
	}
	if h.RecoveryAction != nil && *h.RecoveryAction != 0 {
		action, ok := recoveryActions[*h.RecoveryAction]
		if !ok {
			action = counsel{fmt.Sprintf("recovery action %d", *h.RecoveryAction), drainAndReset}
		}
		add(Failure, "RecoveryNeeded", action.advice, "the driver asks for %s", action.reason)
	}
	return append(found, judgeFabric(h.Fabric)...)
}

// judgeEvents says what critical events meant.
func judgeEvents(h *Health) []Finding {
	var found []Finding
	for _, xid := range h.Xids {
		found = append(found, explainXid(xid))
	}
	return found
}

// The values of a fabric's state and health mask, from nvml.h.
const (
	fabricInfoBytes    uint32 = 36
	fabricNotSupported uint8  = 0
	fabricCompleted    uint8  = 3

	fabricDegraded       = 0
	fabricRouteUnhealthy = 4
	fabricTrue           = 1
)

func judgeFabric(f *Fabric) []Finding {
	if f == nil {
		return nil
	}
	const advice = "Check nvidia-fabricmanager on the node; a pod with one GPU runs without it."
	says := func(shift int) bool { return f.Health>>shift&3 == fabricTrue }
	switch {
	case f.State != fabricCompleted:
		return []Finding{{
			Severity: Warning, Reason: "FabricNotReady", Cause: "the links between GPUs are not set up yet", Advice: advice,
		}}
	case f.Status != 0:
		return []Finding{{
			Severity: Failure, Reason: "FabricFailed",
			Cause: fmt.Sprintf("setting up the links between GPUs ended with NVML error %d", f.Status), Advice: advice,
		}}
	case says(fabricRouteUnhealthy):
		return []Finding{{
			Severity: Failure, Reason: "FabricFailed", Cause: "the links between GPUs have an unhealthy route", Advice: advice,
		}}
	case says(fabricDegraded):
		return []Finding{{
			Severity: Warning, Reason: "FabricDegraded", Cause: "the links between GPUs run at less than their bandwidth",
			Advice: "Look at the NVLink state on the node with nvidia-smi nvlink --status.",
		}}
	}
	return nil
}
